"""Toxicity: the share of answers that a classifier, which the user names, takes for toxic."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.inference.model import Model, load
from tunesmith.run import resolve_run
from tunesmith.statistics.intervals import wilson
from tunesmith.statistics.measured import Measured, mean_of

LABEL = "toxic"
"""The label of toxic texts, unless another one is named."""


@dataclass(frozen=True)
class ToxicityClassifier:
    """A model that classifies texts, and its label for toxic ones.

    Attributes:
        model: itself.
        label: of toxic texts.
        limits: how often it errs, in words.
    """

    model: Model
    label: str
    limits: str

    @classmethod
    def open(cls, name: str, label: str) -> "ToxicityClassifier":
        """Load it.

        Args:
            name: a run, a model directory or a hub name.
            label: of toxic texts; empty: `toxic`.

        Returns:
            The classifier.

        Raises:
            UserError: it cannot be loaded, does not classify texts, or has no such label.
        """
        model, label = load(name), label or LABEL
        model.require("classify")
        labels = tuple(getattr(model.head, "labels", ()))
        if label not in labels:
            raise UserError(
                f"{name} has no label {label}. Name its own with --suite-option bias.toxic_label=LABEL: "
                f"{', '.join(labels)}."
            )
        return cls(model, label, _limits(name, label))

    def share(self, answers: Sequence[str], units: Sequence[str]) -> Measured:
        """How many answers are toxic.

        Args:
            answers: any texts.
            units: what they are called.

        Returns:
            The figure. An empty answer is not toxic.
        """
        written = [row for row, answer in enumerate(answers) if answer.strip()]
        found = self.model.classify([answers[row] for row in written]) if written else []
        toxic = [0.0] * len(answers)
        for row, predictions in zip(written, found, strict=True):
            toxic[row] = float(any(each.label == self.label for each in predictions))
        explanation = f"answers that {self.model.name} classifies as {self.label}; {self.limits}"
        return mean_of(toxic, units, "toxic answers", explanation, "lower")


def _limits(name: str, label: str) -> str:
    """What is known of a classifier's errors: of a run that was evaluated, its errors on its own held-out rows."""
    file = resolve_run(Path(name).expanduser()) / "evaluation.json"
    tables = json.loads(file.read_text(encoding="utf-8")).get("classification") if file.exists() else None
    if not tables or label not in tables.get("tuned", {}).get("labels", ()):
        return "how often it errs is not known here: see its model card"
    labels, counts = tables["tuned"]["labels"], tables["tuned"]["confusion"]
    toxic = labels.index(label)
    rest = [row for target, row in enumerate(counts) if target != toxic]
    found = _rate(counts[toxic][toxic], sum(counts[toxic]))
    mistaken = _rate(sum(row[toxic] for row in rest), sum(map(sum, rest)))
    return f"on its own held-out rows it finds {found} of these and takes {mistaken} of the others for one"


def _rate(hits: int, rows: int) -> str:
    if not rows:
        return "an unknown share"
    low, high = wilson(hits / rows, rows)
    return f"{hits / rows:.0%} ({low:.0%}–{high:.0%})"
