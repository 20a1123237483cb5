"""A run from its recipe to its adapter or model: the story, at one level."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.data.pack import Batch, Batches, beginning, collate, width
from tunesmith.data.prepare import Prepared, prepare, settled
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.allocator import give_back_freed_memory, keep_freed_memory
from tunesmith.engine.checkpoint import latest_checkpoint, load_checkpoint
from tunesmith.engine.held_out import rows_with_vectors
from tunesmith.engine.interrupt import listen_for_interrupts
from tunesmith.engine.loop import Loop
from tunesmith.engine.memory import Fit, activations_of, fit, recompute
from tunesmith.engine.optimiser import MasterWeights
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
from tunesmith.engine.update import is_elsewhere
from tunesmith.errors import UserError
from tunesmith.models.attention import packs
from tunesmith.models.load import load_tokenizer, refuse_other_kinds
from tunesmith.models.prompts import plain_model
from tunesmith.planner.probe import forget_peak, measured, memory_now, probe
from tunesmith.recipe import Recipe
from tunesmith.run import Events, MetricsFile, Run, Subscriber

SHORT = 10.0  # seconds of a step that can well be tried once more


def train_run(
    recipe: Recipe | dict[str, Any] | str | Path,
    run: str | Path | None,
    overrides: Sequence[str],
    subscribers: Sequence[Subscriber],
) -> Run:
    """Start a run; arguments and errors as `training.stages.train` has them."""
    asked = Recipe.load(recipe, list(overrides))
    refuse_other_kinds(asked.base, asked.objective)
    resolved = with_room(settled(asked))
    tokenizer = load_tokenizer(resolved.base)
    prepared = prepare(resolved, tokenizer)
    place = Run.create(run, resolved.to_yaml(), resolved.base.path, resolved.method.kind)
    place.write_json("provenance.json", provenance(resolved, prepared.fingerprints))
    try:
        return _carry_out(resolved, place, tokenizer, prepared, subscribers)
    except UserError:
        if not (place.folder / "metrics.jsonl").exists():  # refused before anything happened
            shutil.rmtree(place.folder)
        raise


def resume_run(run: str | Path, subscribers: Sequence[Subscriber]) -> Run:
    """Go on with a run; errors as `training.stages.resume` has them."""
    place = Run.open(run)
    if place.finished:
        raise UserError(f"{run} has finished; nothing is left to do. To train on from its weights, name it as base.")
    recipe = Recipe.load(place.folder / "recipe.yaml")
    tokenizer = load_tokenizer(recipe.base)
    prepared = prepare(recipe, tokenizer)
    _refuse_changes(place, recipe, prepared)
    return _carry_out(recipe, place, tokenizer, prepared, subscribers)


def _carry_out(
    recipe: Recipe,
    run: Run,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    subscribers: Sequence[Subscriber],
) -> Run:
    keep_freed_memory()
    device = device_of(recipe.train.device)
    dtype = dtype_of(recipe.precision, device)
    model = trainable_model(recipe, dtype, device)
    prepared = with_known_features(recipe, model, prepared, device)
    loop = _loop(recipe, run, model, prepared, device)
    checkpoint = latest_checkpoint(run.folder / "checkpoints")
    if checkpoint is not None:
        tensors, loop.state = load_checkpoint(checkpoint)
        loop.masters.restore(tensors)
    run.rewind(loop.state.metrics_bytes)
    loop.events.subscribe(MetricsFile(run.folder / "metrics.jsonl"))
    if recipe.train.tensorboard:
        loop.events.subscribe(TensorBoard(run.folder / "tensorboard"))
    for subscriber in subscribers:
        loop.events.subscribe(subscriber)
    loop.events.emit(
        "start",
        run=str(run.folder),
        base=recipe.base.path,
        method=recipe.method.kind,
        objective=recipe.objective.kind,
        loss_unit=recipe.objective.loss_unit,
        device=str(device),
        precision=str(dtype).removeprefix("torch."),
        weights=recipe.base.weights if recipe.base.quantised else str(dtype).removeprefix("torch."),
        learning_rate=loop.peak_learning_rate,
        parameters=base_parameters(model),
        trained_parameters=len(loop.masters.flat),
        total_steps=loop.total_steps,
        step=loop.state.step,
    )
    loop.events.emit("data", **asdict(prepared.report))
    if is_elsewhere(recipe.train, device):
        said = f"train.optimiser: {recipe.train.optimiser} is CUDA's; on {device.type} plain AdamW does the work."
        loop.events.emit("warning", message=said)
    if recipe.train.offload_activations and device.type != "cuda":
        loop.events.emit("warning", message="train.offload_activations: on a CPU they are in its memory already.")
    if recipe.data.pack and not packs(plain_model(model)):
        said = f"{type(plain_model(model)).__name__}'s attention cannot be told where documents end: rows are padded."
        loop.events.emit("warning", message=said)
    alone = [rows for step in loop.batches.epoch(0) for rows in step if len(rows) == 1]
    if recipe.objective.ending.kind == "vectors" and alone:
        said = f"{len(alone):,} batches hold one row, which has none to be compared with and teaches nothing. Raise "
        loop.events.emit("warning", message=said + "train.tokens_per_batch, or lower data.max_length.")
    predicted = None
    if recipe.train.memory_bytes is not None:
        chosen, predicted = _stay_within(recipe, loop, run)
        loop.events.emit("memory", limit_bytes=recipe.train.memory_bytes, **asdict(chosen))
    loop.events.emit("plan", predicted=predicted or _plan(loop))
    give_back_freed_memory()  # what the matrix library keeps from the first pass has left gaps around it
    with listen_for_interrupts() as interruption:
        reason = loop.fit(interruption)
    output = None
    if reason != "interrupted":
        _take_best(recipe, run, loop)
        loop.masters.take_average()
        output = save_output(run, loop.model, loop.masters, tokenizer, recipe, _finished_head(loop))
    loop.events.emit("plan", measured=measured(loop.state.seconds, loop.state.step, loop.state.tokens, device))
    loop.events.emit(
        "end",
        reason=reason,
        step=loop.state.step,
        seconds=loop.state.seconds,
        output=None if output is None else str(output),
    )
    return run


def _finished_head(loop: Loop) -> nn.Linear | None:
    """What the objective learns on the finished model's vectors, if it does."""
    rows = partial(rows_with_vectors, loop.objective, loop.model, loop.batches.table, loop.tokens_per_batch)
    found: nn.Linear | None = loop.objective.finish(loop.model, rows)
    return found


