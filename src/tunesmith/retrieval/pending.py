"""What a build has read and encoded so far, in segments on disk, so that a killed build resumes there."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tunesmith.retrieval.arrays import array_shape, read_rows
from tunesmith.retrieval.dense import VECTORS
from tunesmith.retrieval.generation import Origin, Settings
from tunesmith.retrieval.lines import Lines, write_lines
from tunesmith.retrieval.ranking import Vectors
from tunesmith.run import atomic_directory

DIRECTORY = "pending"

SECONDS = 10.0
"""A segment is written when so much time has passed since the last one: no more work than that is lost."""


class Segment:
    """Chunks of some documents, complete on disk.

    Args:
        directory: of the segment.
    """

    def __init__(self, directory: Path) -> None:
        self.texts = Lines(directory / "chunks.txt")
        self._vectors = directory / VECTORS
        self.hidden = array_shape(self._vectors)[1] if self._vectors.exists() else None
        self.documents: dict[str, tuple[int, int]] = json.loads((directory / "documents.json").read_text("utf-8"))

    def rows(self, first: int, count: int) -> Vectors:
        """The vectors of chunks (count, hidden)."""
        return read_rows(self._vectors, first, count)


class Pending:
    """The segments of an unfinished build.

    Args:
        index: its directory, locked by this process.
        settings: of the build. Segments of other settings are deleted.
    """

    def __init__(self, index: Path, settings: Settings) -> None:
        self._directory = index / DIRECTORY
        wanted = {**asdict(settings), "encoder": None}  # the fingerprint counts
        file = self._directory / "settings.json"
        if not file.exists() or json.loads(file.read_text(encoding="utf-8")) != wanted:
            shutil.rmtree(self._directory, ignore_errors=True)
            with atomic_directory(self._directory) as directory:
                (directory / "settings.json").write_text(json.dumps(wanted), encoding="utf-8")
        self.origins: dict[str, Origin] = {}
        self._segments = 0
        for path in sorted(self._directory.glob("segment-*")):
            self._open(path)
        self._begin()

    def holds(self, key: str) -> bool:
        """Whether the document was added, in a segment or not yet."""
        return key in self.origins or key in self._documents

    def add(self, key: str, records: Sequence[bytes], vectors: Vectors | None) -> None:
        """Add a document.

        Args:
            key: of its content.
            records: its chunks as stored.
            vectors: of the chunks (chunks, hidden); None without an encoder.
        """
        self._documents[key] = (len(self._records), len(records))
        self._records += records
        if vectors is not None:
            self._vectors.append(vectors)
        if time.monotonic() - self._began >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was added since the last segment as a segment."""
        if self._documents:
            path = self._directory / f"segment-{self._segments:06}"
            with atomic_directory(path) as directory:
                write_lines(directory / "chunks.txt", self._records)
                if self._vectors:
                    np.save(directory / VECTORS, np.concatenate(self._vectors))
                (directory / "documents.json").write_text(json.dumps(self._documents), encoding="utf-8")
            self._open(path)
        self._begin()

    def remove(self) -> None:
        """Delete the segments, whose chunks are in a version of the index."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _begin(self) -> None:
        self._documents: dict[str, tuple[int, int]] = {}
        self._records: list[bytes] = []
        self._vectors: list[Vectors] = []
        self._began = time.monotonic()

    def _open(self, path: Path) -> None:
        segment = Segment(path)
        self._segments += 1
        self.origins |= {key: Origin(segment, *chunks) for key, chunks in segment.documents.items()}
