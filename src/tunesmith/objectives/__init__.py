"""Training objectives, one file each. `tunesmith.config.registry.OBJECTIVES` lists them."""
