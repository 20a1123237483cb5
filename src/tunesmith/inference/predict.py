"""A model's predictions for texts: classes, a value, entities or a vector, computed by its own forward."""

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
"""The minimum probability at which an independent label is predicted."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prediction for a text: a class and its probability, a value, or an entity with its words and the smallest
    probability among their tags."""

    label: str
    value: float
    words: str = ""

    def __str__(self) -> str:
        return f"{self.label}: {self.words}" if self.words else self.label


@torch.no_grad()
def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ending: Ending,
    texts: Sequence[str],
    head: nn.Linear | None = None,
) -> list[list[Prediction]]:
    """The predictions for each text.

    Args:
        model: in evaluation mode, with its standard attention. Texts longer than its context are truncated.
        tokenizer: the model's own.
        ending: the model's head.
        texts: the inputs.
        head: a classification head on vectors, if the model has one.

    Returns:
        A list of predictions for each text.
    """
    predictions = []
    for text in texts:
        if ending.kind == "tags":
            spans = [match.span() for match in WORD.finditer(text)]
            tagged, probabilities = _tags(model, tokenizer, text, spans)
            predictions.append(list(entities_of(text, tagged, probabilities, ending.labels)))
            continue
        if head is not None:
            output = functional.softmax(head(vector_of(model, tokenizer, ending, text).cpu()), -1)
        else:
            output = head_probabilities(model(**_inputs(model, tokenizer, text)).logits[0].float(), ending)
        predictions.append(predictions_of(output.cpu().numpy()[None], ending))
    return predictions


@torch.no_grad()
def vector_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ending: Ending, text: str) -> Tensor:
    """The text's vector (hidden,), fp32."""
    inputs = _inputs(model, tokenizer, text)
    tokens = inputs["input_ids"].shape[1]
    vector = pool(model(**inputs).last_hidden_state[0, -tokens:], [tokens], ending.pooling)[0]
    return functional.normalize(vector, dim=-1) if ending.normalized else vector


def predictions_of(output: NDArray[np.float32], ending: Ending) -> list[Prediction]:
    """The predictions of one row's output (1, classes); see `Prediction`."""
    values = output[0]
    if ending.problem == "regression":
        return [Prediction(f"{values[0]:.4g}", float(values[0]))]
    if ending.problem == "multi_label_classification":
        return [Prediction(ending.labels[index], float(values[index])) for index in np.flatnonzero(values >= THRESHOLD)]
    index = int(values.argmax())
    return [Prediction(ending.labels[index], float(values[index]))]


def spans_of(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first word, one past the last, label) of each entity in a sequence of `B-x`, `I-x`, `O`.

    An `I-x` after another tag starts an entity, as in conlleval (Tjong Kim Sang & Buchholz 2000). Any other tag is an
    entity of one word.
    """
    spans: list[tuple[int, int, str]] = []
    for index, tag in enumerate(tags):
        label = tag[2:] if tag.startswith(("B-", "I-")) else tag
        if tag.startswith("I-") and spans and spans[-1][1:] == (index, label):
            spans[-1] = (spans[-1][0], index + 1, label)
        elif tag != OUTSIDE:
            spans.append((index, index + 1, label))
    return spans


def entities_of(
    text: str, spans: Sequence[tuple[int, int]], probabilities: NDArray[np.float32], labels: Sequence[str]
) -> Iterator[Prediction]:
    """The entities in a text, from its words' tag probabilities (words, tags)."""
    best, confidence = probabilities.argmax(-1), probabilities.max(-1)
    for first, end, label in spans_of([labels[index] for index in best]):
        yield Prediction(label, float(confidence[first:end].min()), text[spans[first][0] : spans[end - 1][1]])


def _tags(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], NDArray[np.float32]]:
    """The words that fit into the model's context, and the tag probabilities at each one's first token."""
    inputs = _inputs(model, tokenizer, text, return_offsets_mapping=True)
    starts, ends = inputs.pop("offset_mapping")[0].T
    logits = model(**inputs).logits[0, -inputs["input_ids"].shape[1] :].float().cpu()
    kept, first_tokens = [], []
    for start, end in spans:
        inside = ((starts < ends) & (starts < end) & (ends > start)).nonzero()
        if len(inside):
            kept.append((start, end))
            first_tokens.append(int(inside[0]))
    return kept, functional.softmax(logits[first_tokens], -1).numpy()


def _inputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, **more: Any) -> dict[str, Tensor]:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        room = positions - virtual_tokens(model) - first_position(plain_model(model))
        more |= {"truncation": True, "max_length": room}
    inputs = tokenizer(text, return_tensors="pt", split_special_tokens=True, **more)
    inputs.pop("token_type_ids", None)
    return {name: values.to(model.device) if name != "offset_mapping" else values for name, values in inputs.items()}
