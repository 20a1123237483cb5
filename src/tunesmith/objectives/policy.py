"""What the objectives share that train a policy on its own samples: sampling, rewards, and the checks of both."""

import itertools
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.head import Head
from tunesmith.config.objective import ObjectiveConfig, RolloutPlan
from tunesmith.config.reward import RewardConfig
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.tokens import TableBuilder, TokenTable
from tunesmith.errors import UserError
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.models.forward import evaluation_batches, loss_hidden_states, next_token_losses
from tunesmith.models.token_scores import token_scores
from tunesmith.objectives.objective import Objective
from tunesmith.objectives.reward_watch import RewardWatch, repetition
from tunesmith.objectives.rollouts import Collected, Completion, Phase, Prompt, row_ends
from tunesmith.ops.policy_loss import dead_share, k3, martingale_bound

MOST_GAP = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.15}
"""The largest mean difference (nats) between the sampler's and the trainer's log p of the same tokens, by precision.
SmolLM2-135M in bf16 has 0.039 to 0.044, at an entropy of 2.3 nats."""

PROBE_EFFECT = 4
"""Weights are changed until log p changes by this many times its rounding, to see whether the sampler's does, too."""

MODEL = "model"
"""What the figures of `reward` are called."""

GROUPS = (2, 4, 8, 16, 32)
"""Group sizes for which groups without a difference are predicted."""

DEAD, PILOT = 0.5, 3
"""A run warns if at least this share of the groups of its first phases has no difference."""

PROBED = 4
"""Completions on which a run verifies that the sampler uses the weights in training."""

RARE, LARGEST = 1e-9, 15.0
"""A run stops if its tokens are as surprising as tokens sampled from the policy are with this probability, where no
token is more surprising than this, in nats."""

RESAMPLES = 1000
"""Of the bootstrap interval of the mean reward."""

OF_EVALUATIONS = ("rewards/", "completion_tokens", "truncated", "repetition")
"""How the names of the other figures of an evaluation begin."""

SHOWN = 2
"""Prompts of a phase whose completions are shown."""

Columns = dict[str, NDArray[np.float32]]
"""(tokens,) of a table, by name."""


class PolicyConfig(ObjectiveConfig, ABC):
    """A policy that is trained on completions that it samples itself, scored by rewards."""

    rewards: list[RewardConfig] = Field(default_factory=list)
    """The functions that score a completion; the reward is the weighted sum of their scores."""

    reward: str | None = None
    """A reward model that scores a completion, with weight 1: a run with objective `reward`, or a sequence classifier
    with one output. It reads text, so that its tokenizer may be another."""

    group_size: int = Field(default=1, ge=1)
    """Completions of each prompt."""

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
    loss_unit: ClassVar[str] = "mean reward, negated"
    rate_factor: ClassVar[float] = 0.1  # as for preferences: TRL's default is 1e-6, a twentieth of its SFT's

    @model_validator(mode="after")
    def _has_a_reward(self) -> "PolicyConfig":
        if not self.reward_functions:
            raise ValueError("there is nothing to learn from. Set rewards: [exact], or reward: RUN")
        return self

    @field_validator("rewards", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @property
    def reward_functions(self) -> Sequence[RewardConfig]:
        if self.reward is None:
            return self.rewards
        options = {"model": self.reward, "reads": "chat"}
        return [*self.rewards, RewardConfig(function="classifier", options=options, name=MODEL)]

    def with_absolute_paths(self, absolute: Callable[[str], str]) -> "PolicyConfig":
        rewards = [each.with_absolute_paths(absolute) for each in self.rewards]
        reward = None if self.reward is None else absolute(self.reward)
        return self.model_copy(update={"rewards": rewards, "reward": reward})

    @property
    def head(self) -> Head:
        return CausalLMHead()

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether completions are also scored with the initial weights."""

    @property
    def rollouts(self) -> RolloutPlan:
        return RolloutPlan(
            self.prompts,
            self.group_size,
            self.max_new_tokens,
            self.temperature,
            self.passes,
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
        rewards: (prompts, completions); a completion to which no function applies has the mean of its group.
        parts: (prompts, completions) of each reward function, by name; NaN where it does not apply.
        noted: what the functions noted.
    """

    rows: list[int]
    prompts: list[Prompt]
    groups: list[list[Completion]]
    rewards: NDArray[np.float64]
    parts: Mapping[str, NDArray[np.float64]]
    noted: Mapping[str, float]

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
            self.noted,
        )

    def with_others(self, other: "Scored") -> "Scored":
        """Both together."""
        return Scored(
            self.rows + other.rows,
            self.prompts + other.prompts,
            self.groups + other.groups,
            np.concatenate([self.rewards, other.rewards]),
            {name: np.concatenate([values, other.parts[name]]) for name, values in self.parts.items()},
            self.noted,
        )


