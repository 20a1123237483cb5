"""A run directory and its event stream, which every part of Tunesmith writes to and reads from.

RUN/
  recipe.yaml        the recipe as resolved
  provenance.json    versions, seeds, data fingerprints, git state
  metrics.jsonl      one event per line
  checkpoints/       step-000050/ ..., last, best
  adapter/ or model/ the trained weights
  report.html
  *.py               the user's code that the recipe names, if it was beside the recipe
  .lock              while a process writes the run
"""

import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tunesmith.config.yaml_text import read_yaml
from tunesmith.errors import UserError
from tunesmith.run_lock import LOCK_FILE, refuse_locked, write_lock

Event = dict[str, Any]
"""An event: `event` names its kind; the other keys are plain JSON values."""

Subscriber = Callable[[Event], None]


class Events:
    """The stream of events in a run. The progress bar, `metrics.jsonl` and others are subscribers.

    Kinds and their fields (units in parentheses):
        start       run, base, method, objective, loss_unit, device, precision, parameters, trained_parameters,
                    total_steps, step, evaluations {rows, every}, extensions {name: [files]}: the user's code, whose
                    files beside the recipe are copied into the run; installed code has no files here
        data        rows, held_out_rows, tokens, loss_tokens, malformed, ... (see `data.report.DataReport`)
        forecast    before the first step: memory {peak_bytes, parts, peaks}, time {seconds_per_step, tokens_per_second,
                    total_seconds, parts {start, training, evaluation, checkpoints}}, fits, device
        memory      limit_bytes, recomputed, blocks, tokens_per_batch: the result of `train.memory_limit`
        plan        at the end: predicted, the forecast; measured, with the same fields
        step        step, total_steps, loss (in loss_unit), grad_norm, learning_rate, tokens (no padding),
                    loss_tokens, seconds, seconds_left (of the run, evaluations and checkpoints included)
        evaluation  step, loss, perplexity (only of tokens), loss_interval [low, high] (95 %), rows, loss_tokens,
                    seconds
        checkpoint  step, path, seconds
        skipped     step, reason, rows [str]
        progress    what, done, total: during `evaluate` and `answer`
        figures     of one model, as soon as they are known: model (its column), fold, figures {name: {value, interval,
                    rows, title, explanation, unit, better}}
        warning     message
        end         reason ("done", "early stopping", "interrupted", "failed": the user's code), step, seconds, output
    """

    def __init__(self, *subscribers: Subscriber) -> None:
        self._subscribers = list(subscribers)

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.append(subscriber)

    def emit(self, event: str, **fields: Any) -> None:
        for subscriber in self._subscribers:
            subscriber({"event": event, **fields})


def refuse_existing(output: Path) -> None:
    """Raises:
    UserError: the output exists.
    """
    if output.exists():
        raise UserError(f"{output} already exists. Choose another path.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises:
    UserError: the context cannot write `path`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None


@contextmanager
def atomic_write(path: Path, mode: str = "w", permissions: int = 0o644) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success, flush it to disk and rename it to `path`."""
    with (
        atomic_file(path, permissions) as partial,
        partial.open(mode, encoding=None if "b" in mode else "utf-8") as file,
    ):
        yield file


@contextmanager
def atomic_file(path: Path, permissions: int = 0o644) -> Iterator[Path]:
    """Yield an empty file beside `path` to write; on success, flush it to disk and rename it to `path`."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        _flush(partial)
        partial.chmod(permissions)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def cached_directory(directory: Path, write: Callable[[Path], None]) -> Path:
    """A directory of the user's cache, made on first use. Processes that ask for it together make it once.

    Args:
        directory: its name says everything that its content depends on.
        write: writes the content into an empty directory.

    Returns:
        The directory.

    Raises:
        UserError: the cache cannot be written, or as `write` raises.
    """
    from filelock import FileLock

    if directory.exists():
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.with_name(f"{directory.name}.lock")):
            if not directory.exists():  # another process may have made it while this one waited
                with atomic_directory(directory) as partial:
                    write(partial)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{directory.parent} cannot be written: {reason}. Set TUNESMITH_CACHE to another directory."
        ) from None
    return directory


