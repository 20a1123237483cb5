"""What people say about rows, as lines of JSON that `data_review` appends and `data_clean` reads.

    {"row": "5d0c…", "verdict": "drop", "reviewer": "anna", "time": "2026-11-30T09:12:44Z", "seconds": 2.1,
     "source": "faq.jsonl row 3"}

`row` is a hash of the row's columns, so that a verdict on a sample counts for the same row of the whole file.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.appended_rows import values_of
from tunesmith.data.example import Malformed
from tunesmith.data.read import Row, read
from tunesmith.errors import UserError

KINDS = ("keep", "drop", "label")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What somebody says about a row.

    Attributes:
        row: the hash of its content.
        verdict: `keep`, `drop`, or `label`: its label is wrong.
        reviewer: who says so.
        time: when, in UTC, as ISO 8601.
        seconds: that it took; None if that is not known.
        source: where the row was.
        label: the right one.
    """

    row: str
    verdict: Literal["keep", "drop", "label"]
    reviewer: str
    time: str
    seconds: float | None
    source: str
    label: str | None = None

    def values(self) -> dict[str, Any]:
        """As a row of the file."""
        return {name: value for name, value in asdict(self).items() if name != "label" or value is not None}

    @classmethod
    def of(cls, row: Row | Malformed) -> "Verdict":
        """Read a row of the file.

        Args:
            row: as read.

        Raises:
            UserError: it is no verdict.
        """
        values = values_of(row)
        kind, label = values.get("verdict"), values.get("label")
        if kind not in KINDS or not isinstance(values.get("row"), str) or (kind == "label") != (label is not None):
            raise UserError(
                f"{row.source} is no verdict: it needs row, and verdict (keep, drop, or label with a label). "
                "Name files that tunesmith data review wrote."
            )
        return cls(
            values["row"], kind, str(values.get("reviewer") or "?"), str(values.get("time") or ""),
            values.get("seconds"), str(values.get("source") or ""), None if label is None else str(label),
        )  # fmt: skip


def digest_of_line(line: bytes) -> str:
    """A hash of a row's columns, whatever their order.

    Args:
        line: the row as JSON.
    """
    canonical = json.dumps(json.loads(line), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:32]


def read_verdicts(paths: Sequence[str | Path]) -> Mapping[str, Verdict]:
    """The last verdict on each row.

    Args:
        paths: files of verdicts.

    Returns:
        By row.

    Raises:
        UserError: a file cannot be read, a row is no verdict, or two reviewers disagree on a row.
    """
    last: dict[str, Verdict] = {}
    for row in read([str(path) for path in paths], Path.cwd()) if paths else ():
        verdict = Verdict.of(row)
        known = last.get(verdict.row)
        if known is not None and known.reviewer != verdict.reviewer:
            _refuse_disagreement(known, verdict)
        last[verdict.row] = verdict
    return last


def _refuse_disagreement(one: Verdict, other: Verdict) -> None:
    if (one.verdict, one.label) != (other.verdict, other.label):
        raise UserError(
            f"{one.reviewer} and {other.reviewer} disagree about {other.source or other.row}: {one.verdict} and "
            f"{other.verdict}. Decide, and remove one of both verdicts."
        )
