"""Token classification: a tag for each word, read at the word's first token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.data.batch import Batch
from tunesmith.data.labeled import OUTSIDE, WORD
from tunesmith.data.tokens import Tokens
from tunesmith.heads.new_head import NewHead, check_logits, head_logits
from tunesmith.heads.prediction import Prediction, inputs_of
from tunesmith.heads.truncation import without_end
from tunesmith.models.forward import loss_hidden_states
from tunesmith.models.prompts import plain_model


@dataclass(frozen=True)
class TokenClassificationHead(NewHead):
    """A tag for each word, with a probability for each tag."""

    kind: ClassVar[str] = "token_classification"
    auto_class: ClassVar[Any] = AutoModelForTokenClassification
    missing: ClassVar[str] = "token classification head for {family}. Use another base."

    @property
    def metrics(self) -> tuple[str, ...]:
        """Entity F1 comes first if the tags are `B-` tags."""
        entities = any(label.startswith("B-") for label in self.labels)
        return ("entity_f1", "tag_accuracy") if entities else ("tag_accuracy",)

    def check(self, model: PreTrainedModel) -> None:
        check_logits(model, np.ones(4, np.bool_), tag_logits)

    def truncated(self, row: Tokens, limit: int, closing: int) -> Tokens | None:
        """Words that are cut lose their tags."""
        ids, loss_mask, source, *targets = row
        kept = without_end(np.arange(len(ids)), limit, closing)
        words = int(loss_mask[kept].sum())
        return (ids[kept], loss_mask[kept], source, targets[0][:words]) if words else None

    def outputs(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return torch.softmax(tag_logits(model, batch).float(), -1)

    def targets(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values.reshape(-1, 1)

    def log_probabilities(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return torch.log(self.outputs(model, batch).clamp(1e-7, 1.0))

    def predict(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> list[Prediction]:
        spans, probabilities = _word_tags(model, tokenizer, text, [match.span() for match in WORD.finditer(text)])
        return list(entities_of(text, spans, probabilities, self.labels))

    def describe(self, output: NDArray[np.float32]) -> str:
        return self._describe_tags(output.argmax(-1))

    def describe_target(self, target: NDArray[np.float32]) -> str:
        return self._describe_tags(target.astype(np.int64))

    def _describe_tags(self, tags: NDArray[np.int64]) -> str:
        spans = spans_of([self.labels[int(tag)] for tag in tags])
        return ", ".join(f"{label} ({_word_range(first + 1, end)})" for first, end, label in spans) or "(none)"


def tag_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The logits at each marked word (words, tags), computed by the family's own head."""
    hidden, _ = loss_hidden_states(model, batch)
    return head_logits(plain_model(model), hidden[None])[0]


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


def _word_tags(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[tuple[int, int]], NDArray[np.float32]]:
    """The words that fit into the model's context, and the tag probabilities at each one's first token."""
    inputs = inputs_of(model, tokenizer, text, return_offsets_mapping=True)
    starts, ends = inputs.pop("offset_mapping")[0].T
    logits = model(**inputs).logits[0, -inputs["input_ids"].shape[1] :].float().cpu()
    kept, first_tokens = [], []
    for start, end in spans:
        inside = ((starts < ends) & (starts < end) & (ends > start)).nonzero()
        if len(inside):
            kept.append((start, end))
            first_tokens.append(int(inside[0]))
    return kept, torch.softmax(logits[first_tokens], -1).numpy()


def _word_range(first: int, last: int) -> str:
    return f"word {first}" if first == last else f"words {first}–{last}"
