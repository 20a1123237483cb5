"""The parts of a run, from its recipe to its saved adapter or model, which `training.trainer` puts together."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.extensions import source_files
from tunesmith.config.head import Head
from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import Prepared
from tunesmith.engine.allocator import release_freed_memory
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.checkpoint import LoopState, latest_checkpoint, load_checkpoint
from tunesmith.engine.evaluations import Evaluations
from tunesmith.engine.loop import Loop
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.optimizers import falls_back_to_adamw
from tunesmith.engine.output import save_output
from tunesmith.engine.tensorboard import TensorBoard
from tunesmith.engine.trainable import (
    base_parameters,
    is_hidden,
    learning_rates,
    trainable_model,
    with_known_features,
)
from tunesmith.inference.held_out import held_out_evaluation, row_vectors
from tunesmith.models.attention import packs
from tunesmith.models.prompts import plain_model
from tunesmith.objectives.objective import Objective
from tunesmith.planner.measure import measured
from tunesmith.run import Events, MetricsFile, Run, Subscriber


def measured_since(before: LoopState, loop: Loop) -> dict[str, Any]:
    """Memory and time since the run started or was resumed, as `first_pass` predicts them."""
    after = loop.state
    parts = {part: seconds - before.seconds[part] for part, seconds in after.seconds.items()}
    return measured(parts, after.step - before.step, after.tokens - before.tokens, loop.device)


def build(
    recipe: Recipe, run: Run, prepared: Prepared, batch_plan: BatchPlan, dtype: torch.dtype, device: torch.device
) -> Loop:
    """The loop with the model on the device; a resumed run's at its last checkpoint."""
    model, objective = trainable_model(recipe, dtype, device)
    release_freed_memory()  # memory of the weights as they were stored
    prepared = with_known_features(recipe.objective.head, model, prepared, recipe.train.max_batch_tokens)
    loop = loop_of(recipe, run, model, objective, prepared, batch_plan.over(prepared.train), device)
    checkpoint = latest_checkpoint(run.directory / "checkpoints")
    if checkpoint is not None:
        loop.restore(*load_checkpoint(checkpoint))
    return loop


def subscribe(loop: Loop, run: Run, subscribers: Sequence[Subscriber]) -> None:
    """Subscribe what receives the run's events. Drop those after the last checkpoint first: they come again."""
    run.rewind(loop.state.metrics_bytes)
    loop.events.subscribe(MetricsFile(run.directory / "metrics.jsonl"))
    if loop.train.tensorboard:
        loop.events.subscribe(TensorBoard(run.directory / "tensorboard"))
    for subscriber in subscribers:
        loop.events.subscribe(subscriber)


def save(loop: Loop, recipe: Recipe, run: Run, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save the adapter or the model, and return where."""
    started = time.perf_counter()
    restore_best(run, loop)
    loop.masters.finish()
    classifier = _classifier(loop, recipe.objective.head)
    output = save_output(run, loop.model, loop.masters, tokenizer, recipe, classifier)
    loop.state.seconds["checkpoints"] += time.perf_counter() - started
    return output


def emit_start(
    loop: Loop, recipe: Recipe, run: Run, prepared: Prepared, dtype: torch.dtype, evaluations: Evaluations
) -> None:
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
        evaluations={"rows": len(evaluations.rows), "every": evaluations.every},
        step=loop.state.step,
        extensions={
            name: [str(file) for file in source_files(path, recipe.directory)]
            for name, path in recipe.extensions.items()
        },
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
    if recipe.objective.compares_rows and single_rows:
        message = (
            f"{len(single_rows):,} batches hold a single row. It has no other row to compare with, so these batches "
            "train nothing. Raise train.tokens_per_batch, or lower data.max_length."
        )
        loop.events.emit("warning", message=message)


def _classifier(loop: Loop, head: Head) -> nn.Linear | None:
    """The classifier that the objective fits on the trained model's vectors, if it has one."""
    vectors = partial(row_vectors, head, loop.model, loop.batches.table, loop.tokens_per_batch)
    return loop.objective.fit_classifier(vectors)


def loop_of(
    recipe: Recipe,
    run: Run,
    model: PreTrainedModel,
    objective: Objective,
    prepared: Prepared,
    batch_plan: BatchPlan,
    device: torch.device,
) -> Loop:
    layout = batch_plan.layout(packs(plain_model(model)))
    peak, masters = masters_of(recipe, model)
    return Loop(
        model=model,
        objective=objective,
        batches=layout.batches,
        held_out=held_out_evaluation(
            model, objective, recipe.objective.head, prepared.held_out, layout.evaluations.rows
        ),
        evaluate_every=layout.evaluations.every,
        masters=masters,
        train=recipe.train,
        total_steps=layout.steps,
        peak_learning_rate=peak,
        tokens_per_batch=batch_plan.tokens_per_batch,
        directory=run.directory,
        events=Events(),
        device=device,
    )


def masters_of(recipe: Recipe, model: PreTrainedModel) -> tuple[float, MasterWeights]:
    """The peak learning rate, and the weights that the recipe trains, with their optimizer."""
    peak, factor = learning_rates(recipe, model)
    hidden = [is_hidden(model)] if recipe.train.optimizer == "muon" else []
    return peak, MasterWeights(model.named_parameters(), recipe.train, factor, *hidden)


def restore_best(run: Run, loop: Loop) -> None:
    """With early stopping, restore the best weights instead of the last ones."""
    best = run.directory / "checkpoints" / f"step-{loop.state.best_step or 0:06d}"
    if loop.train.early_stopping is not None and loop.state.best_step != loop.state.step and best.exists():
        loop.masters.restore(load_checkpoint(best)[0])
