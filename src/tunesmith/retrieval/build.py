"""`tunesmith.index`: build an index of a directory, or bring it up to date."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith.data.documents.document import UnreadableError
from tunesmith.data.documents.read import LARGEST, files_in, read
from tunesmith.errors import UserError
from tunesmith.retrieval.chunk import SIZE, Chunk, chunks_of, searched_text, word_counts
from tunesmith.retrieval.generation import Document, Generation, Origin, Settings, current, publish
from tunesmith.retrieval.pending import Pending
from tunesmith.run import Events, Subscriber, writing
from tunesmith.run_lock import write_lock

if TYPE_CHECKING:
    from tunesmith.retrieval.encoder import Encoder

DEFAULT = "all-minilm-l6-v2"
"""The encoder of an index unless another is named (Reimers & Gurevych 2019; `tunesmith bases get` fetches it)."""

AUTO, NONE = "auto", "none"
"""Names of encoders: the index's own, else the default one if it is on this machine; and full text alone."""

RECENT = 2_000_000_000
"""Nanoseconds. A file that changed so shortly before it was read may change again within the same tick of the file
system's clock, so its times do not prove that it is the same."""

PAUSE = 1.0
"""Seconds between reports of progress."""

LEAST_SIZE = 20

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Indexed:
    """What `index` did.

    Attributes:
        path: of the index.
        files: documents in it.
        chunks: in it.
        encoder: whose vectors it has; None: full text alone.
        read: documents that were read and encoded, because they are new or have changed.
        removed: documents that were in it and are no longer in the directory.
        unread: files that could not be read, and why.
        bytes: of the documents that were read.
        seconds: that it took.
    """

    path: Path
    files: int = 0
    chunks: int = 0
    encoder: str | None = None
    read: int = 0
    removed: int = 0
    unread: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0


def index(
    directory: str | Path,
    output: str | Path,
    encoder: str = AUTO,
    size: int | None = None,
    subscribers: Sequence[Subscriber] = (),
) -> Indexed:
    """Build an index of the documents in a directory, or bring it up to date: only what is new or has changed is read.

    It can be killed at any moment and resumes when called again. Whoever searches meanwhile sees the last complete
    version.

    Args:
        directory: of documents: text, Markdown, HTML, PDF, source code.
        output: directory of the index. It may exist if it is an index.
        encoder: a run with `objective: embedding`, a model directory, a hub name or a short name; `auto`: the one that
            the index has, else all-minilm-l6-v2 if it is on this machine, else full text alone; `none`: full text
            alone.
        size: the most tokens of the encoder in a chunk (without an encoder: words). Default: as the index has it, else
            200.
        subscribers: receive `progress` events.

    Returns:
        What was done. Files that could not be read are named there with the reason.

    Raises:
        UserError: there is no such directory or encoder, the output is something else, or another process writes it.
    """
    began, source, path = time.monotonic(), Path(directory).expanduser(), Path(output).expanduser()
    files = [file for file in files_in(source) if path.absolute() not in file.absolute().parents]
    with _locked(path):
        before = current(path)
        model, settings = _settings(before, encoder, size)
        build = _Build(path, source, model, settings, before, Events(*subscribers))
        build.run(files)
        done = build.done
    done.seconds = time.monotonic() - began
    return done


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the index's directory, which is created if it is missing.

    Raises:
        UserError: it is something else, or another process writes it.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not _is_index(path)):
        raise UserError(f"{path} exists and is not an index. Choose another output.")
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    with write_lock(path, "use another output."):
        yield


def _is_index(path: Path) -> bool:
    return (path / "index.json").exists() or (path / "pending").exists() or (path / ".lock").exists()


def _settings(before: Generation | None, encoder: str, size: int | None) -> tuple["Encoder | None", Settings]:
    """The encoder and the settings: as asked for, else as the index has them, else the defaults."""
    if size is not None and size < LEAST_SIZE:
        raise UserError(f"--size {size} is too small for a chunk. Use at least {LEAST_SIZE}.")
    if size is None:
        size = SIZE if before is None else before.settings.size
    name: str | None = encoder
    if encoder == AUTO:
        name = _default() if before is None else before.settings.encoder
        if name is None and before is None:
            logger.info("No encoder is at hand: full text alone. To search by meaning: tunesmith bases get %s", DEFAULT)
    if name is None or name == NONE:
        return None, Settings(size)
    name = str(Path(name).absolute()) if Path(name).exists() else name  # found again from other directories
    from tunesmith.retrieval.encoder import Encoder

    model = Encoder(name)
    return model, Settings(size, name, model.fingerprint)


