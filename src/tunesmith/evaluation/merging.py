"""Merging an adapter, and where the base was quantized in training: into which weights, measured on held-out rows."""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import ObjectiveConfig
from tunesmith.data.pack import Batch, collate
from tunesmith.data.prepare import prepare
from tunesmith.engine.allocator import keeping_freed_memory
from tunesmith.errors import UserError
from tunesmith.models.attention import use_cached_attention, use_document_attention
from tunesmith.models.forward import loss_hidden_states
from tunesmith.models.merge import Into, dtype_named, merged_model, refuse_existing, save_merged
from tunesmith.models.model_reference import ModelReference
from tunesmith.models.prompts import plain_model

ROWS = 64
"""Held-out rows that are compared: enough for a third digit of the divergence, seconds on small models."""

POSITIONS = 512
"""Most learnt positions whose whole distributions are kept for the comparison."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to merge, measured.

    Attributes:
        into: which weights the adapter was added to.
        loss: held-out, nats a learnt unit, of the merged model as it is written.
        divergence: KL(trained ‖ merged), nats a learnt unit, mean over positions.
    """

    into: Into
    loss: float
    divergence: float


@dataclass(frozen=True, slots=True)
class Merged:
    """What `merge` wrote.

    Attributes:
        path: the model's directory.
        into: which weights the adapter was added to.
        trained_loss: held-out, of the model as it was trained; None where nothing had to be compared.
        ways: both ways, where the base was quantized in training and there are held-out rows.
    """

    path: Path
    into: Into
    trained_loss: float | None = None
    ways: tuple[Way, ...] = ()


@keeping_freed_memory()
def merge(name: str, output: str | Path, precision: str | None = None) -> Merged:
    """Fold an adapter into its base and write the model, with its tokenizer, in Hugging Face's format.

    The sum is made in fp32 and rounded once. An adapter that was trained on a quantized base can be added to the
    weights that the base stores, which it has not seen, or to the quantized ones made whole, which are less good by
    themselves: both are tried, and the one with the lower held-out loss is written, with the figures in `merge.json`.

    Args:
        name: a run's or an adapter's directory.
        output: the directory to write, which must not exist.
        precision: of the written weights: fp32, bf16 or fp16; default: as the base is stored.

    Raises:
        UserError: nothing to merge, a method that cannot be, the output is there already or cannot be written, or a
            weight would not be finite.
    """
    usable = ModelReference.find(name)
    target = Path(output)
    if usable.adapter is None:
        raise UserError(f"{name} has no adapter, so there is nothing to merge. Name a run or an adapter's directory.")
    refuse_existing(target)
    dtype = dtype_named(usable, precision)
    objective, batches = _held_out(Path(name), usable) if usable.base.quantized else (None, [])
    if not usable.base.quantized:
        return Merged(save_merged(merged_model(usable), usable, target, precision), "original")
    if objective is None or not batches:  # the weights that it was trained on, since nothing can be measured
        return Merged(save_merged(merged_model(usable, "dequantized"), usable, target, precision), "dequantized")
    return _better(usable, target, precision, dtype, objective, batches)


def _better(
    usable: ModelReference,
    target: Path,
    precision: str | None,
    dtype: torch.dtype,
    objective: ObjectiveConfig,
    batches: Sequence[Batch],
) -> Merged:
    trained = _measured(usable.model(torch.float32, torch.device("cpu")), objective, batches)
    ways = []
    for into in get_args(Into):
        found = _measured(merged_model(usable, into).to(dtype), objective, batches)
        divergence = (trained.probabilities.exp() * (trained.probabilities - found.probabilities)).sum(-1).mean().item()
        ways.append(Way(into, found.loss, divergence))
        gc.collect()
    best = min(ways, key=lambda way: way.loss)
    path = save_merged(merged_model(usable, best.into), usable, target, precision)
    result = Merged(path, best.into, trained.loss, tuple(ways))
    told = {"into": best.into, "trained_loss": result.trained_loss, "ways": [asdict(way) for way in ways]}
    (path / "merge.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return result


def _held_out(run: Path, usable: ModelReference) -> tuple[ObjectiveConfig | None, list[Batch]]:
    """What the run learnt, and its first held-out rows, a batch each; none where there is no run or no row."""
    if not (run / "recipe.yaml").exists():
        return None, []
    recipe = Recipe.load(run / "recipe.yaml")
    table = prepare(recipe, usable.tokenizer()).held_out
    rows = list(range(min(ROWS, len(table))))
    compared = [rows] if rows else []  # with each other
    parts = compared if recipe.objective.ending.kind == "vectors" else [[row] for row in rows]
    return recipe.objective, [collate(table, part) for part in parts]


@dataclass(frozen=True, slots=True)
class _Measured:
    """Held-out, nats a learnt unit; and log-probabilities (positions, outcomes) fp32 at the first learnt positions."""

    loss: float
    probabilities: Tensor


@torch.no_grad()
def _measured(model: PreTrainedModel, objective: ObjectiveConfig, batches: Sequence[Batch]) -> _Measured:
    use_document_attention(plain_model(model))
    losses, probabilities = [], []
    count = 0
    for batch in batches:
        if count >= POSITIONS:
            break
        losses.append(objective.losses(model, batch))
        probabilities.append(_log_probabilities(model, objective, batch))
        count += len(losses[-1])
    use_cached_attention(plain_model(model))
    return _Measured(float(torch.cat(losses)[:POSITIONS].mean()), torch.cat(probabilities)[:POSITIONS])


def _log_probabilities(model: PreTrainedModel, objective: ObjectiveConfig, batch: Batch) -> Tensor:
    """(positions, outcomes) fp32: of tokens, of classes; of labels apart, holding or not; of what has no probabilities
    but one outcome, which cannot diverge."""
    ending = objective.ending
    if ending.kind == "vocabulary":
        logits = plain_model(model).get_output_embeddings()(loss_hidden_states(model, batch)[0])
        return torch.log_softmax(logits.float(), -1)
    if ending.kind == "vectors" or ending.problem == "regression":
        return torch.zeros(len(batch.rows), 1)
    found: Tensor = objective.outputs(model, batch).float().clamp(1e-7, 1.0)
    if ending.problem == "multi_label_classification":
        found = torch.stack([found, (1 - found).clamp(min=1e-7)], -1).flatten(0, 1)
    return torch.log(found)
