"""What the objectives share that train a policy on its own samples: sampling, rewards, and what is trained on."""

import itertools
from abc import ABC
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.data.batch import Batch
from tunesmith.data.tokens import TokenTable
from tunesmith.models.forward import evaluation_batches, loss_hidden_states, next_token_losses
from tunesmith.models.token_scores import TokenScores, token_scores
from tunesmith.objectives.completion_rows import StepTotals, column_of, lengths_of, table_of, tokens_per_row, values_of
from tunesmith.objectives.objective import Objective
from tunesmith.objectives.policy_watch import PolicyWatch
from tunesmith.objectives.rollouts import Collected, Completion, Phase, Prompt
from tunesmith.objectives.sampler_checks import Columns, SamplerChecks, sampled_log_probs
from tunesmith.objectives.scored import Scored, reward_metrics, samples_of
from tunesmith.ops.policy_loss import k3

RESAMPLES = 1000
"""Of the bootstrap interval of the mean reward."""

OF_EVALUATIONS = ("rewards/", "completion_tokens", "truncated", "repetition")
"""How the names of the other figures of an evaluation begin."""


COMPARED = ("scaled", "plain", "entropy", "variance")
"""What the sampler is compared with, of each token."""


def compared(scores: TokenScores) -> dict[str, Tensor]:
    """By its names in COMPARED: log p at the temperature; log p; and entropy and variance of log p at the
    temperature."""
    return dict(zip(COMPARED, scores, strict=True))


