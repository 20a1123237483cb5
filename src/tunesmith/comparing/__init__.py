"""Prompting, retrieval and fine-tuning side by side on the same rows, and which to take."""
