"""`tunesmith data restore`: the files that a cleaned file was made of, from its ledger."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tunesmith.curation.ledger import Entry, Ledger, ledger_path
from tunesmith.curation.origin import claimed
from tunesmith.errors import UserError
from tunesmith.file_hash import file_sha256
from tunesmith.run import atomic_directory, atomic_file, writing


@dataclass(frozen=True)
class Restored:
    """What `data_restore` wrote.

    Attributes:
        files: that were written.
        rows: in them.
        exact: those that are byte for byte what was cleaned. A file that was not one of JSON lines is written as one.
        masked: rows that stay as they are in the cleaned file, or masked, because the ledger has no secrets.
        missing: malformed rows that the ledger does not have.
    """

    files: Sequence[Path]
    rows: int
    exact: Sequence[Path]
    masked: int
    missing: int


def data_restore(cleaned: str | Path, output: str | Path) -> Restored:
    """Undo `data_clean`.

    Args:
        cleaned: the cleaned file, beside which its ledger is.
        output: the file to write; if several files were cleaned, the directory. It must not exist.

    Returns:
        What was written.

    Raises:
        UserError: there is no ledger, the cleaned file has changed since, or the output exists.
    """
    source, target = Path(cleaned), Path(output)
    ledger = Ledger.open(ledger_path(source))
    if not source.exists() or file_sha256(source) != ledger.end["output_sha256"]:
        raise UserError(f"{source} is not as it was when its ledger was written. Take the original from a copy.")
    with claimed(target):
        names = list(ledger.end["files"])
        with writing(target), ExitStack() as stack:
            if len(names) == 1:
                partial = {names[0]: stack.enter_context(atomic_file(target))}
                final = {names[0]: target}
            else:
                directory = stack.enter_context(atomic_directory(target))
                partial = {name: directory / short for name, short in zip(names, _short_names(names), strict=True)}
                final = {name: target / path.name for name, path in partial.items()}
            counts = _Counts()
            with source.open("rb") as lines:
                exact = [final[name] for name in _write(ledger, lines, partial, counts)]
        return Restored(list(final.values()), counts.rows, exact, counts.masked, counts.missing)


@dataclass
class _Counts:
    rows: int = 0
    masked: int = 0
    missing: int = 0


def _write(ledger: Ledger, lines: IO[bytes], files: dict[str, Path], counts: _Counts) -> Iterator[str]:
    """Write all rows of each file; yields the names of those that are exact."""
    about, current = ledger.end["files"], ""
    out: IO[bytes] | None = None
    digest: Any = None
    exact = []

    def end_file() -> None:
        if out is not None:
            tail = about[current].get("tail", "").encode("utf-8", "surrogateescape")
            out.write(tail)
            out.close()
            digest.update(tail)
            if about[current]["lines"] and digest.hexdigest() == about[current]["sha256"]:
                exact.append(current)

    for entry in ledger.entries():
        if entry.file != current:
            end_file()
            current, out, digest = entry.file, files[entry.file].open("wb"), hashlib.sha256()
        assert out is not None
        content = entry.before + _original(entry, lines, counts)
        out.write(content)
        digest.update(content)
    end_file()
    return iter(exact)


def _original(entry: Entry, lines: IO[bytes], counts: _Counts) -> bytes:
    """The row as it was, as far as it is known."""
    now = b"" if entry.fate == "dropped" else lines.readline()
    was = now if entry.was is None else entry.was
    counts.rows += bool(was)
    counts.missing += not was
    counts.masked += entry.hidden and bool(was)
    return was if entry.is_ended else was.removesuffix(b"\n")


def _short_names(names: Sequence[str]) -> list[str]:
    """File names without directories, each different from the others."""
    found: list[str] = []
    for name in names:
        path = Path(name.removesuffix(".gz"))
        short, number = f"{path.stem}.jsonl", 2
        while short in found:
            short, number = f"{path.stem}-{number}.jsonl", number + 1
        found.append(short)
    return found
