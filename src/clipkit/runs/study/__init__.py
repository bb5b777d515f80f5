"""Searches: what is searched, who makes the trials, what is left of them (`clipkit.sweep`)."""
