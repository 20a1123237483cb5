"""What is learnt: one file an objective. `tunesmith.config.registry.OBJECTIVES` lists them."""
