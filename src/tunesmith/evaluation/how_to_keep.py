"""What would have kept what a run forgot: short reruns of its recipe at lower rates, and with general text replayed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.config.recipe import Recipe
from tunesmith.data.examples import all_paths
from tunesmith.data.read import fingerprint
from tunesmith.engine.allocator import keep_freed_memory
from tunesmith.errors import UserError
from tunesmith.evaluation.forgetting_curve import CurveOptions, ForgettingCurve, measured_curve, writing_run
from tunesmith.evaluation.suites.forgetting import other_texts
from tunesmith.inference.result_cache import digest_of
from tunesmith.run import Event, Events, Run, atomic_write
from tunesmith.training.stages import resume, train

RATES = (1.0, 1 / 3, 1 / 10)
"""Learning rates of the reruns, as multiples of the run's."""

REPLAY_SHARE = 0.1
"""Of the training tokens, in the rerun with general text; added to what the run replayed itself."""

STEPS = 100
"""Of a rerun, at most, if nothing else is asked for."""

FEWEST = 5
"""Steps of a rerun, at least, however short the time is."""

DIRECTORY = "how-to-keep"
"""Of the reruns, within the run's."""

OWN = "the run"
"""The name of the run itself among the points."""


@dataclass(frozen=True, slots=True)
class _Rerun:
    """A rerun: its name in tables, its directory, and its recipe."""

    name: str
    directory: Path
    recipe: Recipe


@keep_freed_memory()
def how_to_keep(
    run: str | Path,
    options: CurveOptions | None = None,
    *,
    steps: int | None = None,
    seconds: float | None = None,
) -> ForgettingCurve:
    """Rerun a run's recipe with its own seed, at a third and a tenth of its rate, and with general text replayed.

    The reruns are kept in the run's directory, by their steps and the content of the files of rows. One that is
    interrupted resumes, and one that has finished is not trained again.

    Args:
        run: its directory.
        options: how they are measured. What of the general text is not measured is replayed. None: `CurveOptions()`.
        steps: of each rerun, at most; None: 100.
        seconds: that all reruns may take; they then have as many steps as the run's own speed allows.

    Returns:
        The run and its reruns, as points of a curve.

    Raises:
        UserError: it is no finished run of a model that writes text, or a rerun cannot be trained.
        KeyboardInterrupt: it was interrupted; a `warning` says which reruns have finished, and the same call resumes.
    """
    options = options or CurveOptions()
    directory, events = writing_run(run), Events(*options.subscribers)
    own = Run.open(directory)
    if not own.finished:
        raise UserError(f"{run} has not finished. Resume it: tunesmith train --resume {run}")
    each, texts = steps_of(own, steps, seconds), other_texts(options.general)
    if not texts:
        message = f"All of {options.general} is measured, so that nothing of it is left to replay."
        events.emit("warning", message=message)
    reruns = list(_reruns(own, each, texts))
    points = {OWN: directory} | {rerun.name: rerun.directory for rerun in reruns}
    try:
        for rerun in reruns:
            _train(rerun, events)
        return replace(measured_curve(directory, points, options), steps=each)
    except KeyboardInterrupt:
        events.emit("warning", message=_about_interruption(reruns))
        raise


def _about_interruption(reruns: Sequence[_Rerun]) -> str:
    """What an interrupted call has finished, and how it continues."""
    finished = [rerun.name for rerun in reruns if _has_begun(rerun) and Run.open(rerun.directory).finished]
    which = f": {', '.join(finished)}" if finished else ""
    return (
        f"Interrupted. {len(finished)} of {len(reruns)} reruns have finished{which}. "
        "What was computed is kept, and the same command resumes."
    )


def steps_of(run: Run, most: int | None, seconds: float | None) -> int:
    """How many steps each rerun has.

    Args:
        run: the run, whose own steps and speed count.
        most: steps; None: 100, unless there is a time.
        seconds: that all reruns may take; None: as much as they take.

    Returns:
        No more than the run has or the time allows, but 5 in any case.
    """
    events = run.events()
    total = next(int(event["total_steps"]) for event in reversed(events) if event["event"] == "start")
    limit = min(total, most if most is not None else STEPS if seconds is None else total)
    timed = next((event["measured"]["time"] for event in reversed(events) if event["event"] == "plan"), None)
    if seconds is None or timed is None:
        return limit
    training = seconds / (len(RATES) + 1) - timed["parts"]["start"]
    return min(limit, max(FEWEST, int(training / timed["seconds_per_step"])))


def _reruns(run: Run, steps: int, texts: Sequence[str]) -> Iterator[_Rerun]:
    """The reruns: each rate alone, and the run's own rate with replay if there is text to replay."""
    recipe = Recipe.load(run.directory / "recipe.yaml")
    within = run.directory / DIRECTORY / f"{steps}-steps-{_rows_digest(recipe)}"
    train: dict[str, Any] = {
        "steps": steps,
        "epochs": None,
        "checkpoint_every": max(1, steps // 4),
        "keep_checkpoints": 1,
        "evaluate_every": steps,
        "early_stopping": None,
        "tensorboard": False,
    }
    rate = recipe.train.learning_rate
    assert rate is not None  # a run's recipe is resolved
    for factor in RATES:
        values = _with(recipe, train={**train, "learning_rate": rate * factor})
        yield _Rerun(f"rate {rate * factor:.2g}", within / f"rate-{factor:.2g}", values)
    if texts:
        share = REPLAY_SHARE + (recipe.data.replay_share if recipe.data.replay else 0.0)
        file = _replay_file(run.directory / DIRECTORY, texts)
        values = _with(
            recipe, train=train, data={"replay": [*recipe.data.replay, str(file)], "replay_share": min(share, 0.5)}
        )
        yield _Rerun(f"replay {share:.0%}", within / file.stem, values)


def _rows_digest(recipe: Recipe) -> str:
    """Of the content of all files of rows, so that other rows make other reruns."""
    files = fingerprint(all_paths(recipe.data), recipe.directory)
    return digest_of(list(files.values()))[:8]


def _with(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    """The recipe with other values in its sections."""
    values = recipe.model_dump(mode="json")
    for section, fields in sections.items():
        values[section] |= fields
    return Recipe.from_values(values, "recipe", recipe.directory)


def _replay_file(directory: Path, texts: Sequence[str]) -> Path:
    """The general text as rows, named by its content, so that other text makes another rerun."""
    file = directory / f"replay-{digest_of(list(texts))[:8]}.jsonl"
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as out:
            out.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    return file


def _has_begun(rerun: _Rerun) -> bool:
    return (rerun.directory / "recipe.yaml").exists()


def _train(rerun: _Rerun, events: Events) -> None:
    """Train a rerun, unless that is done.

    Raises:
        KeyboardInterrupt: it was interrupted; it then has a checkpoint to resume from.
    """

    def report(event: Event) -> None:
        if event["event"] == "step":
            events.emit("progress", what=f"rerun, {rerun.name}", done=event["step"], total=event["total_steps"])

    has_begun = _has_begun(rerun)
    if has_begun and Run.open(rerun.directory).finished:
        return
    done = resume(rerun.directory, [report]) if has_begun else train(rerun.recipe, rerun.directory, (), [report])
    if not done.finished:
        raise KeyboardInterrupt
