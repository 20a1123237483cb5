"""Merge an adapter. If the base was quantized in training, choose the weights to merge into by held-out loss."""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.objective import ObjectiveConfig
from tunesmith.config.recipe import Recipe
from tunesmith.data.pack import Batch, collate
from tunesmith.data.prepare import prepare
from tunesmith.engine.allocator import keep_freed_memory
from tunesmith.errors import UserError
from tunesmith.exporting.merged_model import Into, dtype_named, merged_model, refuse_existing, save_merged
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.attention import use_cached_attention, use_document_attention
from tunesmith.models.prompts import plain_model

ROWS = 64
"""Held-out rows to compare on: enough for the third digit of the divergence, and seconds on small models."""

POSITIONS = 512
"""The maximum number of loss positions whose full distributions are kept for the comparison."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to merge, with its measured quality.

    Attributes:
        into: which weights the adapter was added to.
        loss: held-out loss of the merged model as written, in nats per loss unit (token, text or word).
        divergence: KL(trained ‖ merged), mean over positions, in nats per loss unit.
    """

    into: Into
    loss: float
    divergence: float


@dataclass(frozen=True, slots=True)
class Merged:
    """The result of `merge`.

    Attributes:
        path: the model directory.
        into: which weights the adapter was added to.
        trained_loss: held-out loss of the model as it was trained; None if no comparison was needed.
        ways: both ways, if the base was quantized in training and there are held-out rows.
    """

    path: Path
    into: Into
    trained_loss: float | None = None
    ways: tuple[Way, ...] = ()


@keep_freed_memory()
def merge(name: str, output: str | Path, precision: str | None = None) -> Merged:
    """Merge an adapter into its base and save one Hugging Face model, with its tokenizer.

    The sum is computed in fp32 and rounded once. If the adapter was trained on a quantized base, there are two ways:
    add it to the weights that the base stores, which it was not trained on, or to the dequantized weights, which are
    less accurate by themselves. Both are measured, and the one with the lower held-out loss is saved, with the figures
    in `merge.json`.

    Args:
        name: a run or an adapter directory.
        output: the directory to write, which must not exist.
        precision: dtype of the saved weights: fp32, bf16 or fp16. Default: the base's own.

    Returns:
        The path, which weights the adapter was added to, and the losses of both ways if they were measured.

    Raises:
        UserError: there is no adapter, its method cannot be merged, the output exists already or cannot be written, or
            a weight would not be finite.
    """
    reference = ModelReference.find(name)
    target = Path(output)
    if reference.adapter is None:
        raise UserError(f"{name} has no adapter, so there is nothing to merge. Name a run or an adapter directory.")
    refuse_existing(target)
    chosen = choose_way(name, reference, dtype_named(reference, precision))
    report = None
    if chosen.ways:
        ways = [asdict(way) for way in chosen.ways]
        report = {"into": chosen.into, "trained_loss": chosen.trained_loss, "ways": ways}
    path = save_merged(chosen.model, reference, target, precision, report)
    return Merged(path, chosen.into, chosen.trained_loss, chosen.ways)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The better way to merge, with what was measured if there were two (see `Merged`).

    Attributes:
        model: merged, in fp32 on the CPU.
        into: which weights the adapter was added to.
        trained_loss: as in `Merged`.
        ways: as in `Merged`.
    """

    model: PreTrainedModel
    into: Into
    trained_loss: float | None = None
    ways: tuple[Way, ...] = ()


def choose_way(name: str, reference: ModelReference, dtype: torch.dtype) -> Chosen:
    """Merge a model that has an adapter, in the way with the lower held-out loss if there are two.

    Args:
        name: a run or an adapter directory; a run has held-out rows.
        reference: what the name stands for.
        dtype: that the weights will be rounded to, which the losses include.

    Raises:
        UserError: as `merged_model`.
    """
    if not reference.base.quantized:
        return Chosen(merged_model(reference), "original")
    objective, batches = _held_out(Path(name), reference)
    if objective is None or not batches:  # nothing to measure on: use the weights that it was trained on
        return Chosen(merged_model(reference, "dequantized"), "dequantized")
    trained = _measure(reference.model(torch.float32, torch.device("cpu")), objective, batches)
    ways = []
    for into in get_args(Into):
        merged = _measure(merged_model(reference, into).to(dtype), objective, batches)
        divergence = (
            (trained.log_probabilities.exp() * (trained.log_probabilities - merged.log_probabilities))
            .sum(-1)
            .mean()
            .item()
        )
        ways.append(Way(into, merged.loss, divergence))
        gc.collect()
    best = min(ways, key=lambda way: way.loss)
    return Chosen(merged_model(reference, best.into), best.into, trained.loss, tuple(ways))


def _held_out(run: Path, reference: ModelReference) -> tuple[ObjectiveConfig | None, list[Batch]]:
    """The run's objective, and its first held-out rows, one batch each; none if there is no run or no row."""
    if not (run / "recipe.yaml").exists():
        return None, []
    recipe = Recipe.load(run / "recipe.yaml")
    table = prepare(recipe, reference.tokenizer()).held_out
    rows = list(range(min(ROWS, len(table))))
    together = [rows] if rows else []  # the objective compares rows with each other
    parts = together if recipe.objective.compares_rows else [[row] for row in rows]
    return recipe.objective, [collate(table, part) for part in parts]


@dataclass(frozen=True, slots=True)
class _Measured:
    """Held-out loss in nats per loss unit, and log-probabilities (positions, outcomes) fp32 at the first positions."""

    loss: float
    log_probabilities: Tensor


@torch.no_grad()
def _measure(model: PreTrainedModel, objective: ObjectiveConfig, batches: Sequence[Batch]) -> _Measured:
    use_document_attention(plain_model(model))
    losses_of = objective.build().losses
    losses, log_probabilities = [], []
    count = 0
    for batch in batches:
        if count >= POSITIONS:
            break
        losses.append(losses_of(model, batch))
        log_probabilities.append(objective.head.log_probabilities(model, batch))
        count += len(losses[-1])
    use_cached_attention(plain_model(model))
    return _Measured(float(torch.cat(losses)[:POSITIONS].mean()), torch.cat(log_probabilities)[:POSITIONS])
