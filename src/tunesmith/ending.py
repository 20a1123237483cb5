"""A model's head: over the vocabulary, or another one that an objective trains instead."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["vocabulary", "classes", "tags", "vectors"]
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
Pooling = Literal["mean", "first", "last"]

FILE = "ending.json"
"""Saved beside an adapter, which holds a head's weights but not its labels."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The head of a model.

    Attributes:
        kind: `vocabulary`: causal LM, predicts the next token; `classes`: sequence classification or regression;
            `tags`: token classification, a tag for each word; `vectors`: embedding, no head; the last hidden states
            are pooled.
        labels: the names of the head's outputs, in order.
        problem: of `classes`: transformers' `problem_type`.
        pooling: of `vectors`: the mean over the text's tokens, its first token, or its last.
        normalized: of `vectors`: whether they are scaled to length 1.
    """

    kind: Kind = "vocabulary"
    labels: tuple[str, ...] = ()
    problem: Problem = "single_label_classification"
    pooling: Pooling = "mean"
    normalized: bool = True

    @property
    def has_head(self) -> bool:
        """Whether the model has a new head, with its own weights."""
        return self.kind in ("classes", "tags")

    def write(self, directory: Path) -> None:
        (directory / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def beside(cls, directory: Path) -> "Ending":
        """Read it from a directory; `vocabulary` if the directory has no file of it."""
        if not (directory / FILE).exists():
            return cls()
        values: dict[str, Any] = json.loads((directory / FILE).read_text(encoding="utf-8"))
        return cls(**{**values, "labels": tuple(values["labels"])})


VOCABULARY = Ending()
