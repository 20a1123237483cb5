"""What the starting model says of the rows, computed once before the first step and kept with the run.

A policy is compared with the model that it starts from: its base, or the adapter that it continues. That model's
log-probabilities do not change, so they are computed before the first step, and no second model is in memory. They are
cached by the content of rows and model.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.cache_directory import cache_directory
from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import Prepared
from tunesmith.data.tokens import Completions, TokenTable
from tunesmith.engine.loop import Loop
from tunesmith.errors import UserError
from tunesmith.models.forward import evaluation_batches
from tunesmith.models.prompts import has_prompt, plain_model

FILE = "reference.npz"
"""In the run's directory, so that a resumed run has the same values to the bit."""

PROBED, SAME, SAME_BF16 = 4, 1e-4, 5e-3
"""Rows on which cached values are compared with the model, and by how much they may differ, relative: batches of other
rows round differently."""


def fill_reference(loop: Loop, recipe: Recipe, prepared: Prepared) -> None:
    """Compute `Completions.reference` of all rows, in place, if the objective needs it.

    Emits `progress`.

    Args:
        loop: before its first step, or resumed.
        recipe: of the run.
        prepared: the rows of both sides.
    """
    if not loop.objective.needs_reference:
        return
    tables = [table for table in (prepared.train, prepared.held_out) if len(table)]
    stored = loop.directory / FILE
    cached = cache_directory() / "reference" / f"{_key(loop, recipe, tables)}.npz"
    if (values := _read(stored, tables)) is not None:
        _put(tables, values)
        return
    values = _read(cached, tables) if recipe.data.cache else None
    continued = recipe.base.adapter is not None
    if values is not None and _agrees(loop, tables[0], values[0], continued):
        _put(tables, values)
    else:
        _compute(loop, tables, continued)
        if recipe.data.cache:
            _write(cached, tables)
    _write(stored, tables)


def _compute(loop: Loop, tables: Sequence[TokenTable], continued: bool) -> None:
    """Raises:
    UserError: the run has trained already.
    """
    if loop.state.step:
        raise UserError(
            f"{loop.directory / FILE} is gone, and the model that the run started from has changed since. Start the "
            "run again."
        )
    done, total = 0, sum(map(len, tables))
    for table in tables:
        for rows, values in _values(loop, table, range(len(table)), continued):
            for row, part in zip(rows, values, strict=True):
                _of(table).reference_of(row)[:] = part
            done += len(rows)
            loop.events.emit("progress", what="reference", done=done, total=total)


def _values(
    loop: Loop, table: TokenTable, rows: Sequence[int], continued: bool
) -> Iterator[tuple[list[int], list[NDArray[np.float32]]]]:
    """What the model says of the rows, batch by batch: the rows, and the values of each one's completions."""
    model = loop.model
    if has_prompt(model) and not continued:
        model = plain_model(model)  # a new prompt changes the model from the start: the reference is the base
    for items, batch in evaluation_batches(model, table, rows, loop.tokens_per_batch):
        assert batch.completions is not None
        with torch.no_grad():
            values = loop.objective.reference(model, batch).float().cpu().numpy()
        yield [rows[item] for item in items], np.split(values, np.cumsum(batch.completions.per_row)[:-1])


def _agrees(loop: Loop, table: TokenTable, known: NDArray[np.float32], continued: bool) -> bool:
    """Whether cached values are those of this model on a few rows: a method may change the model from the start."""
    offsets = _of(table).offsets
    same = SAME if next(loop.model.parameters()).dtype == torch.float32 else SAME_BF16
    return all(
        np.allclose(part, known[offsets[row] : offsets[row + 1]], rtol=same, atol=same)
        for rows, values in _values(loop, table, range(min(PROBED, len(table))), continued)
        for row, part in zip(rows, values, strict=True)
    )


def _of(table: TokenTable) -> Completions:
    assert table.completions is not None
    return table.completions


def _key(loop: Loop, recipe: Recipe, tables: Sequence[TokenTable]) -> str:
    """SHA-256 of what decides the values: the tokens, the base with its adapter, precision and device. A new adapter
    starts without effect, except a few, which `_agrees` finds."""
    digest = hashlib.sha256()
    for table in tables:
        parts = (table.ids, table.loss_mask, table.offsets, _of(table).lengths, _of(table).offsets)
        for array in parts:
            digest.update(np.ascontiguousarray(array).tobytes())
    described: dict[str, Any] = {
        "base": json.loads((loop.directory / "provenance.json").read_text(encoding="utf-8"))["base"],
        "weights": recipe.base.weights,
        "precision": str(next(loop.model.parameters()).dtype),
        "device": loop.device.type,
    }
    return hashlib.sha256(digest.digest() + json.dumps(described, sort_keys=True).encode()).hexdigest()


def _read(file: Path, tables: Sequence[TokenTable]) -> list[NDArray[np.float32]] | None:
    """The values of each table; None if there is no such file, or it is of other rows."""
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as loaded:
            values = [loaded[f"table_{number}"] for number in range(len(tables))]
    except (OSError, ValueError, KeyError, EOFError):
        return None
    sizes = [len(_of(table).scores) for table in tables]
    return values if [len(each) for each in values] == sizes else None


def _put(tables: Sequence[TokenTable], values: Sequence[NDArray[np.float32]]) -> None:
    for table, each in zip(tables, values, strict=True):
        _of(table).reference[:] = each


def _write(file: Path, tables: Sequence[TokenTable]) -> None:
    """Atomic: the file is complete, or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"table_{number}": _of(table).reference for number, table in enumerate(tables)}
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as partial:
        np.savez(partial, allow_pickle=False, **arrays)
    Path(partial.name).replace(file)
