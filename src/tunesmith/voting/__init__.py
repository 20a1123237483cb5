"""People's votes on answers side by side: asking for them, keeping them as rows to train on, ranking models by them."""
