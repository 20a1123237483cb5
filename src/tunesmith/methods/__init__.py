"""Methods, which define the weights that are trained: one file each. `tunesmith.config.registry.METHODS` lists them."""

from tunesmith.models.peft_import import import_peft

import_peft()
