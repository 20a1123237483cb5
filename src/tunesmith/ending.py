"""What a model ends in: a head over the vocabulary, or something else in its place, for an objective to learn on."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["vocabulary", "classes", "tags", "vectors"]
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
Pooling = Literal["mean", "first", "last"]

FILE = "ending.json"
"""Beside an adapter, which keeps a head's weights and not what it tells apart."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What a model ends in.

    Attributes:
        kind: `vocabulary`: the next token; `classes`: a head over a whole text; `tags`: one over each word; `vectors`:
            nothing, the last hidden states are pooled.
        labels: the names of a head's outputs, in order.
        problem: what a head over a whole text tells, in transformers' words.
        pooling: of vectors: the mean of the text's tokens, its first, or its last.
        normalized: whether vectors have length one.
    """

    kind: Kind = "vocabulary"
    labels: tuple[str, ...] = ()
    problem: Problem = "single_label_classification"
    pooling: Pooling = "mean"
    normalized: bool = True

    @property
    def has_head(self) -> bool:
        """Whether there is a new head, with weights of its own."""
        return self.kind in ("classes", "tags")

    def write(self, directory: Path) -> None:
        (directory / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def beside(cls, directory: Path) -> "Ending":
        """What was written there; the vocabulary, where nothing was."""
        if not (directory / FILE).exists():
            return cls()
        values: dict[str, Any] = json.loads((directory / FILE).read_text(encoding="utf-8"))
        return cls(**{**values, "labels": tuple(values["labels"])})


VOCABULARY = Ending()
