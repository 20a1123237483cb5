"""A run from its recipe to its saved adapter or model."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.recipe import Recipe
from tunesmith.data.cache import tokenizer_fingerprint
from tunesmith.data.pack import collate
from tunesmith.data.prepare import Prepared, prepare, resolve
from tunesmith.engine.allocator import keep_freed_memory, release_freed_memory
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.checkpoint import latest_checkpoint, load_checkpoint
from tunesmith.engine.held_out import rows_with_vectors
from tunesmith.engine.interrupt import listen_for_interrupts
from tunesmith.engine.loop import Loop
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.memory import enable_activation_checkpointing, ran_out_of_memory
from tunesmith.engine.optimizers import falls_back_to_adamw
from tunesmith.engine.output import save_output
from tunesmith.engine.precision import device_of, dtype_of
from tunesmith.engine.provenance import provenance
from tunesmith.engine.tensorboard import TensorBoard
from tunesmith.engine.trainable import (
    base_parameters,
    cap_max_length,
    is_hidden,
    learning_rates,
    trainable_model,
    with_known_features,
)
from tunesmith.errors import UserError
from tunesmith.models.attention import packs
from tunesmith.models.load import check_base_kind, load_tokenizer
from tunesmith.models.prompts import plain_model
from tunesmith.planner.device import this_device
from tunesmith.planner.fitting import plan_within, refusal
from tunesmith.planner.measure import available_memory, forget_peak, largest_batch_first, measured, peak_memory
from tunesmith.planner.plan import Plan, plan_run
from tunesmith.run import Events, MetricsFile, Run, Subscriber


def train_run(
    recipe: Recipe | dict[str, Any] | str | Path,
    run: str | Path | None,
    overrides: Sequence[str],
    subscribers: Sequence[Subscriber],
) -> Run:
    """Start a run. Arguments and errors are those of `training.stages.train`."""
    requested = Recipe.load(recipe, list(overrides))
    check_base_kind(requested.base, requested.objective)
    resolved = cap_max_length(resolve(requested))
    tokenizer = load_tokenizer(resolved.base)
    fingerprint = tokenizer_fingerprint(tokenizer)
    prepared = prepare(resolved, tokenizer)
    new_run = Run.create(run, resolved.to_yaml(), resolved.base.path, resolved.method.kind)
    new_run.write_json("provenance.json", provenance(resolved, prepared.fingerprints, fingerprint))
    try:
        return _execute(resolved, new_run, tokenizer, prepared, subscribers)
    except UserError:
        if not (new_run.directory / "metrics.jsonl").exists():  # refused before it started
            shutil.rmtree(new_run.directory)
        raise


def resume_run(run: str | Path, subscribers: Sequence[Subscriber]) -> Run:
    """Resume a run. Errors are those of `training.stages.resume`."""
    old_run = Run.open(run)
    if old_run.finished:
        raise UserError(f"{run} has finished. To continue from its weights, start a new run with it as base.")
    recipe = Recipe.load(old_run.directory / "recipe.yaml")
    tokenizer = load_tokenizer(recipe.base)
    fingerprint = tokenizer_fingerprint(tokenizer)
    prepared = prepare(recipe, tokenizer)
    _refuse_changes(old_run, recipe, prepared, fingerprint)
    return _execute(recipe, old_run, tokenizer, prepared, subscribers)


@keep_freed_memory()
def _execute(
    recipe: Recipe,
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    subscribers: Sequence[Subscriber],
) -> Run:
    device = device_of(recipe.train.device)
    dtype = dtype_of(recipe.precision, device)
    release_freed_memory()
    forget_peak(device)  # exclude reading the rows: the predicted and the measured peak start here
    plan = _plan(recipe, run, prepared, dtype, device)
    model = trainable_model(recipe, dtype, device)
    release_freed_memory()  # memory of the weights as they were stored
    prepared = with_known_features(recipe, model, prepared, device)
    batch_plan = BatchPlan.of(recipe, prepared.train) if plan is None else plan.batch_plan
    loop = _loop(recipe, run, model, prepared, batch_plan.over(prepared.train), device)
    checkpoint = latest_checkpoint(run.directory / "checkpoints")
    if checkpoint is not None:
        tensors, loop.state = load_checkpoint(checkpoint)
        loop.masters.restore(tensors)
    run.rewind(loop.state.metrics_bytes)
    loop.events.subscribe(MetricsFile(run.directory / "metrics.jsonl"))
    if recipe.train.tensorboard:
        loop.events.subscribe(TensorBoard(run.directory / "tensorboard"))
    for subscriber in subscribers:
        loop.events.subscribe(subscriber)
    _emit_start(loop, recipe, run, prepared, dtype)
    if plan is not None and recipe.train.memory_bytes is not None:
        plan = _stay_within_limit(loop, plan)
        loop.events.emit(
            "memory",
            limit_bytes=recipe.train.memory_bytes,
            checkpointed=plan.checkpointed,
            blocks=plan.step.blocks,
            tokens_per_batch=loop.tokens_per_batch,
        )
    if plan is None:
        name = type(plain_model(model)).__name__
        loop.events.emit("warning", message=f"Cannot predict the memory that {name} takes here (docs/planning.md).")
    predicted = {"device": str(device)} if plan is None else plan.to_dict(timed=False)
    largest_batch = batch_plan.layout(not loop.batches.padded).largest_batch if plan is None else plan.largest_batch
    forecast = {**predicted, "time": _largest_batch_first(loop, largest_batch)}
    loop.events.emit("forecast", **forecast)
    release_freed_memory()  # the first pass left gaps around the buffers that the matrix library keeps
    with listen_for_interrupts() as interruption:
        reason = loop.fit(interruption)
    output = None
    if reason != "interrupted":
        _restore_best(recipe, run, loop)
        loop.masters.finish()
        output = save_output(run, loop.model, loop.masters, tokenizer, recipe, _finished_head(loop))
    actual = measured(loop.state.seconds, loop.state.step, loop.state.tokens, device)
    loop.events.emit("plan", predicted=forecast, measured=actual)
    loop.events.emit(
        "end",
        reason=reason,
        step=loop.state.step,
        seconds=loop.state.seconds,
        output=None if output is None else str(output),
    )
    return run


def _emit_start(loop: Loop, recipe: Recipe, run: Run, prepared: Prepared, dtype: torch.dtype) -> None:
    """Emit what is trained and on what data, and warn about settings that work differently here."""
    loop.events.emit(
        "start",
        run=str(run.directory),
        base=recipe.base.path,
        method=recipe.method.kind,
        objective=recipe.objective.kind,
        loss_unit=recipe.objective.loss_unit,
        device=str(loop.device),
        precision=str(dtype).removeprefix("torch."),
        weights=recipe.base.weights if recipe.base.quantized else str(dtype).removeprefix("torch."),
        learning_rate=loop.peak_learning_rate,
        parameters=base_parameters(loop.model),
        trained_parameters=len(loop.masters.flat),
        total_steps=loop.total_steps,
        step=loop.state.step,
    )
    loop.events.emit("data", **asdict(prepared.report))
    if falls_back_to_adamw(recipe.train, loop.device):
        message = f"train.optimizer: {recipe.train.optimizer} needs CUDA; on {loop.device.type}, AdamW is used instead."
        loop.events.emit("warning", message=message)
    if recipe.train.offload_activations and loop.device.type != "cuda":
        message = "train.offload_activations has no effect on a CPU: activations are already in its memory."
        loop.events.emit("warning", message=message)
    plain = plain_model(loop.model)
    if recipe.data.pack and not packs(plain):
        message = f"{type(plain).__name__}'s attention does not support packed documents: rows are padded instead."
        loop.events.emit("warning", message=message)
    single_rows = [rows for step in loop.batches.epoch(0) for rows in step if len(rows) == 1]
    if recipe.objective.ending.kind == "vectors" and single_rows:
        message = (
            f"{len(single_rows):,} batches hold a single row. It has no other row to compare with, so these batches "
            "train nothing. Raise train.tokens_per_batch, or lower data.max_length."
        )
        loop.events.emit("warning", message=message)


def _finished_head(loop: Loop) -> nn.Linear | None:
    """The head that the objective fits on the trained model's vectors, if it has one."""
    rows = partial(rows_with_vectors, loop.objective, loop.model, loop.batches.table, loop.tokens_per_batch)
    head: nn.Linear | None = loop.objective.fit_head(loop.model, rows)
    return head


