"""Training a recipe: one run, or a pipeline of runs."""
