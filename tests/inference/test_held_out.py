"""Evaluation: losses and their intervals, the sign of differences, and outputs in the rows' order."""

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap
from toy_loop import Slope, SquaredErrors, table_of

from tunesmith.data.batch import Batch
from tunesmith.data.example import Source
from tunesmith.data.tokens import TokenTable
from tunesmith.heads.no_head import NoHead
from tunesmith.inference.held_out import RowLosses, held_out_losses, row_outputs, row_vectors


def rows_of(seed: int, count: int = 60) -> RowLosses:
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 30, count)
    return RowLosses(generator.gamma(4.0, 0.5, count) * counts, counts)


def scipys_interval(sums: NDArray[Any], counts: NDArray[Any]) -> Any:
    """SciPy's percentile bootstrap of Σ sums / Σ counts over rows, with a tolerance for other random draws."""
    interval = bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(7),
    ).confidence_interval
    return pytest.approx((interval.low, interval.high), abs=0.06 * (interval.high - interval.low))


def test_the_loss_is_per_token_over_all_rows() -> None:
    losses = RowLosses(np.array([6.0, 1.0]), np.array([2, 8]))  # not the mean of 3 and 1/8
    assert losses.loss == pytest.approx(0.7, rel=1e-12)


def test_an_interval_is_the_percentile_bootstrap_over_rows() -> None:
    losses = rows_of(1)
    low, high = losses.interval()
    assert (low, high) == scipys_interval(losses.sums, losses.counts)
    assert low < losses.loss < high


def test_an_interval_uses_a_thousand_resamples_with_a_fixed_seed() -> None:
    losses, after = rows_of(1, 25), rows_of(2, 25)
    drawn = np.random.default_rng(0).integers(0, 25, (1000, 25))
    means = [losses.sums[rows].sum() / losses.counts[rows].sum() for rows in drawn]
    assert losses.interval() == pytest.approx(np.quantile(means, [0.025, 0.975]), rel=1e-12)
    after = RowLosses(after.sums, losses.counts)
    changes = [(after.sums[rows].sum() - losses.sums[rows].sum()) / losses.counts[rows].sum() for rows in drawn]
    assert losses.difference(after)[1] == pytest.approx(np.quantile(changes, [0.025, 0.975]), rel=1e-12)


def test_a_difference_is_after_minus_before_and_paired_by_row() -> None:
    before = rows_of(3)
    better = RowLosses(before.sums - 0.25 * before.counts, before.counts)  # the same change for every token
    change, (low, high) = before.difference(better)
    assert (change, low, high) == pytest.approx((-0.25, -0.25, -0.25), rel=1e-9)
    noise = np.random.default_rng(4).normal(0.4, 0.3, 60) * before.counts
    change, (low, high) = before.difference(RowLosses(before.sums + noise, before.counts))
    assert change == pytest.approx(noise.sum() / before.counts.sum(), rel=1e-9)
    assert (low, high) == scipys_interval(noise, before.counts)


def test_row_losses_are_in_the_given_order_whatever_the_batches() -> None:
    points = [(1.0, float(number)) for number in range(9)]
    lengths = [9, 30, 12, 50, 17, 8, 44, 21, 10]
    rows = [7, 0, 3, 5, 1, 8]
    seen: list[tuple[int, ...]] = []

    class Watched(SquaredErrors):
        def losses(self, model: Any, batch: Batch) -> torch.Tensor:
            seen.append(batch.rows)
            assert not torch.is_grad_enabled()
            return super().losses(model, batch)

    losses = held_out_losses(Slope(0.0), Watched(), table_of(points, lengths), rows, 60)
    assert losses.sums == pytest.approx([0.5 * row**2 for row in rows], rel=1e-6)
    assert losses.counts.tolist() == [1] * 6
    assert sorted(row for batch in seen for row in batch) == sorted(rows)
    assert all(len(batch) * max(lengths[row] for row in batch) <= 60 for batch in seen)  # padded
    assert len(seen) == 3


class Doubled(NoHead):
    """A head whose output at each loss position is twice the target."""

    modes: ClassVar[list[bool]] = []

    def outputs(self, model: Any, batch: Batch) -> torch.Tensor:
        self.modes.append(model.training)
        assert not torch.is_grad_enabled()
        return batch.labels * 2.0


def predictions_table(counts: list[int]) -> TokenTable:
    """Rows with these numbers of loss positions; the targets count up from 0."""
    rows, number = [], 0.0
    for index, count in enumerate(counts):
        length = 5 * (index % 3 + 1) + count
        targets = tuple(number + offset for offset in range(count))
        number += count
        loss_mask = np.arange(length) >= length - count
        rows.append((np.arange(length, dtype=np.int32), loss_mask, Source("rows", index + 1), targets))
    return TokenTable.build(rows)


def document_attention_model(training: bool) -> Any:
    """A model that already uses document attention, so that rows are packed."""
    model = Slope().train(training)
    model.config = SimpleNamespace(_attn_implementation="tunesmith_documents")
    return model


def test_outputs_are_in_the_tables_order() -> None:
    counts = [2, 1, 3, 1, 2, 4]
    table, head = predictions_table(counts), Doubled()
    head.modes.clear()
    outputs = row_outputs(head, document_attention_model(False), table, 24)
    assert [row_outputs.tolist() for row_outputs in outputs] == [
        [[2.0 * value] for value in table.targets_of(row).tolist()] for row in range(len(counts))
    ]
    assert outputs[0].dtype == np.float32
    assert len(head.modes) > 1, "there are several batches"


def test_row_vectors_uses_evaluation_mode_and_returns_the_targets() -> None:
    table, head = predictions_table([1, 1, 1, 1]), Doubled()
    head.modes.clear()
    vectors, targets = row_vectors(head, document_attention_model(True), table, 16)
    assert targets.tolist() == [[0.0], [1.0], [2.0], [3.0]]
    assert vectors.tolist() == [[0.0], [2.0], [4.0], [6.0]]
    assert set(head.modes) == {False}
