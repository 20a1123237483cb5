"""What the objectives share that learn from several completions of one prompt."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.head import Head
from tunesmith.config.objective import ObjectiveConfig
from tunesmith.data.batch import Batch, BatchCompletions
from tunesmith.data.example import Example, Source
from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.template import UnusableError
from tunesmith.data.tokens import Tokens, TokenTable
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.models.forward import token_log_probs
from tunesmith.objectives.objective import Objective

PairsOfRow = Literal["all", "best_and_worst"]
"""Which pairs a row of more than two completions gives."""


class Preference(ObjectiveConfig, ABC):
    """A policy that learns which completions are better. Its loss is a mean over rows, whatever their lengths."""

    beta: float = Field(default=0.1, gt=0)
    """β: how strongly the policy is held to the starting model. Default 0.1 (Rafailov et al. 2023, appendix B)."""

    formats: ClassVar[tuple[str, ...]] = ("preference", "ranking")
    loss_unit: ClassVar[str] = "nats per row"
    rate_factor: ClassVar[float] = 0.1  # preferences need small steps: TRL's default is 1e-6, a twentieth of its SFT's

    @property
    def head(self) -> Head:
        return CausalLMHead()

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        refuse_equal(example, self.kind)
        return [renderer.completions(example)]

    def dummy_rows(self, lengths: Sequence[int]) -> TokenTable:
        """Pairs: half of a row is the prompt, a quarter each completion."""
        return pairs_like(lengths, with_targets=False)


class RowObjective(Objective):
    """Computes figures of each row, of which one is the loss; the others are noted in training and reported in
    evaluations."""

    is_per_token = False

    @abstractmethod
    def each_row(self, model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        """Figures of each row (rows,), by name, `loss` among them, with gradients."""

    def each_row_in_training(self, model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        """As `each_row`, with what only helps training."""
        return self.each_row(model, batch)

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        figures = self.each_row_in_training(model, batch)
        self.note(len(batch.rows), **{name: values.mean() for name, values in figures.items() if name != "loss"})
        return figures["loss"].sum()

    @torch.no_grad()
    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return self.each_row(model, batch)["loss"]

    @torch.no_grad()
    def figures(self, model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        return self.each_row(model, batch)


class PreferenceObjective(RowObjective):
    """Computes a loss for each row of several completions, from their log-probabilities."""

    needs_reference = True

    @abstractmethod
    def row_figures(self, log_probs: Tensor, tokens: Tensor, batch: BatchCompletions) -> dict[str, Tensor]:
        """Figures of each row (rows,), by name, `loss` among them. Without a reference, that of an evaluation beside
        other models, likelihoods are compared as they are.

        Args:
            log_probs: log π(y|x) of each completion (completions,), in nats, with gradients.
            tokens: of each completion that have a loss (completions,).
            batch: the completions.
        """

    @torch.no_grad()
    def reference(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return completion_log_probs(model, batch)[0]

    def each_row(self, model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        assert batch.completions is not None
        log_probs, tokens = completion_log_probs(model, batch)
        completions = batch.completions
        known = replace(completions, reference=completions.reference.nan_to_num(0.0).to(log_probs.dtype))
        return self.row_figures(log_probs, tokens, known)


def completion_log_probs(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """log π(y|x) of each completion of a batch (completions,), in nats, and its tokens that have a loss
    (completions,)."""
    assert batch.completions is not None
    each = token_log_probs(model, batch)
    counts = torch.tensor(batch.completions.loss_positions, device=each.device)
    number = torch.repeat_interleave(torch.arange(len(counts), device=each.device), counts, output_size=len(each))
    return each.new_zeros(len(counts)).index_add(0, number, each), counts


class RowPairs(NamedTuple):
    """The pairs of a batch's completions, by index.

    Attributes:
        better: (pairs,) the completion with the higher score.
        worse: (pairs,) the other one.
        row: (pairs,) the row that both are of.
        share: (pairs,) 1 / the number of the row's pairs, so that each row counts once.
        margins: (pairs,) the difference of the scores; 0 for ties.
    """

    better: Tensor
    worse: Tensor
    row: Tensor
    share: Tensor
    margins: Tensor

    def mean(self, values: Tensor, rows: int) -> Tensor:
        """The mean over each row's pairs (rows,) of a value of each pair (pairs,); 0 for rows without pairs."""
        return values.new_zeros(rows).index_add(0, self.row, values * self.share.to(values.dtype))


