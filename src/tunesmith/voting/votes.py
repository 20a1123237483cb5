"""Votes as rows of a JSONL file, in the format that the objectives for preferences train on.

    {"prompt": [{"role": "user", "content": "Why?"}], "chosen": [{"role": "assistant", "content": "Because."}],
     "rejected": [{"role": "assistant", "content": "No."}], "tie": false,
     "models": {"chosen": "tuned", "rejected": "base"}, "model_sha256": {"chosen": "3f…", "rejected": "a0…"},
     "shown_first": "rejected", "voter": "anna", "time": "2026-11-30T09:12:44Z", "seconds": 7.1,
     "source": "faq.jsonl row 3", "pair": "5d0c…"}

The columns after `tie` say where a vote comes from; what trains on the rows does not read them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.appended_rows import AppendedRows, values_of
from tunesmith.data.example import Malformed, Message
from tunesmith.data.read import Row, read
from tunesmith.errors import UserError
from tunesmith.inference.result_cache import digest_of

Side = Literal["chosen", "rejected"]

NEEDED = ("prompt", "chosen", "rejected", "models", "shown_first", "voter")
"""Columns of every vote."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A model that answered.

    Attributes:
        name: as it is shown.
        sha256: of its weights, tokenizer and precision; None if that is not known, as of a server.
    """

    name: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Vote:
    """What somebody thinks of two answers.

    Attributes:
        prompt: the turns before the answers.
        chosen: the better answer, or either one of a tie.
        rejected: the other one.
        chosen_by: the model that wrote `chosen`.
        rejected_by: the model that wrote `rejected`.
        tie: whether neither is better.
        shown_first: which of both was shown first.
        voter: who voted.
        time: when, in UTC, as ISO 8601.
        seconds: that it took; None if that is not known.
        source: the row that the question comes from.
        pair: what was voted on: a hash of the question, both models and how they were asked.
    """

    prompt: Sequence[Message]
    chosen: str
    rejected: str
    chosen_by: Contender
    rejected_by: Contender
    tie: bool
    shown_first: Side
    voter: str
    time: str
    seconds: float | None
    source: str
    pair: str

    @property
    def content(self) -> str:
        """A hash of the question and both answers, whatever their order."""
        return digest_of([list(self.prompt), sorted([self.chosen, self.rejected])])

    @property
    def question(self) -> str:
        """A hash of the question."""
        return digest_of(list(self.prompt))

    def row(self) -> dict[str, Any]:
        """The vote as a row of the file."""
        chosen, rejected = self.chosen_by, self.rejected_by
        return {
            "prompt": list(self.prompt),
            "chosen": _turns(self.chosen),
            "rejected": _turns(self.rejected),
            "tie": self.tie,
            "models": {"chosen": chosen.name, "rejected": rejected.name},
            "model_sha256": {"chosen": chosen.sha256, "rejected": rejected.sha256},
            "shown_first": self.shown_first,
            "voter": self.voter,
            "time": self.time,
            "seconds": self.seconds,
            "source": self.source,
            "pair": self.pair,
        }

    @classmethod
    def of(cls, row: Row | Malformed) -> "Vote":
        """Read a row of the file.

        Args:
            row: as read.

        Raises:
            UserError: it is no vote.
        """
        values = values_of(row)
        missing = [name for name in NEEDED if values.get(name) is None]
        if missing:
            raise UserError(
                f"{row.source} is no vote: it has no {' and no '.join(missing)}. Name files that tunesmith vote wrote."
            )
        try:
            models, hashes = values["models"], values.get("model_sha256") or {}
            sides = {side: Contender(str(models[side]), hashes.get(side)) for side in ("chosen", "rejected")}
            texts = {side: "".join(str(turn["content"]) for turn in values[side]) for side in ("chosen", "rejected")}
            if values["shown_first"] not in sides:
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(
                f"{row.source} is no vote: chosen, rejected, models or shown_first is not as tunesmith vote writes it."
            ) from None
        return cls(
            values["prompt"], texts["chosen"], texts["rejected"], sides["chosen"], sides["rejected"],
            bool(values.get("tie")), values["shown_first"], str(values["voter"]), str(values.get("time") or ""),
            values.get("seconds"), str(values.get("source") or row.source), str(values.get("pair") or ""),
        )  # fmt: skip


def read_votes(paths: Sequence[str | Path]) -> list[Vote]:
    """The votes in files.

    Args:
        paths: as `data.train` takes them.

    Returns:
        In order.

    Raises:
        UserError: a file cannot be read, or a row is no vote.
    """
    return [Vote.of(row) for row in read([str(path) for path in paths], Path.cwd())]


class VoteFile(AppendedRows[Vote]):
    """A file to which votes are appended."""

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator["AppendedRows[Vote]"]:
        """Within the context nothing else writes the file. A last line that was cut off is removed.

        Args:
            path: of the file, which need not exist.

        Raises:
            UserError: it cannot be written, another process writes it, or it has rows that are no votes.
        """
        with cls.opened(path, Vote.of, Vote.row) as file:
            yield file


def _turns(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]
