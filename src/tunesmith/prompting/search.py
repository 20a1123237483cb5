"""`tunesmith prompt search`: prompts and few-shot examples, compared on training rows, and once on held-out rows."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.engine.allocator import keep_freed_memory
from tunesmith.errors import UserError
from tunesmith.evaluation.figures import cases_of, samples_of
from tunesmith.evaluation.rows import Task, spread, task_of
from tunesmith.evaluation.subjects import SubjectName, column_names, open_subject
from tunesmith.evaluation.suites.task_score import main_metric_name
from tunesmith.evaluation.summary import about_figure, summary, with_interval
from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.sampling import Sampling
from tunesmith.metrics import Metric, fitting, measured, metric_named
from tunesmith.prompting.candidates import PLAIN, Candidate, Showing, of_files, of_template, with_examples
from tunesmith.prompting.prompt import PROMPT_FILE, Prompt
from tunesmith.prompting.prompted import Prompted
from tunesmith.prompting.race import Place, race, schedule
from tunesmith.prompting.rows import SearchRows, recipe_of, split_rows
from tunesmith.prompting.shots import Shots
from tunesmith.prompting.writer import written
from tunesmith.run import Events, Subscriber, atomic_write, jsonable, refuse_existing, writing
from tunesmith.statistics.measured import Measured
from tunesmith.subjects.subject import Answer, Subject

RESULT_FILE = "prompt_search.json"
"""Beside the prompt in the directory of a run."""

SAMPLES = 3


@keep_freed_memory()
def prompt_search(
    model: str | Path,
    source: str | Path | None = None,
    *,
    candidates: Sequence[str | Path] = (),
    template: str | Path | None = None,
    writer: str | None = None,
    writer_count: int = 4,
    k: Sequence[int] = (0, 4),
    choose: Sequence[str] = ("similar",),
    encoder: str | None = None,
    metric: str | None = None,
    rows: int = 200,
    max_new_tokens: int = 128,
    seed: int = 0,
    output: str | Path | None = None,
    concurrent: int = CONCURRENT,
    device: str = "auto",
    cache: bool = True,
    subscribers: Sequence[Subscriber] = (),
) -> dict[str, Any]:
    """Search for the prompt and the few-shot examples with which a model answers best.

    All candidates answer training rows, by successive halving (`tunesmith.prompting.race`). The held-out rows are not
    answered until the end, when the winner and the model without a prompt answer them once. Examples are training rows
    that no candidate is compared on. What has been answered is kept in the user's cache, so that a search that was
    killed resumes.

    Args:
        model: a run, an adapter, a model directory, a name, or a server, as `tunesmith.evaluate` takes it.
        source: a recipe, a run or a file of rows; None: the model's own, if it is a run.
        candidates: files of prompts.
        template: a file of a prompt whose variables have lists of values: each combination is a candidate.
        writer: a model that writes candidates from a few training rows; named like `model`.
        writer_count: how many it is asked for.
        k: numbers of examples that are tried with each prompt; 0: none.
        choose: ways to choose them: `random`, `similar`, `diverse`.
        encoder: a model by whose vectors questions are compared; None: by their words.
        metric: by which candidates are compared, as in `tunesmith evaluate --metric`; None: the fields of JSON answers,
            else whether short answers are equal, else ROUGE-L.
        rows: the most development rows, and the most held-out rows that are answered.
        max_new_tokens: the most tokens of an answer.
        seed: of the choice of development rows and of random examples.
        output: a file for the winner, or the directory of a run, which then has it as `prompt.yaml` and the result as
            `prompt_search.json`. Neither may exist.
        concurrent: the most answers that are computed at the same time.
        device: for the models of this process.
        cache: whether answers are kept in the user's cache, and read from it.
        subscribers: receive `progress` events (what, done, total).

    Returns:
        `model`, `metric`; `development` (`data`, `rows`, `rounds`: rows after each); `candidates`: of each `name`,
        `version`, `origin`, `k`, `choose`, `system`, `value`, `interval`, `rows`, `round` (its last), `why` (it left)
        and `shortened` (chats with fewer examples than asked for); `winner`; `tied`: those in the last round that are
        not shown to be worse; `held_out`: as `tunesmith.evaluate` reports `plain` and the winner; `verdict`: of the
        winner on held-out rows; `pool`, `near_held_out` (rows for examples, and those left out); `output`.

    Raises:
        UserError: a model, a prompt or the rows cannot be read, there is nothing to compare, or the output exists.
    """
    target = None if output is None else _target(Path(output))
    showing = Showing(k, choose, seed, encoder)
    found = [Candidate(PLAIN, Prompt(), PLAIN), *of_files(candidates)]
    found += [] if template is None else of_template(template)
    origin, recipe = recipe_of(str(model), source)
    split = split_rows(origin, recipe, rows, showing.needs_rows or writer is not None, seed)
    events = Events(*subscribers)
    options: dict[str, Any] = {"concurrent": concurrent, "device": device, "keeps": cache}
    subject = _opened(str(model), options)
    tasks = [task_of(row) for row in split.development]
    chosen = _metric(metric, [task.expected for task in tasks])
    own = [] if writer is None else _written(writer, split, writer_count, seed, events, options)
    tried = with_examples([*found, *own], split.pool, [*split.development, *split.held_out.examples], showing)
    if len(tried) < 2:
        raise UserError("There is nothing to compare. Give prompts (--candidates, --template, --writer) or more --k.")
    search = _Search(subject, tried, tasks, chosen, Sampling(max_new_tokens), events)
    try:
        result = search.raced(origin) | search.held_out(split, rows)
    finally:
        subject.close()
    result = {
        "model": str(model),
        **result,
        "writer": None if writer is None else {"name": writer, "asked": writer_count, "different": len(own)},
        "pool": len(split.pool),
        "near_held_out": split.near_held_out,
        "output": None if target is None else str(target),
    }
    if target is not None:
        _save(search.winner.prompt, Path(str(output)), result)
    return result


class _Search:
    """Candidates of one model on development rows."""

    def __init__(
        self,
        subject: Subject,
        candidates: Sequence[Candidate],
        tasks: Sequence[Task],
        metric: tuple[str, Metric],
        sampling: Sampling,
        events: Events,
    ) -> None:
        self._subject, self._tasks, self._sampling, self._events = subject, tasks, sampling, events
        self._metric_name, self._metric = metric
        self._candidates = {candidate.name: candidate for candidate in candidates}
        self._prompted = {
            each.name: Prompted(subject, each.prompt, Shots.of(each.prompt), each.name) for each in candidates
        }
        self._answers: dict[str, list[Answer]] = {name: [] for name in self._candidates}
        self._steps = schedule(len(candidates), len(tasks))
        self.winner = candidates[0]

    def raced(self, origin: str) -> dict[str, Any]:
        """Find the winner; what the result says about that."""
        places = race(list(self._candidates), self._measure, len(self._tasks))
        best = next(name for name, place in places.items() if place.why == "winner")
        self.winner = self._candidates[best]
        return {
            "metric": {"name": self._metric_name, **about_figure(places[best].figure)},
            "development": {
                "data": f"training rows of {origin}",
                "rows": len(self._tasks),
                "rounds": self._steps[: max(place.round for place in places.values())],
            },
            "candidates": [self._described(name, place) for name, place in places.items()],
            "winner": best,
            "tied": [name for name, place in places.items() if place.why == "not shown to be worse"],
        }

    def _measure(self, names: Sequence[str], number: int, rows: int) -> dict[str, Measured]:
        """The candidates' figures on the first rows, of which only the new ones are answered."""
        new = [self._tasks[len(self._answers[name]) : rows] for name in names]
        what = f"round {number} of {len(self._steps)}, {len(names)} candidates"
        progress = _Progress(self._events, what, sum(map(len, new)))
        for name, tasks in zip(names, new, strict=True):
            self._answers[name] += self._answered(self._prompted[name], tasks, progress)
        return {name: self._figure(self._answers[name], self._tasks[:rows]) for name in names}

    def _answered(self, subject: Subject, tasks: Sequence[Task], progress: "_Progress") -> list[Answer]:
        answers = subject.answers([task.chat for task in tasks], self._sampling, progress)
        progress.add(len(tasks))
        return answers

    def _figure(self, answers: Sequence[Answer], tasks: Sequence[Task]) -> Measured:
        _refuse_unfit(self._metric_name, self._metric, [task.expected for task in tasks])
        return measured({self._metric_name: self._metric}, cases_of(answers, tasks))[self._metric_name]

    def _described(self, name: str, place: Place) -> dict[str, Any]:
        candidate = self._candidates[name]
        about = candidate.prompt.described()
        shown = about["examples"] or {"k": 0, "choose": None}
        return {
            "name": name,
            "version": about["version"],
            "origin": candidate.origin,
            "k": shown["k"],
            "choose": shown["choose"],
            "system": about["system"],
            **with_interval(place.figure),
            "round": place.round,
            "why": place.why,
            "shortened": len(self._prompted[name].renderer.shortened),
        }

    def held_out(self, split: SearchRows, rows: int) -> dict[str, Any]:
        """The winner and the model without a prompt, on held-out rows."""
        tasks = split.held_out.tasks(rows)
        plain = Prompted(self._subject, Prompt(), None, PLAIN)
        sides: dict[str, Subject] = {PLAIN: plain, self.winner.name: self._prompted[self.winner.name]}
        progress = _Progress(self._events, "held-out rows", len(sides) * len(tasks))
        answers = {name: self._answered(each, tasks, progress) for name, each in sides.items()}
        models = {name: {self._metric_name: self._figure(own, tasks)} for name, own in answers.items()}
        found = summary(models, PLAIN)
        difference = found["differences"].get(self.winner.name, {}).get(self._metric_name)
        return {
            "held_out": {
                "rows": len(tasks),
                "data": split.held_out.origin,
                "data_sha256": split.held_out.fingerprint,
                "generated_rows": len(tasks),
                **found,
                "samples": samples_of(tasks, answers, spread(len(tasks), SAMPLES)),
            },
            "verdict": "no prompt" if difference is None else difference["verdict"],
        }


