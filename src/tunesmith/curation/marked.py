"""The marks of checks, row by row."""

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from tunesmith.checks.result import DataChecks, Mark
from tunesmith.curation.policy import Action
from tunesmith.data.example import Source


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something is done with a row.

    Attributes:
        check: that marked it.
        action: what is done.
        mark: of the check.
    """

    check: str
    action: Action
    mark: Mark


def marks_by_row(checks: DataChecks, rows: Container[Source]) -> dict[Source, list[str]]:
    """What checks say of some rows, each with the check's name.

    Args:
        checks: what was found.
        rows: which.
    """
    found: defaultdict[Source, list[str]] = defaultdict(list)
    for result in checks.results:
        for mark in result.marks:
            if mark.source in rows:
                found[mark.source].append(f"{result.name}: {mark.detail}")
    return found


class Marks:
    """Marks of all checks, which are in the order of the rows, read beside the rows.

    Args:
        checks: what was found.
        policy: what is done for each check.
    """

    def __init__(self, checks: DataChecks, policy: Mapping[str, Action]) -> None:
        self._policy = policy
        self._waiting: dict[str, Iterator[Mark]] = {name: checks[name].marks for name in policy if name in checks}
        self._next = {name: next(marks, None) for name, marks in self._waiting.items()}

    def of(self, source: Source) -> list[Reason]:
        """What marks a row; rows come in order.

        Args:
            source: the row.
        """
        reasons = []
        for name, mark in self._next.items():
            while mark is not None and mark.source == source:
                reasons.append(Reason(name, self._policy[name], mark))
                mark = next(self._waiting[name], None)
            self._next[name] = mark
        return reasons

    @property
    def left(self) -> list[Mark]:
        """Marks of rows that did not come."""
        return [mark for mark in self._next.values() if mark is not None]


class Representatives:
    """Which row stands for its duplicates. If it is dropped for another reason, the first duplicate takes its place."""

    def __init__(self) -> None:
        self._dropped: set[Source] = set()
        self._instead: dict[Source, Source] = {}

    def repeats(self, mark: Mark) -> Source | None:
        """The kept row that a marked row repeats; None if there is none, so that the row itself is kept.

        Args:
            mark: of a check of duplicates, whose first other row is the representative.
        """
        if not mark.others or mark.others[0] not in self._dropped:
            return mark.others[0] if mark.others else mark.source
        return self._instead.get(mark.others[0])

    def add(self, source: Source, is_kept: bool, marks: list[Mark]) -> None:
        """Note what became of a row.

        Args:
            source: the row.
            is_kept: whether it is written.
            marks: of checks of duplicates.
        """
        if not is_kept:
            kept = next((row for row in map(self.repeats, marks) if row is not None), None)
            if kept is not None:  # what repeats this row repeats that one, too
                self._instead[source] = kept
            self._dropped.add(source)
            return
        for mark in marks:
            if mark.others:
                self._instead.setdefault(mark.others[0], source)
