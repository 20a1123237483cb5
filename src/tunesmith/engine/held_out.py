"""A model on held-out rows: its loss with a confidence interval, and its outputs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tunesmith.config.registry import ObjectiveConfig
from tunesmith.data.pack import collate, pack_any_order
from tunesmith.data.tokens import TokenTable
from tunesmith.models.attention import packs, use_document_attention
from tunesmith.models.prompts import plain_model

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Each row's summed loss (nats) and number of loss tokens, in the table's order."""

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def loss(self) -> float:
        """Nats per loss token over all rows."""
        return float(self.sums.sum() / self.counts.sum())

    @property
    def perplexity(self) -> float:
        """exp(loss); meaningful if the loss is per token."""
        return math.exp(min(self.loss, 700.0))

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of `loss`. Rows are resampled: tokens of one row are not independent (Efron 1979)."""
        drawn = np.random.default_rng(0).integers(0, len(self.sums), (RESAMPLES, len(self.sums)))
        losses = self.sums[drawn].sum(1) / self.counts[drawn].sum(1)
        low, high = np.quantile(losses, [0.025, 0.975])
        return float(low), float(high)

    def difference(self, after: "RowLosses") -> tuple[float, tuple[float, float]]:
        """`after.loss` − `loss` and its 95 % bootstrap interval, paired by row, because both have the same rows."""
        drawn = np.random.default_rng(0).integers(0, len(self.sums), (RESAMPLES, len(self.sums)))
        changes = (after.sums - self.sums)[drawn].sum(1) / self.counts[drawn].sum(1)
        low, high = np.quantile(changes, [0.025, 0.975])
        return after.loss - self.loss, (float(low), float(high))


def held_out_losses(
    model: PreTrainedModel,
    objective: ObjectiveConfig,
    table: TokenTable,
    rows: Sequence[int],
    tokens_per_batch: int,
    device: torch.device,
) -> RowLosses:
    """The objective's loss for each of the given rows, without gradients, packed as in training."""
    sums = np.zeros(len(rows))
    counts = np.zeros(len(rows), np.int64)
    training = model.training
    model.eval()
    with torch.no_grad():
        lengths = [int(table.lengths[row]) for row in rows]
        for items in pack_any_order(lengths, tokens_per_batch, padded=not packs(plain_model(model))):
            batch = collate(table, [rows[item] for item in items], device)
            losses = objective.losses(model, batch).double().cpu().split(batch.loss_tokens_per_row)
            sums[items] = [part.sum().item() for part in losses]
            counts[items] = batch.loss_tokens_per_row
    model.train(training)
    return RowLosses(sums, counts)


@torch.no_grad()
def outputs_of(
    objective: ObjectiveConfig, model: PreTrainedModel, table: TokenTable, tokens_per_batch: int, head: object = None
) -> list[NDArray[np.float32]]:
    """The model's outputs at each row's loss positions (positions, outputs), in the table's order."""
    use_document_attention(plain_model(model))
    row_outputs: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(table)
    for rows in pack_any_order(table.lengths.tolist(), tokens_per_batch, padded=not packs(plain_model(model))):
        batch = collate(table, rows, model.device)
        outputs = objective.outputs(model, batch, head).float().cpu()
        counts = [int(table[row][1].sum()) for row in rows]
        for row, values in zip(rows, outputs.split(counts), strict=True):
            row_outputs[row] = values.numpy()
    return row_outputs


def rows_with_vectors(
    objective: ObjectiveConfig, model: PreTrainedModel, table: TokenTable, tokens_per_batch: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Each row's vector (rows, hidden) and targets (rows, values)."""
    model.eval()
    vectors = np.concatenate(outputs_of(objective, model, table, tokens_per_batch))
    return vectors, np.stack([table.targets_of(row) for row in range(len(table))])
