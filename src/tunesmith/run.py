"""A run's directory and its event stream: the one thing that every part writes to and reads from.

RUN/
  recipe.yaml        the recipe as resolved
  provenance.json    versions, seeds, data fingerprints, git state
  metrics.jsonl      one event a line
  checkpoints/       step-000050/ ..., last, best
  adapter/ or model/ what was learnt
  report.html
"""

import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tunesmith.config.yaml_text import read_yaml
from tunesmith.errors import UserError

Event = dict[str, Any]
"""An event: `event` names its kind; the other keys are plain JSON values."""

Subscriber = Callable[[Event], None]


class Events:
    """The stream of what happens in a run. The progress bar, `metrics.jsonl` and the rest are subscribers.

    Kinds and their fields (units in parentheses):
        start       run, base, method, objective, loss_unit, device, precision, parameters, trained_parameters,
                    total_steps
        data        rows, held_out_rows, tokens, loss_tokens, malformed, ... (see `data.prepare.DataReport`)
        forecast    before the first step: memory {peak_bytes, parts, peaks}, time {seconds_per_step, tokens_per_second,
                    total_seconds}, fits, device
        memory      limit_bytes, recomputed, blocks, tokens_per_batch: what `train.memory_limit` came to
        plan        at the end: predicted, the forecast; measured, of the same shape
        step        step, total_steps, loss (in loss_unit), grad_norm, learning_rate, tokens (real ones),
                    loss_tokens, seconds
        evaluation  step, loss, perplexity (of tokens alone), loss_interval [low, high] (95 %), rows, loss_tokens,
                    seconds
        checkpoint  step, path
        skipped     step, reason, rows [str]
        progress    what, done, total: of an evaluation
        warning     message
        end         reason ("done", "early stopping", "interrupted", "stopped"), step, seconds, output
    """

    def __init__(self, *subscribers: Subscriber) -> None:
        self._subscribers = list(subscribers)

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscribers.append(subscriber)

    def emit(self, event: str, **fields: Any) -> None:
        for subscriber in self._subscribers:
            subscriber({"event": event, **fields})


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success it is flushed to disk and takes `path`'s place in one move."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def jsonable(value: Any) -> Any:
    """NaN and infinities become strings: JSON has no word for them, and readers of metrics.jsonl are many."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


class MetricsFile:
    """Appends each event to `metrics.jsonl`, a line an event, flushed at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(jsonable(event), ensure_ascii=False) + "\n")


CHAIN = "stages.yaml"
"""What the directory of a chain of runs has in place of a run's `recipe.yaml`."""


def last_stage(directory: Path) -> Path:
    """The directory of the last stage that has begun, of a chain's directory; any other directory itself."""
    if not (directory / CHAIN).exists():
        return directory
    begun = _begun(directory)
    return begun[-1] if begun else directory


def whole_run(directory: Path) -> Path:
    """The directory of a chain's last run; any other directory itself.

    Raises:
        UserError: not all of the chain's runs have begun.
    """
    if (directory / CHAIN).exists():
        values = read_yaml(directory / CHAIN)
        runs = len(values["stages"]) if "stages" in values else values["data"]["folds"] + 1
        begun = len(_begun(directory))
        if begun < runs:
            raise UserError(
                f"{directory} has not finished: {begun} of its {runs} runs have begun. tunesmith train --resume {directory}"
            )
    return last_stage(directory)


def _begun(directory: Path) -> list[Path]:
    """The directories of a chain's runs that have begun, in order."""
    found = [place.parent for place in directory.glob("*-*/recipe.yaml")]
    return sorted(found, key=lambda place: int(place.name.split("-")[0]))


def new_directory(directory: str | Path | None, base: str, what: str) -> Path:
    """Make the directory of a run or a chain; by default `runs/<date>-<time>-<base>-<what>`.

    Raises:
        UserError: it holds something already, or cannot be made.
    """
    if directory is None:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", Path(base).name).strip("-").lower()
        directory = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{what}"
    path = Path(directory).absolute()
    if (path / "recipe.yaml").exists() or (path / CHAIN).exists():
        raise UserError(
            f"{directory} holds a run already. tunesmith train --resume {directory}, or name another directory."
        )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{directory} is there already and is not an empty directory. Name another one for the run.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The run's directory {directory} cannot be written: {error.strerror}.") from None
    return path


@dataclass(frozen=True, slots=True)
class Run:
    """A run's directory.

    Attributes:
        folder: where everything of the run lies.
    """

    directory: Path

    @classmethod
    def create(cls, directory: str | Path | None, recipe: str, base: str, method: str) -> "Run":
        """Make the directory and write `recipe.yaml`; by default `runs/<date>-<time>-<base>-<method>`.

        Raises:
            UserError: the directory holds something already, or cannot be made.
        """
        path = new_directory(directory, base, method)
        try:
            with atomic_write(path / "recipe.yaml") as file:
                file.write(recipe)
        except OSError as error:
            raise UserError(f"The run's directory {path} cannot be written: {error.strerror}.") from None
        return cls(path)

    @classmethod
    def open(cls, directory: str | Path) -> "Run":
        """An existing run; of a chain, the last stage that has begun.

        Raises:
            UserError: there is none.
        """
        path = last_stage(Path(directory).absolute())
        if not (path / "recipe.yaml").exists():
            raise UserError(
                f"{directory} is not a run: it has no recipe.yaml. `tunesmith runs` lists the runs there are."
            )
        return cls(path)

    @property
    def whole(self) -> Path:
        """The directory of the chain that it is a stage of, or its own."""
        return self.directory.parent if (self.directory.parent / CHAIN).exists() else self.directory

    @property
    def stages(self) -> list[Path]:
        """The directories of its chain's stages that have begun, or its own."""
        return _begun(self.whole) or [self.directory]

    @property
    def output(self) -> Path | None:
        """`adapter/` or `model/`, once it is written."""
        return next((path for name in ("adapter", "model") if (path := self.directory / name).exists()), None)

    @property
    def finished(self) -> bool:
        return self.output is not None

    def events(self) -> list[Event]:
        """All events so far; a last line cut short by a kill is left out."""
        path = self.directory / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]

    def rewind(self, size: int) -> None:
        """Cut `metrics.jsonl` back to so many bytes: what came after the checkpoint will happen again."""
        path = self.directory / "metrics.jsonl"
        if path.exists():
            os.truncate(path, min(size, path.stat().st_size))

    def write_json(self, name: str, value: Any) -> None:
        with atomic_write(self.directory / name) as file:
            json.dump(jsonable(value), file, indent=2, ensure_ascii=False)
