"""A run from its recipe to its adapter or model: the story, at one level."""

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
from tunesmith.engine.allocator import give_back_freed_memory, keeping_freed_memory
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.checkpoint import latest_checkpoint, load_checkpoint
from tunesmith.engine.held_out import rows_with_vectors
from tunesmith.engine.interrupt import listen_for_interrupts
from tunesmith.engine.loop import Loop
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.memory import enable_activation_checkpointing, ran_out_of_memory
from tunesmith.engine.optimizers import is_elsewhere
from tunesmith.engine.output import save_output
from tunesmith.engine.precision import device_of, dtype_of
from tunesmith.engine.provenance import provenance
from tunesmith.engine.tensorboard import TensorBoard
from tunesmith.engine.trainable import (
    base_parameters,
    is_hidden,
    learning_rates,
    trainable_model,
    with_known_features,
    with_room,
)
from tunesmith.errors import UserError
from tunesmith.models.attention import packs
from tunesmith.models.load import load_tokenizer, refuse_other_kinds
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
    """Start a run; arguments and errors as `training.stages.train` has them."""
    asked = Recipe.load(recipe, list(overrides))
    refuse_other_kinds(asked.base, asked.objective)
    resolved = with_room(resolve(asked))
    tokenizer = load_tokenizer(resolved.base)
    known = tokenizer_fingerprint(tokenizer)
    prepared = prepare(resolved, tokenizer)
    place = Run.create(run, resolved.to_yaml(), resolved.base.path, resolved.method.kind)
    place.write_json("provenance.json", provenance(resolved, prepared.fingerprints, known))
    try:
        return _execute(resolved, place, tokenizer, prepared, subscribers)
    except UserError:
        if not (place.directory / "metrics.jsonl").exists():  # refused before anything happened
            shutil.rmtree(place.directory)
        raise


def resume_run(run: str | Path, subscribers: Sequence[Subscriber]) -> Run:
    """Go on with a run; errors as `training.stages.resume` has them."""
    place = Run.open(run)
    if place.finished:
        raise UserError(f"{run} has finished; nothing is left to do. To train on from its weights, name it as base.")
    recipe = Recipe.load(place.directory / "recipe.yaml")
    tokenizer = load_tokenizer(recipe.base)
    known = tokenizer_fingerprint(tokenizer)
    prepared = prepare(recipe, tokenizer)
    _refuse_changes(place, recipe, prepared, known)
    return _execute(recipe, place, tokenizer, prepared, subscribers)


@keeping_freed_memory()
def _execute(
    recipe: Recipe,
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    subscribers: Sequence[Subscriber],
) -> Run:
    device = device_of(recipe.train.device)
    dtype = dtype_of(recipe.precision, device)
    give_back_freed_memory()
    forget_peak(device)  # of reading the rows: what is foretold, and measured, begins here
    plan = _plan(recipe, run, prepared, dtype, device)
    model = trainable_model(recipe, dtype, device)
    give_back_freed_memory()  # of weights as they were stored
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
        plan = _hold(loop, plan)
        told = {
            "checkpointed": plan.checkpointed,
            "blocks": plan.step.blocks,
            "tokens_per_batch": loop.tokens_per_batch,
        }
        loop.events.emit("memory", limit_bytes=recipe.train.memory_bytes, **told)
    if plan is None:
        said = f"The memory that {type(plain_model(model)).__name__} takes here cannot be foretold (docs/planning.md)."
        loop.events.emit("warning", message=said)
    predicted = {"device": str(device)} if plan is None else plan.to_dict(timed=False)
    largest_batch = batch_plan.layout(not loop.batches.padded).largest_batch if plan is None else plan.largest_batch
    forecast = {**predicted, "time": _largest_batch_first(loop, largest_batch)}
    loop.events.emit("forecast", **forecast)
    give_back_freed_memory()  # what the matrix library keeps from the first pass has left gaps around it
    with listen_for_interrupts() as interruption:
        reason = loop.fit(interruption)
    output = None
    if reason != "interrupted":
        _take_best(recipe, run, loop)
        loop.masters.finish()
        output = save_output(run, loop.model, loop.masters, tokenizer, recipe, _finished_head(loop))
    took = measured(loop.state.seconds, loop.state.step, loop.state.tokens, device)
    loop.events.emit("plan", predicted=forecast, measured=took)
    loop.events.emit(
        "end",
        reason=reason,
        step=loop.state.step,
        seconds=loop.state.seconds,
        output=None if output is None else str(output),
    )
    return run


