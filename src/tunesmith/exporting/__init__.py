"""A trained model in one piece, for other engines; adapters combined with each other."""
