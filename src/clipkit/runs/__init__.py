"""Runs: composing, checking, recording, resuming, reporting."""
