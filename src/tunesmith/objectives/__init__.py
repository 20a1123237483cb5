"""What is learnt: one file an objective. `tunesmith.recipe.OBJECTIVES` lists them."""
