"""Which examples are kept out of training: decided by what they say, never by where they stand.

So a file that grows never moves a row from one side to the other, and duplicates stay on one side.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tunesmith.data.example import Example


def is_held_out(example: Example, share: float | frozenset[bytes]) -> bool:
    """Whether the example belongs to the held-out share, or its key to the keys that are held out.

    h / 2⁶⁴ < share, where h is the first 8 bytes of the SHA-256 of the text; or, of a chat, of its system turns before
    the first user turn and that first user turn. So rows that ask the same and are answered differently never stand on
    both sides, nor do conversations that begin alike.

    Args:
        example: its source plays no part.
        share: of all distinct beginnings, in [0, 1]; or those beginnings' keys.
    """
    if isinstance(share, frozenset):
        return _key(example) in share
    if not 0 < share < 1:
        return share >= 1
    return int.from_bytes(_key(example)[:8], "big") / 2**64 < share


def fold(examples: Iterable[Example], number: int, folds: int) -> frozenset[bytes]:
    """The keys of the examples in one of so many parts, which are alike in size and, of texts with a class, in how many
    of each they hold (Kohavi 1995, section 2.2).

    Args:
        examples: all of them.
        number: which part, from 1.
        folds: how many.
    """
    keys: dict[bytes, Any] = {}
    for example in examples:
        keys.setdefault(_key(example), None if isinstance(example.label, float) else example.label)
    by_label: defaultdict[Any, list[bytes]] = defaultdict(list)
    for key in sorted(keys):
        by_label[keys[key]].append(key)
    in_order = [key for label in sorted(by_label, key=str) for key in by_label[label]]
    return frozenset(in_order[number - 1 :: folds])


def _key(example: Example) -> bytes:
    """SHA-256 of what decides the side."""
    if example.messages is None:
        key: Any = example.text
    else:
        asked = next((at for at, turn in enumerate(example.messages) if turn["role"] == "user"), None)
        key = [turn for turn in example.messages[: None if asked is None else asked + 1] if _asks(turn, asked)]
    return _digest(key)


def _asks(turn: dict[str, Any], asked: int | None) -> bool:
    return asked is None or turn["role"] in ("system", "developer", "user")


def _digest(value: Any) -> bytes:
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).digest()
