"""What a model tells of texts that it reads: classes, a value, entities, a vector; through its own forward."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.data.labeled import OUTSIDE, WORD
from tunesmith.ending import Ending
from tunesmith.models.attention import first_position
from tunesmith.models.forward import pool
from tunesmith.models.heads import head_probabilities
from tunesmith.models.prompts import plain_model, virtual_tokens

THRESHOLD = 0.5
"""The probability from which on a label that is apart from the others is told."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One thing that is told of a text: a class and its probability, a value, or an entity with the words that it is
    of and the least probability among their tags."""

    label: str
    value: float
    words: str = ""

    def __str__(self) -> str:
        return f"{self.label}: {self.words}" if self.words else self.label


@torch.no_grad()
def tell(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ending: Ending,
    texts: Sequence[str],
    head: nn.Linear | None = None,
) -> list[list[Prediction]]:
    """What the model tells of each text.

    Args:
        model: in evaluation mode, with its ordinary attention; over-long texts are cut at its last position.
        tokenizer: its own.
        ending: what it ends in.
        texts: to read.
        head: over classes of vectors, where it ends in those.
    """
    found = []
    for text in texts:
        if ending.kind == "tags":
            spans = [match.span() for match in WORD.finditer(text)]
            tagged, probabilities = _tags(model, tokenizer, text, spans)
            found.append(list(entities_of(text, tagged, probabilities, ending.labels)))
            continue
        if head is not None:
            output = functional.softmax(head(vector_of(model, tokenizer, ending, text).cpu()), -1)
        else:
            output = head_probabilities(model(**_inputs(model, tokenizer, text)).logits[0].float(), ending)
        found.append(predictions_of(output.cpu().numpy()[None], ending))
    return found


@torch.no_grad()
def vector_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ending: Ending, text: str) -> Tensor:
    """The text's vector (hidden,), fp32."""
    inputs = _inputs(model, tokenizer, text)
    tokens = inputs["input_ids"].shape[1]
    vector = pool(model(**inputs).last_hidden_state[0, -tokens:], [tokens], ending.pooling)[0]
    return functional.normalize(vector, dim=-1) if ending.normalized else vector


def predictions_of(output: NDArray[np.float32], ending: Ending) -> list[Prediction]:
    """What one row's output (1, classes) tells; see `Prediction`."""
    values = output[0]
    if ending.problem == "regression":
        return [Prediction(f"{values[0]:.4g}", float(values[0]))]
    if ending.problem == "multi_label_classification":
        return [Prediction(ending.labels[place], float(values[place])) for place in np.flatnonzero(values >= THRESHOLD)]
    place = int(values.argmax())
    return [Prediction(ending.labels[place], float(values[place]))]


def spans_of(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first word, one past the last, label) of each entity in a sequence of `B-x`, `I-x`, `O`; an `I-x` after
    something else begins one, as conlleval has it (Tjong Kim Sang & Buchholz 2000). Other tags stand for themselves."""
    found: list[tuple[int, int, str]] = []
    for place, tag in enumerate(tags):
        label = tag[2:] if tag.startswith(("B-", "I-")) else tag
        if tag.startswith("I-") and found and found[-1][1:] == (place, label):
            found[-1] = (found[-1][0], place + 1, label)
        elif tag != OUTSIDE:
            found.append((place, place + 1, label))
    return found


def entities_of(
    text: str, spans: Sequence[tuple[int, int]], probabilities: NDArray[np.float32], labels: Sequence[str]
) -> Iterator[Prediction]:
    """The entities that tags' probabilities (words, tags) make of a text's words."""
    likeliest, sure = probabilities.argmax(-1), probabilities.max(-1)
    for first, end, label in spans_of([labels[place] for place in likeliest]):
        yield Prediction(label, float(sure[first:end].min()), text[spans[first][0] : spans[end - 1][1]])


def _tags(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], NDArray[np.float32]]:
    """The words that the model has room for, and each one's probabilities, told at its first token."""
    inputs = _inputs(model, tokenizer, text, return_offsets_mapping=True)
    starts, ends = inputs.pop("offset_mapping")[0].T
    logits = model(**inputs).logits[0, -inputs["input_ids"].shape[1] :].float().cpu()
    kept, places = [], []
    for start, end in spans:
        inside = ((starts < ends) & (starts < end) & (ends > start)).nonzero()
        if len(inside):
            kept.append((start, end))
            places.append(int(inside[0]))
    return kept, functional.softmax(logits[places], -1).numpy()


def _inputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, **more: Any) -> dict[str, Tensor]:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        room = positions - virtual_tokens(model) - first_position(plain_model(model))
        more |= {"truncation": True, "max_length": room}
    inputs = tokenizer(text, return_tensors="pt", split_special_tokens=True, **more)
    inputs.pop("token_type_ids", None)
    return {name: values.to(model.device) if name != "offset_mapping" else values for name, values in inputs.items()}
