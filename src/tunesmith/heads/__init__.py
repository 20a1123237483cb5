"""What a model ends in, one file each. `tunesmith.config.registry.HEADS` lists them."""
