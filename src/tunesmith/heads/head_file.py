"""The file that stores which head a model has."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.config.head import Head
from tunesmith.config.registry import HEADS
from tunesmith.errors import UserError

FILE = "head.json"
"""Saved beside an adapter, which holds a head's weights but not its labels, and beside an embedding model."""


def described_head(head: Head) -> dict[str, Any]:
    """The head as plain values. Equal heads have equal ones, also if a user's class was imported twice."""
    return {"kind": head.kind, **asdict(head)}


def write_head(head: Head, directory: Path) -> None:
    """Write the head's file into a directory."""
    (directory / FILE).write_text(json.dumps(described_head(head)), encoding="utf-8")


def write_users_head(head: Head, directory: Path) -> None:
    """Write the file of a user's head, which nothing else in a model's files names."""
    if HEADS.is_users(head.kind):
        write_head(head, directory)


def read_head(directory: Path) -> Head | None:
    """The head that a directory's file names; None if it has no such file.

    A user's head is imported from the run that the directory belongs to, or from what is installed: a model or an
    adapter that is not in a run runs no code of its own.

    Raises:
        UserError: the file is not one of `write_head`, is from another version, or names code that is not there.
    """
    file = directory / FILE
    if not file.exists():
        return None
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        kind = values.pop("kind")
        found = HEADS.load(kind, directory.parent if (directory.parent / "recipe.yaml").exists() else None)
        if not (isinstance(found, type) and issubclass(found, Head)):
            raise UserError(f"{kind} does not extend {Head.__module__}.Head.")
        head: Head = found(**{**values, "labels": tuple(values["labels"])})
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{file} does not describe a head that this version knows ({', '.join(HEADS)}). Use the version of "
            "Tunesmith that wrote it, or remove the file if another program did."
        ) from None
    return head
