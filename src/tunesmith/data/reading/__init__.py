"""Rows from files of each format, from queries and from remote storage: one module each."""
