"""What the objectives share that train a policy on its own samples: sampling, rewards, and the checks of both."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.head import Head
from tunesmith.config.objective import ObjectiveConfig, RolloutPlan
from tunesmith.data.example import Example
from tunesmith.data.pack import Batch
from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.tokens import TableBuilder, TokenTable
from tunesmith.errors import UserError
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.models.forward import evaluation_batches, loss_hidden_states, next_token_losses
from tunesmith.models.token_scores import token_scores
from tunesmith.objectives.objective import Objective
from tunesmith.objectives.rewards_standin import RewardTerm, function_named
from tunesmith.objectives.rollouts import Collected, Completion, Phase, Prompt
from tunesmith.ops.policy_loss import k3

MOST_GAP = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""The largest mean difference (nats) between the sampler's and the trainer's log p of the same tokens, by precision."""

PROBED = 4
"""Completions on which a run verifies that the sampler uses the weights in training."""

RESAMPLES = 1000
"""Of the bootstrap interval of the mean reward."""

SHOWN = 2
"""Prompts of a phase whose completions are shown."""

Columns = dict[str, NDArray[np.float32]]
"""(tokens,) of a table, by name."""


class PolicyConfig(ObjectiveConfig, ABC):
    """A policy that is trained on completions that it samples itself, scored by rewards."""

    rewards: list[RewardTerm] = Field(min_length=1)
    """The functions that score a completion; the reward is the weighted sum of their scores."""

    prompts: int = Field(default=16, ge=1)
    """Prompts whose completions a phase samples before the weights change."""

    max_new_tokens: int = Field(default=256, ge=1)
    """The most tokens of a completion; a longer one is cut there."""

    temperature: float = Field(default=1.0, gt=0)
    """Of the sampling. The trained policy is the softmax at this temperature. 1: the model as it is."""

    passes: int = Field(default=1, ge=1)
    """How often a phase's completions are trained on. 1: the completions always come from the current weights."""

    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps in a pass, each on its own share of the phase's prompts."""

    max_sampler_weight: float = Field(default=2.0, ge=1)
    """The most that a token's importance weight between the sampler and the trainer may be. Both compute the same
    probabilities up to rounding, so that the weights are 1; the bound holds in 16 bits (Yao et al. 2025)."""

    max_kl: float | None = Field(default=None, gt=0)
    """Stop the run when the policy is further than this from where it started, as a mean over tokens, in nats."""

    formats: ClassVar[tuple[str, ...]] = ("prompts",)
    loss_unit: ClassVar[str] = "weighted advantages per token"

    @field_validator("rewards", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        entries = value if isinstance(value, list) else [value]
        return [{"function": each} if isinstance(each, str) else each for each in entries]

    @property
    def head(self) -> Head:
        return CausalLMHead()

    @property
    @abstractmethod
    def samples(self) -> int:
        """Completions of each prompt."""

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether completions are also scored with the initial weights."""

    @property
    def rollouts(self) -> RolloutPlan:
        return RolloutPlan(
            self.prompts,
            self.samples,
            self.max_new_tokens,
            self.temperature,
            self.passes * self.minibatches,
            self.needs_reference,
        )

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        return [renderer.render_prompt(example)]


@dataclass(frozen=True)
class Scored:
    """Completions with everything that is known of them before advantages.

    Attributes:
        rows: the prompts, as rows of the run's table.
        prompts: what they are.
        groups: the completions of each.
        rewards: (prompts, completions).
        parts: (prompts, completions) of each reward function, by name.
    """

    rows: list[int]
    prompts: list[Prompt]
    groups: list[list[Completion]]
    rewards: NDArray[np.float64]
    parts: Mapping[str, NDArray[np.float64]]

    @property
    def is_dead(self) -> NDArray[np.bool_]:
        """(prompts,) whether all rewards of the group are equal, so that no completion is better than another."""
        dead: NDArray[np.bool_] = self.rewards.min(1) == self.rewards.max(1)
        return dead

    def taken(self, which: Sequence[int]) -> "Scored":
        """Those of some of the prompts."""
        at = list(which)
        return Scored(
            [self.rows[index] for index in at],
            [self.prompts[index] for index in at],
            [self.groups[index] for index in at],
            self.rewards[at],
            {name: values[at] for name, values in self.parts.items()},
        )

    def with_others(self, other: "Scored") -> "Scored":
        """Both together."""
        return Scored(
            self.rows + other.rows,
            self.prompts + other.prompts,
            self.groups + other.groups,
            np.concatenate([self.rewards, other.rewards]),
            {name: np.concatenate([values, other.parts[name]]) for name, values in self.parts.items()},
        )


class PolicyObjective(Objective, ABC):
    """Samples, scores and verifies completions. A subclass makes advantages and losses of them."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._functions = {term.function: function_named(term.function) for term in config.rewards}
        self._is_verified = False
        self._noted: list[tuple[int, dict[str, Tensor]]] = []
        self._too_far: str | None = None

    # A phase

    def collect(self, phase: Phase) -> Collected:
        scored = self.sampled(phase)
        table, prompts = table_of(scored)
        columns: Columns = {}
        gap = self._score(phase, table, scored, columns)
        metrics = {**reward_metrics(scored), **gap, **self.finish(table, scored, columns)}
        self._watch(metrics)
        samples = samples_of(scored, phase.number)
        table = replace(table, columns=columns)
        return Collected(phase.number, table, prompts, self._updates(phase, scored), metrics, samples)

    def sampled(self, phase: Phase) -> Scored:
        """The phase's completions with their rewards."""
        return self.draw(phase, phase.rows, 0)

    def draw(self, phase: Phase, rows: Sequence[int], number: int) -> Scored:
        """Completions of some rows, with their rewards, in a round."""
        prompts = [phase.prompt(row) for row in rows]
        groups = phase.sample(rows, self.config.samples, number)
        return self.rewarded(list(rows), prompts, groups)

    def rewarded(self, rows: list[int], prompts: list[Prompt], groups: list[list[Completion]]) -> Scored:
        """Completions with their rewards.

        Raises:
            UserError: a function returns something else than a finite score for each completion.
        """
        each = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
        texts = [completion.text for group in groups for completion in group]
        columns = {name: [prompt.columns.get(name) for prompt in each] for name in sorted(each[0].columns)}
        parts = {}
        for name, function in self._functions.items():
            scores = np.asarray(function([prompt.text for prompt in each], texts, **columns), np.float64)
            if scores.shape != (len(texts),) or not np.isfinite(scores).all():
                raise UserError(
                    f"objective.rewards: {name} returned {scores.shape} for {len(texts):,} completions, or a score "
                    "that is not finite. It has to return one number for each completion."
                )
            parts[name] = scores.reshape(len(groups), -1)
        total = sum(term.weight * parts[term.function] for term in self.config.rewards)
        return Scored(rows, prompts, groups, np.asarray(total), parts)

    @abstractmethod
    def finish(self, table: TokenTable, scored: Scored, columns: Columns) -> dict[str, Any]:
        """Add the columns that the losses read, such as advantages.

        Args:
            table: of the completions.
            scored: their rewards.
            columns: so far: `old`, `weight` and perhaps `reference`.

        Returns:
            Metrics of the phase.
        """

    def _score(self, phase: Phase, table: TokenTable, scored: Scored, columns: Columns) -> dict[str, float]:
        """Compare the sampler with the trainer, and fill the columns `old`, `weight` and, if needed, `reference`.

        Raises:
            UserError: they do not agree, or do not have the same weights.
        """
        own = self.scores(phase, table)
        sampled = column_of(table, [log for group in scored.groups for each in group for log in each.log_probs])
        at = table.loss_mask
        difference = own["plain"][at] - sampled[at]
        gap, largest = float(np.abs(difference).mean()), float(np.abs(difference).max())
        if not self._is_verified:
            self._verify(phase, table)
            self._is_verified = True
        most = MOST_GAP[phase.model.dtype]
        if not gap <= most:
            raise UserError(
                f"The sampler and the trainer disagree: their log-probabilities of the same tokens differ by {gap:.2g} "
                f"nats on average, and rounding explains {most:g}. The completions do not come from the weights in "
                "training, so the run stopped."
            )
        columns |= {name: values for name, values in own.items() if name not in ("scaled", "plain", "entropy")}
        columns["old"] = own["scaled"]
        columns["weight"] = np.minimum(np.exp(own["plain"] - sampled), self.config.max_sampler_weight)
        metrics = {"sampler_gap": gap, "sampler_gap_max": largest, "entropy": float(own["entropy"][at].mean())}
        if self.config.needs_reference:
            with phase.initial():
                reference = self.scores(phase, table)["scaled"]
            columns["reference"] = reference
            distance = k3(*(torch.from_numpy(each[at]).double() for each in (own["scaled"], reference)))
            metrics["kl"] = float(distance.mean())
        return metrics

    def scores(self, phase: Phase, table: TokenTable) -> dict[str, NDArray[np.float32]]:
        """What the model computes of each token with a loss (tokens,), as in training: `scaled`, log p at the
        temperature; `plain`, log p; `entropy`; and what `extra_scores` gives."""
        found: dict[str, NDArray[np.float32]] = {}
        rows = range(len(table))
        for items, batch in evaluation_batches(phase.model, table, rows, phase.tokens_per_batch):
            with torch.no_grad():
                hidden, labels = loss_hidden_states(phase.model, batch)
                scores = token_scores(phase.model, hidden, labels, self.config.temperature)
                values = {"scaled": scores.log_probs, "plain": scores.plain, "entropy": scores.entropies}
                values |= self.extra_scores(phase.model, hidden)
            for name, tensor in values.items():
                column = found.setdefault(name, np.zeros(len(table.ids), np.float32))
                parts = torch.split(tensor.float().cpu(), batch.loss_tokens_per_row)
                for item, part in zip(items, parts, strict=True):
                    end = table.offsets[item + 1]
                    column[end - len(part) : end] = part.numpy()
        return found

    def extra_scores(self, model: PreTrainedModel, hidden: Tensor) -> dict[str, Tensor]:
        """Further numbers for each hidden state (tokens,)."""
        return {}

    def _verify(self, phase: Phase, table: TokenTable) -> None:
        """Verify that the sampler computes with the weights in training: change them, and it must see the change that
        the trainer sees. At the start an adapter computes what its base does, so that equal numbers show nothing.

        Raises:
            UserError: the sampler has other weights, or the trained weights have no effect.
        """
        rows = list(range(min(PROBED, len(table))))
        part = TokenTable.build([(*table[row], table.source(row)) for row in rows])
        pairs = [split(part, row) for row in rows]
        at, most = part.loss_mask, MOST_GAP[phase.model.dtype]
        before = self.scores(phase, part)["plain"][at]
        for size in (0.01, 0.03, 0.1, 0.3, 1.0):
            with changed_weights(phase.model, size, phase.seed):
                trainer = self.scores(phase, part)["plain"][at]
                sampler = np.concatenate(phase.score(pairs))
            effect = float(np.abs(trainer - before).mean())
            gap = float(np.abs(trainer - sampler).mean())
            if effect > 20 * most:
                if gap > max(most, 0.05 * effect):
                    raise UserError(
                        "The sampler does not use the weights in training: with changed weights, the trainer's log-"
                        f"probabilities moved by {effect:.2g} nats, and the sampler's differ from them by {gap:.2g}. "
                        "The run stopped before the first step."
                    )
                return
        raise UserError("The trained weights have no effect on what the model computes, so no reward can change it.")

    def _updates(self, phase: Phase, scored: Scored) -> list[list[int]]:
        """The rows of each optimizer step: all of a prompt's completions are in the same one."""
        count, samples = len(scored.rows), self.config.samples
        order = np.random.default_rng([phase.seed, phase.number]).permutation(count)
        parts = [
            [int(prompt) * samples + each for prompt in prompts for each in range(samples)]
            for prompts in np.array_split(order, self.config.minibatches)
        ]
        passes = [
            np.random.default_rng([phase.seed, phase.number, number + 1]).permutation(len(parts))
            for number in range(self.config.passes)
        ]
        return [parts[index] for index in itertools.chain(*passes)]

    def _watch(self, metrics: Mapping[str, Any]) -> None:
        limit, kl = self.config.max_kl, metrics.get("kl")
        if limit is not None and kl is not None and kl > limit:
            self._too_far = f"the policy is {kl:.3g} nats per token from where it started, more than max_kl: {limit:g}"

    def stop_reason(self) -> str | None:
        return self._too_far

    def evaluate(self, phase: Phase) -> dict[str, Any]:
        prompts = [phase.prompt(row) for row in phase.rows]
        scored = self.rewarded(list(phase.rows), prompts, [[each] for each in phase.answer(phase.rows)])
        values = scored.rewards[:, 0]
        drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
        low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
        metrics = reward_metrics(scored)
        return {
            "loss": -float(values.mean()),
            "loss_interval": (-float(high), -float(low)),
            "reward": float(values.mean()),
            "reward_interval": (float(low), float(high)),
            **{name: metrics[name] for name in ("rewards", "completion_tokens", "truncated")},
        }

    # Losses

    def begin_step(self, table: TokenTable, rows: Sequence[int]) -> None:
        self._noted = []  # of passes that were not a step's

    def note(self, batch: Batch, **sums: Tensor) -> None:
        """Add what a batch's losses have shown, each a sum over its tokens, to the step's metrics."""
        self._noted.append((batch.loss_tokens, sums))

    def take_metrics(self) -> dict[str, Any]:
        tokens = sum(count for count, _ in self._noted)
        names = {name: None for _, sums in self._noted for name in sums}
        found = {name: sum(float(sums[name]) for _, sums in self._noted) / tokens for name in names}
        self._noted = []
        return found

    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        return next_token_losses(model, batch)


def table_of(scored: Scored) -> tuple[TokenTable, list[int]]:
    """A row for each completion, after its prompt; and the prompt of each, as a row of the run's table."""
    builder = TableBuilder()
    rows: list[int] = []
    for row, prompt, group in zip(scored.rows, scored.prompts, scored.groups, strict=True):
        for completion in group:
            ids = np.asarray([*prompt.ids, *completion.tokens], np.int32)
            builder.add(ids, np.arange(len(ids)) >= len(prompt.ids), prompt.source)
            rows.append(row)
    return replace(builder.table(), columns={}), rows


def split(table: TokenTable, row: int) -> tuple[list[int], list[int]]:
    """A row's prompt and its completion, as ids."""
    ids, mask = table[row]
    first = int(np.flatnonzero(mask)[0])
    return ids[:first].tolist(), ids[first:].tolist()


def column_of(table: TokenTable, values: Sequence[float]) -> NDArray[np.float32]:
    """(tokens,) with these values at the tokens that have a loss."""
    column = np.zeros(len(table.ids), np.float32)
    column[table.loss_mask] = values
    return column


def lengths_of(table: TokenTable, rows: Sequence[int]) -> list[int]:
    """Tokens with a loss in each of some rows."""
    return [int(table[row][1].sum()) for row in rows]


def reward_metrics(scored: Scored) -> dict[str, Any]:
    """Of a phase: rewards, lengths, and groups without a difference."""
    each = [completion for group in scored.groups for completion in group]
    metrics: dict[str, Any] = {
        "reward": float(scored.rewards.mean()),
        "reward_std": float(scored.rewards.std()),
        "rewards": {name: float(values.mean()) for name, values in scored.parts.items()},
        "completion_tokens": float(np.mean([len(completion.tokens) for completion in each])),
        "truncated": float(np.mean([completion.is_truncated for completion in each])),
        "samples": len(each),
    }
    if scored.rewards.shape[1] > 1:
        metrics["dead_groups"] = float(scored.is_dead.mean())
    return metrics


def samples_of(scored: Scored, phase: int) -> list[dict[str, Any]]:
    """The best and the worst completion of some prompts."""
    shown = []
    for offset in range(min(SHOWN, len(scored.rows))):
        at = (phase + offset) % len(scored.rows)
        order = scored.rewards[at].argsort(kind="stable")
        for index in dict.fromkeys((int(order[-1]), int(order[0]))):
            completion = scored.groups[at][index]
            shown.append(
                {
                    "source": str(scored.prompts[at].source),
                    "prompt": scored.prompts[at].text,
                    "completion": completion.text,
                    "reward": float(scored.rewards[at, index]),
                    "rewards": {name: float(values[at, index]) for name, values in scored.parts.items()},
                    "tokens": len(completion.tokens),
                    "truncated": completion.is_truncated,
                }
            )
    return shown


@contextmanager
def changed_weights(model: PreTrainedModel, size: float, seed: int) -> Iterator[None]:
    """Within the block, the trained weights have noise of this size, relative to the largest of their kind; afterwards
    they are what they were, to the bit."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = [parameter.detach().clone() for parameter in trained]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for parameter in trained:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(noise * size * max(0.1, float(parameter.float().square().mean().sqrt())))
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(trained, saved, strict=True):
                parameter.copy_(before)