class PolicyObjective(Objective, ABC):
    """Samples, scores and verifies completions. A subclass makes advantages and losses of them."""

    is_per_token = False

    def __init__(self, config: Any) -> None:
        self.config = config
        self._is_verified = False
        self._surprise, self._variance = 0.0, 0.0
        self._rewards = RewardWatch()
        self._dead: list[float] = []
        self._too_far: str | None = None
        self.step: StepTotals | None = None

    # A phase

    def collect(self, phase: Phase) -> Collected:
        scored = self.sampled(phase)
        table, owners = table_of(scored, phase.tokens_per_batch)
        columns: Columns = {}
        gap = self._score(phase, table, scored, columns)
        metrics = {**reward_metrics(scored), **gap, **self.finish(table, scored, columns)}
        samples = samples_of(scored, phase.number)
        self._watch(phase, metrics, samples)
        table = replace(table, columns=columns)
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
        most = MOST_GAP[phase.model.dtype]
        if not gap <= most:
            raise UserError(
                f"The sampler and the trainer disagree: their log-probabilities of the same tokens differ by {gap:.2g} "
                f"nats on average, and rounding explains {most:g}. The completions do not come from the weights in "
                "training, so the run stopped."
            )
        if not self._is_verified:
            self._verify(phase, scored, gap)
            self._is_verified = True
        self._check_distribution(own, at)
        columns |= {name: own[name] for name in own if name not in ("scaled", "plain", "entropy", "variance")}
        columns["old"] = own["scaled"]
        columns["weight"] = np.minimum(np.exp(own["plain"] - sampled), self.config.max_sampler_weight)
        metrics = {
            "sampler_gap": gap,
            "sampler_gap_max": largest,
            "entropy": float(own["entropy"][at].mean()),
            "nll": -float(own["scaled"][at].mean()),
        }
        if self.config.needs_reference:
            with phase.initial():
                reference = self.scores(phase, table)["scaled"]
            columns["reference"] = reference
            distance = k3(*(torch.from_numpy(each[at]).double() for each in (own["scaled"], reference)))
            metrics["kl"] = float(distance.mean())
        return metrics

    def scores(self, phase: Phase, table: TokenTable) -> dict[str, NDArray[np.float32]]:
        """What the model computes of each token with a loss (tokens,), as in training: `scaled`, log p at the
        temperature; `plain`, log p; `entropy` and `variance` of log p; and what `extra_scores` gives."""
        found: dict[str, NDArray[np.float32]] = {}
        rows = range(len(table))
        for items, batch in evaluation_batches(phase.model, table, rows, phase.tokens_per_batch):
            with torch.no_grad():
                hidden, labels = loss_hidden_states(phase.model, batch)
                scores = token_scores(phase.model, hidden, labels, self.config.temperature)
                values = {
                    "scaled": scores.log_probs,
                    "plain": scores.plain,
                    "entropy": scores.entropies,
                    "variance": scores.variances,
                }
                values |= self.extra_scores(phase.model, hidden)
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

    def _check_distribution(self, own: Mapping[str, NDArray[np.float32]], at: NDArray[np.bool_]) -> None:
        """Compare −log p of all tokens sampled so far with the entropy where they were sampled, which is its mean if
        they come from the policy. It shows a wrong temperature, or tokens that the sampler leaves out.

        Raises:
            UserError: the difference is larger than chance explains.
        """
        entropy = own["entropy"][at].astype(np.float64)
        self._surprise += float((-own["scaled"][at] - entropy).sum())
        self._variance += max(0.0, float(own["variance"][at].astype(np.float64).sum()))
        if abs(self._surprise) > martingale_bound(self._variance, LARGEST, RARE):
            raise UserError(
                "The sampled tokens do not come from the policy: the mean of their −log p is "
                f"{-own['scaled'][at].mean():.3g} nats, and where they were sampled the entropy is "
                f"{entropy.mean():.3g} at temperature {self.config.temperature:g}. The sampler uses another "
                "temperature, or leaves tokens out, so the run stopped."
            )

    def _verify(self, phase: Phase, scored: Scored, noise: float) -> None:
        """Verify that the sampler computes with the weights in training: change them, and it must see the change that
        the trainer sees. At the start an adapter computes what its base does, so that equal numbers show nothing.

        Raises:
            UserError: the sampler has other weights, or the trained weights have no effect.
        """
        first = scored.taken([0])
        few = replace(first, groups=[first.groups[0][:PROBED]], rewards=first.rewards[:, :PROBED])
        part, _ = table_of(few, phase.tokens_per_batch)
        pairs = [(few.prompts[0].ids, completion.tokens) for completion in few.groups[0]]
        at, effect = part.loss_mask, 0.0
        before = self.scores(phase, part)["plain"][at]
        for size in (0.01, 0.03, 0.1, 0.3, 1.0):
            with changed_weights(phase.model, size, phase.seed):
                trainer = self.scores(phase, part)["plain"][at]
                sampler = np.concatenate(phase.score(pairs))
            effect = float(np.abs(trainer - before).mean())
            gap = float(np.abs(trainer - sampler).mean())
            if effect > PROBE_EFFECT * max(noise, 1e-6):
                if gap > effect / 2:
                    raise UserError(
                        "The sampler does not use the weights in training: with changed weights, the trainer's log-"
                        f"probabilities moved by {effect:.2g} nats, and the sampler's differ from them by {gap:.2g}. "
                        "The run stopped before the first step."
                    )
                return
        if not effect:
            raise UserError(
                "The trained weights have no effect on what the model computes, so no reward can change it."
            )
        phase.events(
            "warning",
            message="Whether the sampler uses the weights in training cannot be verified before the first step: "
            "rounding hides their effect. Each phase compares the log-probabilities.",
        )

    def _updates(self, phase: Phase, owners: Sequence[int]) -> list[list[int]]:
        """The rows of each optimizer step: all of a prompt's completions are in the same one.

        Args:
            phase: this one.
            owners: (rows,) the prompt of each row of the table, by its index in the phase.
        """
        order = np.random.default_rng([phase.seed, phase.number]).permutation(len(set(owners)))
        rows_of = defaultdict(list)
        for row, owner in enumerate(owners):
            rows_of[owner].append(row)
        parts = [
            [row for prompt in prompts for row in rows_of[prompt]]
            for prompts in np.array_split(order, min(self.config.minibatches, len(order)))
        ]
        parts = [parts[number % len(parts)] for number in range(self.config.minibatches)]
        passes = [
            np.random.default_rng([phase.seed, phase.number, number + 1]).permutation(len(parts))
            for number in range(self.config.passes)
        ]
        return [parts[index] for index in itertools.chain(*passes)]

    def _watch(self, phase: Phase, metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
        """Warn of what goes wrong, and note why the run is to end."""
        names = ("reward", "completion_tokens", "repetition", "truncated", "entropy", "kl")
        faults = self._rewards.add({name: metrics[name] for name in names if name in metrics})
        if faults:
            phase.events(
                "warning",
                message=f"The reward rises while {' and '.join(faults)}. Read the samples: what is rewarded may not be "
                "what you want. Another reward function, or a larger beta, holds the policy back.",
                samples=samples,
            )
        if "dead_groups" in metrics and phase.number < PILOT:
            self._dead.append(metrics["dead_groups"])
            if len(self._dead) == PILOT and fmean(self._dead) >= DEAD:
                phase.events("warning", message=self._dead_message(metrics))
        limit, kl = self.config.max_kl, metrics.get("kl")
        if limit is not None and kl is not None and kl > limit:
            self._too_far = f"the policy is {kl:.3g} nats per token from where it started, more than max_kl: {limit:g}"

    def _dead_message(self, metrics: Mapping[str, Any]) -> str:
        shares = [(group, metrics.get(f"dead_groups/{group}")) for group in GROUPS if group > self.config.group_size]
        more = f" group_size: {shares[0][0]} would leave {shares[0][1]:.0%}." if shares and shares[0][1] else ""
        return (
            f"In {fmean(self._dead):.0%} of the groups so far, all completions have the same reward: they train "
            f"nothing.{more} Choose prompts that the model answers well sometimes, or a reward with more values."
        )

    def stop_reason(self) -> str | None:
        return self._too_far

    def state(self) -> dict[str, Any]:
        return {
            "surprise": self._surprise,
            "variance": self._variance,
            "rewards": self._rewards.state(),
            "dead": self._dead,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._surprise, self._variance = state["surprise"], state["variance"]
        self._rewards, self._dead = RewardWatch(**state["rewards"]), state["dead"]

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

    def losses(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """−log p, summed over each row's completions."""
        losses = next_token_losses(model, batch)
        return torch.stack([part.sum() for part in torch.split(losses, tokens_per_row(batch))])


class StepTotals(NamedTuple):
    """What an optimizer step has in all of its batches: rows of the table, completions, and tokens with a loss."""

    rows: int
    completions: int
    tokens: int

    @classmethod
    def of(cls, batch: Batch) -> "StepTotals":
        """If the batch is the whole step."""
        lengths = completion_lengths(batch)
        return cls(len(batch.rows), len(lengths), sum(lengths))


def completion_lengths(batch: Batch) -> list[int]:
    """Tokens with a loss of each completion of a batch."""
    assert batch.completions is not None
    return batch.completions.loss_positions


def tokens_per_row(batch: Batch) -> list[int]:
    """Tokens with a loss of each row of a batch."""
    assert batch.completions is not None
    lengths = iter(completion_lengths(batch))
    return [sum(itertools.islice(lengths, count)) for count in batch.completions.per_row]


def table_of(scored: Scored, most_tokens: int) -> tuple[TokenTable, list[int]]:
    """A row for each prompt, which its completions share; for more than one if they do not fit into a batch together.

    Args:
        scored: the completions.
        most_tokens: of a row, unless a single completion has more.

    Returns:
        The rows, and the prompt of each, as an index into `scored`.
    """
    builder = TableBuilder()
    owners: list[int] = []
    for owner, (prompt, group) in enumerate(zip(scored.prompts, scored.groups, strict=True)):
        rewards = scored.rewards[owner].tolist()
        start = 0
        for end in row_ends(len(prompt.ids), [len(completion.tokens) for completion in group], most_tokens):
            parts = [prompt.ids, *(completion.tokens for completion in group[start:end])]
            ids = np.concatenate([np.asarray(part, np.int32) for part in parts])
            lengths = tuple(len(part) for part in parts)
            builder.add(
                ids, np.arange(len(ids)) >= lengths[0], prompt.source, None, (lengths, tuple(rewards[start:end]))
            )
            owners.append(owner)
            start = end
    return builder.table(), owners


def column_of(table: TokenTable, values: Sequence[float]) -> NDArray[np.float32]:
    """(tokens,) with these values at the tokens that have a loss."""
    column = np.zeros(len(table.ids), np.float32)
    column[table.loss_mask] = values
    return column


def lengths_of(table: TokenTable, rows: Iterable[int]) -> list[int]:
    """Tokens of each completion of some rows."""
    assert table.completions is not None
    return [length for row in rows for length in table.completions.of(row)[0][1:]]


def reward_metrics(scored: Scored) -> dict[str, Any]:
    """Of a phase: rewards, lengths, and groups without a difference."""
    each = [completion for group in scored.groups for completion in group]
    metrics: dict[str, Any] = {"reward": float(scored.rewards.mean()), "reward_std": float(scored.rewards.std())}
    for name, values in scored.parts.items():
        known = values[~np.isnan(values)]
        if len(known):
            metrics[f"rewards/{name}/mean"], metrics[f"rewards/{name}/std"] = float(known.mean()), float(known.std())
        metrics[f"rewards/{name}/none"] = 1 - len(known) / values.size
    metrics |= {
        **scored.noted,
        "completions": len(each),
        "completion_tokens": float(np.mean([len(completion.tokens) for completion in each])),
        "truncated": float(np.mean([completion.is_truncated for completion in each])),
        "repetition": float(np.mean([repetition(completion.tokens) for completion in each])),
    }
    samples = scored.rewards.shape[1]
    if samples > 1:
        metrics["dead_groups"] = float(scored.is_dead.mean())
        best = scored.rewards.max()
        if len(np.unique(scored.rewards)) == 2:  # each completion succeeds or fails
            successes = (scored.rewards == best).sum(1).tolist()
            metrics |= {f"dead_groups/{group}": dead_share(successes, samples, group) for group in GROUPS}
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
