"""Intervals, paired differences, corrections for many comparisons, and how many rows a difference needs.

Rows are taken as independent draws from those that the model will meet. Nothing here knows what a figure means.
"""
