"""`tunesmith data sample --worst`: the rows that most checks mark, the most severe first."""

import heapq
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.checks.driver import check_data
from tunesmith.checks.result import DataChecks
from tunesmith.checks.worst import WorstRows
from tunesmith.curation.marked import marks_by_row
from tunesmith.curation.origin import claimed, origin_path, write_origin
from tunesmith.curation.rows import Item, Paths, Rows
from tunesmith.data.example import Malformed
from tunesmith.data.report import Reason, Reasons
from tunesmith.errors import UserError
from tunesmith.run import Subscriber, atomic_write, writing


@dataclass(frozen=True)
class Worst:
    """What `data_worst` wrote.

    Attributes:
        file: with the rows.
        rows: in it.
        read: rows that they were chosen from.
        marked: how many of these a check marks.
        malformed: rows that could not be read and are not in the file, by reason.
    """

    file: Path
    rows: int
    read: int
    marked: int
    malformed: tuple[Reason, ...]


def data_worst(
    paths: Paths,
    rows: int,
    output: str | Path,
    *,
    checks: DataChecks | None = None,
    subscribers: Sequence[Subscriber] = (),
) -> Worst:
    """Write the worst rows, the worst first: those that a check of severity `error` marks, by how many do; then those
    with the most warnings; then with the most notes. Equally bad rows are in the order of the files.

    What the checks say of each is in `OUTPUT.origin.json`, and `data_review` shows it.

    Args:
        paths: files, as `data.train` takes them, or a recipe.
        rows: how many; all that are marked, if there are fewer.
        output: the file of JSON lines to write; it must not exist.
        checks: what was found in these rows; None: all default checks look at them.
        subscribers: receive `progress` events.

    Returns:
        The counts.

    Raises:
        UserError: the rows cannot be read, no check marks one that can, or the output exists.
    """
    target = Path(output)
    if rows < 1:
        raise UserError(f"{rows} is no number of rows. Give 1 or more.")
    with claimed(target):
        given: Any = paths
        found = check_data(given, subscribers=subscribers) if checks is None else checks
        worst, source = WorstRows(found), Rows(paths, subscribers)
        malformed, read = Reasons(), 0
        chosen: list[tuple[int, int, Item]] = []
        for item in source.items("looking for the worst rows"):
            read += 1
            if isinstance(item.example, Malformed):
                malformed.add(item.source, item.example.reason)
            elif badness := worst.badness(item.source):
                entry = (badness, -item.index, item)
                if len(chosen) < rows:
                    heapq.heappush(chosen, entry)
                else:
                    heapq.heappushpop(chosen, entry)
        if not chosen:
            raise UserError("No check marks a row that can be read, so none is worse than another. Leave out --worst.")
        items = [item for _, _, item in sorted(chosen, key=lambda entry: entry[:2], reverse=True)]
        with writing(target), atomic_write(target, "wb") as out:
            for item in items:
                out.write(item.line)
        marks = marks_by_row(found, {item.source for item in items})
        listed = [
            {"source": str(item.source), **asdict(worst.counts(item.source)), "marks": marks[item.source]}
            for item in items
        ]
        counts = {"read": read, "marked": len(worst), "rows": listed}
        settings = {"rows": rows, "worst": True}
        write_origin(origin_path(target), "sample", source.fingerprints, settings, {target: len(items)}, counts)
        return Worst(target, len(items), read, len(worst), malformed.by_count())
