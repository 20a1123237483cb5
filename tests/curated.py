"""Rows of a few random words, for tests of what is done with data."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = "river stone cloud window garden letter winter morning bridge candle harbor silver forest market mirror".split()


def sentence(number: int, words: int = 12) -> str:
    """The same random words for the same number."""
    return " ".join(random.Random(number).choices(WORDS, k=words))


def write(path: Path, rows: Sequence[Any]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[Any]:
    """Its rows."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
