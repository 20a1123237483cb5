"""How groups of people are represented in the rows, and what they are associated with."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.groups import NEGATIVE, POSITIVE
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
        count = int(np.count_nonzero(column & np.uint64(1 << bit)))
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
    column = table.column("groups")
    others = _others(table)
    dimensions: dict[str, dict[str, Flags]] = {}
    for bit, (dimension, group) in enumerate(table.groups):
        flags = (column & np.uint64(1 << bit)) != 0
        if np.count_nonzero(flags) >= FEWEST:
            dimensions.setdefault(dimension, {})[group] = flags
    for dimension, groups in dimensions.items():
        compared = np.logical_or.reduce([*groups.values()]) if len(groups) > 1 else np.ones(len(column), bool)
        rows = int(np.count_nonzero(compared))
        for group, flags in groups.items():
            first = int(np.count_nonzero(flags))
            if first == rows:
                continue
            for (other, is_label), has in others.items():
                second = int(np.count_nonzero(has & compared))
                if 0 < second < rows:
                    both = int(np.count_nonzero(has & flags))
                    if both * rows <= first * second:
                        yield None
                        continue
                    found = associated(both, first, second, rows)
                    yield GroupAssociation(dimension, group, other, is_label, rows, found)


def _others(table: "Table") -> Mapping[tuple[str, bool], Flags]:
    """What groups may be associated with: (name, whether it is a label) → rows that have it."""
    sentiment, labels = table.column("sentiment"), table.column("label")
    found = {
        ("words of praise", False): (sentiment & POSITIVE) != 0,
        ("words of blame", False): (sentiment & NEGATIVE) != 0,
    }
    for name, _ in table.labels.most_common(LABELS):
        found[name, True] = labels == np.uint64(hash_of(name))
    return found


def _find(table: "Table") -> Iterator[Mark]:
    column = table.column("groups")
    others = _others(table)
    marked: dict[int, str] = {}
    for each in associations(table):
        bit = table.groups.index((each.dimension, each.group))
        both = ((column & np.uint64(1 << bit)) != 0) & others[each.other, each.is_label]
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
