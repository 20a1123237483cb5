"""Writes the rows of an act that chooses rows: each as often as it was chosen, in the order of the files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.curation.origin import origin_path, write_origin
from tunesmith.curation.rows import Rows
from tunesmith.run import atomic_write, writing


def write_chosen(
    rows: Rows,
    target: Path,
    copies: NDArray[np.int64],
    act: str,
    settings: Mapping[str, Any],
    counts: Mapping[str, Any],
) -> int:
    """Write rows, and beside them where they come from.

    Args:
        rows: all rows.
        target: the file of JSON lines to write.
        copies: (rows,) how often each is written; 0 for one without a line.
        act: `sample`.
        settings: of the act.
        counts: what was done.

    Returns:
        How many rows were written.

    Raises:
        UserError: the file cannot be written.
    """
    with writing(target), atomic_write(target, "wb") as out:
        for line in rows.lines("writing"):
            for _ in range(int(copies[line.index])):
                out.write(line.line)
    written = int(copies.sum())
    write_origin(origin_path(target), act, rows.fingerprints, settings, {target: written}, counts)
    return written
