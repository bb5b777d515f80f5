"""The embedded `emoji` set: the archive, its licences, and the script that builds it."""
