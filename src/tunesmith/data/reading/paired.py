"""Files whose lines belong together, as machine translation has them: line n of one goes with line n of the other."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

from tunesmith.data.example import Malformed, Row, Source
from tunesmith.data.reading.json_lines import LONGEST
from tunesmith.data.reading.opened import Readable, opened
from tunesmith.errors import UserError
from tunesmith.file_hash import file_sha256

_BRACES = re.compile(r"([^{}]*)\{([^{},]+(?:,[^{},]+)+)\}([^{}]*)")


@dataclass(frozen=True, slots=True)
class PairedLines:
    """Files of lines that belong together: `train.{concepts,sentences}.txt`.

    Attributes:
        name: as given.
        files: one for each column.
        paths: of the files.
        columns: what differs between their names.
    """

    name: str
    files: tuple[Readable, ...]
    paths: tuple[Path, ...]
    columns: tuple[str, ...]

    def __str__(self) -> str:
        return self.name

    def rows(self) -> Iterator[Row | Malformed]:
        """A row of each line.

        Raises:
            UserError: a file has more lines than another, or cannot be read.
        """
        with ExitStack() as stack:
            streams = [stack.enter_context(opened(file))[0] for file in self.files]
            each_line = [iter(partial(stream.readline, LONGEST), b"") for stream in streams]
            for number, lines in enumerate(zip_longest(*each_line), 1):
                ended = next((file for file, line in zip(self.files, lines, strict=True) if line is None), None)
                if ended is not None:
                    raise UserError(
                        f"{self.name}: {ended.shown} ends after line {number - 1:,} and another one does not, so their "
                        "lines do not belong together. Give both as many lines."
                    )
                if any(line.strip() for line in lines):
                    yield self._row(lines, Source(self.name, number))

    def _row(self, lines: Sequence[bytes], source: Source) -> Row | Malformed:
        try:
            texts = [line.decode("utf-8").rstrip("\r\n") for line in lines]
        except UnicodeDecodeError:
            return Malformed(source, "not valid UTF-8. Save the file as UTF-8")
        return Row(dict(zip(self.columns, texts, strict=True)), source)

    def fingerprint(self) -> str:
        """The SHA-256 of the files' own, in their order."""
        return hashlib.sha256("".join(map(file_sha256, self.paths)).encode()).hexdigest()


def expanded(given: str) -> list[tuple[str, str]] | None:
    """The names that a pattern with braces stands for, each with its column; None if it has none.

    Args:
        given: such as `train.{concepts,sentences}.txt`.
    """
    found = _BRACES.fullmatch(given)
    return [(f"{found[1]}{part}{found[3]}", part.strip()) for part in found[2].split(",")] if found else None


def partner_of(path: Path) -> str | None:
    """The name with braces of a text file and another one beside it that has as many lines.

    Args:
        path: of the file.
    """
    lines = _lines_in(path)
    parts = path.name.split(".")
    for other in sorted(path.parent.iterdir()):
        names = other.name.split(".")
        differ = [index for index, (one, two) in enumerate(zip(parts, names, strict=False)) if one != two]
        is_alike = len(names) == len(parts) and len(differ) == 1 and differ[0] < len(parts) - 1
        if is_alike and other.is_file() and lines > 1 and _lines_in(other) == lines:
            at = differ[0]
            both = f"{{{parts[at]},{names[at]}}}"
            return str(path.with_name(".".join([*parts[:at], both, *parts[at + 1 :]])))
    return None


def _lines_in(path: Path) -> int:
    with path.open("rb") as file:
        return sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))
