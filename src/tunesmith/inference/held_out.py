"""A model on held-out rows: its loss with a confidence interval, and its outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tunesmith.config.head import Head
from tunesmith.data.tokens import TokenTable
from tunesmith.models.attention import use_document_attention
from tunesmith.models.forward import evaluation_batches
from tunesmith.models.prompts import plain_model
from tunesmith.objectives.objective import Objective

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Each row's summed loss (nats) and number of loss tokens, in the table's order.

    Attributes:
        sums: (rows,) nats.
        counts: (rows,) loss tokens, or other units of loss.
        others: sums (rows,) of the objective's other figures, by name.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]
    others: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: "Sequence[RowLosses]") -> "RowLosses":
        """The rows of all parts, in their order.

        Args:
            parts: with the same other figures.
        """
        others = {name: np.concatenate([part.others[name] for part in parts]) for name in parts[0].others}
        return cls(
            np.concatenate([part.sums for part in parts]), np.concatenate([part.counts for part in parts]), others
        )

    @property
    def loss(self) -> float:
        """Nats per loss token over all rows."""
        return float(self.sums.sum() / self.counts.sum())

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
    model: PreTrainedModel, objective: Objective, table: TokenTable, rows: Sequence[int], tokens_per_batch: int
) -> RowLosses:
    """The objective's loss and other figures for each of the given rows, without gradients, packed as in training."""
    sums: dict[str, NDArray[np.float64]] = {}
    counts = np.zeros(len(rows), np.int64)
    for items, batch in evaluation_batches(model, table, rows, tokens_per_batch):
        with torch.no_grad():
            figures = objective.figures(model, batch)
        for name, values in figures.items():
            parts = torch.split(values.double().cpu(), batch.loss_tokens_per_row)
            sums.setdefault(name, np.zeros(len(rows)))[items] = [part.sum().item() for part in parts]
        counts[items] = batch.loss_tokens_per_row
    return RowLosses(sums.pop("loss", np.zeros(len(rows))), counts, sums)


def held_out_evaluation(
    model: PreTrainedModel, objective: Objective, head: Head, table: TokenTable, rows: Sequence[int]
) -> Callable[[int], dict[str, Any]] | None:
    """What a run calls at each evaluation, with the most tokens in a batch: `evaluate_held_out` on these rows. None
    without rows."""
    return partial(evaluate_held_out, model, objective, head, table, rows) if len(rows) else None


def evaluate_held_out(
    model: PreTrainedModel,
    objective: Objective,
    head: Head,
    table: TokenTable,
    rows: Sequence[int],
    tokens_per_batch: int,
) -> dict[str, Any]:
    """What an `evaluation` event says of the held-out rows: each figure of the objective and its interval
    (`loss_interval`), rows, loss_tokens, and what the head reports beside a loss."""
    losses = held_out_losses(model, objective, table, rows, tokens_per_batch)
    figures = {name: replace(losses, sums=sums) for name, sums in {"loss": losses.sums, **losses.others}.items()}
    return {
        **{name: values.loss for name, values in figures.items()},
        **(head.loss_metrics(losses.loss) if objective.is_per_token else {}),
        **{f"{name}_interval": values.interval() for name, values in figures.items()},
        "rows": len(rows),
        "loss_tokens": int(losses.counts.sum()),
    }


def row_outputs(
    head: Head, model: PreTrainedModel, table: TokenTable, tokens_per_batch: int
) -> list[NDArray[np.float32]]:
    """The model's outputs at each row's loss positions (positions, outputs), in the table's order."""
    use_document_attention(plain_model(model))
    outputs: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(table)
    for rows, batch in evaluation_batches(model, table, range(len(table)), tokens_per_batch):
        counts = [int(table[row][1].sum()) for row in rows]
        with torch.no_grad():
            values = torch.split(head.outputs(model, batch).float().cpu(), counts)
        for row, row_values in zip(rows, values, strict=True):
            outputs[row] = row_values.numpy()
    return outputs


def row_vectors(
    head: Head, model: PreTrainedModel, table: TokenTable, tokens_per_batch: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Each row's vector (rows, hidden) and targets (rows, values)."""
    vectors = np.concatenate(row_outputs(head, model, table, tokens_per_batch))
    return vectors, np.stack([table.targets_of(row) for row in range(len(table))])
