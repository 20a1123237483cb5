"""`tunesmith compare`: prompting, retrieval, fine-tuning and their combinations as a paired experiment."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.comparing.budget import within_budget
from tunesmith.comparing.experiment import Experiment
from tunesmith.comparing.measured_way import MeasuredWay
from tunesmith.comparing.result import result_of
from tunesmith.comparing.rows import Parts, parts_of
from tunesmith.comparing.spec import Comparison, Server
from tunesmith.comparing.tuned import recipe_for
from tunesmith.comparing.ways import WAYS, Way
from tunesmith.engine.allocator import keep_freed_memory
from tunesmith.errors import UserError
from tunesmith.evaluation.budget import seconds_of
from tunesmith.evaluation.suites.task_score import main_metric_name
from tunesmith.inference.memory import CONCURRENT
from tunesmith.metrics import METRICS, Metric, fitting, metric_named
from tunesmith.run import Subscriber, atomic_write, jsonable, writing
from tunesmith.run_lock import write_lock

FILE = "compare.json"


@keep_freed_memory()
def compare(
    comparison: Comparison | str | Path,
    output: str | Path | None = None,
    subscribers: Sequence[Subscriber] = (),
    concurrent: int = CONCURRENT,
    budget: str | None = None,
) -> dict[str, Any]:
    """Compare the ways to a behavior on the same held-out rows, and recommend one.

    An interrupted comparison continues where it was: runs, indexes and answers are kept.

    Args:
        comparison: what is compared, or its file.
        output: a directory for runs, the index and `compare.json`. Default: beside the file, named after it.
        subscribers: receive `progress` events and those of the runs.
        concurrent: the most answers at the same time.
        budget: a time such as `20min`, in place of the comparison's own.

    Returns:
        The content of `compare.json`: `output` (the directory), `rows`, `training_rows`, `development_rows`, `removed`
        (near-duplicates), `metric`; `ways`: by name, each metric's value and 95 % interval, `cost`, `latency`,
        `first_token` and `about`; `differences` from the plain base, with Holm's correction; `needs`: by need, its
        rows, the ways' figures and the recommended way; `break_even`; `left_out`: ways that were not compared, and
        why; `samples`; `budget`; `recommendation`: as `reasons.described`.

    Raises:
        UserError: the comparison is not valid, its rows cannot be read or are too few, or no way can run.
    """
    spec, directory = _opened(comparison, output)
    spec = spec if budget is None else spec.model_copy(update={"budget": budget})
    recipe_for(spec, Path("train.jsonl"), None)  # what is wrong in it is refused before anything is computed
    if spec.budget is not None:
        seconds_of(spec.budget)
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with write_lock(directory, "use another output."):
        parts = parts_of(spec.data, spec.rows, spec.development)
        experiment = Experiment(spec, parts, _metrics(spec, parts), directory, subscribers, concurrent)
        ways, left_out = possible_ways(spec, parts)
        allowed = within_budget(experiment, ways)
        left_out |= allowed.left_out
        measured = _measured(experiment, [way for way in ways if way.name not in left_out], left_out)
        result = {
            "output": str(directory),
            **result_of(experiment, measured, left_out),
            "budget": allowed.described(),
        }
        with writing(directory / FILE), atomic_write(directory / FILE) as file:
            json.dump(jsonable(result), file, indent=2, ensure_ascii=False)
    return result


def _opened(comparison: Comparison | str | Path, output: str | Path | None) -> tuple[Comparison, Path]:
    """The comparison with absolute paths, and its directory."""
    if isinstance(comparison, Comparison):
        return comparison.resolved(Path.cwd()), Path("comparison" if output is None else output).absolute()
    path = Path(comparison).expanduser()
    return Comparison.load(path), (path.with_suffix("") if output is None else Path(output)).absolute()


def _metrics(spec: Comparison, parts: Parts) -> dict[str, Metric]:
    """The metric that decides, and the others that fit.

    Raises:
        UserError: the metric is not known, or scores no single answers.
    """
    expected = [task.expected for task in parts.tasks]
    name = main_metric_name(expected) if spec.metric is None else spec.metric
    chosen = metric_named(name)
    if chosen.score is None or chosen.figure is not None:
        raise UserError(f"metric: {name} is a figure of all answers together. Name one that scores each answer.")
    if chosen.better == "neither" or not fitting({name: chosen}, expected):
        raise UserError(f"metric: {name} does not say which answers to these rows are better. Name another one.")
    return {name: chosen, **{other: metric for other, metric in fitting(METRICS, expected).items() if other != name}}


def possible_ways(spec: Comparison, parts: Parts) -> tuple[list[Way], dict[str, str]]:
    """The ways that can be compared.

    Args:
        spec: of the comparison.
        parts: of its rows.

    Returns:
        The ways, and why others are left out, by name.
    """
    reasons: dict[str, str] = {}
    for way in WAYS.values():
        if spec.ways and way.name not in spec.ways:
            reasons[way.name] = "it is not among ways"
        elif way.prompt and not spec.prompts:
            reasons[way.name] = "no prompts are named"
        elif (way.prompt or way.shots) and not parts.development:
            reasons[way.name] = "there are too few training rows to set some aside for choices"
        elif way.documents and spec.documents is None:
            reasons[way.name] = "no documents are named"
    return [way for way in WAYS.values() if way.name not in reasons], reasons


def _measured(experiment: Experiment, ways: Sequence[Way], left_out: dict[str, str]) -> list[MeasuredWay]:
    """The ways' figures; one that cannot run is left out by name.

    Raises:
        UserError: none can run.
    """
    found: list[MeasuredWay] = []
    asked = [*((way, None) for way in ways), *_served(experiment.comparison)]
    for done, (way, server) in enumerate(asked):
        experiment.events.emit("progress", what="ways", done=done, total=len(asked))
        try:
            found.append(experiment.measured(way, server))
        except UserError as error:
            left_out[way.name] = str(error)
    experiment.events.emit("progress", what="ways", done=len(asked), total=len(asked))
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"No way can be compared. {reasons}")
    return found


def _served(spec: Comparison) -> list[tuple[Way, Server]]:
    """The servers as ways, each with excerpts too if there are documents."""
    found = []
    for server in spec.servers:
        name = server.name or server.url.rpartition("#")[2].rpartition("/")[2]
        found.append((Way(name, f"{server.url} with the question alone", "server"), server))
        if spec.documents is not None:
            way = Way(f"{name}_retrieval", f"{server.url} with excerpts in the prompt", "server", documents=True)
            found.append((way, server))
    return found
