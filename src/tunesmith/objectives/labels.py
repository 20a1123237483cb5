"""The names that a head tells apart: found in the training rows, named by the recipe, weighed."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from tunesmith.data.example import Source
from tunesmith.errors import UserError

Weights = Literal["balanced"] | dict[str, float] | None


def found(names: Iterable[str], wanted: Sequence[str] | None, least: int, what: str) -> tuple[list[str], Counter[str]]:
    """All names, sorted, or those wanted; and how often each stands in the training rows.

    Raises:
        UserError: there are fewer than `least`.
    """
    counts = Counter(names)
    labels = list(wanted) if wanted is not None else sorted(counts)
    if len(labels) < least:
        shown = f"only {labels[0]!r}" if labels else "none"
        number = {1: "one class", 2: "two classes"}[least]
        raise UserError(f"{what} needs {number} or more, and the training rows hold {shown}.")
    return labels, counts


def check_weights(weights: Weights, labels: Sequence[str]) -> None:
    """Raises:
    UserError: a weight is of no class.
    """
    named: Mapping[str, float] = weights if isinstance(weights, dict) else {}
    unknown = next((name for name in named if name not in labels), None)
    if unknown is not None:
        raise UserError(f"objective.class_weights: {unknown!r} is no class. Known: {', '.join(labels)}.")


def place_of(label: str, labels: Sequence[str], source: Source, what: str = "its label") -> int:
    """Where the name stands among the head's outputs.

    Raises:
        UserError: nowhere.
    """
    if label not in labels:
        raise UserError(
            f"{source}: {what} {label!r} is none of objective.labels ({', '.join(labels[:8])}"
            f"{' …' if len(labels) > 8 else ''}). Mend the row, add the label, or leave labels out to take all "
            "that the training rows hold."
        )
    return labels.index(label)
