"""Evaluation: the tuned model beside its base on held-out rows, each figure with a confidence interval."""
