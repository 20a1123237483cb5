"""Embedding: no head of its own; a text's last hidden states are pooled to one vector.

A classifier on these vectors (a linear layer, fitted after training) makes it a classifier of texts.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.head import Command, Head
from tunesmith.data.batch import Batch
from tunesmith.data.tokens import Tokens, TokenTable
from tunesmith.errors import UserError
from tunesmith.heads.head_file import write_head
from tunesmith.heads.prediction import Prediction, inputs_of
from tunesmith.heads.sentence_transformers_format import STEPS, write_steps
from tunesmith.heads.sequence_classification import most_likely
from tunesmith.heads.truncation import without_end
from tunesmith.models.forward import Pooling, pool, pooled
from tunesmith.models.prompts import plain_model


@dataclass(frozen=True)
class EmbeddingHead(Head):
    """A vector for each text (Reimers & Gurevych 2019, section 3).

    Attributes:
        pooling: the mean over the text's tokens, its first token, or its last.
        normalized: whether vectors are scaled to length 1.
    """

    pooling: Pooling = "mean"
    normalized: bool = True

    kind: ClassVar[str] = "embedding"
    commands: ClassVar[tuple[Command, ...]] = ("embed",)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("recall_at_1", "recall_at_10", "mean_reciprocal_rank")

    def model_class(self, config: PretrainedConfig) -> Any:
        return AutoModel

    def text_lengths(self, table: TokenTable) -> NDArray[np.int64]:
        """The loss mask is set on the last token of each text."""
        longest = [np.diff(np.flatnonzero(loss_mask), prepend=-1).max() for _, loss_mask in table]
        return np.array(longest, np.int64)

    def truncated(self, row: Tokens, limit: int, closing: int) -> Tokens:
        """Each text is cut on its own."""
        ids, loss_mask, source, *targets = row
        texts = np.split(np.arange(len(ids)), np.flatnonzero(loss_mask)[:-1] + 1)
        cut = [without_end(text, limit, closing) for text in texts]
        marks = np.zeros(sum(map(len, cut)), np.bool_)
        marks[np.cumsum([len(text) for text in cut]) - 1] = True
        return ids[np.concatenate(cut)], marks, source, *targets

    @property
    def classifier(self) -> nn.Linear | None:
        """What was fitted on the vectors; an embedding alone has none."""
        return None

    def vectors(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """A vector for each document of the batch (documents, hidden), fp32 or wider, with gradients."""
        return self._scaled(pooled(model, batch, self.pooling))

    def vector(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
        """The text's vector (hidden,), fp32, by the model's own forward pass."""
        inputs = inputs_of(model, tokenizer, text)
        tokens = inputs["input_ids"].shape[1]
        return self._scaled(pool(model(**inputs).last_hidden_state[0, -tokens:], [tokens], self.pooling)[0])

    def _scaled(self, vectors: Tensor) -> Tensor:
        return functional.normalize(vectors, dim=-1) if self.normalized else vectors

    def outputs(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self.vectors(model, batch)

    def log_probabilities(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return torch.zeros(len(batch.rows), 1)

    def save(self, directory: Path, model: PreTrainedModel, max_length: int) -> None:
        """Also write the files that sentence-transformers reads."""
        hidden = plain_model(model).config.get_text_config().hidden_size
        write_steps(directory, self.pooling, self.normalized, hidden, max_length, self.classifier)
        write_head(self, directory)

    def copy(self, source: Path, target: Path) -> None:
        write_head(self, target)
        for pattern in STEPS:
            for file in source.glob(pattern):
                (shutil.copytree if file.is_dir() else shutil.copyfile)(file, target / file.name)


@dataclass(frozen=True)
class EmbeddingClassifierHead(EmbeddingHead):
    """One of several classes, by a classifier on the text's vector. Until it is fitted, the outputs are the vectors."""

    kind: ClassVar[str] = "embedding_classifier"
    commands: ClassVar[tuple[Command, ...]] = ("classify", "embed")

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("accuracy", "macro_f1", "calibration_error")

    def with_classifier(self, classifier: nn.Linear) -> "FittedClassifierHead":
        return FittedClassifierHead(self, classifier)

    def predict(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> list[Prediction]:
        raise UserError(
            "The model is stored as a classifier of vectors, but the classifier is missing (a directory named "
            "2_Dense or 3_Dense). Copy the complete directory of the model."
        )

    def describe(self, output: NDArray[np.float32]) -> str:
        return ", ".join(map(str, most_likely(output[0], self.labels)))

    def describe_target(self, target: NDArray[np.float32]) -> str:
        return self.labels[int(target[0])]


class FittedClassifierHead(EmbeddingClassifierHead):
    """The head with its classifier, which is in memory only: no field of it, and no part of a recipe.

    Args:
        head: that the classifier was fitted for.
        classifier: from vectors to the head's labels.
    """

    _classifier: nn.Linear

    def __init__(self, head: EmbeddingClassifierHead, classifier: nn.Linear) -> None:
        super().__init__(head.labels, head.pooling, head.normalized)
        object.__setattr__(self, "_classifier", classifier)  # the class is frozen

    @property
    def classifier(self) -> nn.Linear:
        return self._classifier

    def outputs(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The probability of each class (documents, labels)."""
        return torch.softmax(self.classifier(self.vectors(model, batch).cpu()), -1)

    def predict(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> list[Prediction]:
        probabilities = torch.softmax(self.classifier(self.vector(model, tokenizer, text).cpu()), -1)
        return most_likely(probabilities.numpy(), self.labels)
