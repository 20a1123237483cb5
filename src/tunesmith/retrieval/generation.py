"""One version of an index on disk. Readers see a complete one, whatever a writer does meanwhile.

INDEX/
  index.json       which generation is current: replaced in one step when a generation is complete
  generation-3/    settings.json, documents.jsonl; chunks.txt, names.txt, files.npy, the vectors (`retrieval.dense`)
                   and the full text in words/ (`retrieval.full_text`), which are memory-mapped
  pending/         what a build has read and encoded so far, so that a killed one resumes (`retrieval.pending`)
  tuned.json       what was found on your questions (`retrieval.tuning`)
  .lock            while a process writes the index
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tunesmith.errors import UserError
from tunesmith.retrieval.arrays import read_rows
from tunesmith.retrieval.chunk import searched_text
from tunesmith.retrieval.dense import ROWS, VECTORS, Dense, write_vectors
from tunesmith.retrieval.full_text import FullText
from tunesmith.retrieval.full_text_writer import write_full_text
from tunesmith.retrieval.lines import Lines, write_lines
from tunesmith.retrieval.ranking import Vectors
from tunesmith.run import atomic_directory, atomic_write

FORMAT = 1
"""Increase it when chunks or files change: an index of another number is built anew."""

POINTER = "index.json"

RELEASE = 10_000
"""Chunks after which what was read of a file is released, so that a large index is written in little memory."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the chunks and vectors of an index depend on.

    Attributes:
        size: the most tokens in a chunk.
        encoder: its name; None: full text alone.
        fingerprint: of the encoder.
        format: of the files.
    """

    size: int
    encoder: str | None = None
    fingerprint: str | None = None
    format: int = FORMAT

    def makes_the_same(self, other: "Settings") -> bool:
        """Whether both make the same chunks and vectors, whatever the encoder's name is."""
        mine, others = ((each.size, each.fingerprint, each.format) for each in (self, other))
        return mine == others


@dataclass(frozen=True, slots=True)
class Document:
    """A file of an index.

    Attributes:
        file: its path, relative to the indexed directory.
        key: identifies its content and format.
        stamp: size and times of the file; empty if it changed so recently that they prove nothing.
    """

    file: str
    key: str
    stamp: tuple[int, ...]


class Generation:
    """A complete version of an index, open for reading.

    Args:
        directory: of the generation.

    Raises:
        OSError: a file is missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        settings = json.loads((directory / "settings.json").read_text(encoding="utf-8"))
        self.source, self.unread = Path(settings.pop("source")), dict(settings.pop("unread"))
        self.settings = Settings(**settings)
        self.texts = Lines(directory / "chunks.txt")
        self.names = Lines(directory / "names.txt")
        self.files = np.load(directory / "files.npy", mmap_mode="r")
        self.full_text = FullText(directory / "words")
        self.dense = Dense(directory) if (directory / VECTORS).exists() else None

    def __len__(self) -> int:
        """How many chunks it has."""
        return len(self.texts)

    @property
    def hidden(self) -> int | None:
        """The length of its vectors; None without an encoder."""
        return None if self.dense is None else self.dense.vectors.shape[1]

    def rows(self, first: int, count: int) -> Vectors:
        """The vectors of chunks (count, hidden)."""
        return read_rows(self.directory / VECTORS, first, count)

    def chunk(self, number: int) -> dict[str, Any]:
        """A chunk: `file` and the fields of `Chunk`."""
        return {"file": self.names[int(self.files[number])].decode(), **json.loads(self.texts[number])}

    def documents(self) -> list[tuple["Document", "Origin"]]:
        """Its documents, and where their chunks are."""
        with (self.directory / "documents.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        return [
            (Document(row["file"], row["key"], tuple(row["stamp"])), Origin(self, row["first"], row["chunks"]))
            for row in rows
        ]


class Texts(Protocol):
    """Chunks as stored, by number."""

    def __getitem__(self, number: int) -> bytes: ...

    def release(self) -> None:
        """Return the pages that were read to the system."""


class Store(Protocol):
    """Where chunks are that a new version takes over: an older version, or a pending segment."""

    @property
    def texts(self) -> Texts:
        """The chunks as stored."""

    @property
    def hidden(self) -> int | None:
        """The length of their vectors; None without an encoder."""

    def rows(self, first: int, count: int) -> Vectors:
        """The vectors of chunks (count, hidden)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a document's chunks are.

    Attributes:
        store: that holds them.
        first: the first one's number there.
        chunks: how many there are.
    """

    store: Store
    first: int
    chunks: int


def current(index: Path) -> Generation | None:
    """Open the current version of an index.

    Args:
        index: its directory.

    Returns:
        The version; None if there is none yet.

    Raises:
        UserError: the directory holds something else, or a file of the index is missing.
    """
    while True:
        if not (index / POINTER).exists():
            return None
        name = _pointed(index)
        try:
            return Generation(index / name)
        except OSError as error:
            if name == _pointed(index):
                raise UserError(f"{index} is damaged: {error}. Delete it, and build it again.") from None
            # a writer has replaced the version since the pointer was read


def _pointed(index: Path) -> str:
    """The directory's name of the current version."""
    try:
        pointer = json.loads((index / POINTER).read_text(encoding="utf-8"))
        return f"generation-{int(pointer['generation'])}"
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{index / POINTER} is not that of an index. Name an index, or another output.") from None