def _loop(recipe: Recipe, run: Run, model: PreTrainedModel, prepared: Prepared, device: torch.device) -> Loop:
    train = recipe.train
    peak, factor = learning_rates(recipe, model)
    tokens_per_batch = train.tokens_per_batch or min(train.tokens_per_step, 2048)
    batches = _batches(recipe, prepared.train, tokens_per_batch, padded=not packs(plain_model(model)))
    hidden = [is_hidden(model)] if train.optimiser == "muon" else []
    masters = MasterWeights(model.named_parameters(), train, factor, *hidden)
    return Loop(
        model=model,
        objective=recipe.objective,
        batches=batches,
        held_out=prepared.held_out,
        masters=masters,
        train=train,
        total_steps=train.steps or batches.steps_in(train.epochs or 1.0),
        peak_learning_rate=peak,
        tokens_per_batch=tokens_per_batch,
        folder=run.folder,
        events=Events(),
        device=device,
    )


def _batches(recipe: Recipe, table: TokenTable, tokens_per_batch: int, padded: bool) -> Batches:
    return Batches(
        table,
        tokens_per_step=recipe.train.tokens_per_step,
        tokens_per_batch=tokens_per_batch,
        pack=recipe.data.pack,
        shuffle=recipe.train.shuffle,
        seed=recipe.train.seed,
        padded=padded,
    )


