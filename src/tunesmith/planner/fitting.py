"""Staying within a memory: how many blocks compute their activations twice, and how many tokens go at once.

A block whose activations are not kept stores its input alone and runs its forward again in the backward pass (Chen et
al. 2016).
"""

import math
from dataclasses import replace

import torch

from tunesmith.engine.memory import LEAST_TOKENS
from tunesmith.engine.workload import Workload
from tunesmith.errors import UserError
from tunesmith.planner.device import Device
from tunesmith.planner.plan import Plan, plan_run

MARGIN = 1.05
"""A plan is taken to hold within it: see benchmarks/plan_accuracy.py."""


def plan_within(workload: Workload, dtype: torch.dtype, device: Device, limit: int, least: int | None = None) -> Plan:
    """The cheapest way to stay within the limit: as few blocks twice as will do, then half as many tokens at once.

    Args:
        workload, dtype, device: as `plan_run` takes them.
        limit: bytes.
        least: tokens below which batches are not halved; default: `LEAST_TOKENS`.

    Raises:
        UserError: the longest row does not fit by itself, with what would.
    """
    room = round(limit / MARGIN)
    least = max(workload.longest, LEAST_TOKENS if least is None else least)
    while True:
        once = plan_run(workload, dtype, device, room)
        if once.fits:
            return once
        twice = _twice(once, dtype)
        if twice.fits:
            return _between(once, twice, dtype)
        if workload.tokens_per_batch <= least:
            break
        workload = replace(workload, tokens_per_batch=max(least, workload.tokens_per_batch // 2))
    needed = twice.memory.peak_bytes * MARGIN
    raise UserError(
        f"train.memory_limit: {limit / 1e9:.2f} GB are too few: {workload.tokens_per_batch:,} tokens at once (the "
        f"longest row has {workload.longest:,}) take {needed / 1e9:.2f} GB with every block computed twice. Set "
        f"memory_limit: {math.ceil(needed / 1e8) / 10:.1f}GB, data.max_length lower, or base.weights: nf4."
    )


def _twice(once: Plan, dtype: torch.dtype) -> Plan:
    """With every block computed twice; the same plan where the family cannot."""
    try:
        return plan_run(once.workload, dtype, once.device, once.available, once.step.blocks)
    except UserError:
        return once


def _between(once: Plan, twice: Plan, dtype: torch.dtype) -> Plan:
    """As few blocks twice as fit, sought from where the line between none and all of them crosses the limit."""
    blocks = once.step.blocks
    saved = once.memory.peak_bytes - twice.memory.peak_bytes
    first = math.ceil((once.memory.peak_bytes - once.available) / max(1, saved) * blocks)
    for count in range(max(1, first), blocks, max(1, blocks // 8)):
        found = plan_run(once.workload, dtype, once.device, once.available, count)
        if found.fits:
            return found
    return twice


def refusal(plan: Plan, dtype: torch.dtype) -> str:
    """One line for a run that does not fit: what it would take, and what would do."""
    recipe = plan.workload.recipe
    said = f"{plan.memory.peak_bytes / 1e9:.1f} GB are needed and {plan.available / 1e9:.1f} GB are free"
    try:
        found = plan_within(plan.workload, dtype, plan.device, plan.available)
    except UserError:
        return (
            f"base: {recipe.base.path}: {said}. What fits: tunesmith plan {recipe.base.path} --fit "
            f"{plan.available / 1e9:.1f}GB. Or set base.weights: nf4, a smaller data.max_length, or another base."
        )
    return (
        f"base: {recipe.base.path}: {said}. Set train.memory_limit: {plan.available / 1e9:.1f}GB, with which "
        f"{found.recomputed} of {found.step.blocks} blocks are computed twice, {found.workload.tokens_per_batch:,} "
        f"tokens at once, in {found.memory.peak_bytes / 1e9:.1f} GB."
    )
