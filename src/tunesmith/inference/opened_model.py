"""A model by its name: what it ends in, its weights and its tokenizer, loaded at their first use."""

from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.head import Command, Head
from tunesmith.errors import UserError
from tunesmith.inference.memory import CONCURRENT, refuse_unknown_cache
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.precision import device_of, dtype_of, writing_dtype

REFUSALS: dict[Command, str] = {
    "generate": "does not write text",
    "classify": "does not classify texts",
    "embed": "does not embed texts",
    "reward": "is no reward model",
}
"""What a model that has another head does not do."""


class OpenedModel:
    """A model whose weights are loaded at the first call that needs them, and stay. Its arguments are those of `load`,
    which explains them."""

    def __init__(
        self,
        name: str | Path,
        device: str = "auto",
        precision: str = "auto",
        weights: str | None = None,
        concurrent: int = CONCURRENT,
        cache: str = "auto",
    ) -> None:
        refuse_unknown_cache(cache)
        if precision not in ("auto", "bf16", "fp32"):
            raise UserError(f"precision: {precision} is not one of auto, bf16 and fp32.")
        self.name, self.concurrent, self.cache = str(name), concurrent, cache
        self.reference = ModelReference.find(self.name)
        if weights is not None:
            self.reference = self.reference.with_weights(weights)
        self.device = device_of(device)
        dtype = writing_dtype if self.head.generates_text else dtype_of
        needs_fp32 = precision == "auto" and self.head.needs_fp32
        self.dtype = dtype("fp32" if needs_fp32 else precision, self.device)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, head={self.head.kind}, device={self.device}, dtype={self.dtype})"

    @property
    def head(self) -> Head:
        """What the model ends in."""
        return self.reference.head

    def require(self, command: Command) -> None:
        """Refuse a model whose head does something else; its weights are not loaded for that.

        Args:
            command: `generate`, `classify` or `embed`.

        Raises:
            UserError: the model does something else, which the message names.
        """
        if command not in self.head.commands:
            usual = next(iter(self.head.commands), None)
            hint = (
                f"Use it with: tunesmith {usual} {self.name}"
                if usual
                else "It has no head yet: train it with one first."
            )
            raise UserError(f"{self.name} {REFUSALS[command]}. {hint}")

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model of transformers, or PEFT's around it, in evaluation mode.

        Raises:
            UserError: it cannot be loaded.
        """
        return self.reference.model(self.dtype, self.device)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the chat template of the training.

        Raises:
            UserError: it cannot be loaded.
        """
        return self.reference.tokenizer()
