"""What is kept of a row to compare it with others: hashes, lengths and, later, MinHash sketches. Never its text."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.record import Record

SEPARATOR = "\x1f"
"""Between the texts of a row that are hashed together: ASCII's unit separator."""

COLUMNS: dict[str, tuple[type[np.generic], int]] = {
    "row": (np.int64, 1),
    "whole": (np.uint64, 1),
    "prompt": (np.uint64, 1),
    "answer": (np.uint64, 1),
    "label": (np.uint64, 1),
    "prompt_length": (np.uint32, 1),
    "answer_length": (np.uint32, 1),
}
"""Each column's type and width: the row's number in its file; 64-bit hashes of the normalized texts, 0 if there is
none; lengths in characters."""


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


def sketches(records: Sequence[Record]) -> Sketches:
    """The columns of the records.

    Args:
        records: of some rows, in order.
    """
    rows = [_sketch(record) for record in records]
    columns = zip(*rows, strict=True) if rows else ((),) * len(COLUMNS)
    return Sketches(
        {name: np.array(values, kind) for (name, (kind, _)), values in zip(COLUMNS.items(), columns, strict=True)}
    )


def _sketch(record: Record) -> tuple[int, ...]:
    prompt, answer = normalized(record.prompt), normalized(record.answer)
    label = record.label or ""
    whole = SEPARATOR.join((prompt, answer, label, *map(normalized, record.others)))
    return (
        record.source.row,
        hash_of(whole),
        hash_of(prompt),
        hash_of(answer),
        hash_of(label),
        len(record.prompt),
        len(record.answer),
    )


def hash_of(text: str) -> int:
    """64 bits of a text's BLAKE2b; 0 of an empty text.

    Args:
        text: as it is.
    """
    if not text:
        return 0
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