def _loop(
    recipe: Recipe, run: Run, model: PreTrainedModel, prepared: Prepared, batch_plan: BatchPlan, device: torch.device
) -> Loop:
    train = recipe.train
    peak, factor = learning_rates(recipe, model)
    layout = batch_plan.layout(packs(plain_model(model)))
    hidden = [is_hidden(model)] if train.optimizer == "muon" else []
    masters = MasterWeights(model.named_parameters(), train, factor, *hidden)
    return Loop(
        model=model,
        objective=recipe.objective,
        batches=layout.batches,
        held_out=prepared.held_out,
        masters=masters,
        train=train,
        total_steps=layout.steps,
        peak_learning_rate=peak,
        tokens_per_batch=batch_plan.tokens_per_batch,
        directory=run.directory,
        events=Events(),
        device=device,
    )


def _plan(recipe: Recipe, run: Run, prepared: Prepared, dtype: torch.dtype, device: torch.device) -> Plan | None:
    """Predict the run's memory and time before anything is loaded; with `train.memory_limit`, find a plan within it.

    A resumed run keeps the batch size that it had, because the batches decide which rows each step takes.

    Returns:
        The plan, or None if memory cannot be predicted. The run is then tried without a plan.

    Raises:
        UserError: the run does not fit; the message names a recipe that does.
    """
    batch_plan = BatchPlan.of(recipe, prepared.train)
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


