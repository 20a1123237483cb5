"""Which examples are held out: decided by a hash of their content, not by their position.

So a row never changes sides when the file grows, and duplicates stay on one side.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from tunesmith.data.example import Example


def is_held_out(example: Example, share: float | frozenset[bytes]) -> bool:
    """Whether the example is held out.

    h / 2⁶⁴ < share, where h is the first 8 bytes of the SHA-256 of the text; or, of a chat, of the system turns before
    the first user turn and that user turn. So rows with the same question and different answers are on one side, and
    so are conversations that begin the same.

    Args:
        example: its source is ignored.
        share: the held-out share of all distinct keys, in [0, 1]; or the held-out keys themselves.
    """
    if isinstance(share, frozenset):
        return content_key(example) in share
    if not 0 < share < 1:
        return share >= 1
    return int.from_bytes(content_key(example)[:8], "big") / 2**64 < share


def fold(examples: Iterable[Example], number: int, folds: int) -> frozenset[bytes]:
    """The keys of the examples in one fold. Folds have similar sizes and, for texts with a class, similar class counts
    (Kohavi 1995, section 2.2).

    Args:
        examples: all examples.
        number: which fold, from 1.
        folds: how many folds.
    """
    keys: dict[bytes, Any] = {}
    for example in examples:
        keys.setdefault(content_key(example), None if isinstance(example.label, float) else example.label)
    by_label: defaultdict[Any, list[bytes]] = defaultdict(list)
    for key in sorted(keys):
        by_label[keys[key]].append(key)
    in_order = [key for label in sorted(by_label, key=str) for key in by_label[label]]
    return frozenset(in_order[number - 1 :: folds])


def content_key(example: Example) -> bytes:
    """SHA-256 of the content that decides the side: rows with the same one are not separated.

    Args:
        example: its source is ignored.
    """
    if example.messages is None:
        key: Any = example.text
    elif not example.messages:
        key = [list(completion.messages) for completion in example.completions]
    else:
        first_user = next((index for index, turn in enumerate(example.messages) if turn["role"] == "user"), None)
        turns = example.messages[: None if first_user is None else first_user + 1]
        key = [turn for turn in turns if first_user is None or turn["role"] in ("system", "developer", "user")]
    return _digest(key)


def _digest(value: Any) -> bytes:
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).digest()
