"""From a recipe to a loop that is ready to run, or to be resumed."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.extensions import source_files
from tunesmith.config.objective import RolloutPlan
from tunesmith.config.recipe import Recipe
from tunesmith.data.examples import examples_by_source
from tunesmith.data.prepare import Prepared
from tunesmith.engine.allocator import release_freed_memory
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.checkpoint import latest_checkpoint, load_checkpoint
from tunesmith.engine.evaluations import Evaluations
from tunesmith.engine.loop import Loop
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.optimizers import falls_back_to_adamw
from tunesmith.engine.phases import CompletionSampler, InitialWeights, Phases
from tunesmith.engine.tensorboard import TensorBoard
from tunesmith.engine.trainable import (
    base_parameters,
    learning_rates,
    master_weights,
    trainable_model,
    with_known_features,
)
from tunesmith.inference.held_out import held_out_evaluation
from tunesmith.inference.sampler import Sampler
from tunesmith.inference.server_sampler import ServerSampler
from tunesmith.models.attention import packs
from tunesmith.models.prompts import plain_model
from tunesmith.objectives.objective import Objective
from tunesmith.run import Events, MetricsFile, Run, Subscriber
from tunesmith.training.rollout_rewards import reward_of


def build(
    recipe: Recipe,
    run: Run,
    prepared: Prepared,
    batch_plan: BatchPlan,
    dtype: torch.dtype,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase,
) -> Loop:
    """The loop with the model on the device; a resumed run's at its last checkpoint.

    Args:
        recipe: of the run.
        run: its directory.
        prepared: the rows as tokens.
        batch_plan: how they make batches.
        dtype: of the computation.
        device: of the model.
        tokenizer: of the base.
    """
    model, objective = trainable_model(recipe, dtype, device)
    release_freed_memory()  # memory of the weights as they were stored
    prepared = with_known_features(recipe.objective.head, model, prepared, recipe.train.max_batch_tokens)
    loop = loop_of(recipe, run, model, objective, prepared, batch_plan.over(prepared.train), device, tokenizer)
    checkpoint = latest_checkpoint(run.directory / "checkpoints")
    if checkpoint is not None:
        loop.restore(*load_checkpoint(checkpoint))
    return loop


def subscribe(loop: Loop, run: Run, subscribers: Sequence[Subscriber]) -> None:
    """Subscribe what receives the run's events. Drop those after the last checkpoint first: they come again.

    Args:
        loop: that emits them.
        run: its directory.
        subscribers: in addition to the files that the recipe asks for.
    """
    run.rewind(loop.state.metrics_bytes)
    loop.events.subscribe(MetricsFile(run.directory / "metrics.jsonl"))
    if loop.train.tensorboard:
        loop.events.subscribe(TensorBoard(run.directory / "tensorboard"))
    for subscriber in subscribers:
        loop.events.subscribe(subscriber)


def emit_start(
    loop: Loop, recipe: Recipe, run: Run, prepared: Prepared, dtype: torch.dtype, evaluations: Evaluations
) -> None:
    """Emit what is trained and on what data, and warn about settings that work differently here.

    Args:
        loop: that emits it.
        recipe: of the run.
        run: its directory.
        prepared: the rows as tokens.
        dtype: of the computation.
        evaluations: which rows are evaluated on, and when.
    """
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


def loop_of(
    recipe: Recipe,
    run: Run,
    model: PreTrainedModel,
    objective: Objective,
    prepared: Prepared,
    batch_plan: BatchPlan,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase,
) -> Loop:
    """The loop before its first step.

    Args:
        recipe: of the run.
        run: its directory.
        model: with the method applied.
        objective: that is trained.
        prepared: the rows as tokens.
        batch_plan: how they make batches.
        device: of the model.
        tokenizer: of the base.
    """
    layout = batch_plan.layout(packs(plain_model(model)))
    peak, masters = masters_of(recipe, model, objective)
    events = Events()
    phases = None
    plan = recipe.objective.rollouts
    if plan is not None:
        phases = Phases(
            model,
            objective,
            plan,
            layout.batches,
            examples_by_source(recipe),
            _sampler(plan, run, model, tokenizer),
            reward_of(recipe, layout.steps),
            InitialWeights(model) if plan.keeps_initial_weights else None,
            recipe.train.seed,
            events,
        )
    return Loop(
        model=model,
        objective=objective,
        batches=layout.batches,
        held_out=_held_out(recipe, model, objective, prepared, layout.evaluations.rows, phases),
        evaluate_every=layout.evaluations.every,
        masters=masters,
        train=recipe.train,
        total_steps=layout.steps,
        peak_learning_rate=peak,
        tokens_per_batch=batch_plan.tokens_per_batch,
        directory=run.directory,
        events=events,
        device=device,
        sources=tuple(source.name for source in prepared.report.sources),
        phases=phases,
    )


def _sampler(
    plan: RolloutPlan, run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> CompletionSampler:
    """What samples the run's rollouts."""
    if plan.server is None:
        return Sampler(model, tokenizer)
    return ServerSampler(model, tokenizer, plan.server, run.directory)


def masters_of(recipe: Recipe, model: PreTrainedModel, objective: Objective) -> tuple[float, MasterWeights]:
    """The peak learning rate, and the weights that the recipe trains, with their optimizer.

    Args:
        recipe: of the run.
        model: with the method applied.
        objective: that is trained.
    """
    peak, factor = learning_rates(recipe, model)
    return peak, master_weights(model, recipe.train, factor, objective.layers)


def _held_out(
    recipe: Recipe,
    model: PreTrainedModel,
    objective: Objective,
    prepared: Prepared,
    rows: Sequence[int],
    phases: Phases | None,
) -> Callable[[int], dict[str, Any]] | None:
    """What the loop calls at each evaluation: of the answers with rollouts, else of the held-out loss."""
    if phases is None or not rows:
        return held_out_evaluation(model, objective, recipe.objective.head, prepared.held_out, rows)
    return partial(phases.evaluate, prepared.held_out, rows)
