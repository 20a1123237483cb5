"""Simulates each step once in a process: half of a small run's time goes to the simulation of its step on fake tensors,
which depends on little of what tests vary, and which a resumed run repeats."""

from collections.abc import Callable, Hashable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from tunesmith.config.extensions import is_path
from tunesmith.data.tokens import TokenTable
from tunesmith.planner.step import Simulator, Step

Simulated = Callable[[Simulator, int | None, int | None, bool], Step]

IRRELEVANT = {
    "data": {"train", "held_out"},
    "train": {"steps", "epochs", "learning_rate", "seed", "checkpoint_every", "evaluate_every"},
}
"""Fields of a recipe that decide only which rows a step has, which are part of the key, or that come after it."""


def once(step: Simulated, known: dict[Hashable, Step]) -> Simulated:
    """`Simulator.step`, which does not simulate again what it has simulated.

    Args:
        step: the method.
        known: what it has simulated.
    """

    @wraps(step)
    def remembering(simulator: Simulator, layers: int | None, checkpointed: int | None, scores: bool) -> Step:
        if not all(map(is_path, simulator.recipe.extensions)):  # an installed package's code, which may change
            return step(simulator, layers, checkpointed, scores)
        key = (_key(simulator, scores), layers, checkpointed, scores)
        if key not in known:
            known[key] = step(simulator, layers, checkpointed, scores)
        return known[key]

    return remembering


def _key(simulator: Simulator, scores: bool) -> Hashable:
    """All that a simulation depends on."""
    recipe = simulator.recipe
    values = _described(recipe.model_dump(exclude=IRRELEVANT))
    rows = tuple(_content(*simulator.rows(packed, scores)) for packed in (False, True))
    allocator = simulator.simulate_allocator
    machine = (torch.get_num_threads(), torch.get_default_dtype())
    code = _code(recipe.directory) if recipe.extensions else ()
    return repr(values), code, repr(recipe.objective.head), rows, simulator.dtype, allocator, machine


def _content(table: TokenTable, chosen: list[int]) -> Hashable:
    """Of the chosen rows. Which tokens a text has is not simulated, only how many; completions share what is equal."""
    parts: list[bool | bytes | int] = [table.features is None, table.targets is None]
    for index in chosen:
        ids, loss_mask = table[index]
        parts += [len(ids) if table.completions is None else ids.tobytes(), loss_mask.tobytes()]
        if table.targets is not None and table.target_offsets is not None:
            parts.append(table.targets[slice(*table.target_offsets[index : index + 2])].tobytes())
    return tuple(parts)


def _described(value: Any) -> Any:
    """The values, with the content of a directory instead of its name: a model may be the same in two places."""
    if isinstance(value, dict):
        return {name: _described(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_described(each) for each in value]
    return _files(Path(value)) if isinstance(value, str | Path) and Path(value).is_dir() else value


def _code(directory: Path | None) -> tuple[tuple[str, bytes], ...]:
    """The code of users beside a recipe, and the names of what else is there, which it may look for."""
    if directory is None:
        return ()
    found = sorted(directory.rglob("*"))
    return tuple(
        (str(each.relative_to(directory)), each.read_bytes() if each.suffix == ".py" else b"") for each in found
    )


def _files(directory: Path) -> list[tuple[str, bytes | int]]:
    """The settings of a model or a run, and the sizes of its weights, whose values a simulation does not read."""
    files = sorted(each for each in directory.rglob("*") if each.suffix in (".json", ".yaml", ".safetensors"))
    return [
        (str(each.relative_to(directory)), each.stat().st_size if each.suffix == ".safetensors" else each.read_bytes())
        for each in files
    ]
