"""Using a model: text it generates, and what its head predicts."""
