"""A prediction for a text, and the text as a model's input."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.models.attention import first_position
from tunesmith.models.prompts import plain_model, virtual_tokens


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prediction for a text: a class, a value, or an entity.

    Attributes:
        label: the class, the label, the value in words, or the kind of the entity.
        value: the probability, of an entity the smallest among its words; or the value itself.
        words: of the entity; empty for anything else.
    """

    label: str
    value: float
    words: str = ""

    def __str__(self) -> str:
        return f"{self.label}: {self.words}" if self.words else self.label


def inputs_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, **more: Any) -> dict[str, Tensor]:
    """The text's token ids and attention mask on the model's device, truncated to the model's context.

    Args:
        model: with its own attention.
        tokenizer: the model's.
        text: special tokens in it are split like other text.
        more: options of the tokenizer, such as `return_offsets_mapping`.
    """
    room = room_for_text(model)
    if room is not None:
        more |= {"truncation": True, "max_length": room}
    inputs = tokenizer(text, return_tensors="pt", split_special_tokens=True, **more)
    inputs.pop("token_type_ids", None)
    return {name: values.to(model.device) if name != "offset_mapping" else values for name, values in inputs.items()}


def room_for_text(model: PreTrainedModel) -> int | None:
    """The most tokens of a text that the model reads; None: no limit."""
    positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if positions is None else positions - virtual_tokens(model) - first_position(plain_model(model))
