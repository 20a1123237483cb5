"""Suites of `tunesmith evaluate --suite`, one file each."""
