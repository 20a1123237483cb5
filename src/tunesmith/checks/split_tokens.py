"""Tokens that are unknown, or a single byte of a character that the tokenizer does not have."""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.check import RowCheck

SHARE, FEWEST = 0.2, 8
"""The share of a row's tokens, and how many they are at least, from which the row is marked."""

_BYTE = re.compile(r"<0x([89A-F][0-9A-F])>")
"""A byte of a character beyond ASCII, as SentencePiece writes it."""

UNKNOWN_TOKENS = RowCheck(
    "unknown_tokens",
    "Rows that the tokenizer takes apart into bytes",
    "warning",
    "Choose a base whose tokenizer knows the script: such rows cost several tokens a character and are learned slowly.",
    lambda record: None,  # the scan marks them
)


def split_ids(tokenizer: Any) -> NDArray[np.int32]:
    """The ids of the unknown token and of single bytes beyond ASCII.

    Byte-level vocabularies write such a byte as one character (Radford et al. 2019), SentencePiece as `<0xE3>`.

    Args:
        tokenizer: of transformers.

    Returns:
        (n,), sorted.
    """
    letters = _byte_letters()
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    is_byte_level = "Ġ" in vocabulary or any(token.startswith("Ġ") for token in vocabulary)
    found = {
        index
        for token, index in vocabulary.items()
        if _BYTE.fullmatch(token) or (is_byte_level and len(token) == 1 and token in letters)
    }
    if tokenizer.unk_token_id is not None:
        found.add(int(tokenizer.unk_token_id))
    return np.array(sorted(found), np.int32)


def split_shares(
    ids: NDArray[np.int32], offsets: NDArray[np.int64], split: NDArray[np.int32]
) -> list[tuple[int, float]]:
    """Rows with many such tokens.

    Args:
        ids: (tokens,) of all rows.
        offsets: (rows + 1,) of the rows in them.
        split: of `split_ids`.

    Returns:
        (index, share of the row's tokens) of each.
    """
    before = np.concatenate(([0], np.cumsum(np.isin(ids, split))))
    counts, lengths = before[offsets[1:]] - before[offsets[:-1]], np.diff(offsets)
    rows = np.flatnonzero((counts >= FEWEST) & (counts >= SHARE * lengths))
    return [(int(row), float(counts[row] / lengths[row])) for row in rows]


def _byte_letters() -> frozenset[str]:
    """The characters that stand for the bytes 0x80 to 0xFF in a byte-level vocabulary."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return frozenset(chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(0x80, 0x100))
