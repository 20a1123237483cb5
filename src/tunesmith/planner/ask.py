"""`tunesmith plan` and `tunesmith.plan`: from a base's name or a recipe to its plan, here or on other devices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch

from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import METHODS, named_kind
from tunesmith.data.prepare import examples, prepare, resolve
from tunesmith.data.report import DataReport
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.precision import dtype_of
from tunesmith.engine.trainable import with_room
from tunesmith.errors import UserError
from tunesmith.models.load import load_tokenizer, refuse_other_kinds
from tunesmith.planner.device import Device, device_named, known_devices
from tunesmith.planner.fitting import plan_within
from tunesmith.planner.measure import available_memory
from tunesmith.planner.plan import Plan, plan_of, plan_run
from tunesmith.planner.shapes import with_known_shape
from tunesmith.planner.step import rows_like

NO_ROWS = "(none)"
"""What stands for `data.train` where a plan is asked for without rows."""

CHARACTERS = 4
"""A token, about, in English: for rows whose base's tokenizer is not on this machine."""

USUAL: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "lora": {"method": "lora"},
    "lora, int8 base": {"method": "lora", "base.weights": "int8"},
    "lora, nf4 base": {"method": "lora", "base.weights": "nf4"},
    "adapter": {"method": "adapter"},
    "prefix": {"method": "prefix"},
    "ia3": {"method": "ia3"},
}
"""What is planned for a base of which no recipe tells more."""


def plan(
    base: str | None = None,
    recipe: Recipe | dict[str, Any] | str | Path | None = None,
    data: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "here",
) -> Plan:
    """Foretell a run's memory and time; no weight is read.

    Args:
        base: a directory, a hub name, or a shipped shape (`llama-3-8b`); in place of the recipe's.
        recipe: a `Recipe`, a dict, or a YAML file's path; default: LoRA on instructions.
        data: rows, in place of the recipe's; without any, one step of rows of `data.max_length` stands for them.
        overrides: `key.path=value` strings that replace fields of the recipe.
        device: `here`, or one of `planner/devices.json`.

    Raises:
        UserError: what the user can mend, in one line.
    """
    asked = recipe_of(base, recipe, data, overrides)
    where = device_named(device)
    available = available_memory(torch.device(where.kind)) if where.is_here else None
    return plan_run(batch_plan_of(asked), precision(asked, where), where, available)


def recipe_of(
    base: str | None,
    recipe: Recipe | dict[str, Any] | str | Path | None,
    data: str | Path | None,
    overrides: Sequence[str],
) -> Recipe:
    """The recipe with the base and the rows that were named."""
    if base is None and recipe is None:
        raise UserError("Name a base (tunesmith plan llama-3-8b) or give --recipe.")
    given = Recipe.load({"data": {"train": NO_ROWS}} if recipe is None else recipe, list(overrides))
    changes: dict[str, Any] = {}
    if data is not None:
        changes["data"] = given.data.model_copy(update={"train": [str(data)]})
    found = given.base if base is None else given.base.model_copy(update={"path": base})
    return given.model_copy(update={**changes, "base": with_known_shape(found)})


def precision(recipe: Recipe, device: Device) -> torch.dtype:
    """Of the run there."""
    return device.dtype if recipe.precision == "auto" else dtype_of(recipe.precision, torch.device("cpu"))


def batch_plan_of(recipe: Recipe) -> BatchPlan:
    """The rows that the recipe trains on: tokenized, where its tokenizer is here; else by their characters; or, where
    it names none, one step of the longest."""
    refuse_other_kinds(recipe.base, recipe.objective)
    if recipe.data.train == [NO_ROWS]:
        resolved = with_room(recipe)
        length = min(resolved.data.max_length, resolved.train.tokens_per_step)
        count = ceil(resolved.train.tokens_per_step / length)
        once = resolved.train.model_copy(update={"epochs": None, "steps": resolved.train.steps or 1})
        resolved = resolved.model_copy(update={"train": once})
        return replace(
            BatchPlan.of(resolved, rows_like(resolved, [length] * count)), known=recipe.train.steps is not None
        )
    resolved = with_room(resolve(recipe))
    try:
        tokenizer = load_tokenizer(resolved.base)
    except UserError:
        return BatchPlan.of(resolved, _by_characters(resolved))
    return BatchPlan.of(resolved, prepare(resolved, tokenizer).train)


def _by_characters(recipe: Recipe) -> TokenTable:
    """Rows as long as their texts are in tokens, about."""

    def lengths() -> Iterator[int]:
        for example in examples(recipe, recipe.data.train, DataReport()):
            messages = example.messages or ({"content": example.text},)
            text = sum(len(str(message.get("content") or "")) for message in messages)
            yield max(2, min(recipe.data.max_length, ceil(text / CHARACTERS)))

    return rows_like(recipe, list(lengths()))


