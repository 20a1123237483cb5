"""Rollout phases: sampling and learning take turns, and what is sampled serves one optimizer step or several."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.objective import RolloutPlan
from tunesmith.data.example import Example, Source
from tunesmith.data.pack import Batches, pack_any_order
from tunesmith.data.prompts import GIVEN
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.allocator import release_freed_memory
from tunesmith.inference.sampling import Sampling
from tunesmith.objectives.objective import Objective
from tunesmith.objectives.rollouts import Collected, Completion, Phase, Prompt, RewardValues
from tunesmith.run import Events

FORECAST_TOKENS = (2, 6)
"""Tokens of the completions whose time predicts that of longer ones."""

ROUNDS = 64
"""Rounds of sampling that a phase can have, each with its own random numbers."""


class CompletionSampler(Protocol):
    """Samples with the weights in training, in this process or elsewhere.

    Attributes:
        pages: of its cache; 0: not yet known, or none in this process. A resumed run needs the same number.
    """

    pages: int

    def sample(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], sampling: Sampling) -> list[Completion]:
        """Continue each prompt, given as ids, by the stream of random numbers of its number."""

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """log p, in nats, of the tokens of each completion after its prompt, computed as `sample` computes them."""

    def end(self) -> None:
        """Free what is held for the run."""


class InitialWeights:
    """The trained weights as they are now, beside those in training.

    Args:
        model: with the method applied, at the start of the run.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.values = [parameter.detach().clone() for parameter in self._trained]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block, the model computes with them; nothing is copied."""
        current = [parameter.data for parameter in self._trained]
        try:
            for parameter, value in zip(self._trained, self.values, strict=True):
                parameter.data = value
            yield
        finally:
            for parameter, value in zip(self._trained, current, strict=True):
                parameter.data = value


@dataclass
class Phases:
    """The phases of a run.

    Attributes:
        model: in training.
        objective: collects.
        plan: how much a phase samples and serves.
        prompts: which rows each phase takes.
        examples: the row of each source, for what is not in the tokens.
        sampler: of the model, in this process or on a server.
        reward: the rewards of completions, one for each prompt, after this many optimizer steps.
        initial: the weights at the start of the run; None: nothing needs them.
        seed: of the run.
        events: of the run.
        collected: what the present phase has sampled.
        metrics: of a phase whose first step has not ended.
        seconds: that the last phase took to collect.
        sampling_seconds: of these, in the sampler.
        step: optimizer steps before the present one.
    """

    model: PreTrainedModel
    objective: Objective
    plan: RolloutPlan
    prompts: Batches
    examples: dict[Source, Example]
    sampler: CompletionSampler
    reward: Callable[[Sequence[Prompt], Sequence[Completion], int], RewardValues]
    initial: InitialWeights | None
    seed: int
    events: Events
    collected: Collected | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    sampling_seconds: float = 0.0
    step: int = 0

    def batches(self, step: int, tokens_per_batch: int) -> list[list[int]]:
        """The rows of each batch of a step, in `collected.table`. Samples first if the step begins a phase.

        Args:
            step: from 0.
            tokens_per_batch: the most tokens in a batch.

        Raises:
            UserError: the objective cannot go on.
        """
        self.step = step
        number, position = divmod(step, self.plan.updates)
        if self.collected is None or self.collected.phase != number:
            self._collect(number, step, tokens_per_batch)
        assert self.collected is not None
        rows = self.collected.updates[position]
        self.objective.begin_step(self.collected.table, rows)
        table = self.collected.table
        lengths = table.lengths[list(rows)].tolist()
        return [
            [rows[item] for item in items]
            for items in pack_any_order(lengths, tokens_per_batch, padded=self.prompts.padded)
        ]

    def state(self, step: int) -> dict[str, Tensor]:
        """What the steps after `step` still take from the present phase, as tensors; empty between phases."""
        if self.collected is None or step // self.plan.updates != self.collected.phase:
            return {}
        return self.collected.state()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue with the tensors of `state`."""
        self.collected = Collected.restored(tensors, self.prompts.table) if tensors else None

    def phases_left(self, step: int, total_steps: int) -> int:
        """How many phases are still to be sampled.

        Args:
            step: optimizer steps so far.
            total_steps: of the run.
        """
        last = -(-total_steps // self.plan.updates)
        begun = -(-step // self.plan.updates)
        return max(0, last - begun)

    def forecast_sampling(self) -> float:
        """Seconds that a phase's sampling takes if every completion is as long as it can get, from two short ones."""
        rows = [row for batch in self.prompts.step(0) for row in batch]
        prompts = [self.prompts.table[row][0].tolist() for row in rows for _ in range(self.plan.samples)]
        most, times = self.plan.most_tokens, []
        for tokens in FORECAST_TOKENS:
            started = time.perf_counter()
            self.sampler.sample(prompts, range(len(prompts)), Sampling(min(tokens, most), self.plan.temperature))
            times.append(time.perf_counter() - started)
        few, more = FORECAST_TOKENS
        return times[0] + max(0.0, times[1] - times[0]) / (more - few) * max(0, most - few)

    def end(self) -> None:
        """Free what the sampler holds for the run."""
        self.sampler.end()

    def take_metrics(self) -> dict[str, Any]:
        """The metrics of the phase, once."""
        metrics, self.metrics = self.metrics, {}
        return metrics

    def _collect(self, number: int, step: int, tokens_per_batch: int) -> None:
        self.collected = None
        release_freed_memory()
        started, self.sampling_seconds = time.perf_counter(), 0.0
        rows = [row for batch in self.prompts.step(number) for row in batch]
        phase = self._phase(number, self.prompts.table, rows, tokens_per_batch)
        collected = self.objective.collect(phase)
        self.collected = collected
        self.seconds = time.perf_counter() - started
        self.metrics = {**collected.metrics, "generation_seconds": self.sampling_seconds}
        for shown in collected.samples:
            self.events.emit("sample", step=step, **shown)
        release_freed_memory()

    def evaluate(self, held_out: TokenTable, rows: Sequence[int], tokens_per_batch: int) -> dict[str, Any]:
        """What an `evaluation` event says of the answers to held-out prompts.

        Args:
            held_out: the held-out prompts.
            rows: indices of those to answer.
            tokens_per_batch: the most tokens in a batch.
        """
        phase = self._phase(0, held_out, rows, tokens_per_batch)
        return {**self.objective.evaluate(phase), "rows": len(rows)}

    def _phase(self, number: int, table: TokenTable, rows: Sequence[int], tokens_per_batch: int) -> Phase:
        """What the objective collects with, from the prompts of a table."""

        def sample(rows: Sequence[int], samples: int, round_number: int) -> list[list[Completion]]:
            sampling = Sampling(self.plan.most_tokens, self.plan.temperature, seed=self.seed)
            prompts = [table[row][0].tolist() for row in rows for _ in range(samples)]
            first = (number * ROUNDS + round_number) * len(table)
            numbers = [(first + row) * samples + each for row in rows for each in range(samples)]
            found = self._sampled(prompts, numbers, sampling)
            return [found[start : start + samples] for start in range(0, len(found), samples)]

        def answer(rows: Sequence[int]) -> list[Completion]:
            return self._sampled([table[row][0].tolist() for row in rows], rows, Sampling(self.plan.most_tokens))

        def more_rows(round_number: int) -> list[int]:
            order: list[int] = np.random.default_rng([self.seed, number, round_number]).permutation(len(table)).tolist()
            return [row for row in order if row not in set(rows)] or order

        def prompt(row: int) -> Prompt:
            source = table.source(row)
            example = self.examples[source]
            columns = {name: value for name, value in example.columns.items() if name != GIVEN}
            messages = example.messages or ()
            return Prompt(table[row][0].tolist(), example.columns.get(GIVEN, messages), messages, columns, source)

        def reward(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> RewardValues:
            return self.reward(prompts, completions, self.step)

        return Phase(
            number, rows, prompt, sample, answer, self.sampler.score, reward, more_rows, self.model, self._initial,
            tokens_per_batch, self.seed, self.events.emit,
        )  # fmt: skip

    def _sampled(
        self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], sampling: Sampling
    ) -> list[Completion]:
        started = time.perf_counter()
        found = self.sampler.sample(prompts, numbers, sampling)
        self.sampling_seconds += time.perf_counter() - started
        return found

    def _initial(self) -> Any:
        assert self.initial is not None, "the plan of the rollouts does not keep the initial weights"
        return self.initial.in_use()
