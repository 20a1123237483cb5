"""Which weights move: one file a method. `tunesmith.recipe.METHODS` lists them."""

from tunesmith.models.lean import import_peft

import_peft()