class _Progress:
    """Emits how many answers of several candidates there are."""

    def __init__(self, events: Events, what: str, total: int) -> None:
        self._events, self._what, self._total, self._before = events, what, total, 0
        self(0)

    def __call__(self, done: int) -> None:
        """Of the candidate that answers."""
        self._events.emit("progress", what=self._what, done=self._before + done, total=self._total)

    def add(self, answers: int) -> None:
        """One candidate has answered."""
        self._before += answers
        self(0)


def _opened(model: str, options: dict[str, Any]) -> Subject:
    """A model by its name on the command line."""
    name = SubjectName.parse(model)
    return open_subject(name, column_names([name])[0], **options)


def _written(
    writer: str, split: SearchRows, count: int, seed: int, events: Events, options: dict[str, Any]
) -> list[Candidate]:
    """Candidates that a model writes from rows of the pool."""
    if count < 1 or not split.pool:
        raise UserError("A model writes prompts from training rows: ask for one at least, and give more rows.")
    subject = _opened(writer, options)
    try:
        return written(
            subject, split.pool, count, seed,
            lambda done: events.emit("progress", what="writing prompts", done=done, total=count),
        )  # fmt: skip
    finally:
        subject.close()


def _metric(name: str | None, expected: Sequence[str]) -> tuple[str, Metric]:
    """The metric that candidates are compared by.

    Raises:
        UserError: there is no such metric, or neither direction of it is better.
    """
    if name is None:
        name = main_metric_name(expected)
    metric = metric_named(name, Path.cwd())
    _refuse_unfit(name, metric, expected)
    if metric.better == "neither":
        raise UserError(
            f"metric: {name} only describes answers: neither more nor less of it is better. Use another one."
        )
    return name, metric


def _refuse_unfit(name: str, metric: Metric, expected: Sequence[str]) -> None:
    """Refuse a metric that cannot score answers to some row.

    Raises:
        UserError: it cannot.
    """
    if not fitting({name: metric}, expected):
        raise UserError(f"metric: {name} does not fit every expected answer. Use another one.")


def _target(output: Path) -> Path:
    """The file of the winner.

    Raises:
        UserError: it exists, or cannot be written.
    """
    file = output / PROMPT_FILE if output.is_dir() else output
    refuse_existing(file)
    if output.is_dir():
        refuse_existing(output / RESULT_FILE)
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{output} is neither a run nor a .yaml file. A prompt is written as YAML.")
    if not file.parent.is_dir():
        raise UserError(f"{file.parent} is not a directory. Create it first.")
    return file


def _save(prompt: Prompt, output: Path, result: dict[str, Any]) -> None:
    """Write the winner, and in the directory of a run also the result."""
    if output.is_dir():
        file = output / RESULT_FILE
        with writing(file), atomic_write(file) as out:
            json.dump(jsonable(result), out, indent=2, ensure_ascii=False)
    prompt.save(output)
