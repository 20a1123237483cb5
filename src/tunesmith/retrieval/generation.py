"""One version of an index on disk. Readers see a complete one, whatever a writer does meanwhile.

INDEX/
  index.json       which generation is current: replaced in one step when a generation is complete
  generation-3/    settings.json, documents.jsonl; chunks.txt, names.txt, files.npy, vectors.npy and the full text in
                   words/, which are memory-mapped
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
from tunesmith.retrieval.chunk import searched_text
from tunesmith.retrieval.full_text import FullText, counted, write_full_text
from tunesmith.retrieval.lines import Lines, write_lines
from tunesmith.retrieval.ranking import Vectors
from tunesmith.run import atomic_directory, atomic_write

FORMAT = 1
"""Increase it when chunks or files change: an index of another number is built anew."""

POINTER = "index.json"


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
        vectors = directory / "vectors.npy"
        self.vectors: Vectors | None = np.load(vectors, mmap_mode="r") if vectors.exists() else None

    def __len__(self) -> int:
        """How many chunks it has."""
        return len(self.texts)

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


class Store(Protocol):
    """Where chunks are that a new version takes over: an older version, or a pending segment."""

    @property
    def texts(self) -> Lines:
        """The chunks as stored."""

    @property
    def vectors(self) -> Vectors | None:
        """Theirs; None without an encoder."""


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
    write_lines(directory / "chunks.txt", (text for origin in origins for text in _texts(origin)))
    if origins and (vectors := origins[0].store.vectors) is not None:
        shape = (sum(counts), vectors.shape[1])
        target = np.lib.format.open_memmap(directory / "vectors.npy", "w+", np.float32, shape)
        first = 0
        for origin in origins:
            assert origin.store.vectors is not None
            rows = origin.store.vectors[origin.first : origin.first + origin.chunks]
            target[first : first + origin.chunks] = rows
            first += origin.chunks
        target.flush()
    _write_words(directory, origins)


def _texts(origin: Origin) -> Iterator[bytes]:
    return (origin.store.texts[number] for number in range(origin.first, origin.first + origin.chunks))


def _write_words(directory: Path, origins: Sequence[Origin]) -> None:
    """The full text. Words of an older version's chunks are taken over, those of new chunks are counted."""
    old = next((origin.store for origin in origins if isinstance(origin.store, Generation)), None)
    is_old = np.repeat(np.array([each.store is old for each in origins], bool), [each.chunks for each in origins])
    texts = (text for origin in origins if origin.store is not old for text in _texts(origin))
    parts = [counted(searched_text(chunk["text"], chunk["headings"]) for chunk in map(json.loads, texts))]
    if old is not None:
        words, matrix = old.full_text.matrix()
        kept = [np.arange(each.first, each.first + each.chunks) for each in origins if each.store is old]
        parts.insert(0, (words, matrix[np.concatenate(kept)]))
    order = np.argsort(np.argsort(~is_old, kind="stable"))  # from old chunks before new ones to the documents' order
    write_full_text(directory / "words", parts, order)
