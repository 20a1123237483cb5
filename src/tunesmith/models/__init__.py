"""Models: loading, families, forward passes, generation and merging."""
