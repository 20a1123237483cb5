"""Staying within a memory: how many blocks compute their activations twice, and how many tokens go at once.

A block whose activations are not kept stores its input alone and runs its forward again in the backward pass (Chen et
al. 2016).
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.errors import UserError
from tunesmith.planner.device import Device
from tunesmith.planner.plan import Plan, plan_run

LEAST_TOKENS = 128
"""A batch is not halved below it."""

MARGIN = 1.05
"""A plan is taken to hold within it: see benchmarks/plan_accuracy.py."""


def plan_within(batch_plan: BatchPlan, dtype: torch.dtype, device: Device, limit: int) -> Plan:
    """The cheapest way to stay within the limit: as few blocks twice as will do, then half as many tokens at once.

    Args:
        workload, dtype, device: as `plan_run` takes them.
        limit: bytes.

    Raises:
        UserError: the longest row does not fit by itself, with what would.
    """
    room = round(limit / MARGIN)
    usual = batch_plan.tokens_per_batch
    once = plan_run(batch_plan, dtype, device, room)
    if once.fits:
        return once

    def twice_over(tokens: int) -> Plan:
        """With every block computed twice; once where the family cannot."""
        fewer = replace(batch_plan, tokens_per_batch=tokens)
        try:
            return plan_run(fewer, dtype, device, room, once.step.blocks)
        except UserError:
            return plan_run(fewer, dtype, device, room)

    sizes = list(_halved(usual, max(batch_plan.longest, LEAST_TOKENS)))
    smallest = twice_over(sizes[-1])
    if not smallest.fits:
        needed = smallest.memory.peak_bytes * MARGIN
        raise UserError(
            f"train.memory_limit: {limit / 1e9:.2f} GB are too few: {sizes[-1]:,} tokens at once (the longest row has "
            f"{batch_plan.longest:,}) take {needed / 1e9:.2f} GB with every block computed twice. Set memory_limit: "
            f"{math.ceil(needed / 1e8) / 10:.1f}GB, data.max_length lower, or base.weights: nf4."
        )
    twice = next((found for found in map(twice_over, sizes[:-1]) if found.fits), smallest)
    if twice.batch_plan.tokens_per_batch < usual:
        once = plan_run(twice.batch_plan, dtype, device, room)
    return once if once.fits else _between(once, twice, dtype)


def _halved(tokens: int, least: int) -> Iterator[int]:
    """Ever fewer, down to the least."""
    yield tokens
    while tokens > least:
        tokens = max(least, tokens // 2)
        yield tokens


def _between(once: Plan, twice: Plan, dtype: torch.dtype) -> Plan:
    """As few blocks twice as fit, sought from where the line between none and all of them crosses the limit."""
    blocks = once.step.blocks
    saved = once.memory.peak_bytes - twice.memory.peak_bytes
    first = math.ceil((once.memory.peak_bytes - once.available) / max(1, saved) * blocks)
    for count in range(max(1, first), blocks, max(1, blocks // 8)):
        found = plan_run(once.batch_plan, dtype, once.device, once.available, count)
        if found.fits:
            return found
    return twice


def refusal(plan: Plan, dtype: torch.dtype) -> str:
    """One line for a run that does not fit: what it would take, and what would do."""
    recipe = plan.batch_plan.recipe
    said = f"{plan.memory.peak_bytes / 1e9:.1f} GB are needed and {plan.available / 1e9:.1f} GB are free"
    try:
        found = plan_within(plan.batch_plan, dtype, plan.device, plan.available)
    except UserError:
        return (
            f"base: {recipe.base.path}: {said}. What fits: tunesmith plan {recipe.base.path} --fit "
            f"{plan.available / 1e9:.1f}GB. Or set base.weights: nf4, a smaller data.max_length, or another base."
        )
    return (
        f"base: {recipe.base.path}: {said}. Set train.memory_limit: {plan.available / 1e9:.1f}GB, with which "
        f"{found.checkpointed} of {found.step.blocks} blocks are computed twice, {found.batch_plan.tokens_per_batch:,} "
        f"tokens at once, in {found.memory.peak_bytes / 1e9:.1f} GB."
    )