def publish(
    index: Path, settings: Settings, source: Path, unread: dict[str, str], documents: Sequence[tuple[Document, Origin]]
) -> Generation:
    """Write a new version, make it the current one, and delete the older ones.

    Args:
        index: its directory, locked by this process.
        settings: of the new version.
        source: the indexed directory.
        unread: files that could not be read, and why.
        documents: each with where its chunks are now.

    Returns:
        The new version.
    """
    number = 1 + max((int(path.name.rpartition("-")[2]) for path in _generations(index)), default=0)
    path = index / f"generation-{number}"
    with atomic_directory(path) as directory:
        values = {**asdict(settings), "source": str(source), "unread": unread}
        (directory / "settings.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
        with (directory / "documents.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in _described(documents))
        write_lines(directory / "names.txt", (document.file.encode() for document, _ in documents))
        _write_chunks(directory, [origin for _, origin in documents])
    with atomic_write(index / POINTER) as file:
        json.dump({"generation": number}, file)
    for old in _generations(index):
        if old != path:
            shutil.rmtree(old, ignore_errors=True)
    return Generation(path)


def _generations(index: Path) -> list[Path]:
    return [path for path in index.glob("generation-*") if path.name.rpartition("-")[2].isdecimal()]


def _described(documents: Sequence[tuple[Document, Origin]]) -> Iterator[dict[str, Any]]:
    """The documents with the numbers of their chunks in the new version."""
    first = 0
    for document, origin in documents:
        yield {**asdict(document), "first": first, "chunks": origin.chunks}
        first += origin.chunks


def _write_chunks(directory: Path, origins: Sequence[Origin]) -> None:
    """Everything that there is per chunk."""
    counts = [origin.chunks for origin in origins]
    np.save(directory / "files.npy", np.repeat(np.arange(len(origins), dtype=np.int32), counts))
    write_lines(directory / "chunks.txt", (text for _, text in _texts(origins)))
    if origins and (hidden := origins[0].store.hidden) is not None:
        write_vectors(directory, sum(counts), hidden, _vectors(origins))
    _write_words(directory, origins)


def _texts(origins: Sequence[Origin]) -> Iterator[tuple[int, bytes]]:
    """The chunks as stored, each with its number."""
    chunk = 0
    for origin in origins:
        for number in range(origin.first, origin.first + origin.chunks):
            yield chunk, origin.store.texts[number]
            chunk += 1
            if chunk % RELEASE == 0:
                origin.store.texts.release()


def _vectors(origins: Sequence[Origin]) -> Iterator[Vectors]:
    """The chunks' vectors, in parts."""
    parts: list[Vectors] = []
    for origin in origins:
        parts.append(origin.store.rows(origin.first, origin.chunks))
        if sum(map(len, parts)) >= ROWS:
            yield np.concatenate(parts)
            parts = []
    if parts:
        yield np.concatenate(parts)


def _write_words(directory: Path, origins: Sequence[Origin]) -> None:
    """The full text. Words of an older version's chunks are taken over, those of new chunks are counted."""
    old = next((origin.store for origin in origins if isinstance(origin.store, Generation)), None)
    numbers = None if old is None else np.full(len(old), -1, np.int32)
    firsts = np.cumsum([0, *(origin.chunks for origin in origins)])
    is_new = np.ones(firsts[-1], bool)
    for origin, first in zip(origins, firsts[:-1].tolist(), strict=True):
        if origin.store is old and numbers is not None and origin.chunks:
            taken = slice(origin.first, origin.first + origin.chunks)
            if numbers[taken][0] < 0:  # else a copy of a document, which is counted
                numbers[taken] = np.arange(first, first + origin.chunks)
                is_new[first : first + origin.chunks] = False
    records = ((number, json.loads(text)) for number, text in _texts(origins) if is_new[number])
    texts = ((number, searched_text(chunk["text"], chunk["headings"])) for number, chunk in records)
    full_text = None if old is None else old.full_text
    write_full_text(directory / "words", len(is_new), texts, full_text, numbers)