def _stay_within_limit(loop: Loop, plan: Plan) -> Plan:
    """Apply the plan and run its largest batch. If that exceeds the limit, plan again for a smaller one.

    Returns:
        The plan that stays within the limit.

    Raises:
        UserError: the limit is too low for the longest row.
    """
    limit = loop.train.memory_bytes or 0
    target = limit
    while True:
        loop.tokens_per_batch = plan.batch_plan.tokens_per_batch
        loop.batches = plan.batch_plan.over(loop.batches.table).layout(plan.step.packed).batches
        if plan.checkpointed:
            enable_activation_checkpointing(loop.model, plan.checkpointed)
        release_freed_memory()
        forget_peak(loop.device)
        _largest_batch_first(loop, plan.largest_batch)
        excess = peak_memory(loop.device) - limit
        if excess <= 0:
            return plan
        target -= excess
        plan = plan_within(plan.batch_plan, loop.model.dtype, plan.device, target)


def _largest_batch_first(loop: Loop, largest_batch: list[int]) -> dict[str, Any]:
    """Predict the run's time from a pass over these rows, whose gradient is discarded.

    Raises:
        UserError: memory runs out even with a single row.
    """
    while True:
        rows = max(loop.batches_within(largest_batch), key=loop.tokens_of)
        try:
            time = largest_batch_first(
                loop.model,
                loop.objective,
                collate(loop.batches.table, rows, loop.device),
                tokens_left=loop.batches.tokens_in(loop.state.step, loop.total_steps),
                steps_left=loop.total_steps - loop.state.step,
                device=loop.device,
            )
            loop.masters.grad.zero_()
            return time
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
        loop.split_in_two(rows)


def _restore_best(recipe: Recipe, run: Run, loop: Loop) -> None:
    """With early stopping, restore the best weights instead of the last ones."""
    best = run.directory / "checkpoints" / f"step-{loop.state.best_step or 0:06d}"
    if recipe.train.early_stopping is not None and loop.state.best_step != loop.state.step and best.exists():
        tensors, _ = load_checkpoint(best)
        loop.masters.restore(tensors)


def _refuse_changes(run: Run, recipe: Recipe, prepared: Prepared, tokenizer: str) -> None:
    before = json.loads((run.directory / "provenance.json").read_text(encoding="utf-8"))
    now = provenance(recipe, prepared.fingerprints, tokenizer)
    for name in sorted({*before["data"], *now["data"]}):
        if before["data"].get(name) != now["data"].get(name):
            raise UserError(
                f"{name} has changed since {run.directory} started, so resuming would give another result. Restore the "
                "file, or start a new run."
            )
    if before["base"] != now["base"]:
        raise UserError(
            f"base: {recipe.base.path} has changed since {run.directory} started, so resuming would give another "
            "result. Restore the weights, or start a new run."
        )
    if before.get("tokenizer", tokenizer) != tokenizer:
        raise UserError(
            f"base: the tokenizer or chat template of {recipe.base.path} has changed since {run.directory} started, so "
            "resuming would give another result. Restore it, or start a new run."
        )
    if before.get("models", {}) != now["models"]:
        raise UserError(f"objective.teacher has changed since {run.directory} started. Restore it, or start a new run.")
    had_checkpoints = any(event["event"] == "checkpoint" for event in run.events())
    if had_checkpoints and latest_checkpoint(run.directory / "checkpoints") is None:
        raise UserError(
            f"{run.directory}/checkpoints is empty, but the run wrote checkpoints: they were deleted, so the run "
            "cannot be resumed. Restore them, or start a new run."
        )