def row_pairs(batch: BatchCompletions, which: PairsOfRow, device: torch.device, with_ties: bool = False) -> RowPairs:
    """The pairs of completions of which one has the higher score.

    Args:
        batch: the completions.
        which: all pairs of a row, or the best against the worst.
        device: of the indices.
        with_ties: whether pairs with equal scores are among them.
    """
    better, worse, of_row, share, margins = [], [], [], [], []
    for row, (start, scores) in enumerate(scores_of_rows(batch)):
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        pairs = [(i, j) for at, i in enumerate(order) for j in order[at + 1 :] if with_ties or scores[i] > scores[j]]
        if which == "best_and_worst":
            pairs = [pair for pair in pairs if pair == (order[0], order[-1])]
        for i, j in pairs:
            better.append(start + i)
            worse.append(start + j)
            of_row.append(row)
            share.append(1 / len(pairs))
            margins.append(scores[i] - scores[j])

    def tensor(values: Sequence[Any], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return RowPairs(
        tensor(better), tensor(worse), tensor(of_row), tensor(share, torch.float64), tensor(margins, torch.float32)
    )


def ordered(difference: Tensor) -> Tensor:
    """1 where the better completion wins, ½ where both are equal, else 0 (pairs,)."""
    return (difference > 0).to(difference.dtype) + 0.5 * (difference == 0).to(difference.dtype)


def scores_of_rows(batch: BatchCompletions) -> Iterator[tuple[int, list[float]]]:
    """For each row, the index of its first completion in the batch, and its completions' scores."""
    start = 0
    for count in batch.per_row:
        yield start, batch.scores[start : start + count]
        start += count


def length_bias(pairs: RowPairs, rewards: Tensor, lengths: Tensor) -> Tensor:
    """How much more the longer completion is ahead than it is the better one; −1 to 1, on average 0 without a bias.

    Args:
        pairs: which are compared.
        rewards: of each completion (completions,).
        lengths: of each completion (completions,), in tokens.

    Returns:
        (pairs,): whether the longer one has the higher reward, ties ½, minus whether it has the higher score.
    """
    longer, ahead = ((each[pairs.better] - each[pairs.worse]).sign() for each in (lengths.to(rewards), rewards))
    return longer * (ahead - pairs.margins.sign()) / 2


def lengths_of_completions(batch: Batch) -> Tensor:
    """The tokens of each completion (completions,); where each repeats its prompt, with those of the prompt."""
    beginnings = set(batch.parents or ())
    lengths = [length for number, length in enumerate(batch.lengths[: batch.documents]) if number not in beginnings]
    return torch.tensor(lengths)


def refuse_equal(example: Example, kind: str) -> None:
    """Refuse a row in which no completion is better than another.

    Raises:
        UnusableError: all scores are equal.
    """
    if len({completion.score for completion in example.completions}) < 2:
        raise UnusableError(f"none of its completions is better than another, and {kind} learns from differences")


def pairs_like(lengths: Sequence[int], with_targets: bool) -> TokenTable:
    """Rows of these lengths for a plan: half of a row is the prompt, a quarter each completion.

    Args:
        lengths: of the rows, in tokens.
        with_targets: whether each completion's last token has a target, in place of a loss on each of its tokens.
    """
    rows: list[Tokens] = []
    scores = (1.0, 0.0)
    for length in lengths:
        own = max(1, length // 4)
        parts = (max(1, length - 2 * own), own, own)
        at = np.arange(sum(parts))
        mask = np.isin(at, (parts[0] + own - 1, len(at) - 1)) if with_targets else at >= parts[0]
        rows.append(
            (np.zeros(len(at), np.int32), mask, Source("", 1), scores if with_targets else None, (parts, scores))
        )
    return TokenTable.build(rows)