class PolicyObjective(Objective, ABC):
    """Samples, scores and checks completions. A subclass says which are trained on, and makes losses of them."""

    is_per_token = False

    def __init__(self, config: Any) -> None:
        self.config = config
        self._checks = SamplerChecks(self.scores, config.temperature, config.sampler)
        self._watch = PolicyWatch(config.group_size, config.max_kl)
        self.step: StepTotals | None = None
        self._passed: list[tuple[Tensor, TokenScores]] = []
        self._uncompared: tuple[Phase, dict[str, Any], list[dict[str, Any]]] | None = None

    @property
    def compares_in_step(self) -> bool:
        """Whether the pass of a phase's only step shows what the sampler is compared with, so that none comes before
        it."""
        return False

    # A phase

    def collect(self, phase: Phase) -> Collected:
        scored = self.sampled(phase)
        table, owners = table_of(scored, phase.tokens_per_batch)
        columns, figures = self._compared(phase, table, scored)
        metrics = {**reward_metrics(scored), **figures, **self.finish(table, scored, columns)}
        samples = samples_of(scored, phase.number)
        if self.compares_in_step:
            self._uncompared = phase, metrics, samples
        else:
            self._watch.add(phase, metrics, samples)
        table = replace(table, columns=columns)
        which = self.chosen(scored)
        if which is not None:
            table, owners = self._only(table, scored, which, phase.tokens_per_batch)
        prompts = [scored.rows[owner] for owner in owners]
        return Collected(phase.number, table, prompts, self._updates(phase, owners), metrics, samples)

    def sampled(self, phase: Phase) -> Scored:
        """The phase's completions with their rewards."""
        return self.draw(phase, phase.rows, 0)

    def draw(self, phase: Phase, rows: Sequence[int], number: int) -> Scored:
        """Completions of some rows, with their rewards, in a round."""
        prompts = [phase.prompt(row) for row in rows]
        groups = phase.sample(rows, self.config.group_size, number)
        return self.rewarded(phase, list(rows), prompts, groups)

    def rewarded(self, phase: Phase, rows: list[int], prompts: list[Prompt], groups: list[list[Completion]]) -> Scored:
        """Completions with their rewards.

        Raises:
            UserError: a reward function fails.
        """
        each = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
        found = phase.reward(each, [completion for group in groups for completion in group])
        grouped = found.total.reshape(len(groups), -1)
        known = ~np.isnan(grouped)
        means = np.where(known, grouped, 0).sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1)
        parts = {name: values.reshape(grouped.shape) for name, values in zip(found.names, found.values.T, strict=True)}
        return Scored(rows, prompts, groups, np.where(known, grouped, means), parts, found.noted_metrics)

    def finish(self, table: TokenTable, scored: Scored, columns: Columns) -> dict[str, Any]:
        """Add the columns that the losses read, such as advantages.

        Args:
            table: of the completions.
            scored: their rewards.
            columns: so far: `old`, `weight` and perhaps `reference`.

        Returns:
            Metrics of the phase.
        """
        return {}

    def chosen(self, scored: Scored) -> list[list[int]] | None:
        """Of each prompt, the completions that are trained on, by index; None: all.

        Args:
            scored: the completions with their rewards.
        """
        return None

    def _only(
        self, table: TokenTable, scored: Scored, which: list[list[int]], most_tokens: int
    ) -> tuple[TokenTable, list[int]]:
        """The table of some of the completions, and the prompt of each row. Where none is chosen, those of the first
        prompt are there with weight 0: the step has no gradient."""
        none = not any(which)
        if none:
            which = [list(range(self.config.trained)) if owner == 0 else [] for owner in range(len(which))]
        compared = self.config.are_compared
        part, owners = table_of(scored, most_tokens, which, compared)
        columns = {name: column_of(part, values_of(values, table, which)) for name, values in table.columns.items()}
        if none:
            columns["weight"] = np.zeros_like(columns["weight"])
        return replace(part, columns=columns), owners

    def _compared(self, phase: Phase, table: TokenTable, scored: Scored) -> tuple[Columns, dict[str, float]]:
        """The columns `weight`, `old`, `reference` if it is needed, and what `extra_scores` gives; and the figures of
        the sampler beside the trainer. If they are compared in the step: `weight` and `sampled`, and no figures.

        Raises:
            UserError: they do not agree.
        """
        at, sampled = table.loss_mask, sampled_log_probs(scored)
        if self.compares_in_step:
            self._checks.verify(phase, scored)
            return {"weight": column_of(table, np.ones_like(sampled)), "sampled": column_of(table, sampled)}, {}
        own = self.scores(phase, table)
        metrics = self._checks.compare(sampled, {name: own[name][at] for name in COMPARED}, phase.model.dtype)
        self._checks.verify(phase, scored)
        columns = {name: own[name] for name in own if name not in COMPARED}
        columns["old"] = own["scaled"]
        both = (torch.from_numpy(each) for each in (own["plain"][at], sampled))
        columns["weight"] = column_of(table, self.weights(*both).numpy())
        if self.config.needs_reference:
            with phase.initial():
                reference = self.scores(phase, table)["scaled"]
            columns["reference"] = reference
            distance = k3(*(torch.from_numpy(each[at]).double() for each in (own["scaled"], reference)))
            metrics["kl"] = float(distance.mean())
        return columns, metrics

    def weights(self, own: Tensor, sampled: Tensor) -> Tensor:
        """(tokens,) the weight of each token's loss, from log p by the trainer and by the sampler (tokens,)."""
        return torch.ones_like(own)

    def scores(self, phase: Phase, table: TokenTable) -> Columns:
        """What the model computes of each token with a loss (tokens,), as in training: `scaled`, log p at the
        temperature; `plain`, log p; `entropy` and `variance` of log p; and what `extra_scores` gives."""
        found: Columns = {}
        rows = range(len(table))
        for items, batch in evaluation_batches(phase.model, table, rows, phase.tokens_per_batch):
            with torch.no_grad():
                hidden, labels = loss_hidden_states(phase.model, batch)
                scores = token_scores(phase.model, hidden, labels, self.config.temperature)
                values = {**compared(scores), **self.extra_scores(phase.model, hidden)}
            counts = [sum(lengths_of(table, [item])) for item in items]
            for name, tensor in values.items():
                column = found.setdefault(name, np.zeros(len(table.ids), np.float32))
                for item, part in zip(items, torch.split(tensor.float().cpu(), counts), strict=True):
                    end = table.offsets[item + 1]
                    column[end - len(part) : end] = part.numpy()
        return found

    def extra_scores(self, model: PreTrainedModel, hidden: Tensor) -> dict[str, Tensor]:
        """Further numbers for each hidden state (tokens,)."""
        return {}

    def _updates(self, phase: Phase, owners: Sequence[int]) -> list[list[int]]:
        """The rows of each optimizer step: all of a prompt's completions are in the same one.

        Args:
            phase: this one.
            owners: (rows,) the prompt of each row of the table, by its index in the phase.
        """
        prompts = sorted(set(owners))
        order = np.random.default_rng([phase.seed, phase.number]).permutation(prompts)
        rows_of = defaultdict(list)
        for row, owner in enumerate(owners):
            rows_of[owner].append(row)
        parts = [
            [row for prompt in part for row in rows_of[prompt]]
            for part in np.array_split(order, min(self.config.minibatches, len(order)))
        ]
        parts = [parts[number % len(parts)] for number in range(self.config.minibatches)]
        passes = [
            np.random.default_rng([phase.seed, phase.number, number + 1]).permutation(len(parts))
            for number in range(self.config.passes)
        ]
        return [parts[index] for index in itertools.chain(*passes)]

    def stop_reason(self) -> str | None:
        return self._watch.too_far

    def state(self) -> dict[str, Any]:
        return {**self._checks.state(), **self._watch.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._checks.restore(state)
        self._watch.restore(state)

    def evaluate(self, phase: Phase) -> dict[str, Any]:
        prompts = [phase.prompt(row) for row in phase.rows]
        scored = self.rewarded(phase, list(phase.rows), prompts, [[each] for each in phase.answer(phase.rows)])
        values = scored.rewards[:, 0]
        drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
        low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
        metrics = reward_metrics(scored)
        return {
            "loss": -float(values.mean()),
            "loss_interval": (-float(high), -float(low)),
            "reward": float(values.mean()),
            "reward_interval": (float(low), float(high)),
            **{name: value for name, value in metrics.items() if name.startswith(OF_EVALUATIONS)},
        }

    # Losses

    def begin_step(self, table: TokenTable, rows: Sequence[int]) -> None:
        lengths = lengths_of(table, rows)
        self.step = StepTotals(len(rows), len(lengths), sum(lengths))
        self._passed = []

    def passed(self, sampled: Tensor, scores: TokenScores) -> None:
        """Keep for `check_step` what a pass of the step shows.

        Args:
            sampled: (tokens,) log p by the sampler.
            scores: of the same tokens.
        """
        self._passed.append((sampled, TokenScores(*(each.detach() for each in scores))))

    def check_step(self) -> dict[str, Any]:
        passed, self._passed = self._passed, []
        if not passed:  # nothing was sampled for this step, or it is compared already
            return {}
        assert self._uncompared is not None
        phase, metrics, samples = self._uncompared
        sampled = torch.cat([own for own, _ in passed]).float().cpu().numpy()
        every = TokenScores(*(torch.cat(column) for column in zip(*(scores for _, scores in passed), strict=True)))
        own = {name: values.float().cpu().numpy() for name, values in compared(every).items()}
        figures = self._checks.compare(sampled, own, phase.model.dtype)
        self._watch.add(phase, {**metrics, **figures}, samples)
        return figures

    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """−log p, summed over each row's completions."""
        losses = next_token_losses(model, batch)
        return torch.stack([part.sum() for part in torch.split(losses, tokens_per_row(batch))])
