"""Fits a run into a memory limit: how many blocks use activation checkpointing, and how many tokens a batch has.

A checkpointed block stores only its input, and its forward pass runs again in the backward pass (Chen et al. 2016).
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
"""Tokens of the smallest batch that is still split in two."""

MARGIN = 1.05
"""Largest ratio of measured to planned memory that is assumed: see benchmarks/plan_accuracy.py."""


def plan_within(batch_plan: BatchPlan, dtype: torch.dtype, device: Device, limit: int) -> Plan:
    """The cheapest plan within the limit: first checkpoint as few blocks as possible, then split the batch in two.

    Args:
        batch_plan, dtype, device: as in `plan_run`.
        limit: bytes.

    Raises:
        UserError: even the longest row alone does not fit; the message gives what would.
    """
    room = round(limit / MARGIN)
    usual = batch_plan.tokens_per_batch
    without = plan_run(batch_plan, dtype, device, room)
    if without.fits:
        return without

    def fully_checkpointed(tokens: int) -> Plan:
        """Every block checkpointed; none where the architecture does not support it."""
        fewer = replace(batch_plan, tokens_per_batch=tokens)
        try:
            return plan_run(fewer, dtype, device, room, without.step.blocks)
        except UserError:
            return plan_run(fewer, dtype, device, room)

    sizes = list(_halved(usual, max(batch_plan.longest, LEAST_TOKENS)))
    smallest = fully_checkpointed(sizes[-1])
    if not smallest.fits:
        needed = smallest.memory.peak_bytes * MARGIN
        raise UserError(
            f"train.memory_limit: {limit / 1e9:.2f} GB are too few: batches of {sizes[-1]:,} tokens (the longest row "
            f"has {batch_plan.longest:,}) take {needed / 1e9:.2f} GB with every block checkpointed. Set memory_limit: "
            f"{math.ceil(needed / 1e8) / 10:.1f}GB, a lower data.max_length, or base.weights: nf4."
        )
    full = next((plan for plan in map(fully_checkpointed, sizes[:-1]) if plan.fits), smallest)
    if full.batch_plan.tokens_per_batch < usual:
        without = plan_run(full.batch_plan, dtype, device, room)
    return without if without.fits else _between(without, full, dtype)


def _halved(tokens: int, least: int) -> Iterator[int]:
    """Halves repeatedly, down to `least`."""
    yield tokens
    while tokens > least:
        tokens = max(least, tokens // 2)
        yield tokens


def _between(without: Plan, full: Plan, dtype: torch.dtype) -> Plan:
    """The fewest checkpointed blocks that fit. The search starts where the line between none and all of them crosses
    the limit."""
    blocks = without.step.blocks
    saved = without.memory.peak_bytes - full.memory.peak_bytes
    first = math.ceil((without.memory.peak_bytes - without.available) / max(1, saved) * blocks)
    for count in range(max(1, first), blocks, max(1, blocks // 8)):
        plan = plan_run(without.batch_plan, dtype, without.device, without.available, count)
        if plan.fits:
            return plan
    return full


def refusal(plan: Plan, dtype: torch.dtype) -> str:
    """One line for a run that does not fit: what it needs, and what would fit."""
    recipe = plan.batch_plan.recipe
    shortage = f"{plan.memory.peak_bytes / 1e9:.1f} GB are needed and {plan.available / 1e9:.1f} GB are free"
    try:
        fitting = plan_within(plan.batch_plan, dtype, plan.device, plan.available)
    except UserError:
        return (
            f"base: {recipe.base.path}: {shortage}. To see what fits: tunesmith plan {recipe.base.path} --fit "
            f"{plan.available / 1e9:.1f}GB. Or set base.weights: nf4, a smaller data.max_length, or another base."
        )
    return (
        f"base: {recipe.base.path}: {shortage}. Set train.memory_limit: {plan.available / 1e9:.1f}GB, which "
        f"checkpoints {fitting.checkpointed} of {fitting.step.blocks} blocks, with "
        f"{fitting.batch_plan.tokens_per_batch:,} tokens per batch, and takes {fitting.memory.peak_bytes / 1e9:.1f} GB."
    )
