"""A trained model in one piece: adapters merged into their base, or combined with each other."""
