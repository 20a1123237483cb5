"""Models: loading, families, forward passes that compute only what is needed, generation, merging."""
