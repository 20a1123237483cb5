"""`tunesmith plan` and `tunesmith.plan`: from a base's name or a recipe to its plan, on this machine or other
devices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch

from tunesmith.config.method import MethodConfig, with_defaults
from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import DEFAULT_METHOD, METHODS, config_classes
from tunesmith.curation.in_recipe import cleaned_recipe
from tunesmith.data.examples import training_rows
from tunesmith.data.prepare import prepare, resolve
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.trainable import cap_max_length
from tunesmith.errors import UserError
from tunesmith.models.load import check_base_kind, load_tokenizer
from tunesmith.models.precision import dtype_of
from tunesmith.planner.device import Device, device_named, known_devices
from tunesmith.planner.fitting import plan_within
from tunesmith.planner.measure import available_memory
from tunesmith.planner.plan import Plan, plan_of, plan_run
from tunesmith.planner.shapes import with_known_config
from tunesmith.planner.step import rows_like

NO_ROWS = "(none)"
"""Placeholder for `data.train` in a plan without rows."""

CHARACTERS = 4
"""Characters per token, roughly, in English: used if the base's tokenizer is not on this machine."""


def plan(
    base: str | None = None,
    recipe: Recipe | dict[str, Any] | str | Path | None = None,
    data: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "here",
) -> Plan:
    """Predict a run's memory and time; no weights are read.

    Args:
        base: a directory, a hub name, or a shipped config (`llama-3-8b`); replaces the recipe's.
        recipe: a `Recipe`, a dict, or a YAML file's path; default: LoRA on instructions.
        data: rows; replaces the recipe's. Without any rows, one step of rows of `data.max_length` is planned.
        overrides: `key.path=value` strings that replace fields of the recipe.
        device: `here`, or a name from `planner/devices.json`.

    Returns:
        The memory by part and the time of the run.

    Raises:
        UserError: what the user can fix, in one line.
    """
    full_recipe = recipe_of(base, recipe, data, overrides)
    target = device_named(device)
    available = available_memory(torch.device(target.kind)) if target.is_here else None
    return plan_run(batch_plan_of(full_recipe), precision(full_recipe, target), target, available)


def recipe_of(
    base: str | None,
    recipe: Recipe | dict[str, Any] | str | Path | None,
    data: str | Path | None,
    overrides: Sequence[str],
) -> Recipe:
    """The recipe, with the given base and rows.

    Raises:
        UserError: neither a base nor a recipe is given, or the recipe is not valid.
    """
    if base is None and recipe is None:
        raise UserError("Name a base (tunesmith plan llama-3-8b) or give --recipe.")
    loaded = Recipe.load({"data": {"train": NO_ROWS}} if recipe is None else recipe, list(overrides))
    changes: dict[str, Any] = {}
    if data is not None:
        changes["data"] = loaded.data.model_copy(update={"train": [str(data)]})
    named = loaded.base if base is None else loaded.base.model_copy(update={"path": base})
    return loaded.model_copy(update={**changes, "base": with_known_config(named)})


def precision(recipe: Recipe, device: Device) -> torch.dtype:
    """The run's dtype on a device."""
    return device.dtype if recipe.precision == "auto" else dtype_of(recipe.precision, torch.device("cpu"))


def batch_plan_of(recipe: Recipe) -> BatchPlan:
    """The rows that the recipe trains on. Their lengths come from the tokenizer, or are estimated from characters if
    the tokenizer is not on this machine. Without rows: one step of rows of the maximum length.

    Raises:
        UserError: the base does not suit the objective, or the rows cannot be used.
    """
    check_base_kind(recipe.base, recipe.objective)
    if recipe.data.train == [NO_ROWS]:
        resolved = cap_max_length(recipe)
        length = min(resolved.data.max_length, resolved.train.tokens_per_step)
        count = ceil(resolved.train.tokens_per_step / length)
        once = resolved.train.model_copy(update={"epochs": None, "steps": resolved.train.steps or 1})
        resolved = resolved.model_copy(update={"train": once})
        return replace(
            BatchPlan.of(resolved, rows_like(resolved.objective, [length] * count)),
            known=recipe.train.steps is not None,
        )
    recipe, _ = cleaned_recipe(recipe)
    resolved = cap_max_length(resolve(recipe))
    try:
        tokenizer = load_tokenizer(resolved.base)
    except UserError:
        return BatchPlan.of(resolved, _by_characters(resolved))
    prepared = prepare(resolved, tokenizer)
    return BatchPlan.of(resolved, prepared.train, prepared.held_out)


def _by_characters(recipe: Recipe) -> TokenTable:
    """Rows with the estimated token counts of their texts."""

    def lengths() -> Iterator[int]:
        for example in training_rows(recipe.data, recipe.objective.formats):
            messages = example.messages or ({"content": example.text},)
            texts = (message.get(key) or "" for message in messages for key in ("content", "reasoning_content"))
            text = sum(len(str(each)) for each in texts)
            yield max(2, min(recipe.data.max_length, ceil(text / CHARACTERS)))

    return rows_like(recipe.objective, list(lengths()))