def _emit_start(loop: Loop, recipe: Recipe, run: Run, prepared: Prepared, dtype: torch.dtype) -> None:
    """What is trained on what, and what the recipe asks for that is done otherwise here."""
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
    if is_elsewhere(recipe.train, loop.device):
        said = f"train.optimizer: {recipe.train.optimizer} is CUDA's; on {loop.device.type} plain AdamW does the work."
        loop.events.emit("warning", message=said)
    if recipe.train.offload_activations and loop.device.type != "cuda":
        loop.events.emit("warning", message="train.offload_activations: on a CPU they are in its memory already.")
    plain = plain_model(loop.model)
    if recipe.data.pack and not packs(plain):
        said = f"{type(plain).__name__}'s attention cannot be told where documents end: rows are padded."
        loop.events.emit("warning", message=said)
    alone = [rows for step in loop.batches.epoch(0) for rows in step if len(rows) == 1]
    if recipe.objective.ending.kind == "vectors" and alone:
        said = f"{len(alone):,} batches hold one row, which has none to be compared with and teaches nothing. Raise "
        loop.events.emit("warning", message=said + "train.tokens_per_batch, or lower data.max_length.")


def _finished_head(loop: Loop) -> nn.Linear | None:
    """What the objective learns on the finished model's vectors, if it does."""
    rows = partial(rows_with_vectors, loop.objective, loop.model, loop.batches.table, loop.tokens_per_batch)
    found: nn.Linear | None = loop.objective.finish(loop.model, rows)
    return found


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
    """What the run will take, foretold before anything is loaded; with `train.memory_limit`, how it stays within. None
    where it cannot be foretold; whether it can be done is then seen in doing it.

    A resumed run takes the batches that it had, since they decide what is learnt when.

    Raises:
        UserError: it does not fit, with what would.
    """
    batch_plan = BatchPlan.of(recipe, prepared.train)
    before = next((event for event in run.events() if event["event"] == "memory"), None)
    if before is not None:
        batch_plan = replace(batch_plan, tokens_per_batch=before["tokens_per_batch"])
    where, available = this_device(device), available_memory(device)
    if recipe.train.memory_bytes is not None:
        return plan_within(batch_plan, dtype, where, recipe.train.memory_bytes)
    try:
        plan = plan_run(batch_plan, dtype, where, available)
    except UserError:
        return None
    if not plan.fits:
        raise UserError(refusal(plan, dtype))
    return plan


def _hold(loop: Loop, plan: Plan) -> Plan:
    """Take the plan's choice, and the heaviest batch: where more is measured than was foretold, plan for less.

    Raises:
        UserError: the limit is too low for the longest row.
    """
    limit = loop.train.memory_bytes or 0
    room = limit
    while True:
        loop.tokens_per_batch = plan.batch_plan.tokens_per_batch
        loop.batches = plan.batch_plan.over(loop.batches.table).layout(plan.step.packed).batches
        if plan.checkpointed:
            enable_activation_checkpointing(loop.model, plan.checkpointed)
        give_back_freed_memory()
        forget_peak(loop.device)
        _largest_batch_first(loop, plan.largest_batch)
        over = peak_memory(loop.device) - limit
        if over <= 0:
            return plan
        room -= over
        plan = plan_within(plan.batch_plan, loop.model.dtype, plan.device, room)


def _largest_batch_first(loop: Loop, largest_batch: list[int]) -> dict[str, Any]:
    """The time that the steps will take, from a pass over these rows, whose gradient is thrown away.

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


def _take_best(recipe: Recipe, run: Run, loop: Loop) -> None:
    """With early stopping, the weights that are kept are the best ones, not the last."""
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
                f"{name} has changed since {run.directory} began, so it cannot be resumed to the same result. Put the "
                "file back as it was, or start a new run."
            )
    if before["base"] != now["base"]:
        raise UserError(
            f"base: {recipe.base.path} has changed since {run.directory} began, so it cannot be resumed to the same "
            "result. Put the weights back as they were, or start a new run."
        )
    if before.get("tokenizer", tokenizer) != tokenizer:
        raise UserError(
            f"base: the tokenizer or chat template of {recipe.base.path} has changed since {run.directory} began, so it "
            "cannot be resumed to the same result. Put it back as it was, or start a new run."
        )
    if before.get("models", {}) != now["models"]:
        raise UserError(f"objective.teacher has changed since {run.directory} began. Put it back, or start a new run.")
    told = any(event["event"] == "checkpoint" for event in run.events())
    if told and latest_checkpoint(run.directory / "checkpoints") is None:
        raise UserError(
            f"{run.directory}/checkpoints is empty, though checkpoints were written: they have been deleted, and there is "
            "nothing to go on from. Put them back, or start a new run."
        )
