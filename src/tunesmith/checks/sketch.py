"""What is kept of a row to compare it with others: hashes, lengths and MinHash sketches. Never its text."""

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.endings import closing, ending
from tunesmith.checks.language import code_of, language_of
from tunesmith.checks.record import Record
from tunesmith.checks.shingles import BANDS, shingled

SEPARATOR = "\x1f"
"""Between the texts of a row that are hashed together: ASCII's unit separator."""

ROW_COLUMNS: dict[str, tuple[type[np.generic], int]] = {
    "row": (np.int64, 1),
    "whole": (np.uint64, 1),
    "prompt": (np.uint64, 1),
    "answer": (np.uint64, 1),
    "label": (np.uint64, 1),
    "others": (np.uint64, 1),
    "opening": (np.uint64, 1),
    "numbers": (np.uint64, 1),
    "prompt_length": (np.uint32, 1),
    "answer_length": (np.uint32, 1),
    "language": (np.uint32, 1),
    "ending": (np.uint8, 1),
    "closing": (np.uint32, 1),
    "groups": (np.uint64, 1),
    "sentiment": (np.uint8, 1),
}
"""Each column's type and width: the row's number in its file; 64-bit hashes of the normalized texts, of the first words
of the answer and of the numbers in the prompt, 0 if there is none; lengths in characters; the language's code (0 if it
is not known) and how the answer ends, as numbers; groups of people that are named, and praise and blame, as bits."""

OPENING = 5
"""Words of an answer that are its opening, if it has more than twice as many."""

_FACTOR, _64_BITS = 0x9E3779B97F4A7C15, (1 << 64) - 1

_DIGITS = re.compile("[0-9]+")

VIEWS = ("text", "prompt")
"""What of a row can be a set of shingles: all of its texts, or its prompt if it has an answer too."""

COLUMNS = dict(ROW_COLUMNS)
"""With those of the views; a width of 0 stands for one that differs by row."""
for _view in VIEWS:
    COLUMNS[f"{_view}_counts"] = (np.uint32, 1)
    COLUMNS[f"{_view}_bands"] = (np.uint32, BANDS)
    COLUMNS[f"{_view}_shingles"] = (np.uint32, 0)
COLUMNS |= {"leak": (np.bool_, 1), "held_out": (np.bool_, 1), "run_counts": (np.uint32, 1), "runs": (np.uint64, 0)}


Arrays = dict[str, NDArray[Any]]
"""The columns of some rows by name: (rows,) or (rows, width)."""


@dataclass(frozen=True)
class Sketch:
    """What is kept of a row, and for the moment its texts.

    Attributes:
        values: of `ROW_COLUMNS`.
        texts: normalized, by view.
    """

    values: tuple[int, ...]
    texts: dict[str, str]


def normalized(text: str) -> str:
    """The text whatever its case and white space: what makes two texts exact duplicates.

    Args:
        text: any text.
    """
    folded = text.casefold()
    lines = folded.replace("\n", " ")
    if not (lines.isascii() and lines.isprintable()):  # other white space
        return " ".join(folded.split())
    while "  " in lines:
        lines = lines.replace("  ", " ")
    return lines.strip()


def arrays_of(rows: Sequence[Sketch], views: Sequence[str] = ()) -> Arrays:
    """The columns of some rows.

    Args:
        rows: in order.
        views: of which there are shingles.
    """
    columns = zip(*(row.values for row in rows), strict=True) if rows else ((),) * len(ROW_COLUMNS)
    arrays: Arrays = {
        name: np.array(values, COLUMNS[name][0]) for name, values in zip(ROW_COLUMNS, columns, strict=True)
    }
    for view in views:
        found = shingled([row.texts[view] for row in rows])
        arrays |= {f"{view}_counts": found.counts, f"{view}_bands": found.bands, f"{view}_shingles": found.shingles}
    return arrays


def joined(parts: Sequence[Arrays]) -> Arrays:
    """The columns of rows that follow each other.

    Args:
        parts: at least one; all with the same columns.
    """
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def sketch(record: Record, groups: int, sentiment: int) -> Sketch:
    """What is kept of a row.

    Args:
        record: of the row.
        groups: that it names, as bits.
        sentiment: praise and blame, as bits.
    """
    prompt, answer = normalized(record.given), normalized(record.learned)
    others = [normalized(other) for other in record.others]
    label = record.label or ""
    reasoning = normalized(SEPARATOR.join(record.reasoning))
    texts = [text for text in (prompt, answer, *others, reasoning) if text]
    parts = tuple(map(hash_of, (prompt, answer, label, SEPARATOR.join(others))))
    whole = functools.reduce(_mixed, (*parts, hash_of(reasoning)) if reasoning else parts)
    hashes = (whole, *parts, hash_of(opening(answer)), hash_of(" ".join(_DIGITS.findall(prompt))))
    lengths = (len(record.given), len(record.learned))
    values = (
        record.source.row,
        *hashes,
        *lengths,
        code_of(language_of(record)),
        ending(record),
        closing(record),
        groups,
        sentiment,
    )
    return Sketch(values, {"text": " ".join(texts), "prompt": prompt if len(texts) > 1 else "", "answer": answer})


def _mixed(first: int, second: int) -> int:
    return (first * _FACTOR ^ second) & _64_BITS


def opening(answer: str) -> str:
    """The first words of an answer; empty if it has few more.

    Args:
        answer: as `normalized` returns it.
    """
    words = answer.split(" ", 2 * OPENING)
    return " ".join(words[:OPENING]) if len(words) > 2 * OPENING else ""


def hash_of(text: str) -> int:
    """64 bits of a text's BLAKE2b; 0 of an empty text.

    Args:
        text: as it is.
    """
    if not text:
        return 0
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