def usual_plans(recipe: Recipe, device: Device) -> dict[str, Plan | UserError]:
    """Plans of the base with each common method, by name; the error where a method does not support the base."""
    check_base_kind(recipe.base, recipe.objective)
    plans: dict[str, Plan | UserError] = {}
    available = available_memory(torch.device(device.kind)) if device.is_here else None
    classes = config_classes(METHODS, MethodConfig)
    usual = [(kind, weights) for kind, method in classes.items() for weights in method.usual_weights]
    for kind, weights in usual:
        name = kind if weights == "auto" else f"{kind}, {weights} base"
        with METHODS.left_out_if_broken(kind):
            try:
                base = recipe.base.model_copy(update={"weights": weights})
                variant = recipe.model_copy(update={"method": with_defaults(classes[kind]), "base": base})
                plans[name] = plan_run(batch_plan_of(variant), precision(variant, device), device, available)
            except UserError as error:
                plans[name] = error
    return plans


@dataclass(frozen=True)
class Proposal:
    """The best recipe that fits.

    Attributes:
        plan: of that recipe.
        tradeoffs: how it differs from the original recipe, in words.
        overrides: `key.path=value` strings that turn the original recipe into it.
    """

    plan: Plan
    tradeoffs: tuple[str, ...]
    overrides: tuple[str, ...]


def best_that_fits(recipe: Recipe, device: Device, limit: int) -> Proposal:
    """Find the best recipe that fits: first give up what only costs time, then what reduces quality least.

    Args:
        recipe: the original.
        device: of the run.
        limit: bytes.

    Raises:
        UserError: no recipe fits.
    """
    tradeoffs: list[str] = []
    overrides: list[str] = []
    for variant, loss, override in _ladder(recipe):
        tradeoffs += loss
        overrides += override
        try:
            fitting = plan_within(batch_plan_of(variant), precision(variant, device), device, limit)
        except UserError as error:
            refused = error
            continue
        if fitting.checkpointed:
            tradeoffs.append(
                f"{fitting.checkpointed} of {fitting.step.blocks} blocks are checkpointed: up to a third more time"
            )
        usual = variant.train.max_batch_tokens
        if fitting.batch_plan.tokens_per_batch < usual:
            tradeoffs.append(f"{fitting.batch_plan.tokens_per_batch:,} tokens per batch instead of {usual:,}")
            overrides.append(f"train.tokens_per_batch={fitting.batch_plan.tokens_per_batch}")
        if fitting.checkpointed:
            overrides.append(f"train.memory_limit={limit / 1e9:.4g}GB")
        return Proposal(fitting, tuple(tradeoffs), tuple(overrides))
    raise UserError(
        f"No recipe for {recipe.base.path} fits into {limit / 1e9:.1f} GB ({refused}). Use a smaller base model."
    )


def _ladder(recipe: Recipe) -> Iterator[tuple[Recipe, list[str], list[str]]]:
    """Recipes of decreasing size, with what each step gives up and its overrides."""
    yield recipe, [], []
    if recipe.method.trains_base or not recipe.method.adds_weights:
        smaller = METHODS.load(DEFAULT_METHOD)
        recipe = recipe.model_copy(update={"method": smaller()})
        loss = f"{smaller.__name__} instead of training the base's own weights: less capacity for new knowledge"
        yield recipe, [loss], [f"method={DEFAULT_METHOD}"]
    if not recipe.base.quantized and not recipe.method.trains_base:
        recipe = recipe.model_copy(update={"base": recipe.base.model_copy(update={"weights": "nf4"})})
        yield recipe, ["the frozen base in 4 bits (QLoRA): rarely worse, somewhat slower"], ["base.weights=nf4"]
    while recipe.data.max_length > 256:
        length = recipe.data.max_length // 2
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_length": length})})
        yield recipe, [f"rows of at most {length:,} tokens"], [f"data.max_length={length}"]


@dataclass(frozen=True)
class OnDevice:
    """A run on a device of the table.

    Attributes:
        device: of the run.
        plan: of the run on it.
        cards: devices needed, with the run's tensors sharded over them.
    """

    device: Device
    plan: Plan
    cards: int


def on_devices(recipe: Recipe) -> list[OnDevice]:
    """The run on every device of the table."""
    batch_plan = batch_plan_of(recipe)
    plans: dict[tuple[str, torch.dtype], Plan] = {}
    rows = []
    for device in known_devices().values():
        dtype = precision(recipe, device)
        first = plans.get((device.kind, dtype))
        if first is None:
            first = plans[device.kind, dtype] = plan_run(batch_plan, dtype, device)
        own = plan_of(first.step, batch_plan, dtype, device, None, first.checkpointed)
        rows.append(OnDevice(device, own, cards_needed(own)))
    return rows


def cards_needed(plan: Plan) -> int:
    """How many of the plan's device are needed, with weights, gradients and optimizer states sharded over them
    (Rajbhandari et al. 2020, stage 3) and a batch on each; 0 if no number is enough."""
    sharded = sum(
        plan.memory.parts.get(name, 0) for name in ("weights", "quantization constants", "gradients", "optimizer")
    )
    own = plan.memory.peak_bytes - sharded
    if plan.fits:
        return 1
    room = plan.available - own
    return ceil(sharded / room) if room > 0 else 0
