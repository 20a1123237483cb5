"""What is kept of a row to compare it with others: hashes, lengths and, later, MinHash sketches. Never its text."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.endings import ending
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
    "prompt_length": (np.uint32, 1),
    "answer_length": (np.uint32, 1),
    "language": (np.uint32, 1),
    "ending": (np.uint8, 1),
}
"""Each column's type and width: the row's number in its file; 64-bit hashes of the normalized texts, 0 if there is
none; lengths in characters; the language's code (0 if it is not known) and how the answer ends, as numbers."""

VIEWS = ("text", "prompt")
"""What of a row can be a set of shingles: all of its texts, or its prompt if it has an answer too."""

COLUMNS = dict(ROW_COLUMNS)
"""With those of the views; a width of 0 stands for one that differs by row."""
for _view in VIEWS:
    COLUMNS[f"{_view}_counts"] = (np.uint32, 1)
    COLUMNS[f"{_view}_bands"] = (np.uint32, BANDS)
    COLUMNS[f"{_view}_shingles"] = (np.uint32, 0)


@dataclass
class Sketches:
    """The columns of some rows.

    Attributes:
        arrays: by column, (rows,) or (rows, width).
    """

    arrays: dict[str, NDArray[np.generic]]


def normalized(text: str) -> str:
    """The text whatever its case and white space: what makes two texts exact duplicates.

    Args:
        text: any text.
    """
    return " ".join(text.casefold().split())


def sketches(records: Sequence[Record], views: Sequence[str] = ()) -> Sketches:
    """The columns of the records.

    Args:
        records: of some rows, in order.
        views: of which there are shingles.
    """
    rows = [_sketch(record) for record in records]
    columns = zip(*(row for row, _ in rows), strict=True) if rows else ((),) * len(ROW_COLUMNS)
    arrays = {name: np.array(values, COLUMNS[name][0]) for name, values in zip(ROW_COLUMNS, columns, strict=True)}
    for view in views:
        found = shingled([texts[view] for _, texts in rows])
        arrays |= {f"{view}_counts": found.counts, f"{view}_bands": found.bands, f"{view}_shingles": found.shingles}
    return Sketches(arrays)


def _sketch(record: Record) -> tuple[tuple[int, ...], dict[str, str]]:
    """Of a record: its row of `ROW_COLUMNS`, and the text of each view."""
    prompt, answer = normalized(record.prompt), normalized(record.answer)
    others = [normalized(other) for other in record.others]
    label = record.label or ""
    texts = [text for text in (prompt, answer, *others) if text]
    hashes = (
        hash_of(SEPARATOR.join((prompt, answer, label, *others))),
        hash_of(prompt),
        hash_of(answer),
        hash_of(label),
    )
    lengths = (len(record.prompt), len(record.answer))
    row = (record.source.row, *hashes, *lengths, code_of(language_of(record)), ending(record))
    return row, {"text": " ".join(texts), "prompt": prompt if len(texts) > 1 else ""}


def hash_of(text: str) -> int:
    """64 bits of a text's BLAKE2b; 0 of an empty text.

    Args:
        text: as it is.
    """
    if not text:
        return 0
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
