"""Sequence classification: a class, any number of labels, or a value for a text.

Decoders' heads (transformers' `score`) read the last token. Encoders' heads differ, but all read the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tunesmith.data.batch import Batch
from tunesmith.data.example import Source
from tunesmith.data.tokens import Tokens, TokenTable
from tunesmith.heads.new_head import NewHead, check_logits, head_logits, head_names
from tunesmith.heads.prediction import Prediction, inputs_of
from tunesmith.heads.truncation import without_end
from tunesmith.models.forward import evaluation_batches, first_hidden_states, loss_hidden_states
from tunesmith.models.prompts import plain_model

THRESHOLD = 0.5
"""The minimum probability at which an independent label is predicted."""


@dataclass(frozen=True)
class SequenceClassificationHead(NewHead):
    """One of several classes, with a probability for each."""

    kind: ClassVar[str] = "sequence_classification"
    auto_class: ClassVar[Any] = AutoModelForSequenceClassification
    missing: ClassVar[str] = (
        "sequence classification head for {family}. Use another base, or objective: few_shot, which needs no such head."
    )

    problem_type: ClassVar[str] = "single_label_classification"
    """transformers' name of the problem."""

    reads_turn_end: ClassVar[bool] = False
    """Whether it reads the token that ends a chat's last turn, and not what the template writes after it."""

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("accuracy", "macro_f1", "calibration_error")

    def is_stored(self, config: PretrainedConfig) -> bool:
        stored = config.problem_type or SequenceClassificationHead.problem_type
        return NewHead.is_stored(self, config) and stored == self.problem_type

    def configure(self, config: PretrainedConfig) -> None:
        NewHead.configure(self, config)
        config.problem_type = self.problem_type

    def check(self, model: PreTrainedModel) -> None:
        check_logits(model, np.arange(4) == 3, class_logits)

    def truncated(self, row: Tokens, limit: int, closing: int) -> Tokens:
        ids, _, source, *targets = row
        kept = without_end(np.arange(len(ids)), limit, closing)
        return ids[kept], np.arange(len(kept)) == len(kept) - 1, source, *targets

    def dummy_rows(self, lengths: Sequence[int]) -> TokenTable:
        target = (0.0,) * self._values
        return TokenTable.build(
            (np.zeros(length, np.int32), np.arange(length) == length - 1, Source("", 1), target) for length in lengths
        )

    @property
    def _values(self) -> int:
        """How many targets a row has."""
        return 1

    def reads_features(self, model: PreTrainedModel) -> bool:
        plain = plain_model(model)
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        head = {id(parameter) for name in head_names(plain) for parameter in plain.get_submodule(name).parameters()}
        return bool(trained) and trained <= head

    @torch.no_grad()
    def with_features(self, model: PreTrainedModel, table: TokenTable, tokens_per_batch: int) -> TokenTable:
        features = np.zeros((len(table), plain_model(model).config.get_text_config().hidden_size), np.float32)
        for rows, batch in evaluation_batches(model, table, range(len(table)), tokens_per_batch):
            features[rows] = _head_input(model, batch).float().cpu().numpy()
        return replace(table, features=features)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The outputs (…, labels) from the head's logits (…, labels)."""
        return torch.softmax(logits, -1)

    def outputs(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self.probabilities(class_logits(model, batch).float())

    def log_probabilities(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return torch.log(self.outputs(model, batch).clamp(1e-7, 1.0))

    def predict(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> list[Prediction]:
        logits = model(**inputs_of(model, tokenizer, text)).logits[0].float()
        return self.predictions(self.probabilities(logits).cpu().numpy())

    def predictions(self, output: NDArray[np.float32]) -> list[Prediction]:
        """The predictions from the outputs (labels,) of one text."""
        return most_likely(output, self.labels)

    def describe(self, output: NDArray[np.float32]) -> str:
        return ", ".join(map(str, self.predictions(output[0]))) or "(none)"

    def describe_target(self, target: NDArray[np.float32]) -> str:
        return self.labels[int(target[0])]


@dataclass(frozen=True)
class MultiLabelHead(SequenceClassificationHead):
    """Any number of labels, each with an independent probability."""

    kind: ClassVar[str] = "multi_label_classification"
    problem_type: ClassVar[str] = "multi_label_classification"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("exact_match_of_labels", "micro_f1", "macro_f1_of_labels", "calibration_of_labels")

    @property
    def _values(self) -> int:
        return len(self.labels)

    def probabilities(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    def log_probabilities(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """A label has two outcomes, present and absent."""
        present = self.outputs(model, batch)
        outcomes = torch.stack([present, 1 - present], -1).flatten(0, 1)
        return torch.log(outcomes.clamp(1e-7, 1.0))

    def predictions(self, output: NDArray[np.float32]) -> list[Prediction]:
        return [Prediction(self.labels[index], float(output[index])) for index in np.flatnonzero(output >= THRESHOLD)]

    def describe_target(self, target: NDArray[np.float32]) -> str:
        return self.describe(target[None])


@dataclass(frozen=True)
class RegressionHead(SequenceClassificationHead):
    """One value."""

    kind: ClassVar[str] = "regression"
    problem_type: ClassVar[str] = "regression"
    has_probabilities: ClassVar[bool] = False
    needs_fp32: ClassVar[bool] = True  # bf16 has about three decimal digits: too few for values in their own unit

    labels: tuple[str, ...] = ("value",)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("root_mean_square_error", "correlation", "rank_correlation")

    def probabilities(self, logits: Tensor) -> Tensor:
        """The values themselves."""
        return logits

    def log_probabilities(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return torch.zeros(len(batch.rows), 1)

    def predictions(self, output: NDArray[np.float32]) -> list[Prediction]:
        return [Prediction(f"{output[0]:.4g}", float(output[0]))]

    def describe_target(self, target: NDArray[np.float32]) -> str:
        return self.describe(target[None])


def most_likely(output: NDArray[np.float32], labels: Sequence[str]) -> list[Prediction]:
    """The class with the highest of these probabilities (labels,)."""
    index = int(output.argmax())
    return [Prediction(labels[index], float(output[index]))]


def class_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The logits of each document (documents, classes), computed by the family's own head."""
    plain = plain_model(model)
    hidden = (
        torch.as_tensor(batch.features).to(plain.dtype) if batch.features is not None else _head_input(model, batch)
    )
    if hasattr(plain, "score"):
        logits: Tensor = plain.score(hidden)
        return logits
    return head_logits(plain, hidden[:, None])


def _head_input(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The hidden state of each document that the head reads (documents, hidden)."""
    if hasattr(plain_model(model), "score"):
        return loss_hidden_states(model, batch)[0]
    return first_hidden_states(model, batch)
