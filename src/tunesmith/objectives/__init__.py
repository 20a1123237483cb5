"""What is learnt: one file an objective. `tunesmith.choices.OBJECTIVES` lists them."""
