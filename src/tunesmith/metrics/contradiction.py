"""Answers that contradict themselves, by a model of natural language inference (NLI) that the user names."""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import regex
import torch

from tunesmith.errors import UserError
from tunesmith.heads.sequence_classification import SequenceClassificationHead
from tunesmith.inference.model_reference import ModelReference
from tunesmith.metrics.metric import Metric

SENTENCES = 12
"""Of an answer, at most: its pairs grow with the square."""

LABEL = "contradiction"
"""The label of contradictions, unless another one is named."""

_BORDER = regex.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*|\n+")


@dataclass(frozen=True)
class Inference:
    """A model that says how two texts relate.

    Attributes:
        network, tokenizer: of transformers.
        label: the number of the label that counts.
    """

    network: Any
    tokenizer: Any
    label: int

    @classmethod
    def open(cls, model: str, label: str) -> "Inference":
        """Load it.

        Args:
            model: a directory or a hub name.
            label: that counts, in any case.

        Returns:
            The model.

        Raises:
            UserError: it cannot be loaded, does not classify pairs of texts, or has no such label.
        """
        from transformers import AutoModelForSequenceClassification

        reference = ModelReference.find(model)
        if reference.adapter is not None or not isinstance(reference.head, SequenceClassificationHead):
            raise UserError(f"{model} does not classify pairs of texts. Name an NLI model in transformers' format.")
        network = AutoModelForSequenceClassification.from_pretrained(reference.directory).eval()
        numbers = {str(name).casefold(): number for number, name in network.config.id2label.items()}
        if label.casefold() not in numbers:
            known = ", ".join(map(str, network.config.id2label.values()))
            raise UserError(f"{model} has no label {label}. Name its own as {model}#LABEL: {known}.")
        return cls(network, reference.tokenizer(), numbers[label.casefold()])

    def contradicts_itself(self, answer: str, expected: str = "") -> float:
        """1 if a later sentence of an answer contradicts an earlier one.

        Args:
            answer: the text to score; its first `SENTENCES` sentences count.
            expected: not used; every metric has it.

        Returns:
            0 or 1.
        """
        pairs = list(combinations(sentences(answer)[:SENTENCES], 2))
        if not pairs:
            return 0.0
        premises, hypotheses = (list(side) for side in zip(*pairs, strict=True))
        return float((self._logits(premises, hypotheses).argmax(-1) == self.label).any())

    def probabilities(self, premises: list[str], hypotheses: list[str]) -> list[float]:
        """The probability of the label for pairs of texts.

        Args:
            premises: (pairs,).
            hypotheses: (pairs,).

        Returns:
            (pairs,).
        """
        if not premises:
            return []
        found: list[float] = self._logits(premises, hypotheses).softmax(-1)[:, self.label].tolist()
        return found

    def _logits(self, premises: list[str], hypotheses: list[str]) -> torch.Tensor:
        """(pairs, labels)."""
        inputs = self.tokenizer(premises, hypotheses, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits: torch.Tensor = self.network(**inputs).logits
        return logits


def contradiction_metric(setting: str, directory: Path) -> Metric:
    """The share of answers in which a later sentence contradicts an earlier one.

    Args:
        setting: a model that classifies pairs of texts, as a directory or a hub name; with `#LABEL` if its label for
            contradictions is not `contradiction`.
        directory: from which the path of a directory starts.

    Returns:
        The metric. An answer of one sentence does not contradict itself.

    Raises:
        UserError: as `Inference.open`.
    """
    name, _, label = setting.partition("#")
    path = directory / name
    model = Inference.open(str(path) if path.exists() else name, label or LABEL)
    explanation = (
        f"answers of which a sentence contradicts an earlier one, by {Path(name).name}; how often it errs is not known "
        "here: see its model card"
    )
    return Metric("contradictions", explanation, model.contradicts_itself, better="lower")


def sentences(text: str) -> list[str]:
    """The sentences of a text, by its periods and line breaks.

    Args:
        text: any text.

    Returns:
        In order; abbreviations may end one early.
    """
    return [part.strip() for part in _BORDER.split(text) if part.strip()]
