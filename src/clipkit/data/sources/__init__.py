"""One file per on-disk format: each turns what it finds into `Records`."""
