"""Where a file's rows come from: the act, its settings, and the hashes of what it read and wrote (`F.origin.json`)."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunesmith.file_hash import file_sha256
from tunesmith.run import atomic_write, jsonable, refuse_existing, writing
from tunesmith.run_lock import output_lock

SUFFIX = ".origin.json"


def origin_path(output: Path) -> Path:
    """The file beside an output.

    Args:
        output: that an act writes.
    """
    return output.with_name(output.name + SUFFIX)


@contextmanager
def claimed(*outputs: Path) -> Iterator[None]:
    """Within the context, no other process and no other thread writes the outputs. Their directory is created.

    Args:
        outputs: files or directories that one act writes, the one that is named first.

    Raises:
        UserError: one is there, or is being written.
    """
    for output in outputs:
        refuse_existing(output)
        with writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
    with output_lock(outputs[0]):
        for output in outputs:  # another process may have written them just before
            refuse_existing(output)
        yield


def kept_marks(output: Path) -> list[tuple[str, ...]]:
    """What checks said of each row of a file when it was written; empty if that is not known of this content.

    Args:
        output: that `data_worst` wrote.
    """
    try:
        origin = json.loads(origin_path(output).read_text(encoding="utf-8"))
        if origin["outputs"][output.name]["sha256"] == file_sha256(output):
            return [tuple(map(str, row["marks"])) for row in origin["counts"]["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return []


def write_origin(
    path: Path,
    act: str,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    outputs: Mapping[Path, int],
    counts: Mapping[str, Any],
) -> None:
    """Write what made an output. It has no time of day: the same act on the same rows writes the same file.

    Args:
        path: of this file.
        act: `split`.
        inputs: the SHA-256 of each file, by name.
        settings: of the act, with its seed.
        outputs: the rows of each file.
        counts: what was done.
    """
    content = {
        "act": act,
        "tunesmith": version("tunesmith"),
        "inputs": dict(inputs),
        "settings": dict(settings),
        "outputs": {file.name: {"rows": rows, "sha256": file_sha256(file)} for file, rows in outputs.items()},
        "counts": dict(counts),
    }
    with writing(path), atomic_write(path) as file:
        json.dump(jsonable(content), file, indent=2, ensure_ascii=False)
        file.write("\n")
