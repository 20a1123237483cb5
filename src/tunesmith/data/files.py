"""From the paths in the recipe (a file, a directory, a glob, a hub data set) to the files to read, in a fixed order."""

import difflib
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tunesmith.data.hub import HubDataSet
from tunesmith.data.reading.looks_like import looks_like
from tunesmith.data.reading.opened import COMPRESSED, extension_of
from tunesmith.data.reading.paired import PairedLines, expanded
from tunesmith.data.reading.remote import RemoteFile, is_remote
from tunesmith.data.reading.sql import DATABASES, SqlQuery
from tunesmith.errors import UserError

TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".xlsx")
"""Extensions of files that hold rows; each also with `.gz` or `.zst`."""

DOCUMENTS = (".html", ".htm", ".xhtml", ".pdf", ".docx", ".pptx")
"""Extensions of files whose text is read as Markdown; also with `.gz` or `.zst`."""

TEXTS = (".txt", ".md", ".markdown", *DOCUMENTS)
"""Extensions of files that are documents; each also with `.gz` or `.zst`."""

_ADVICE = {
    ".xls": "Save the sheet as CSV (UTF-8) or .xlsx.",
    ".doc": "Save it as .docx.",
    ".ppt": "Save it as .pptx.",
    ".odt": "Save it as .docx.",
    ".ods": "Save the sheet as CSV (UTF-8) or .xlsx.",
    ".zip": "Unpack it first.",
    ".tar": "Unpack it first.",
    ".bz2": "Unpack it first, or pack it with gzip.",
    ".xz": "Unpack it first, or pack it with gzip.",
    ".arrow": "Save it as Parquet.",
    ".db": "If it is an SQLite database, write sqlite:///{path}#SELECT …",
    ".sqlite": "Write sqlite:///{path}#SELECT …",
}


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file to read.

    Attributes:
        path: absolute.
        name: the path as given, or as found in the given directory or by the given glob.
        shown: `name`, shortened to what the user would type in the base directory.
        is_named: the user named the file itself, not a directory or glob that it is in.
    """

    path: Path
    name: str
    shown: str
    is_named: bool

    @property
    def extension(self) -> str:
        """Such as `.csv`, without `.gz` or `.zst`."""
        return extension_of(self.path)

    @property
    def compression(self) -> str | None:
        """`gzip`, `zstd` or None."""
        return COMPRESSED.get(self.path.suffix.lower())

    def open(self) -> IO[bytes]:
        """Its bytes as they are stored."""
        return self.path.open("rb")


SIDECARS = (".origin.json", ".ledger.jsonl", ".verdicts.jsonl")
"""Ends of names of files that `tunesmith data` writes beside others."""

Found = DataFile | PairedLines | RemoteFile | SqlQuery | HubDataSet
"""What rows are read from."""


def find(paths: Sequence[str], base_dir: Path) -> list[Found]:
    """The files of the paths, in the order given; the files of a directory or glob are sorted by path.

    A directory is searched recursively for known extensions, links to directories too; names that begin with a dot are
    skipped.

    Raises:
        UserError: a path does not exist, holds no readable file, or names a file twice.
    """
    base_dir = base_dir.absolute()
    found = [file for path in paths for file in _find_one(str(path), base_dir)]
    seen: dict[str, str] = {}
    for file in found:
        shown, identity = (
            (file.shown, str(file.path.resolve())) if isinstance(file, DataFile) else (str(file), str(file))
        )
        if identity in seen:
            raise UserError(
                f"{shown} is named twice among the data (also as {seen[identity]}), so its rows would be trained on "
                "twice, or be both trained on and held out. Name it once."
            )
        seen[identity] = shown
    return found


def _find_one(given: str, base_dir: Path) -> Iterator[Found]:
    path = base_dir / Path(given).expanduser()
    if given.startswith("hf://"):
        yield HubDataSet.parse(given)
    elif "://" in given:
        yield from _elsewhere(given, base_dir)
    elif path.is_dir():
        yield from _in_directory(path, given, base_dir)
    elif path.exists():
        yield _file(path, given, base_dir, is_named=True)
    elif names := _existing(expanded(given), base_dir):
        yield _paired(given, names, base_dir)
    elif glob.has_magic(given):
        yield from _by_glob(path, given, base_dir)
    elif _may_be_on_the_hub(given, path):
        yield HubDataSet.parse(given)
    else:
        raise UserError(f"{given}: no such file or directory.{_nearest(path, base_dir)}")


def _existing(names: Sequence[tuple[str, str]] | None, base_dir: Path) -> Sequence[tuple[str, str]]:
    """The names, if there is a file of each."""
    return names if names and all((base_dir / Path(name).expanduser()).exists() for name, _ in names) else ()


def _paired(given: str, names: Sequence[tuple[str, str]], base_dir: Path) -> PairedLines:
    """Text files whose lines belong together."""
    files = tuple(_file(base_dir / Path(name).expanduser(), name, base_dir, is_named=True) for name, _ in names)
    if any(file.extension in (*TABLES, *DOCUMENTS) for file in files):
        raise UserError(f"{given}: only lines of text files (.txt) are put together. Name these files one by one.")
    shown = _shown(base_dir / Path(given).expanduser(), base_dir)
    return PairedLines(shown, files, tuple(file.path for file in files), tuple(column for _, column in names))


def _elsewhere(given: str, base_dir: Path) -> Iterator[RemoteFile | SqlQuery]:
    scheme = given.partition("://")[0].lower()
    if scheme.partition("+")[0] in DATABASES:
        yield SqlQuery.parse(given, base_dir)
    elif is_remote(given):
        for file in RemoteFile.find(given):
            _refuse_unknown(file.extension, file.shown, "Rename it to what it holds.")
            yield file
    else:
        raise UserError(
            f"{given}: {scheme}:// is not known. Known are s3://, gs://, https:// and others of fsspec, databases as "
            "sqlite:///file.db#SELECT …, and hf://owner/name for a hub data set."
        )


def _refuse_unknown(extension: str, shown: str, advice: str) -> None:
    """Raises:
    UserError: no file with this extension is read.
    """
    if extension not in (*TABLES, *TEXTS):
        problem = f"{extension!r} is not a known extension" if extension else "it has no extension"
        known = ", ".join((*TABLES, *TEXTS))
        raise UserError(f"{shown}: {problem}. Known: {known}, each also with .gz or .zst. {advice}")


def _in_directory(directory: Path, given: str, base_dir: Path) -> Iterator[DataFile]:
    known = [path for path in _walk(directory) if extension_of(path) in (*TABLES, *TEXTS)]
    if not known:
        raise UserError(
            f"{given} holds no file with a known extension ({', '.join((*TABLES, *TEXTS))}; each also with .gz or "
            ".zst)."
        )
    tables = [path for path in known if extension_of(path) in TABLES]
    texts = [path for path in known if extension_of(path) in TEXTS]
    if tables and texts:
        raise UserError(
            f"{given} holds both rows ({tables[0].name}{_more(tables)}) and documents ({texts[0].name}{_more(texts)}). "
            f"Name the ones you mean, for example {given.rstrip('/')}/**/*{extension_of(tables[0])}."
        )
    for path in known:
        yield _file(path, given, base_dir, is_named=False)


def is_sidecar(name: str) -> bool:
    """Whether a file says where another file's rows come from, so that its own rows are no data.

    Args:
        name: of the file.
    """
    return name.endswith(SIDECARS)


def _walk(directory: Path) -> Iterator[Path]:
    """Files at all levels, sorted by path, without hidden ones. Links to directories are followed, except to one that
    they are in."""
    for root, directories, files in os.walk(directory, followlinks=True):
        here, real = Path(root), Path(root).resolve()
        within = {real, *real.parents, *(parent.resolve() for parent in here.parents)}
        visible = sorted(name for name in directories if not name.startswith("."))
        directories[:] = [name for name in visible if Path(root, name).resolve() not in within]
        yield from (Path(root, name) for name in sorted(files) if not name.startswith(".") and not is_sidecar(name))


def _by_glob(pattern: Path, given: str, base_dir: Path) -> Iterator[DataFile]:
    matches = sorted(Path(match) for match in glob.glob(str(pattern), recursive=True))
    files = [match for match in matches if match.is_file() and not is_sidecar(match.name)]
    if not files:
        fixed = Path(*[part for part in pattern.parts if not glob.has_magic(part)])
        hint = f" {_shown(fixed, base_dir)} is there." if fixed.is_dir() else _nearest(fixed, base_dir)
        raise UserError(f"{given}: no file matches this pattern.{hint}")
    for match in files:
        yield _file(match, given, base_dir, is_named=False)


def _file(path: Path, given: str, base_dir: Path, is_named: bool) -> DataFile:
    shown = _shown(path, base_dir)
    if path.exists() and not path.is_file():
        raise UserError(f"{shown} is a pipe, a socket or a device, which can be read only once. Save it as a file.")
    if extension_of(path) not in (*TABLES, *TEXTS):
        advice = _ADVICE.get(path.suffix.lower(), "").replace("{path}", shown)
        _refuse_unknown(extension_of(path), shown, advice or looks_like(path) or "Rename it to what it holds.")
    name = str(path) if Path(given).expanduser().is_absolute() else os.path.relpath(path, base_dir)
    return DataFile(path, name, shown, is_named)


def _shown(path: Path, base_dir: Path) -> str:
    return str(path.relative_to(base_dir)) if path.is_relative_to(base_dir) else str(path)


def _may_be_on_the_hub(given: str, path: Path) -> bool:
    """`owner/name` that is not obviously a misspelled path."""
    owner_and_name = re.fullmatch(r"[\w.-]+/[\w.-]+(:[^@/]+)?(@[^/]+)?", given)
    return (
        bool(owner_and_name)
        and given[0] != "."
        and extension_of(path) not in (*TABLES, *TEXTS)
        and not path.parent.exists()
    )


def _nearest(path: Path, base_dir: Path) -> str:
    """The first missing part of the path, and the most similar name in its directory."""
    while not path.parent.exists():
        path = path.parent
    siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {_shown(path.parent / near[0], base_dir)}?"
    return f" Looked for {path.name} in {path.parent}; a hub data set is hf://owner/name."


def _more(paths: Sequence[Path]) -> str:
    return f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
