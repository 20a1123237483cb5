"""Keeps a run within its memory: a plan before anything is loaded, and the largest batch before the first step."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tunesmith.config.recipe import Recipe
from tunesmith.data.batch import collate
from tunesmith.data.prepare import Prepared
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.allocator import release_freed_memory
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.checkpoint import LoopState
from tunesmith.engine.evaluations import times_left
from tunesmith.engine.loop import Loop, tokens_of
from tunesmith.engine.memory import enable_activation_checkpointing, ran_out_of_memory
from tunesmith.errors import UserError
from tunesmith.models.prompts import plain_model
from tunesmith.planner.device import this_device
from tunesmith.planner.fitting import plan_within, refusal
from tunesmith.planner.measure import (
    available_memory,
    forget_peak,
    largest_batch_first,
    measured,
    peak_memory,
    time_in_parts,
)
from tunesmith.planner.plan import Plan, checkpoint_seconds, plan_run
from tunesmith.planner.processor_time import BUSY, ProcessorTime, busy_message, taken_by_others
from tunesmith.run import Run

AGAIN = 0.5
"""Seconds of the rows that are timed again on a busy machine."""


def plan_of_run(recipe: Recipe, run: Run, prepared: Prepared, dtype: torch.dtype, device: torch.device) -> Plan | None:
    """Predict the run's memory and time before anything is loaded; with `train.memory_limit`, find a plan within it.

    A resumed run keeps the batch size that it had, because the batches decide which rows each step takes.

    Returns:
        The plan, or None if memory cannot be predicted. The run is then tried without a plan.

    Raises:
        UserError: the run does not fit; the message names a recipe that does.
    """
    batch_plan = BatchPlan.of(recipe, prepared.train, prepared.held_out)
    earlier = next((event for event in run.events() if event["event"] == "memory"), None)
    if earlier is not None:
        batch_plan = replace(batch_plan, tokens_per_batch=earlier["tokens_per_batch"])
    planner_device, available = this_device(device), available_memory(device)
    if recipe.train.memory_bytes is not None:
        return plan_within(batch_plan, dtype, planner_device, recipe.train.memory_bytes)
    try:
        plan = plan_run(batch_plan, dtype, planner_device, available)
    except UserError:
        return None
    if not plan.fits:
        raise UserError(refusal(plan, dtype))
    return plan


def first_pass(loop: Loop, plan: Plan | None, batch_plan: BatchPlan, started: float) -> dict[str, Any]:
    """Before the first step: a pass over the run's largest batch, within `train.memory_limit` if there is one.

    Emits `memory` (with a limit), a `warning` if the machine is busy, and `forecast`.

    Args:
        loop: the run's loop; gets smaller batches if the largest one exceeds the limit.
        plan: of the run; None if its memory cannot be predicted.
        batch_plan: the run's rows.
        started: `time.perf_counter()` when the run started.

    Returns:
        The forecast: the plan's memory, and the time that the pass predicts for what is left of the run.

    Raises:
        UserError: memory runs out with a single row, or the limit is too low for one.
    """
    limit = loop.train.memory_bytes
    if plan is None:
        name = type(plain_model(loop.model)).__name__
        loop.events.emit("warning", message=f"Cannot predict the memory that {name} takes here (docs/planning.md).")
        predicted: dict[str, Any] = {"device": str(loop.device)}
        largest_batch = batch_plan.layout(not loop.batches.padded).largest_batch
    else:
        if limit is not None:
            plan = _stay_within_limit(loop, plan, limit)
            loop.events.emit(
                "memory",
                limit_bytes=limit,
                checkpointed=plan.checkpointed,
                blocks=plan.step.blocks,
                tokens_per_batch=loop.tokens_per_batch,
            )
        predicted, largest_batch = plan.to_dict(timed=False), plan.largest_batch
    table = batch_plan.over(loop.batches.table).layout(not loop.batches.padded).table
    training, evaluating = _forecast_speed(loop, table, largest_batch)
    step, steps = loop.state.step, loop.total_steps
    layout = batch_plan.layout(not loop.batches.padded)
    tokens = (loop.batches if loop.phases is None else layout).tokens_in(step, steps)
    evaluations = layout.evaluations
    sampling, answering = sampling_seconds(loop, len(evaluations.rows), evaluations.left(step, steps))
    parts = {
        "start": time.perf_counter() - started,
        "training": training * tokens + sampling,
        "evaluation": evaluating * evaluations.tokens * evaluations.left(step, steps) + answering,
        "checkpoints": checkpoint_seconds(len(loop.masters.flat), times_left(loop.checkpoint_every, step, steps)),
    }
    forecast = {**predicted, "time": time_in_parts(parts, steps - step, tokens)}
    loop.events.emit("forecast", **forecast)
    release_freed_memory()  # the first pass left gaps around the buffers that the matrix library keeps
    return forecast


def sampling_seconds(loop: Loop, rows: int, evaluations: int) -> tuple[float, float]:
    """Of all phases that are left, and of the answers to held-out prompts, if every answer is as long as it can get:
    from a few tokens of each. 0 without rollouts.

    Args:
        loop: before its first step, or resumed.
        rows: held-out prompts of an evaluation.
        evaluations: that are left.
    """
    if loop.phases is None:
        return 0.0, 0.0
    phase = loop.phases.forecast_sampling()
    plan = loop.phases.plan
    share = max(1.0, rows / (plan.prompts * plan.samples))  # a few sequences take as long as one
    left = loop.phases.phases_left(loop.state.step, loop.total_steps)
    return left * phase, evaluations * share * phase if rows else 0.0


def measured_since(before: LoopState, loop: Loop) -> dict[str, Any]:
    """Memory and time since the run started or was resumed, as `first_pass` predicts them."""
    after = loop.state
    parts = {part: seconds - before.seconds[part] for part, seconds in after.seconds.items()}
    return measured(parts, after.step - before.step, after.tokens - before.tokens, loop.device)


def _stay_within_limit(loop: Loop, plan: Plan, limit: int) -> Plan:
    """Apply the plan and run its largest batch. If that exceeds the limit, plan again for a smaller one.

    Returns:
        The plan that stays within the limit.

    Raises:
        UserError: the limit is too low for the longest row.
    """
    target = limit
    while True:
        layout = plan.batch_plan.over(loop.batches.table).layout(plan.step.packed)
        loop.use_batches(layout.batches, plan.batch_plan.tokens_per_batch)
        if plan.checkpointed:
            enable_activation_checkpointing(loop.model, plan.checkpointed)
        release_freed_memory()
        forget_peak(loop.device)
        _seconds_per_token(loop, layout.table, plan.largest_batch)
        excess = peak_memory(loop.device) - limit
        if excess <= 0:
            return plan
        target -= excess
        plan = plan_within(plan.batch_plan, loop.model.dtype, plan.device, target)


def _forecast_speed(loop: Loop, table: TokenTable, largest_batch: list[int]) -> tuple[float, float]:
    """`_seconds_per_token`. If other processes take the processor meanwhile, emit a warning, and time some of the rows
    again: what made a long pass slow, at the start, may be over."""
    before = ProcessorTime.now()
    times = [_seconds_per_token(loop, table, largest_batch)]
    share = taken_by_others(before, ProcessorTime.now())
    if share >= BUSY:
        loop.events.emit("warning", message=busy_message(share))
        rows = _rows_within(table, largest_batch, AGAIN / times[0][0])
        if 0 < len(rows) < len(largest_batch):
            times.append(_seconds_per_token(loop, table, rows))
    training, evaluating = map(min, zip(*times, strict=True))
    return training, evaluating


def _rows_within(table: TokenTable, rows: list[int], tokens: float) -> list[int]:
    """The first of the rows, with at most this many tokens together."""
    return rows[: int(np.searchsorted(np.cumsum(table.lengths[rows]), tokens, side="right"))]


def _seconds_per_token(loop: Loop, table: TokenTable, largest_batch: list[int]) -> tuple[float, float]:
    """Of training and of evaluating, from passes over these rows, whose gradient is discarded.

    Raises:
        UserError: memory runs out even with a single row.
    """
    while True:
        rows = max(loop.batches_within(table, largest_batch), key=lambda rows: tokens_of(table, rows))
        try:
            batch = collate(table, rows, loop.device)
            seconds = largest_batch_first(loop.model, loop.objective, batch, loop.device)
            loop.masters.grad.zero_()
            return seconds
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
        loop.split_in_two(table, rows)
