"""Checks of the data, before anything is trained on it: what is wrong, in which rows, and what to do."""
