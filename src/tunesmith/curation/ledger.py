"""The ledger beside a cleaned file: what became of every row, why, and what it was.

    {"ledger": 1, "inputs": {"faq.jsonl": "9f…"}, "settings": {…}, "tunesmith": "0.1.0"}
    {"file": "faq.jsonl", "row": 1, "fate": "kept"}
    {"file": "faq.jsonl", "row": 2, "fate": "dropped", "why": ["empty: the answer is empty"], "was": "{…}"}
    {"file": "faq.jsonl", "row": 3, "fate": "masked", "why": ["secrets"], "hidden": true}
    {"end": {"counts": {…}, "output_sha256": "ab…", "files": {"faq.jsonl": {"sha256": "9f…", "tail": "\\n"}}}}

`was` is the line as it was, `was_base64` if it is not UTF-8. With `hidden`, what the line was is not in the ledger,
because it holds personal data or secrets; of a dropped row, `was` is then masked.
"""

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tunesmith.errors import UserError

SUFFIX = ".ledger.jsonl"
VERSION = 1


def ledger_path(output: Path) -> Path:
    """The ledger beside an output.

    Args:
        output: a cleaned file.
    """
    return output.with_name(output.name + SUFFIX)


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of a row.

    Attributes:
        file: that it was in.
        row: its number there.
        fate: `kept`, `dropped`, or what was changed: `masked`, `fixed`, `relabeled`, or several of these with `+`.
        why: the reasons, each with the check before it.
        was: the line, with its line feed; None if it was not changed.
        hidden: whether `was` is not all of it.
        before: what was between the row before and this one.
        is_ended: whether the line ended with a line feed.
    """

    file: str
    row: int
    fate: str
    why: Sequence[str] = ()
    was: bytes | None = None
    hidden: bool = False
    before: bytes = b""
    is_ended: bool = True

    def line(self) -> str:
        """The entry as a line of the ledger."""
        values: dict[str, Any] = {"file": self.file, "row": self.row, "fate": self.fate}
        if self.why:
            values["why"] = list(self.why)
        if self.was is not None:
            values |= _text("was", self.was.removesuffix(b"\n"))
        if self.hidden:
            values["hidden"] = True
        if self.before:
            values |= _text("before", self.before)
        if not self.is_ended:
            values["is_ended"] = False
        return json.dumps(values, ensure_ascii=False) + "\n"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Entry":
        """Read an entry.

        Args:
            values: of a line.
        """
        was = _bytes("was", values)
        return cls(
            values["file"], values["row"], values["fate"], tuple(values.get("why", ())),
            None if was is None else was + b"\n", values.get("hidden", False), _bytes("before", values) or b"",
            values.get("is_ended", True),
        )  # fmt: skip


def _text(name: str, content: bytes) -> dict[str, str]:
    try:
        return {name: content.decode("utf-8")}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(content).decode("ascii")}


def _bytes(name: str, values: Mapping[str, Any]) -> bytes | None:
    if f"{name}_base64" in values:
        return base64.b64decode(values[f"{name}_base64"])
    return values[name].encode("utf-8") if name in values else None


@dataclass
class Writer:
    """Writes a ledger.

    Attributes:
        out: the open file.
        fates: rows by fate.
    """

    out: IO[str]
    fates: Counter[str] = field(default_factory=Counter)

    def begin(self, inputs: Mapping[str, str], settings: Mapping[str, Any], version: str) -> None:
        """Write the first line."""
        first = {"ledger": VERSION, "inputs": dict(inputs), "settings": dict(settings), "tunesmith": version}
        self.out.write(json.dumps(first, ensure_ascii=False) + "\n")

    def add(self, entry: Entry) -> None:
        """Write what became of a row."""
        for fate in entry.fate.split("+"):
            self.fates[fate] += 1
        self.out.write(entry.line())

    def end(self, counts: Mapping[str, Any], output: str, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the last line."""
        last = {"counts": dict(counts), "output_sha256": output, "files": {n: dict(v) for n, v in files.items()}}
        self.out.write(json.dumps({"end": last}, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Ledger:
    """A ledger that was written.

    Attributes:
        path: of the file.
        first: the values of its first line.
        end: the values of its last line.
    """

    path: Path
    first: Mapping[str, Any]
    end: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> "Ledger":
        """Read what a ledger begins and ends with.

        Args:
            path: of the file.

        Raises:
            UserError: it cannot be read, or is no ledger.
        """
        try:
            with path.open("rb") as file:
                first = json.loads(file.readline())
                file.seek(max(0, path.stat().st_size - (16 << 20)))
                end = json.loads(file.read().splitlines()[-1])
            if first["ledger"] != VERSION:
                raise UserError(f"{path} is a ledger of version {first['ledger']}, and this program reads {VERSION}.")
            return cls(path, first, end["end"])
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}. It is written beside a cleaned file.") from None
        except (ValueError, KeyError, TypeError, IndexError):
            raise UserError(f"{path} is no ledger that tunesmith data clean wrote, or its end is missing.") from None

    def entries(self) -> Iterator[Entry]:
        """What became of each row, in order.

        Raises:
            UserError: a line is broken.
        """
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    values = json.loads(line)
                    if "fate" in values:
                        yield Entry.of(values)
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{self.path} line {number:,} is broken. Restore it from a copy.") from None
