"""Which weights move: one file a method. `tunesmith.recipe.METHODS` lists them."""
