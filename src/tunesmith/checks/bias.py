"""How groups of people are represented in the rows, and what they are associated with."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.groups import NEGATIVE, POSITIVE
from tunesmith.checks.near_runs import PIECE
from tunesmith.checks.result import Mark
from tunesmith.checks.sketch import hash_of
from tunesmith.checks.table_check import TableCheck
from tunesmith.statistics.association import Association, associated

if TYPE_CHECKING:
    from tunesmith.checks.table import Table

FEWEST = 10
"""Rows that name a group, from which its associations are looked at."""

NOTABLE = 0.05
"""Normalized PMI that the whole interval must be above for an association to be reported."""

LABELS = 200
"""Labels, the most frequent ones, whose associations are looked at."""

Flags = NDArray[np.bool_]

Other = tuple[str, bool]
"""What a group may be associated with: a label or a tone, and whether it is a label."""


@dataclass(frozen=True, slots=True)
class GroupAssociation:
    """A group that goes together with a label or with a tone more often than other groups of its dimension.

    Attributes:
        dimension: `gender`.
        group: `female`.
        other: the label, or `words of praise`, `words of blame`.
        is_label: whether it is a label.
        rows: that name a group of the dimension.
        association: among those rows.
    """

    dimension: str
    group: str
    other: str
    is_label: bool
    rows: int
    association: Association

    def __str__(self) -> str:
        found = self.association
        what = f"the label “{self.other}”" if self.is_label else self.other
        low, high = found.interval
        return (
            f"{self.group} ({self.dimension}) with {what}: {found.both:,} rows, where {found.expected:,.1f} are "
            f"expected (nPMI {found.npmi:.2f}, {low:.2f} to {high:.2f})"
        )


def representation(table: "Table") -> dict[str, dict[str, int]]:
    """Rows by group and dimension, of the groups that are named.

    Args:
        table: with the column `groups`.
    """
    column = table.column("groups")
    found: dict[str, dict[str, int]] = {}
    for bit, (dimension, group) in enumerate(table.groups):
        count = _count(column, bit)
        if count:
            found.setdefault(dimension, {})[group] = count
    return {each: dict(sorted(counts.items(), key=lambda item: -item[1])) for each, counts in found.items()}


def associations(table: "Table") -> list[GroupAssociation]:
    """Notable associations of groups, the strongest first.

    A group is compared with the other groups of its dimension, because rows about people differ from other rows; with
    all rows, if no other group of its dimension is named often enough. An association is notable if it is positive with
    Holm's correction for all that were looked at (5 %), and its interval is above `NOTABLE`.

    Args:
        table: with the columns `groups`, `sentiment` and `label`.
    """
    found, others = [], 0
    for each in _all(table):
        others += each is None
        found += [each] if each is not None else []
    if not found:
        return []
    from tunesmith.statistics.differences import holm

    adjusted = holm([*(each.association.p_value for each in found), *[1.0] * others])[: len(found)]
    notable = [
        each for each, p in zip(found, adjusted, strict=True) if p < 0.05 and each.association.interval[0] > NOTABLE
    ]
    return sorted(notable, key=lambda each: -each.association.npmi)


def to_dicts(found: list[GroupAssociation]) -> list[dict[str, Any]]:
    """For the summary of a check."""
    return [asdict(each) | {"text": str(each)} for each in found]


def _all(table: "Table") -> Iterator[GroupAssociation | None]:
    """Of every group with everything; None for those that go together no more often than by chance."""
    dimensions = _dimensions(table)
    others = _others(table)
    counts = _counts(table, dimensions, others)
    for dimension, bits in dimensions.items():
        rows, seconds = counts[dimension, None]
        for bit in bits:
            first, both_of = counts[dimension, bit]
            if first == rows:
                continue
            for (other, is_label), second, both in zip(others, seconds, both_of, strict=True):
                if 0 < second < rows:
                    if both * rows <= first * second:
                        yield None
                        continue
                    found = associated(both, first, second, rows)
                    yield GroupAssociation(dimension, table.groups[bit][1], other, is_label, rows, found)


def _dimensions(table: "Table") -> dict[str, list[int]]:
    """The bits of the groups that are named often enough, by dimension."""
    column = table.column("groups")
    found: dict[str, list[int]] = {}
    for bit, (dimension, _) in enumerate(table.groups):
        if _count(column, bit) >= FEWEST:
            found.setdefault(dimension, []).append(bit)
    return found


def _counts(
    table: "Table", dimensions: Mapping[str, list[int]], others: Mapping[Other, np.uint64]
) -> dict[tuple[str, int | None], tuple[int, list[int]]]:
    """Rows with each group, and of these those with each of the others; under None, of all that a dimension's groups
    are compared with: the rows that name one of them; all rows, if there is only one."""
    masks: dict[tuple[str, int | None], int] = {}
    for dimension, bits in dimensions.items():
        masks |= {(dimension, bit): 1 << bit for bit in bits}
        masks[dimension, None] = sum(1 << bit for bit in bits) if len(bits) > 1 else 0
    counts = {key: np.zeros(1 + len(others), np.int64) for key in masks}
    groups, sentiment, labels = (table.column(name) for name in ("groups", "sentiment", "label"))
    for start in range(0, len(groups), PIECE):
        piece = slice(start, start + PIECE)
        every = np.ones((1 + len(others), len(groups[piece])), np.bool_)
        for number, other in enumerate(others.items(), 1):
            every[number] = _is(other, sentiment[piece], labels[piece])
        for key, mask in masks.items():
            named = (groups[piece] & np.uint64(mask)) != 0 if mask else np.ones(every.shape[1], np.bool_)
            counts[key] += np.count_nonzero(every[:, named], axis=1)
    return {key: (int(found[0]), found[1:].tolist()) for key, found in counts.items()}


def _count(groups: NDArray[np.uint64], bit: int) -> int:
    """Rows that name a group."""
    pieces = (groups[start : start + PIECE] for start in range(0, len(groups), PIECE))
    return sum(int(np.count_nonzero(_has(piece, bit))) for piece in pieces)


def _has(groups: NDArray[np.uint64], bit: int) -> Flags:
    found: Flags = (groups & np.uint64(1 << bit)) != 0
    return found


def _others(table: "Table") -> dict[Other, np.uint64]:
    """What groups may be associated with, each with its bit or hash in the column."""
    found: dict[Other, np.uint64] = {
        ("words of praise", False): np.uint64(POSITIVE),
        ("words of blame", False): np.uint64(NEGATIVE),
    }
    for name, _ in table.labels.most_common(LABELS):
        found[name, True] = np.uint64(hash_of(name))
    return found


def _is(other: tuple[Other, np.uint64], sentiment: NDArray[np.uint8], labels: NDArray[np.uint64]) -> Flags:
    """The rows that have it."""
    (_, is_label), value = other
    found: Flags = labels == value if is_label else (sentiment & np.uint8(value)) != 0
    return found


def _find(table: "Table") -> Iterator[Mark]:
    groups, sentiment, labels = (table.column(name) for name in ("groups", "sentiment", "label"))
    others = _others(table)
    marked: dict[int, str] = {}
    for each in associations(table):
        bit = table.groups.index((each.dimension, each.group))
        other = (each.other, each.is_label)
        both = _has(groups, bit) & _is((other, others[other]), sentiment, labels)
        for index in np.flatnonzero(both):
            marked.setdefault(int(index), str(each))
    for row in sorted(marked):
        yield Mark(table.source(row), marked[row])


GROUP_ASSOCIATIONS = TableCheck(
    "group_associations",
    "Groups of people that go together with a label or a tone",
    "note",
    "Look whether the world is so or only the data. If only the data, balance it: `tunesmith data balance`.",
    _find,
)