def _stay_within(recipe: Recipe, loop: Loop, run: Run) -> tuple[Fit, dict[str, Any] | None]:
    """Choose what is computed twice and how many tokens go at once, so that `train.memory_limit` holds; and what the
    heaviest batch then took.

    A resumed run takes the batches that it had, since they decide what is learnt when.

    Raises:
        UserError: the limit is too low for the longest row.
    """
    limit = recipe.train.memory_bytes or 0
    before = next((event for event in run.events() if event["event"] == "memory"), None)
    if before is not None:
        loop.tokens_per_batch = before["tokens_per_batch"]
        loop.batches = _batches(recipe, loop.batches.table, loop.tokens_per_batch, loop.batches.padded)
    heaviest = collate(loop.batches.table, _heaviest(loop), loop.device)
    if heaviest.features is not None or limit == 0:
        return Fit(0, 0, loop.tokens_per_batch), None
    few = beginning(heaviest, 512) if loop.objective.ending.kind != "vectors" else _two_rows(loop)
    activations = activations_of(loop.model, loop.objective, few)
    give_back_freed_memory()
    moments = 8 * len(loop.masters.flat) if loop.state.step == 0 else 0
    held = memory_now(loop.device) + moments
    longest = int(loop.batches.table.lengths.max())
    least = len(activations.blocks) if recipe.train.gradient_checkpointing else 0
    while True:
        chosen = fit(activations, held, limit, loop.tokens_per_batch, longest, least)
        if chosen.tokens_per_batch != loop.tokens_per_batch:
            loop.tokens_per_batch = chosen.tokens_per_batch
            loop.batches = _batches(recipe, loop.batches.table, chosen.tokens_per_batch, loop.batches.padded)
        recompute(loop.model, chosen.recomputed)
        give_back_freed_memory()
        forget_peak(loop.device)
        predicted = _plan(loop)
        if predicted["time"]["seconds_per_step"] < SHORT:  # once more, since the first pass leaves gaps
            predicted = _plan(loop)
        over = predicted["memory"]["peak_bytes"] - limit
        if over <= 0:
            return chosen, predicted
        held += over  # what the count did not see


def _two_rows(loop: Loop) -> Batch:
    """Two of the heaviest batch's rows, whole: what compares rows does nothing with less."""
    return collate(loop.batches.table, _heaviest(loop)[:2], loop.device)


def _heaviest(loop: Loop) -> list[int]:
    """The rows of the first epoch's batch that takes most tokens."""
    return max(
        (rows for step in loop.batches.epoch(0) for rows in step),
        key=lambda rows: width([int(loop.batches.table.lengths[row]) for row in rows], loop.batches.padded),
    )


def _plan(loop: Loop) -> dict[str, Any]:
    """Memory and time foretold from one pass over the first epoch's heaviest batch, whose gradient is thrown away."""
    predicted = probe(
        loop.model,
        loop.objective,
        collate(loop.batches.table, _heaviest(loop), loop.device),
        trained_parameters=len(loop.masters.flat),
        tokens_left=loop.batches.tokens_in(loop.state.step, loop.total_steps),
        steps_left=loop.total_steps - loop.state.step,
        device=loop.device,
    )
    loop.masters.grad.zero_()
    return predicted


def _take_best(recipe: Recipe, run: Run, loop: Loop) -> None:
    """With early stopping, the weights that are kept are the best ones, not the last."""
    best = run.folder / "checkpoints" / f"step-{loop.state.best_step or 0:06d}"
    if recipe.train.early_stopping is not None and loop.state.best_step != loop.state.step and best.exists():
        tensors, _ = load_checkpoint(best)
        loop.masters.restore(tensors)


def _refuse_changes(run: Run, recipe: Recipe, prepared: Prepared) -> None:
    before = json.loads((run.folder / "provenance.json").read_text(encoding="utf-8"))
    now = provenance(recipe, prepared.fingerprints)
    for name in sorted({*before["data"], *now["data"]}):
        if before["data"].get(name) != now["data"].get(name):
            raise UserError(
                f"{name} has changed since {run.folder} began, so it cannot be resumed to the same result. Put the "
                "file back as it was, or start a new run."
            )
    if before["base"] != now["base"]:
        raise UserError(
            f"base: {recipe.base.path} has changed since {run.folder} began, so it cannot be resumed to the same "
            "result. Put the weights back as they were, or start a new run."
        )
    if before.get("models", {}) != now["models"]:
        raise UserError(f"objective.teacher has changed since {run.folder} began. Put it back, or start a new run.")
    told = any(event["event"] == "checkpoint" for event in run.events())
    if told and latest_checkpoint(run.folder / "checkpoints") is None:
        raise UserError(
            f"{run.folder}/checkpoints is empty, though checkpoints were written: they have been deleted, and there is "
            "nothing to go on from. Put them back, or start a new run."
        )
