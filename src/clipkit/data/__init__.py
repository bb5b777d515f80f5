"""From what users have on disk to batches."""
