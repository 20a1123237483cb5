"""`tunesmith.Trainer`: a run that is stepped from outside. `fit` is what `tunesmith train` runs.

trainer = tunesmith.Trainer("recipe.yaml", run="runs/mine")
for batches in trainer:                 # the rows of each step that is left
    for rows in batches:
        trainer.forward_backward(rows)
    trainer.optim_step()
trainer.save()
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.checks.before_training import check_before_training
from tunesmith.config.extensions import UsersCodeError, copy_code, failures_named
from tunesmith.config.recipe import Recipe
from tunesmith.curation.in_recipe import cleaned_recipe
from tunesmith.data.batch import Batch
from tunesmith.data.cache import tokenizer_fingerprint
from tunesmith.data.prepare import Prepared, prepare, resolve
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.allocator import keep_freed_memory, release_freed_memory
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.engine.interrupt import listen_for_interrupts
from tunesmith.engine.provenance import provenance
from tunesmith.engine.trainable import cap_max_length
from tunesmith.errors import UserError
from tunesmith.models.load import check_base_kind, load_tokenizer
from tunesmith.models.precision import device_of, dtype_of
from tunesmith.planner.measure import forget_peak
from tunesmith.run import PIPELINE_FILE, Run, Subscriber
from tunesmith.run_lock import write_lock
from tunesmith.training.changes import note_failure, refuse_changes, with_advice
from tunesmith.training.given_rows import batch_of
from tunesmith.training.memory_guard import first_pass, measured_since, plan_of_run
from tunesmith.training.reference import fill_reference
from tunesmith.training.saving import save
from tunesmith.training.set_up import build, emit_start, subscribe


class Trainer:
    """A run, from its recipe to its saved adapter or model. Iterating gives the rows of each step that is left, until
    the steps are done: each turn has to call `optim_step`.

    Its directory is locked until `save` or `close`. A run that is not saved can be resumed from its last checkpoint.

    Args:
        recipe: a `Recipe`, a dict, or a YAML file's path; of one run, not of stages or folds.
        run: the directory, which must not hold a run yet; default: a new one under `runs/`.
        overrides: `key.path=value` strings that replace fields of the recipe.
        subscribers: called with every event, in addition to metrics.jsonl.

    Raises:
        UserError: an error that the user can fix, in one line. A directory that was created is removed.
    """

    _is_new = True
    """Whether this trainer has created the run's directory."""

    def __init__(
        self,
        recipe: Recipe | dict[str, Any] | str | Path,
        run: str | Path | None = None,
        overrides: Sequence[str] = (),
        subscribers: Sequence[Subscriber] = (),
    ) -> None:
        requested = Recipe.load(recipe, list(overrides))
        _refuse_folds(requested, run)
        with failures_named(requested.extensions):
            self._start(requested, run, subscribers)

    def _start(self, requested: Recipe, run: str | Path | None, subscribers: Sequence[Subscriber]) -> None:
        """Prepare the rows, create the directory and build the loop."""
        check_base_kind(requested.base, requested.objective)
        started = time.perf_counter()
        requested, said = cleaned_recipe(requested, subscribers)
        resolved = cap_max_length(resolve(requested))
        warnings = said + check_before_training(resolved, subscribers)
        tokenizer = load_tokenizer(resolved.base)
        fingerprint = tokenizer_fingerprint(tokenizer)
        prepared = prepare(resolved, tokenizer)

        with ExitStack() as held:
            self.run = held.enter_context(Run.create(run, resolved.to_yaml(), resolved.base.path, resolved.method.kind))
            try:
                with failures_named(resolved.extensions):
                    copy_code(resolved.extensions.values(), resolved.directory, self.run.directory)
                    self.run.write_json("provenance.json", provenance(resolved, prepared.fingerprints, fingerprint))
                    self._build(resolved, tokenizer, prepared, subscribers, started, held)
                    for message in warnings:
                        self.loop.events.emit("warning", message=message)
            except UserError:
                shutil.rmtree(self.run.directory)
                raise

    @classmethod
    def resume(cls, run: str | Path, subscribers: Sequence[Subscriber] = ()) -> "Trainer":
        """The trainer of a run that was interrupted, at its last checkpoint.

        Args:
            run: the run's directory.
            subscribers: called with every event, in addition to metrics.jsonl.

        Returns:
            The trainer.

        Raises:
            UserError: there is no such run, it has finished, its data or base have changed since, or another process
                is writing it.
        """
        if (Path(run) / PIPELINE_FILE).exists():
            raise UserError(f"{run} is a pipeline of runs, and a Trainer is one run. tunesmith.resume continues all.")
        trainer = cls.__new__(cls)
        trainer._is_new = False
        trainer.run = Run.open(run)
        with ExitStack() as held:
            held.enter_context(write_lock(trainer.run.directory))
            if trainer.run.finished:
                raise UserError(f"{run} has finished. To continue from its weights, start a new run with it as base.")
            started = time.perf_counter()
            recipe = Recipe.load(trainer.run.directory / "recipe.yaml")
            try:
                with failures_named(recipe.extensions):
                    tokenizer = load_tokenizer(recipe.base)
                    fingerprint = tokenizer_fingerprint(tokenizer)
                    prepared = prepare(recipe, tokenizer)
                    refuse_changes(trainer.run, recipe, prepared, fingerprint)
                    trainer._build(recipe, tokenizer, prepared, subscribers, started, held)
            except UsersCodeError as error:
                note_failure(trainer.run)
                raise with_advice(trainer.run, error) from error.__cause__
        return trainer

    def _build(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        prepared: Prepared,
        subscribers: Sequence[Subscriber],
        started: float,
        held: ExitStack,
    ) -> None:
        """Plan the run and build its loop. The time counts from `started`. Takes over what is held."""
        held.enter_context(keep_freed_memory())
        self.recipe, self.tokenizer = recipe, tokenizer
        device = device_of(recipe.train.device)
        dtype = _dtype_at_start(self.run) or dtype_of(recipe.precision, device)
        release_freed_memory()
        forget_peak(device)  # exclude reading the rows: the predicted and the measured peak start here
        plan = plan_of_run(recipe, self.run, prepared, dtype, device)
        batch_plan = BatchPlan.of(recipe, prepared.train, prepared.held_out) if plan is None else plan.batch_plan
        self.loop = build(recipe, self.run, prepared, batch_plan, dtype, device, tokenizer)
        subscribe(self.loop, self.run, subscribers)
        evaluations = batch_plan.layout(not self.loop.batches.padded).evaluations
        emit_start(self.loop, recipe, self.run, prepared, dtype, evaluations)
        fill_reference(self.loop, recipe, prepared)
        self._forecast = first_pass(self.loop, plan, batch_plan, started)
        self._before = deepcopy(self.loop.state)
        self.loop.state.seconds["start"] += time.perf_counter() - started
        self._is_closed = False
        self._held = held.pop_all()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[list[list[int]]]:
        """The rows of each step that is left: a list of batches, each a list of indices into `rows`."""
        while self.loop.state.step < self.loop.total_steps:
            yield self.loop.batches_of_step()

    @property
    def model(self) -> PreTrainedModel:
        """The model in training, with the method applied."""
        return self.loop.model

    @property
    def rows(self) -> TokenTable:
        """The training rows as tokens; with rollouts, the completions of the present phase."""
        return self.loop.table

    @property
    def steps(self) -> tuple[int, int]:
        """How many optimizer steps are done, and how many the run has."""
        return self.loop.state.step, self.loop.total_steps

    def fit(self) -> Run:
        """Train to the end, with evaluations and checkpoints, and save. Ctrl-C or SIGTERM end it with a checkpoint.

        Returns:
            The run. If it was interrupted, `run.finished` is False.

        Raises:
            UserError: losses stay non-finite, memory runs out with a single row, a user's class fails, or a file cannot
                be written. If nothing was trained yet, the run's directory is removed.
        """
        self._refuse_closed()
        try:
            with self._failures_named():
                with listen_for_interrupts() as interruption:
                    reason = self.loop.fit(interruption)
                self._end(reason)
        except UserError as error:
            raise self._after(error) from error.__cause__
        finally:
            self.close()
        return self.run

    def step(self) -> dict[str, float]:
        """The next step of the run: its batches, and the update.

        Returns:
            `loss` (mean over the loss tokens), `grad_norm` and `learning_rate`.

        Raises:
            UserError: the run has no step left, losses stay non-finite, or memory runs out with a single row.
        """
        self._refuse_past_the_end()
        with self._failures_named():
            return self.loop.step()

    def forward_backward(self, rows: Sequence[int] | Sequence[Mapping[str, Any]] | Batch) -> float:
        """Add the gradients of some rows to those of the next `optim_step`. Rows are packed, without padding.

        Args:
            rows: indices of training rows, as iterating gives them; or rows of data in any format that the recipe's
                objective takes (`{"question": …, "answer": …}`); or a `Batch`.

        Returns:
            The rows' summed loss, over all of their loss tokens.

        Raises:
            UserError: a row cannot be trained on, or the trainer is closed.
        """
        self._refuse_closed()
        batch = rows if isinstance(rows, Batch) else self.batch(rows)
        with self._failures_named():
            return self.loop.forward_backward(batch)

    def optim_step(self, learning_rate: float | None = None) -> dict[str, float]:
        """Divide the gradients since the last one by their loss tokens, clip them, and update the weights.

        Args:
            learning_rate: default: the recipe's schedule at this step.

        Returns:
            `loss` (mean over the loss tokens), `grad_norm` and `learning_rate`.

        Raises:
            UserError: there are no gradients, or losses stay non-finite.
        """
        self._refuse_past_the_end()
        if not any(batch.loss_tokens for batch in self.loop.pending):
            raise UserError("There is nothing to update with: call forward_backward with rows that have loss tokens.")
        return self.loop.optim_step(learning_rate)

    def batch(self, rows: Sequence[int] | Sequence[Mapping[str, Any]]) -> Batch:
        """Rows as a batch on the model's device, for `forward_backward`, which says what rows are.

        Args:
            rows: indices of training rows, or rows of data.

        Returns:
            The batch, packed without padding.

        Raises:
            UserError: a row cannot be trained on.
        """
        with self._failures_named():
            return batch_of(rows, self.rows, self.recipe, self.tokenizer, self.loop.device)

    def evaluate(self) -> dict[str, Any] | None:
        """Measure the held-out loss, on the rows that the run evaluates on.

        It counts as one of the run's evaluations: with `train.early_stopping`, `save` writes the weights of the best
        one that has a checkpoint.

        Returns:
            `loss`, `loss_interval` (95 %), `rows`, `loss_tokens`, and for text `perplexity`; None without such rows.

        Raises:
            UserError: the trainer is closed, or a user's objective or head fails.
        """
        self._refuse_closed()
        with self._failures_named():
            return self.loop.evaluate()

    def checkpoint(self) -> None:
        """Save everything that the next step depends on, so that `resume` continues here.

        Raises:
            UserError: gradients wait for `optim_step`, or the checkpoint cannot be written.
        """
        self._refuse_closed()
        if self.loop.pending:
            raise UserError("A checkpoint is between steps: call optim_step first.")
        self.loop.checkpoint()

    def save(self) -> Path:
        """End the run: write the adapter or the model, and release the directory.

        Returns:
            Where it is.

        Raises:
            UserError: gradients wait for `optim_step`, it cannot be written, or the trainer is closed.
        """
        self.checkpoint()
        with self._failures_named():
            output = self._end("done")
        self.close()
        assert output is not None
        return output

    def close(self) -> None:
        """Release the run's directory. Without `save`, the run is resumed from its last checkpoint."""
        self._is_closed = True
        self._held.close()

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise UserError(
                f"This trainer of {self.run.directory} is closed. tunesmith.load uses a finished run; Trainer.resume "
                "continues one that is not."
            )

    def _refuse_past_the_end(self) -> None:
        self._refuse_closed()
        done, total = self.steps
        if done >= total:
            raise UserError(f"{self.run.directory} has done all of its {total:,} steps. Call save().")

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        """Turn a failure of users' code into an error that names it. The code of the run may then be corrected."""
        try:
            with failures_named(self.recipe.extensions):
                yield
        except UsersCodeError:
            note_failure(self.run)
            raise

    def _after(self, error: UserError) -> UserError:
        """The error that ended `fit`. A new run in which nothing was trained is removed, so that it can be started
        again; any other is kept, and the error of users' code says how to continue it."""
        if self._is_new and self.loop.state.step == 0:
            shutil.rmtree(self.run.directory)
            return error
        if not isinstance(error, UsersCodeError):
            return error
        self._emit_end("failed", None)
        return with_advice(self.run, error)

    def _end(self, reason: str) -> Path | None:
        """Save unless interrupted, and emit the last events."""
        if self.loop.phases is not None:
            self.loop.phases.end()
        output = None if reason == "interrupted" else save(self.loop, self.recipe, self.run, self.tokenizer)
        self.loop.events.emit("plan", predicted=self._forecast, measured=measured_since(self._before, self.loop))
        self._emit_end(reason, output)
        return output

    def _emit_end(self, reason: str, output: Path | None) -> None:
        self.loop.events.emit(
            "end",
            reason=reason,
            step=self.loop.state.step,
            seconds=sum(self.loop.state.seconds.values()),
            output=None if output is None else str(output),
        )


def _refuse_folds(recipe: Recipe, run: str | Path | None) -> None:
    """Refuse a recipe of several runs, except for the one run on all rows of such a pipeline.

    Raises:
        UserError: the recipe has folds.
    """
    is_of_pipeline = run is not None and (Path(run).parent / PIPELINE_FILE).exists()
    if recipe.data.folds is not None and recipe.data.fold is None and not is_of_pipeline:
        raise UserError(
            f"data.folds: {recipe.data.folds} makes several runs, and a Trainer is one run. Use tunesmith.train for "
            "all of them, or set data.fold for one."
        )


def _dtype_at_start(run: Run) -> torch.dtype | None:
    """The dtype that the run started with, if it has started: `auto` measures, and could choose another one now."""
    names = (event["precision"] for event in run.events() if event["event"] == "start")
    name = next(names, None)
    return None if name is None else {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]