def _default() -> str | None:
    """The default encoder if it is on this machine."""
    from tunesmith.models.bases import known_bases

    return DEFAULT if known_bases()[DEFAULT].located() is not None else None


class _Build:
    """One update of an index."""

    def __init__(
        self,
        path: Path,
        source: Path,
        encoder: "Encoder | None",
        settings: Settings,
        before: Generation | None,
        events: Events,
    ) -> None:
        self._path, self._source, self._encoder, self._settings = path, source, encoder, settings
        self._before, self._events = before, events
        self._reported, self._has_reported = time.monotonic(), False
        self.done = Indexed(path, encoder=settings.encoder)
        is_reusable = before is not None and before.settings.makes_the_same(settings)
        known = before.documents() if before is not None and is_reusable else []
        self._stamped = {document.file: document for document, _ in known if document.stamp}
        self._origins = {document.key: origin for document, origin in known}
        self._pending = Pending(path, settings)

    def run(self, files: Sequence[Path]) -> None:
        """Read what is new, and publish a new version if anything differs."""
        documents = []
        for number, file in enumerate(files):
            self._progress(number, len(files))
            name = file.relative_to(self._source).as_posix()
            try:
                documents.append(self._document(name, file))
            except UnreadableError as error:
                self.done.unread[name] = str(error)
            except OSError as error:
                self.done.unread[name] = error.strerror or str(error)
        self._progress(len(files), len(files))
        self._pending.flush()
        self._publish(documents)

    def _progress(self, done: int, total: int) -> None:
        """Report the progress of a build that takes more than a moment."""
        now = time.monotonic()
        if now - self._reported >= PAUSE or (done == total and self._has_reported):
            self._reported, self._has_reported = now, True
            self._events.emit("progress", what="reading", done=done, total=total)

    def _document(self, name: str, file: Path) -> Document:
        """The file, whose chunks are in the last version or pending afterwards."""
        stamp = _stamp(file)
        known = self._stamped.get(name)
        if known is not None and known.stamp == stamp:
            return known
        if stamp[0] > LARGEST:
            raise UnreadableError(
                f"it has {stamp[0] / 1e6:,.0f} MB, and at most {LARGEST / 1e6:,.0f} are read; split it"
            )
        now = time.time_ns()
        data = file.read_bytes()
        key = f"{hashlib.sha256(data).hexdigest()}{file.suffix.lower()}"
        if key not in self._origins and not self._pending.holds(key):
            self._read(name, key, data)
        return Document(name, key, stamp if now - max(stamp[1:]) > RECENT else ())

    def _read(self, name: str, key: str, data: bytes) -> None:
        count = word_counts if self._encoder is None else self._encoder.count
        chunks = chunks_of(read(name, data), self._settings.size, count)
        vectors = None
        if self._encoder is not None:
            vectors = self._encoder.chunks([searched_text(chunk.text, chunk.headings) for chunk in chunks])
        self._pending.add(key, [_record(chunk) for chunk in chunks], vectors)
        self.done.read += 1
        self.done.bytes += len(data)

    def _publish(self, documents: Sequence[Document]) -> None:
        origins = {**self._pending.origins, **self._origins}
        before = [] if self._before is None else [document for document, _ in self._before.documents()]
        self.done.removed = len({each.file for each in before} - {each.file for each in documents})
        located: list[tuple[Document, Origin]] = [(document, origins[document.key]) for document in documents]
        if self._before is None and not documents:
            raise UserError(f"{self._source} holds no document that can be read.{_examples(self.done.unread)}")
        if self._before is None or self._differs(documents, before):
            version = publish(self._path, self._settings, self._source.absolute(), self.done.unread, located)
        else:
            version = self._before
        self._pending.remove()
        self.done.files, self.done.chunks = len(documents), len(version)

    def _differs(self, documents: Sequence[Document], before: Sequence[Document]) -> bool:
        assert self._before is not None
        return (
            [(each.file, each.key) for each in documents] != [(each.file, each.key) for each in before]
            or self._before.settings != self._settings
            or self._before.unread != self.done.unread
            or self._before.source != self._source.absolute()
        )


def _examples(unread: dict[str, str]) -> str:
    """The first file that could not be read, and why."""
    name, reason = next(iter(unread.items()), ("", ""))
    more = f", and {len(unread) - 1:,} more" if len(unread) > 1 else ""
    return f" Not read: {name} ({reason}){more}." if unread else ""


def _stamp(file: Path) -> tuple[int, int, int]:
    """Size, time of the last change of the content, and of anything (which no program can set back)."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _record(chunk: Chunk) -> bytes:
    return json.dumps(asdict(chunk), ensure_ascii=False).encode()