def usual_plans(recipe: Recipe, device: Device) -> dict[str, Plan | UserError]:
    """The base with each usual method, by name; the error where one cannot be put on it."""
    refuse_other_kinds(recipe.base, recipe.objective)
    found: dict[str, Plan | UserError] = {}
    available = available_memory(torch.device(device.kind)) if device.is_here else None
    for name, changes in USUAL.items():
        try:
            asked = recipe.model_copy(
                update={
                    "method": named_kind(METHODS, changes["method"])(),
                    "base": recipe.base.model_copy(update={"weights": changes.get("base.weights", "auto")}),
                }
            )
            found[name] = plan_run(batch_plan_of(asked), precision(asked, device), device, available)
        except UserError as error:
            found[name] = error
    return found


@dataclass(frozen=True)
class Proposal:
    """The best recipe that fits.

    Attributes:
        plan: of it.
        given_up: what it has not that was asked for, in words.
        overrides: what turns the recipe that was asked for into it.
    """

    plan: Plan
    given_up: tuple[str, ...]
    overrides: tuple[str, ...]


def best_that_fits(recipe: Recipe, device: Device, limit: int) -> Proposal:
    """Give up first what costs time alone, then what costs least of what can be learnt.

    Raises:
        UserError: nothing does.
    """
    given_up: list[str] = []
    overrides: list[str] = []
    for asked, told, override in _ladder(recipe):
        given_up += told
        overrides += override
        try:
            found = plan_within(batch_plan_of(asked), precision(asked, device), device, limit)
        except UserError as error:
            refused = error
            continue
        if found.checkpointed:
            given_up.append(
                f"{found.checkpointed} of {found.step.blocks} blocks are computed twice: up to a third more time"
            )
        usual = asked.train.tokens_at_once
        if found.batch_plan.tokens_per_batch < usual:
            given_up.append(f"{found.batch_plan.tokens_per_batch:,} tokens go at once in place of {usual:,}")
            overrides.append(f"train.tokens_per_batch={found.batch_plan.tokens_per_batch}")
        if found.checkpointed:
            overrides.append(f"train.memory_limit={limit / 1e9:.4g}GB")
        return Proposal(found, tuple(given_up), tuple(overrides))
    raise UserError(f"{limit / 1e9:.1f} GB hold no recipe for {recipe.base.path} ({refused}). Take a smaller base.")


def _ladder(recipe: Recipe) -> Iterator[tuple[Recipe, list[str], list[str]]]:
    """Ever smaller recipes, with what each step gives up and how it is written."""
    yield recipe, [], []
    if recipe.method.trains_base or recipe.method.kind in ("full", "layers"):
        recipe = recipe.model_copy(update={"method": named_kind(METHODS, "lora")()})
        yield (
            recipe,
            ["LoRA in place of moving the base's own weights: less room for much new knowledge"],
            ["method=lora"],
        )
    if not recipe.base.quantized and not recipe.method.trains_base:
        recipe = recipe.model_copy(update={"base": recipe.base.model_copy(update={"weights": "nf4"})})
        yield recipe, ["the frozen base in 4 bits (QLoRA): seldom worse, some slower"], ["base.weights=nf4"]
    while recipe.data.max_length > 256:
        length = recipe.data.max_length // 2
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_length": length})})
        yield recipe, [f"rows of at most {length:,} tokens"], [f"data.max_length={length}"]


@dataclass(frozen=True)
class OnDevice:
    """A run on a device of the table.

    Attributes:
        device: which.
        plan: of the run there.
        cards: how many such are needed, the run's tensors shared out among them.
    """

    device: Device
    plan: Plan
    cards: int


def on_devices(recipe: Recipe) -> list[OnDevice]:
    """The run on every device of the table."""
    batch_plan = batch_plan_of(recipe)
    known: dict[tuple[str, torch.dtype], Plan] = {}
    found = []
    for device in known_devices().values():
        dtype = precision(recipe, device)
        first = known.get((device.kind, dtype))
        if first is None:
            first = known[device.kind, dtype] = plan_run(batch_plan, dtype, device)
        own = plan_of(first.step, batch_plan, dtype, device, None, first.checkpointed)
        found.append(OnDevice(device, own, cards_needed(own)))
    return found


def cards_needed(plan: Plan) -> int:
    """How many such devices, where weights, gradients and optimizer are shared out among them (Rajbhandari et al. 2020,
    stage 3), and each takes a batch of its own; 0 where no number does."""
    shared = sum(
        plan.memory.parts.get(name, 0) for name in ("weights", "quantization constants", "gradients", "optimizer")
    )
    own = plan.memory.peak_bytes - shared
    if plan.fits:
        return 1
    room = plan.available - own
    return ceil(shared / room) if room > 0 else 0
