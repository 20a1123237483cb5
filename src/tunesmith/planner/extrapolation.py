"""A step of a deep model, from steps with few of its blocks: simulating all of them takes long.

Blocks of the same pattern cost the same. So a step is simulated with few of them and with one period of the pattern
more, and their difference is added as often as the model has it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from transformers import PretrainedConfig

from tunesmith.config.recipe import Recipe
from tunesmith.models.load import config_of
from tunesmith.planner.step import AllocatorSimulation, Rows, Simulator, Step

FEW_LAYERS = 12
"""Models with more blocks are simulated twice with few of them; the rest is extrapolated linearly."""

GAPS_GROWTH = 0.65
"""The allocator's gaps do not grow linearly but with this power of the number of blocks: the best fit for SmolLM2 135M,
Gemma 3 1B and Qwen 2.5 3B (few blocks against all, with and without activation checkpointing)."""


def step_of(
    recipe: Recipe,
    rows: Rows,
    dtype: torch.dtype,
    simulate_allocator: AllocatorSimulation,
    checkpointed: int | None = None,
    few_layers: int = FEW_LAYERS,
) -> Step:
    """Simulate one step of the recipe on fake tensors.

    Args:
        recipe: with its objective resolved.
        rows: of the largest batch.
        dtype: of everything that is not quantized.
        simulate_allocator: simulates the device's allocator.
        checkpointed: blocks with activation checkpointing; default: as in the recipe.
        few_layers: most blocks that are simulated one by one.

    Raises:
        UserError: base, method and objective are not compatible, or the architecture does not run on fake tensors.
    """
    config = config_of(recipe.base)
    simulator = Simulator(recipe, rows, dtype, simulate_allocator)
    counts = _few_layers(config, few_layers)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    is_partial = checkpointed is not None and 0 < checkpointed < layers
    top = recipe.method.top_blocks
    if counts is None or (is_partial and top):
        return simulator.largest_step(None, checkpointed)
    fewer, more = counts
    period = more - fewer
    few_at_top = min(top, period)
    simulator = replace(simulator, recipe=_with_top_blocks(recipe, few_at_top))
    partly = [None if checkpointed is None else 0 if is_partial else min(checkpointed, count) for count in counts]
    low = simulator.largest_step(fewer, partly[0])
    high = simulator.step(more, partly[1], low.scores)
    full = _extrapolated(low, low, high, (layers - fewer) / period, layers)
    if top > few_at_top:
        taller = replace(simulator, recipe=_with_top_blocks(recipe, few_at_top + period))
        high_taller = taller.step(more, partly[1], low.scores)
        return _extrapolated(full, high, high_taller, (top - few_at_top) / period, layers)
    if checkpointed is None or not is_partial:
        return full
    high_checkpointed = simulator.step(more, period, low.scores)
    return _extrapolated(full, high, high_checkpointed, checkpointed / period, layers)


def _with_top_blocks(recipe: Recipe, count: int) -> Recipe:
    """The recipe whose method trains that many of the top blocks, if it treats these unlike those below."""
    return recipe.model_copy(update={"method": recipe.method.with_top_blocks(count)}) if count else recipe


def _few_layers(config: PretrainedConfig, few: int) -> tuple[int, int] | None:
    """Two numbers of blocks, multiples of the period of the architecture's layer pattern; None to simulate all
    blocks."""
    text = config.get_text_config()
    layers = getattr(text, "num_hidden_layers", 0)
    if config.is_encoder_decoder or layers <= few:
        return None
    lists = [each for each in vars(text).values() if isinstance(each, list) and len(each) == layers]
    period = next(
        size
        for size in range(1, layers + 1)
        if all(each[index] == each[index % size] for each in lists for index in range(layers))
    )
    fewer = -(-2 // period) * period
    return (fewer, fewer + period) if fewer + period < layers else None


Key = TypeVar("Key")


def _extrapolated(start: Step, low: Step, high: Step, factor: float, blocks: int) -> Step:
    """`start` + `factor` · (`high` − `low`), for every count of a step."""

    def number(first: float, one: float, other: float) -> int:
        return round(first + factor * (other - one))

    def counts(first: Mapping[Key, float], one: Mapping[Key, float], other: Mapping[Key, float]) -> dict[Key, float]:
        keys = {**first, **one, **other}
        return {key: first.get(key, 0) + factor * (other.get(key, 0) - one.get(key, 0)) for key in keys}

    def bytes_of(*parts: Mapping[str, int]) -> dict[str, int]:
        return {part: round(count) for part, count in counts(*parts).items()}

    return Step(
        bytes_of(start.parts, low.parts, high.parts),
        round(high.slack * (blocks / high.blocks) ** GAPS_GROWTH),
        bytes_of(start.evaluation_parts, low.evaluation_parts, high.evaluation_parts),
        counts(start.forward_backward, low.forward_backward, high.forward_backward),
        counts(start.optimizer, low.optimizer, high.optimizer),
        counts(start.evaluation, low.evaluation, high.evaluation),
        number(start.parameters, low.parameters, high.parameters),
        number(start.trained, low.trained, high.trained),
        blocks,
        start.packed,
        start.largest,
        start.is_transposed,
    )
