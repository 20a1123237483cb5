"""The training loop: a step sums its batches' gradients, divides once by its loss tokens, and updates the weights."""

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.train import Train
from tunesmith.data.batch import Batch, collate
from tunesmith.data.pack import Batches
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.allocator import release_freed_memory
from tunesmith.engine.checkpoint import LoopState, save_checkpoint
from tunesmith.engine.evaluations import times_left
from tunesmith.engine.interrupt import Interruption
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.memory import ran_out_of_memory, split_in_two
from tunesmith.engine.phases import Phases
from tunesmith.engine.schedule import learning_rate
from tunesmith.errors import UserError
from tunesmith.objectives.objective import Objective
from tunesmith.run import Events

RECENT = 20
"""Steps, evaluations and checkpoints whose median duration predicts the time left. The first one warms up, and other
processes make some slow: a mean would show that for twenty steps, the lower median from the second one on does not."""

ROLLOUTS = "rollouts."
"""Begins the names of what a checkpoint holds of a phase that has steps left."""

SKIPS_BEFORE_STOPPING = 3  # one bad batch can be an accident; three in a row mean that the run is broken


@dataclass
class Loop:
    """What a run's steps need; `fit` runs them.

    Attributes:
        model: its trained parameters require gradients.
        objective: computes the loss.
        batches: which rows each step takes.
        held_out: takes the most tokens in a batch, and returns the model's figures on the rows that are never trained
            on, with at least a `loss`. None if there are no such rows.
        evaluate_every: steps from one call of `held_out` to the next.
        masters: the trained weights and their optimizer.
        train: the training settings.
        total_steps: optimizer steps of the run.
        peak_learning_rate: after warm-up.
        tokens_per_batch: the most tokens in a batch.
        directory: the run's directory.
        events: receives every event of the run.
        device: where the model is.
        sources: the names of the sources of a mix, in the order of their rows; empty: there is only one.
        phases: samples what the steps are trained on; None: they are trained on the rows of `batches`.
        state: the progress so far.
        recent: seconds that the latest steps, evaluations and checkpoints took, by part, to predict what is left.
        pending: the batches whose gradients the next optimizer step takes.
        loss: their summed loss.
    """

    model: PreTrainedModel
    objective: Objective
    batches: Batches
    held_out: Callable[[int], dict[str, Any]] | None
    evaluate_every: int
    masters: MasterWeights
    train: Train
    total_steps: int
    peak_learning_rate: float
    tokens_per_batch: int
    directory: Path
    events: Events
    device: torch.device
    sources: tuple[str, ...] = ()
    phases: Phases | None = None
    state: LoopState = field(default_factory=LoopState)
    recent: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=RECENT)))
    pending: list[Batch] = field(default_factory=list)
    loss: float = 0.0
    _started: float = 0.0

    @property
    def checkpoint_every(self) -> int:
        """Steps from one checkpoint to the next."""
        return self.train.checkpoint_steps(self.total_steps)

    def use_batches(self, batches: Batches, tokens_per_batch: int) -> None:
        """Take these batches from now on.

        Args:
            batches: of the same rows.
            tokens_per_batch: the most tokens in one of them.
        """
        self.batches, self.tokens_per_batch = batches, tokens_per_batch

    def restore(self, tensors: dict[str, Tensor], state: LoopState) -> None:
        """Continue from a checkpoint, as `checkpoint.load_checkpoint` returns it."""
        self.state = state
        rollouts = {name.removeprefix(ROLLOUTS): tensors[name] for name in tensors if name.startswith(ROLLOUTS)}
        self.masters.restore({name: value for name, value in tensors.items() if not name.startswith(ROLLOUTS)})
        if self.phases is not None:
            self.objective.restore(state.objective)
            self.phases.restore(rollouts)
            self.phases.sampler.pages = state.cache_pages

    def fit(self, interruption: Interruption) -> str:
        """Run from `state.step` to the end.

        Returns:
            Why it ended: "done", "early stopping" or "interrupted".

        Raises:
            UserError: losses or gradients stay non-finite, or a checkpoint cannot be written.
        """
        self.state.threads = torch.get_num_threads()
        self.model.train()
        if self.state.step == 0 and self.state.best_step is None:
            self.evaluate()
            if self.train.early_stopping is not None and self.state.best_step == 0:
                self.checkpoint()  # the result if no evaluation improves on the start
        while self.state.step < self.total_steps:
            self.step()
            last = self.state.step == self.total_steps
            stop = False
            if last or self.state.step % self.evaluate_every == 0:
                self.evaluate()
                stop = self.is_out_of_patience
            reason = None if self.phases is None else self.objective.stop_reason()
            if reason is not None and not last:
                self.events.emit("warning", message=f"The run stops after step {self.state.step:,}: {reason}.")
            best = self.state.best_step == self.state.step
            interrupted = interruption.asked  # read once: a signal after this line is for the next step
            if last or stop or reason or best or interrupted or self.state.step % self.checkpoint_every == 0:
                self.checkpoint()
            if stop or reason:
                return "early stopping"
            if interrupted and not last:
                return "interrupted"
        return "done"

    def step(self) -> dict[str, float]:
        """One optimizer step. If memory runs out, the step starts again with half as many tokens per batch.

        Returns:
            As `optim_step`.

        Raises:
            UserError: losses or gradients stay non-finite, or memory runs out with a single row.
        """
        while True:
            try:
                return self._step()
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
            # Outside the except block, where the failed pass no longer holds tensors.
            batches = self.batches_of_step()
            self.split_in_two(self.table, max(batches, key=lambda rows: tokens_of(self.table, rows)))

    def split_in_two(self, table: TokenTable, rows: list[int]) -> None:
        """Memory ran out with these rows: use half as many tokens per batch from now on. A step keeps the same rows.

        Raises:
            UserError: there is only one row.
        """
        tokens = tokens_of(table, rows)
        if len(rows) == 1:
            raise UserError(
                f"Memory ran out with a single row of {tokens:,} tokens ({table.source(rows[0])}). Set "
                "data.max_length lower, train.gradient_checkpointing: true, or base.weights: nf4."
            )
        self.masters.grad.zero_()
        self.state.most_tokens = tokens // 2
        for module in self.model.modules():
            if hasattr(module, "drop_pass"):
                module.drop_pass()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        release_freed_memory()
        message = (
            f"Memory ran out with {tokens:,} tokens in a batch. From now on a batch holds at most {tokens // 2:,}, and "
            "a step takes more batches for the same rows."
        )
        self.events.emit("warning", message=message, step=self.state.step)

    @property
    def table(self) -> TokenTable:
        """What the rows of `batches_of_step` are in."""
        if self.phases is not None and self.phases.collected is not None:
            return self.phases.collected.table
        return self.batches.table

    def batches_of_step(self) -> list[list[int]]:
        """The rows of the step's batches. With rollouts, the first step of a phase samples them."""
        if self.phases is not None:
            batches = self.phases.batches(self.state.step, self.tokens_per_batch)
        else:
            batches = self.batches.step(self.state.step)
        return [part for rows in batches for part in self.batches_within(self.table, rows)]

    def batches_within(self, table: TokenTable, rows: list[int]) -> list[list[int]]:
        """A batch's rows, split in two repeatedly while they exceed `state.most_tokens`."""
        if not self.state.most_tokens or len(rows) == 1 or tokens_of(table, rows) <= self.state.most_tokens:
            return [rows]
        first, second = split_in_two(rows, table.lengths[rows].tolist())
        return [*self.batches_within(table, first), *self.batches_within(table, second)]

    def _step(self) -> dict[str, float]:
        """One attempt at a step. A non-finite loss or gradient leaves the weights unchanged."""
        self.forget_batches()  # of an attempt that ran out of memory, or that were not meant for a step
        batches = self.batches_of_step()
        if self.phases is not None and self.phases.metrics:  # it has just sampled
            self._took("training", self.phases.seconds, "rollouts")
        for rows in batches:
            if not math.isfinite(self.forward_backward(collate(self.table, rows, self.device))):
                break
        return self.optim_step()

    def forward_backward(self, batch: Batch) -> float:
        """Add a batch's gradients to those of the next optimizer step.

        Args:
            batch: on the model's device.

        Returns:
            The batch's summed loss. If it is not finite, no gradient is added, and the step will be skipped. If an
            error is raised, the gradients since the last step are dropped.
        """
        if not self.pending:
            self._started = time.perf_counter()
        self.pending.append(batch)
        loss = 0.0
        try:
            if batch.loss_tokens:
                with self._kept_activations():
                    batch_loss = self.objective.loss(self.model, batch)
                loss = batch_loss.item()
                if math.isfinite(loss):
                    torch.autograd.backward(batch_loss)
        except BaseException:  # part of a gradient may have been added
            self.forget_batches()
            raise
        self.loss += loss
        return loss

    def optim_step(self, rate: float | None = None) -> dict[str, float]:
        """Divide the gradients of the batches since the last step by their loss tokens, and update the weights.

        Args:
            rate: the learning rate; default: the schedule's at this step.

        Returns:
            `loss` (mean over the loss tokens), `grad_norm` and `learning_rate` of the step.

        Raises:
            UserError: losses or gradients stay non-finite, or the objective refuses the step.
        """
        checked = self.objective.check_step() if math.isfinite(self.loss) else {}
        batches, loss = self.pending, self.loss
        self.pending, self.loss = [], 0.0
        number = self.state.step + 1
        loss_tokens = sum(batch.loss_tokens for batch in batches)
        if rate is None:
            rate = learning_rate(self.train, self.peak_learning_rate, number, self.total_steps)
        if math.isfinite(loss):
            norm = self.masters.step(rate, loss_tokens, self.train.max_grad_norm)
        else:
            norm = math.nan
            self.masters.grad.zero_()
        tokens = sum(batch.tokens for batch in batches)
        seconds = time.perf_counter() - self._started
        self.state.step = number
        self.state.tokens += tokens
        self._took("training", seconds)
        result = {"loss": loss / loss_tokens, "grad_norm": norm, "learning_rate": rate}
        self.events.emit(
            "step",
            step=number,
            total_steps=self.total_steps,
            **result,
            tokens=tokens,
            loss_tokens=loss_tokens,
            **self.objective.take_notes(),
            **self._by_source(batches),
            **({} if self.phases is None else self.phases.take_metrics()),
            **checked,
            seconds=seconds,
            seconds_left=self.seconds_left(),
        )
        self._watch_for_nan(loss, norm, batches)
        return result

    def _by_source(self, batches: Sequence[Batch]) -> dict[str, dict[str, int]]:
        """How many of the loss tokens are of each source of a mix: the loss is in the sum of all."""
        if not self.sources or self.phases is not None:
            return {}
        ends, counts = np.cumsum(self.table.source_rows), dict.fromkeys(self.sources, 0)
        for batch in batches:
            for row, tokens in zip(batch.rows, batch.loss_tokens_per_row, strict=False):
                counts[self.sources[int(np.searchsorted(ends, row, side="right"))]] += tokens
        return {"loss_tokens_by_source": counts}

    def forget_batches(self) -> None:
        """Drop the batches since the last step, with their gradients."""
        self.objective.take_notes()
        if self.pending:
            self.masters.grad.zero_()
        self.pending, self.loss = [], 0.0

    def _kept_activations(self) -> AbstractContextManager[Any]:
        """The context that decides where activations are stored until the backward pass."""
        if self.train.offload_activations and self.device.type == "cuda":
            return torch.autograd.graph.save_on_cpu(pin_memory=True)
        return nullcontext()

    def evaluate(self) -> dict[str, Any] | None:
        """Measure the held-out loss.

        Returns:
            The figures, as `held_out` returns them; None without held-out rows.
        """
        if self.held_out is None:
            return None
        started = time.perf_counter()
        with self.masters.averaged():
            figures = self.held_out(self.tokens_per_batch)
        seconds = time.perf_counter() - started
        self._took("evaluation", seconds)
        self.events.emit("evaluation", step=self.state.step, **figures, seconds=seconds)
        patience = self.train.early_stopping
        min_delta = patience.min_delta if patience else 0.0
        best = math.inf if self.state.best_loss is None else self.state.best_loss
        if figures["loss"] < best - min_delta:
            self.state.best_loss, self.state.best_step = figures["loss"], self.state.step
            self.state.evaluations_without_improvement = 0
        else:
            self.state.evaluations_without_improvement += 1
        return figures

    @property
    def is_out_of_patience(self) -> bool:
        """Whether early stopping ends the run."""
        patience = self.train.early_stopping
        return patience is not None and self.state.evaluations_without_improvement >= patience.patience

    def checkpoint(self) -> None:
        """Save everything that the next step depends on, and emit the event."""
        started = time.perf_counter()
        metrics = self.directory / "metrics.jsonl"
        self.state.metrics_bytes = metrics.stat().st_size if metrics.exists() else 0
        tensors = self.masters.state()
        if self.phases is not None:
            self.state.cache_pages = self.phases.sampler.pages
            self.state.objective = self.objective.state()
            tensors |= {f"{ROLLOUTS}{name}": value for name, value in self.phases.state(self.state.step).items()}
        path = save_checkpoint(self.directory / "checkpoints", tensors, self.state, self.train.keep_checkpoints)
        seconds = time.perf_counter() - started
        self._took("checkpoints", seconds)
        self.events.emit("checkpoint", step=self.state.step, path=str(path), seconds=seconds)

    def seconds_left(self) -> float:
        """After a step, until the last one is done, evaluated and saved, if everything takes as long as it did
        recently."""
        before = self.state.step - 1  # this step's evaluation and checkpoint are still to come
        left = {
            "training": self.total_steps - self.state.step,
            "evaluation": times_left(self.evaluate_every, before, self.total_steps),
            "checkpoints": times_left(self.checkpoint_every, before, self.total_steps),
        }
        if self.phases is not None:
            left["rollouts"] = self.phases.phases_left(self.state.step, self.total_steps)
        return sum(count * median_low(self.recent[part]) for part, count in left.items() if self.recent[part])

    def _took(self, part: str, seconds: float, of: str | None = None) -> None:
        """Note the seconds of a part of the run, which are those `of` something that comes again, by default of it."""
        self.state.seconds[part] += seconds
        self.recent[of or part].append(seconds)

    def _watch_for_nan(self, loss: float, norm: float, batches: Sequence[Batch]) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            self.state.skipped_in_a_row = 0
            return
        self.state.skipped_in_a_row += 1
        suspects = batches[-1:] if not math.isfinite(loss) else batches
        sources = [str(self.table.source(row)) for batch in suspects for row in batch.rows]
        reason = "the loss" if not math.isfinite(loss) else "the gradient"
        self.events.emit(
            "skipped",
            step=self.state.step,
            reason=f"{reason} was not finite; the weights are unchanged",
            rows=sources,
        )
        if self.state.skipped_in_a_row >= SKIPS_BEFORE_STOPPING:
            shown = ", ".join(sources[:5]) + (f" and {len(sources) - 5:,} more" if len(sources) > 5 else "")
            raise UserError(
                f"{reason} was not finite in {SKIPS_BEFORE_STOPPING} steps in a row up to step {self.state.step:,}, so "
                f"the run stopped. Those steps did not change the weights. The last batch held {shown}. Check those "
                "rows, lower train.learning_rate, or set train.precision: fp32."
            )


def tokens_of(table: TokenTable, rows: Sequence[int]) -> int:
    """Tokens of some rows, without padding."""
    return int(table.lengths[list(rows)].sum())