@contextmanager
def atomic_directory(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a directory beside `path` to write into; on success, flush its files to disk and rename it to `path`.

    Args:
        path: only one process may write it; what a killed one left is removed.
        replace: whether `path` may exist; it is then moved away just before, so that it is complete or missing.
    """
    partial, old = (path.with_name(f".{path.name}.{what}") for what in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in (partial, *partial.rglob("*")):
            _flush(file)
        if replace and path.exists():
            path.rename(old)
        partial.rename(path)
        _flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _flush(path: Path) -> None:
    """Write a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def jsonable(value: Any) -> Any:
    """Turn NaN and infinities into strings: JSON has no numbers for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


class MetricsFile:
    """Appends each event to `metrics.jsonl` as one line, flushed immediately."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(jsonable(event), ensure_ascii=False) + "\n")


PIPELINE_FILE = "stages.yaml"
"""The file in the directory of a pipeline of runs; a single run has `recipe.yaml` instead."""


def last_stage(directory: Path) -> Path:
    """The directory of the last started stage, if `directory` is a pipeline's; else `directory` itself."""
    if not (directory / PIPELINE_FILE).exists():
        return directory
    started = _started(directory)
    return started[-1] if started else directory


def resolve_run(directory: Path) -> Path:
    """The directory of a pipeline's last run; any other directory itself.

    Raises:
        UserError: not all runs of the pipeline have started.
    """
    if (directory / PIPELINE_FILE).exists():
        values = read_yaml(directory / PIPELINE_FILE)
        runs = len(values["stages"]) if "stages" in values else values["data"]["folds"] + 1
        started = len(_started(directory))
        if started < runs:
            raise UserError(
                f"{directory} is not finished: {started} of its {runs} runs have started. "
                f"Resume it: tunesmith train --resume {directory}"
            )
    return last_stage(directory)


def _started(directory: Path) -> list[Path]:
    """The directories of a pipeline's started runs, in order."""
    directories = [recipe.parent for recipe in directory.glob("*-*/recipe.yaml")]
    return sorted(directories, key=lambda path: int(path.name.split("-")[0]))


@contextmanager
def new_directory(directory: str | Path | None, base: str, what: str) -> Iterator[Path]:
    """Create the directory of a run or a pipeline, and lock it within the context.

    Args:
        directory: by default `runs/<date>-<time>-<base>-<what>`.
        base: of the run, for that name.
        what: its method or its stages, for that name.

    Raises:
        UserError: it exists and is not empty, another process writes it, or it cannot be created.
    """
    if directory is None:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", Path(base).name).strip("-").lower()
        directory = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{what}"
    path = Path(directory).absolute()
    refuse_locked(path)
    _refuse_taken(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The run directory {directory} cannot be written: {error.strerror}.") from None
    with write_lock(path):
        _refuse_taken(directory)  # a run may have started and ended here since
        yield path


def _refuse_taken(directory: str | Path) -> None:
    """Refuse a directory that has a run or other files. The lock's file does not count."""
    path = Path(directory)
    if (path / "recipe.yaml").exists() or (path / PIPELINE_FILE).exists():
        raise UserError(
            f"{directory} already contains a run. Resume it: tunesmith train --resume {directory}. "
            "Or choose another directory."
        )
    if path.exists() and (not path.is_dir() or any(file.name != LOCK_FILE for file in path.iterdir())):
        raise UserError(f"{directory} exists and is not an empty directory. Choose another one for the run.")


@dataclass(frozen=True, slots=True)
class Run:
    """A run.

    Attributes:
        directory: contains all files of the run.
    """

    directory: Path

    @classmethod
    @contextmanager
    def create(cls, directory: str | Path | None, recipe: str, base: str, method: str) -> Iterator["Run"]:
        """Create the directory, lock it within the context, and write `recipe.yaml`.

        Args:
            directory: by default `runs/<date>-<time>-<base>-<method>`.
            recipe: the file's content.
            base: of the run, for the default name.
            method: of the run, for the default name.

        Yields:
            The run.

        Raises:
            UserError: the directory exists and is not empty, another process writes it, or it cannot be created.
        """
        with new_directory(directory, base, method) as path:
            try:
                with atomic_write(path / "recipe.yaml") as file:
                    file.write(recipe)
            except OSError as error:
                raise UserError(f"The run directory {path} cannot be written: {error.strerror}.") from None
            yield cls(path)

    @classmethod
    def open(cls, directory: str | Path) -> "Run":
        """Open an existing run; of a pipeline, its last started stage.

        Args:
            directory: of the run or the pipeline.

        Returns:
            The run.

        Raises:
            UserError: the directory has no run.
        """
        path = last_stage(Path(directory).absolute())
        if not (path / "recipe.yaml").exists():
            raise UserError(f"{directory} is not a run: it has no recipe.yaml. `tunesmith runs` lists the runs.")
        return cls(path)

    @property
    def pipeline_directory(self) -> Path:
        """The directory of the pipeline that the run belongs to, or its own."""
        return self.directory.parent if (self.directory.parent / PIPELINE_FILE).exists() else self.directory

    @property
    def stages(self) -> list[Path]:
        """The directories of the started stages of its pipeline, or its own."""
        return _started(self.pipeline_directory) or [self.directory]

    @property
    def output(self) -> Path | None:
        """`adapter/` or `model/`; None until it is written."""
        return next((path for name in ("adapter", "model") if (path := self.directory / name).exists()), None)

    @property
    def finished(self) -> bool:
        """Whether its adapter or model is written."""
        return self.output is not None

    def events(self) -> list[Event]:
        """All events so far.

        Returns:
            The lines of `metrics.jsonl`, without an incomplete last line of a killed run.
        """
        path = self.directory / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def rewind(self, size: int) -> None:
        """Truncate `metrics.jsonl`: the steps after the checkpoint will run again.

        Args:
            size: in bytes, when the checkpoint was written.
        """
        path = self.directory / "metrics.jsonl"
        if path.exists():
            os.truncate(path, min(size, path.stat().st_size))

    def write_json(self, name: str, value: Any) -> None:
        """Write a file into the run's directory, atomically.

        Args:
            name: of the file.
            value: plain JSON values; NaN and infinities become texts.
        """
        with atomic_write(self.directory / name) as file:
            json.dump(jsonable(value), file, indent=2, ensure_ascii=False)
