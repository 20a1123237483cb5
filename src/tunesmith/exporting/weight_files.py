"""Write a model's weights as Hugging Face stores them, one safetensors file after the other."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.exporting.weights import Weights
from tunesmith.models.quiet import no_progress_bars, no_warnings
from tunesmith.modules.transposed_linear import as_stored

FILE_BYTES = 2**28
"""What one file has at least, if the model is larger: a file is in memory while it is written."""

FILES = 64
"""How many files a large model has."""


def save_weights(weights: Weights, directory: Path, dtype: torch.dtype) -> None:
    """Write the weights, rounded once, and the configs, with transformers' `save_pretrained`.

    Transformers writes models that are larger than the memory: tensors that it finds on the meta device are read when
    their file is written, from a mapping that the model's hook has (`transformers.integrations.accelerate`).

    Args:
        weights: of the model. Its skeleton is changed.
        directory: to write into.
        dtype: of the written weights.

    Raises:
        UserError: a weight is too large for the dtype, or cannot be merged.
        OSError: the directory cannot be written.
    """
    model = as_stored(weights.skeleton.to(dtype))
    total = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    model._hf_hook = SimpleNamespace(weights_map=Rounded(weights, dtype))
    model.hf_device_map = {"": "disk"}
    with no_progress_bars(), no_warnings(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        model.save_pretrained(directory, max_shard_size=max(FILE_BYTES, total // FILES))


class Rounded(Mapping[str, Tensor]):
    """Tensors as a family stores them, in another dtype."""

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        self._weights, self._dtype = weights, dtype

    def __getitem__(self, name: str) -> Tensor:
        """Raises:
        UserError: a value is too large for the dtype.
        """
        values = self._weights[name]
        if not values.is_floating_point():
            return values
        rounded = values.to(self._dtype)
        if not torch.isfinite(rounded).all():
            named = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}.get(self._dtype, self._dtype)
            raise UserError(f"{name} is too large for {named}. Use --precision bf16.")
        return rounded.T if self._weights.is_transposed(name) else rounded

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
