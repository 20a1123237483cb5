"""From what the user names (a file, a directory, a glob, a hub data set) to the files to read, in a fixed order."""

import difflib
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.hub import HubDataSet
from tunesmith.errors import UserError

TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
"""Endings of files that hold rows; each also with `.gz`."""

TEXTS = (".txt", ".md")
"""Endings of files that are documents themselves; each also with `.gz`."""

_ELSEWHERE = {
    ".xlsx": "Save the sheet as CSV (UTF-8).",
    ".xls": "Save the sheet as CSV (UTF-8).",
    ".zip": "Unpack it first.",
    ".tar": "Unpack it first.",
    ".zst": "Unpack it first, or pack it with gzip.",
    ".bz2": "Unpack it first, or pack it with gzip.",
    ".xz": "Unpack it first, or pack it with gzip.",
    ".arrow": "Save it as Parquet.",
    ".pdf": "Save its text as .txt.",
    ".docx": "Save its text as .txt.",
}


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file to read.

    Attributes:
        path: where it lies, absolute.
        name: the path as it was given, or as found in the directory or by the glob that was given.
        shown: `name`, shortened to what the user would type in the base directory.
        asked_for: named itself, rather than found in a directory or by a glob.
    """

    path: Path
    name: str
    shown: str
    asked_for: bool

    @property
    def ending(self) -> str:
        """The kind of file, such as `.csv`, whether packed or not."""
        return _ending(self.path)

    @property
    def packed(self) -> bool:
        return self.path.suffix.lower() == ".gz"


def find(paths: Sequence[str], base_dir: Path) -> list[DataFile | HubDataSet]:
    """What the paths name, in the order given; what a directory or glob holds is sorted by path.

    A directory is searched through all levels for known endings; names that begin with a dot are passed over.

    Raises:
        UserError: nothing there, nothing readable in it, or a file named twice.
    """
    base_dir = base_dir.absolute()
    found = [each for given in paths for each in _find_one(str(given), base_dir)]
    seen: dict[str, str] = {}
    for each in found:
        shown, identity = (
            (each.shown, str(each.path.resolve())) if isinstance(each, DataFile) else (str(each), str(each))
        )
        if identity in seen:
            raise UserError(
                f"{shown} is named twice among the data (also as {seen[identity]}), so its rows would be learnt twice, "
                "or be both learnt and held out. Name it once."
            )
        seen[identity] = shown
    return found


def _find_one(given: str, base_dir: Path) -> Iterator[DataFile | HubDataSet]:
    path = base_dir / Path(given).expanduser()
    if "://" in given and not given.startswith("hf://"):
        raise UserError(
            f"{given} is not on this machine. Download it and name the file; a hub data set is hf://owner/name."
        )
    if given.startswith("hf://"):
        yield HubDataSet.parse(given)
    elif path.is_dir():
        yield from _in_directory(path, given, base_dir)
    elif path.exists():
        yield _file(path, given, base_dir, asked_for=True)
    elif glob.has_magic(given):
        yield from _by_glob(path, given, base_dir)
    elif _may_be_on_the_hub(given, path):
        yield HubDataSet.parse(given)
    else:
        raise UserError(f"{given}: no such file or directory.{_nearest(path, base_dir)}")


def _in_directory(directory: Path, given: str, base_dir: Path) -> Iterator[DataFile]:
    known = [path for path in _walk(directory) if _ending(path) in (*TABLES, *TEXTS)]
    if not known:
        raise UserError(
            f"{given} holds no file with a known ending ({', '.join((*TABLES, *TEXTS))}; each also with .gz)."
        )
    tables = [path for path in known if _ending(path) in TABLES]
    texts = [path for path in known if _ending(path) in TEXTS]
    if tables and texts:
        raise UserError(
            f"{given} holds both rows ({tables[0].name}{_more(tables)}) and documents ({texts[0].name}{_more(texts)}). "
            f"Name the ones you mean, for example {given.rstrip('/')}/**/*{_ending(tables[0])}."
        )
    for path in known:
        yield _file(path, given, base_dir, asked_for=False)


def _walk(directory: Path) -> Iterator[Path]:
    """Files at all levels, sorted by path, hidden ones left out; links to directories are followed once."""
    for root, folders, files in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def _by_glob(pattern: Path, given: str, base_dir: Path) -> Iterator[DataFile]:
    matches = sorted(Path(match) for match in glob.glob(str(pattern), recursive=True))
    files = [match for match in matches if match.is_file()]
    if not files:
        fixed = Path(*[part for part in pattern.parts if not glob.has_magic(part)])
        hint = f" {_shown(fixed, base_dir)} is there." if fixed.is_dir() else _nearest(fixed, base_dir)
        raise UserError(f"{given}: no file fits this pattern.{hint}")
    for match in files:
        yield _file(match, given, base_dir, asked_for=False)


def _file(path: Path, given: str, base_dir: Path, asked_for: bool) -> DataFile:
    shown = _shown(path, base_dir)
    ending = _ending(path)
    if ending not in (*TABLES, *TEXTS):
        advice = _ELSEWHERE.get(path.suffix.lower(), "Rename it to what it holds.")
        raise UserError(
            f"{shown}: {repr(ending) if ending else 'no ending'} does not say what the file holds. Known: "
            f"{', '.join((*TABLES, *TEXTS))}, each also with .gz. {advice}"
        )
    name = str(path) if Path(given).expanduser().is_absolute() else os.path.relpath(path, base_dir)
    return DataFile(path, name, shown, asked_for)


def _ending(path: Path) -> str:
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def _shown(path: Path, base_dir: Path) -> str:
    return str(path.relative_to(base_dir)) if path.is_relative_to(base_dir) else str(path)


def _may_be_on_the_hub(given: str, path: Path) -> bool:
    """`owner/name` that is not plainly a misspelled path."""
    owner_and_name = re.fullmatch(r"[\w.-]+/[\w.-]+(:[^@/]+)?(@[^/]+)?", given)
    return (
        bool(owner_and_name) and given[0] != "." and _ending(path) not in (*TABLES, *TEXTS) and not path.parent.exists()
    )


def _nearest(path: Path, base_dir: Path) -> str:
    """The first part of the path that is missing, and the name beside it that is most like it."""
    while not path.parent.exists():
        path = path.parent
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {_shown(path.parent / near[0], base_dir)}?"
    return f" Looked for {path.name} in {path.parent}; a hub data set is hf://owner/name."


def _more(paths: Sequence[Path]) -> str:
    return f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
