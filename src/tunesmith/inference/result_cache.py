"""What a model answered or computed, kept in the user's cache: an evaluation that is killed resumes, and one that is
repeated, or has more rows, computes only what is new.

A directory for each model and each way of asking has files that are written once, atomically, with a part of the rows
each. A row is known by the hash of all that determines its result beside the model.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.cache_directory import cache_directory
from tunesmith.run import atomic_write

logger = logging.getLogger(__name__)

VERSION = 2
"""Increase it when the same model gives other results than before."""


def digest_of(value: Any) -> str:
    """SHA-256 of plain values.

    Args:
        value: what JSON can hold; anything else by its text.

    Returns:
        In hexadecimal.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


class ResultCache:
    """Results by row.

    Args:
        identity: of the model; None: nothing is read or written.
        asked: what determines a result beside the model and the row, such as the sampling.
    """

    def __init__(self, identity: str | None, asked: Any) -> None:
        key = digest_of([VERSION, identity, asked])
        self._directory = None if identity is None else cache_directory() / "evaluation" / key
        self._known: dict[str, Any] = {}
        for file in () if self._directory is None else sorted(self._directory.glob("*.json")):
            self._known |= _read(file)

    def __getitem__(self, row: str) -> Any:
        return self._known[row]

    def __contains__(self, row: str) -> bool:
        return row in self._known

    def add(self, results: Mapping[str, Any]) -> None:
        """Keep some results, in one file.

        Args:
            results: plain JSON values by the hash of the row.
        """
        if not results:
            return
        self._known |= results
        if self._directory is None:
            return
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._directory / f"{digest_of(sorted(results))[:32]}.json") as file:
                json.dump(dict(results), file, ensure_ascii=False)
        except OSError as error:
            logger.warning("%s cannot be written (%s): nothing is kept.", self._directory, error.strerror)
            self._directory = None


def _read(file: Path) -> dict[str, Any]:
    """The results in a file; none if it is damaged."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
