"""Which weights move: one file a method. `tunesmith.config.registry.METHODS` lists them."""

from tunesmith.models.lean import import_peft

import_peft()
