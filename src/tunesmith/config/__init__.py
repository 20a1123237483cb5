"""The recipe: its sections, its registries, YAML and JSON schema, and pipelines of recipes."""
