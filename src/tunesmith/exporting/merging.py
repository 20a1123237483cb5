"""Which weights an adapter is merged into, if its base was quantized in training: chosen by held-out loss."""

import gc
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.objective import ObjectiveConfig
from tunesmith.config.recipe import Recipe
from tunesmith.data.batch import Batch, collate
from tunesmith.data.prepare import prepare
from tunesmith.data.tokens import TokenTable
from tunesmith.exporting.weight_files import save_weights
from tunesmith.exporting.weights import Into, Weights
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.attention import use_cached_attention, use_document_attention
from tunesmith.models.load import load_model
from tunesmith.models.prompts import plain_model
from tunesmith.objectives.text import Text

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
class Merging:
    """How an adapter is merged.

    Attributes:
        into: which weights it is added to.
        trained_loss: held-out loss of the model as it was trained; None if no comparison was needed.
        ways: both ways, if the base was quantized in training and there are held-out rows.
    """

    into: Into = "original"
    trained_loss: float | None = None
    ways: tuple[Way, ...] = ()


def choose_merging(run: Path, reference: ModelReference, directory: Path, dtype: torch.dtype) -> Merging:
    """Choose the weights to merge an adapter into.

    If the adapter was trained on a quantized base, there are two ways: add it to the weights that the base stores,
    which it was not trained on, or to the dequantized weights, which are less accurate by themselves. Both are written,
    read back and measured, and the one with the lower held-out loss is chosen.

    Args:
        run: a run or an adapter directory; a run has held-out rows.
        reference: what it stands for.
        directory: for the merged model while it is measured, on a disk with room for it.
        dtype: that the weights are rounded to, which the losses include.

    Raises:
        UserError: as `Weights`.
    """
    if reference.adapter is None or not reference.base.quantized:
        return Merging()
    objective, batches = _held_out(run, reference)
    if objective is None or not batches:  # nothing to measure on: use the weights that it was trained on
        return Merging("dequantized")
    trained = _measure(reference.model(torch.float32, torch.device("cpu")), objective, batches)
    ways = []
    for into in get_args(Into):
        with tempfile.TemporaryDirectory(dir=directory, prefix=".merged.") as temporary:
            save_weights(Weights(reference, into), Path(temporary), dtype)
            base = reference.base.model_copy(update={"path": temporary, "revision": None, "weights": "auto"})
            merged = _measure(load_model(base, dtype, head=reference.head), objective, batches)
        gc.collect()
        pairs = trained.log_probabilities.exp() * (trained.log_probabilities - merged.log_probabilities)
        ways.append(Way(into, merged.loss, float(pairs.sum(-1).mean())))
    best = min(ways, key=lambda way: way.loss)
    return Merging(best.into, trained.loss, tuple(ways))


def _held_out(run: Path, reference: ModelReference) -> tuple[ObjectiveConfig | None, list[Batch]]:
    """The run's objective, and its first held-out rows, one batch each; none if there is no run or no row."""
    if not (run / "recipe.yaml").exists():
        return None, []
    recipe = Recipe.load(run / "recipe.yaml")
    table, objective = prepare(recipe, reference.tokenizer()).held_out, recipe.objective
    rows = list(range(min(ROWS, len(table))))
    if objective.rollouts is not None:  # rows are prompts without answers: both ways are compared on their text
        masks = [np.arange(length) > 0 for length in table.lengths]
        table = TokenTable.build((table[row][0], masks[row], table.source(row)) for row in rows)
        objective = Text()
    together = [rows] if rows else []  # the objective compares rows with each other
    parts = together if objective.compares_rows else [[row] for row in rows]
    return objective, [collate(table, part) for part in parts]


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
