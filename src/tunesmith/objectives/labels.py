"""A head's labels: from the training rows or from the recipe, with their class weights."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from tunesmith.data.example import Source
from tunesmith.errors import UserError

Weights = Literal["balanced"] | dict[str, float] | None


def count_labels(
    names: Iterable[str], labels: Sequence[str] | None, minimum: int, what: str
) -> tuple[list[str], Counter[str]]:
    """Collect the labels of the training rows and count them.

    Args:
        names: the label of every training row.
        labels: the recipe's labels; None to take all labels of the rows, sorted.
        minimum: how many labels there must be, 1 or 2.
        what: the subject of the error message.

    Returns:
        The labels, and how often each of them occurs in the training rows. Others are refused later, with their row.

    Raises:
        UserError: there are fewer than `minimum` labels.
    """
    counts = Counter(names)
    chosen = list(labels) if labels is not None else sorted(counts)
    counts = Counter({name: count for name, count in counts.items() if name in chosen})
    if len(chosen) < minimum:
        shown = f"only {chosen[0]!r}" if chosen else "none"
        number = {1: "one class", 2: "two classes"}[minimum]
        raise UserError(f"{what} needs {number} or more, but the training rows have {shown}.")
    return chosen, counts


def check_weights(weights: Weights, labels: Sequence[str]) -> None:
    """Check that every class weight names a class.

    Raises:
        UserError: a weight names an unknown class.
    """
    factors: Mapping[str, float] = weights if isinstance(weights, dict) else {}
    unknown = next((name for name in factors if name not in labels), None)
    if unknown is not None:
        raise UserError(f"objective.class_weights: {unknown!r} is not a class. The classes are: {', '.join(labels)}.")


def weights_of(weights: Weights, labels: Sequence[str] | None) -> list[float] | None:
    """The factor on each label's loss, 1 if it has none of its own; None if no label has one."""
    return [weights.get(label, 1.0) for label in labels or ()] if isinstance(weights, dict) else None


def label_index(label: str, labels: Sequence[str], source: Source, what: str = "its label") -> int:
    """The index of the label among the head's outputs.

    Raises:
        UserError: the label is unknown.
    """
    if label not in labels:
        raise UserError(
            f"{source}: {what} {label!r} is not in objective.labels ({', '.join(labels[:8])}"
            f"{' …' if len(labels) > 8 else ''}). Fix the row, add the label, or remove objective.labels to use "
            "every label in the training rows."
        )
    return labels.index(label)
