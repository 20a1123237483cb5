"""Which weights move: one file a method. `tunesmith.choices.METHODS` lists them."""

from tunesmith.models.lean import import_peft

import_peft()
