"""The `base` section of a recipe: which model the run starts from."""

from pathlib import Path
from typing import Literal

from tunesmith.config.registry import Strict


class Base(Strict):
    """Which model the run starts from, and how its weights are stored. `base: embedded` is short for
    `base: {path: embedded}`."""

    path: str = "embedded"
    """`embedded` (the small model that ships with Tunesmith), a short name that `tunesmith bases` lists, a directory, a
    run directory, a GGUF file, or a hub name."""

    revision: str | None = None
    """The hub revision (branch, tag or commit). Default: the newest; its commit is recorded in the run."""

    weights: Literal["auto", "fp32", "bf16", "int8", "nf4", "fp4"] = "auto"
    """How the weights are stored in memory. `int8`, `nf4` and `fp4` quantize the blocks' linear layers, which are then
    frozen (Dettmers et al. 2022, 2023); all other weights follow `train.precision`. Default: as `train.precision`."""

    double_quantization: bool = True
    """With nf4 and fp4, also quantize the blocks' scales: 4.13 bits per weight instead of 4.5, with no loss that
    Dettmers et al. (2023, table 3) could measure. Without effect on int8, which has one scale for a whole row."""

    from_scratch: bool = False
    """Start from the architecture alone, with random weights, for pretraining. No weight file is read."""

    adapter: Path | None = None
    """A PEFT adapter of this base. The method starts from its weights, and must be the method that made it.
    Default: newly initialized weights."""

    chat_template: Path | None = None
    """A Jinja file that replaces the base's chat template. Default: the base's own, which it was trained with."""

    trust_remote_code: bool = False
    """Run Python code that ships with the model. Off, because such code can do anything."""

    @property
    def quantized(self) -> bool:
        return self.weights in ("int8", "nf4", "fp4")
