"""`tunesmith evaluate`: models side by side on the same rows, each figure with its interval and its differences."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.extensions import failures_named
from tunesmith.engine.allocator import keep_freed_memory
from tunesmith.errors import UserError
from tunesmith.evaluation.budget import budget_for, seconds_of
from tunesmith.evaluation.classification import error_tables
from tunesmith.evaluation.figures import LOSS, Figures, Side, cases_of, figures_of, samples_of, token_counts_differ
from tunesmith.evaluation.forgetting_curve import TOLERANCE, CurveOptions
from tunesmith.evaluation.gate import Gate, checked
from tunesmith.evaluation.judging import Judged, open_judging
from tunesmith.evaluation.keeping import Keeping
from tunesmith.evaluation.leakage import Leaks, leaks_of, without_leaked
from tunesmith.evaluation.measuring import Asked, Measurement, Trial, measure
from tunesmith.evaluation.opening import Opening, Wanted, extensions_of, names_of, run_alone
from tunesmith.evaluation.rows import EvaluationRows, spread
from tunesmith.evaluation.suite import open_suites, storages_of
from tunesmith.evaluation.summary import summary
from tunesmith.exporting.card import write_run_card
from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.result_cache import digest_of
from tunesmith.inference.sampling import Sampling
from tunesmith.metrics import METRICS, SHOWN_WHERE_THEY_DIFFER, Case, Metric, without_repeats
from tunesmith.run import Events, Subscriber, atomic_write, jsonable, writing
from tunesmith.statistics.measured import ratio_of
from tunesmith.subjects.subject import ChatPrompt

SAMPLES = 5
"""Rows whose answers are shown."""

CURVE_ROWS = 32
"""Rows that each checkpoint answers, at most: there may be many of them."""

FILE = "evaluation.json"


@keep_freed_memory()
def evaluate(
    models: str | Path | Sequence[str | Path],
    rows: int | None = 200,
    max_new_tokens: int = 128,
    repetition_penalty: float = 1.0,
    subscribers: Sequence[Subscriber] = (),
    metrics: Mapping[str, Metric] = METRICS,
    *,
    data: str | Path | Sequence[str | Path] | None = None,
    suites: Sequence[str] = (),
    suite_options: Mapping[str, Mapping[str, str]] | None = None,
    gate: str | Path | None = None,
    output: str | Path | None = None,
    concurrent: int = CONCURRENT,
    device: str = "auto",
    cache: bool = True,
    budget: str | None = None,
    judge: str | Path | None = None,
    rubric: str | Path | None = None,
    judge_pairs: bool = False,
    labels: str | Path | None = None,
    checkpoints: bool = False,
    how_to_keep: bool = False,
    rerun_steps: int | None = None,
    tolerance: float = TOLERANCE,
    prompt: ChatPrompt | None = None,
    leakage: bool = False,
) -> dict[str, Any]:
    """Evaluate models side by side on the same rows. A run alone is compared with its own base.

    Args:
        models: a name, or several: runs, checkpoints (`RUN/checkpoints/step-…`), adapters, model directories, GGUF
            files, hub names, any of these with `@int8`, `@nf4`, `@fp4`, `@bf16`, `@fp32` or `@gguf:KIND`, and servers
            (`http://HOST/v1#MODEL`). The first is the one that the others are compared with.
        rows: how many rows to generate answers for, evenly spaced; None: all. The loss covers all rows. 0: only the
            suites are measured.
        max_new_tokens: the maximum length of an answer.
        repetition_penalty: for all models' answers; decoding is greedy.
        subscribers: receive `progress` events (what, done, total), and `figures` events as soon as figures are known.
        metrics: of generated answers, by name; those that fit every expected answer are computed. Models that predict
            something about texts have the metrics of their head instead.
        data: files of rows; None: the held-out rows of the first run among the models.
        suites: names of `tunesmith.evaluation.suite.SUITES`, or `module:Class` of your own.
        suite_options: by suite, then by option, such as `{"topic": {"refusal": "That is not my job."}}`.
        gate: a file of limits, which the result then says to be met or not.
        output: a directory for `evaluation.json`; None: a run that is evaluated alone has it in its own directory, and
            the model card beside its weights is written again.
        concurrent: the most answers that are computed at the same time; figures do not depend on it.
        device: for the models of this process.
        cache: whether answers and losses are kept in the user's cache, and read from it.
        budget: a time such as `10min`: as many rows are answered and measured by suites, up to `rows`, as it allows, by
            how long the first model takes for a few of them.
        judge: a model that scores the answers, named as in `models`.
        rubric: a text file that says what makes an answer good; None: `tunesmith.subjects.judge.RUBRIC`.
        judge_pairs: the judge says which of two answers is better, the first model's or another's, and gives no scores.
        labels: a file of people's scores or preferences of some answers, as `tunesmith.evaluation.labels` reads them.
        checkpoints: of a run alone: also what each of its kept checkpoints gained and forgot, and how it answers 32 of
            the rows at most.
        how_to_keep: of a run alone: also what short reruns of it gain and forget, at lower rates and with replay.
        rerun_steps: the most steps of a rerun; None: 100, or with `budget` what half of that time allows.
        tolerance: with `checkpoints` or `how_to_keep`, how much of its loss on general text the base may lose.
        prompt: put before the chats of all models, a `tunesmith.Prompt`. The loss is then that of each chat's last
            answer after the prompt. It is written beside `evaluation.json`.
        leakage: also all figures of the rows without those that the run was trained on too, or nearly.

    Returns:
        The content of `evaluation.json`: `rows`, where they come from (`data`) and the SHA-256 of what they say
        (`data_sha256`), `loss_tokens`, `generated_rows`;
        `figures`: title, explanation, unit and direction of each; `models`: value, 95 % interval and rows of each
        figure by model; `reference`, and `differences` from it by model and figure, paired by row, with Holm's
        correction over all `comparisons`; `left_out`: why, by a form of a model that cannot be computed here, or by
        figures that a model cannot have;
        `samples`; `gate`; `classification`: confusion matrix and reliability diagram by model, if they predict one
        class for each text; `loss_unit`; `folds` (how many models evaluated the rows, each on its own fold; None: one
        model); `budget`: what it allowed; `judge`: how far it can be trusted, by model; `checkpoints` and
        `how_to_keep`: as `ForgettingCurve.described`; `prompt`: as `Prompt.described`, with `notes` by model on
        what its context has no room for; None: no prompt; `leakage`: as `without_leaked`; None: not asked for.

    Raises:
        UserError: a model or the rows cannot be read, or do not fit each other; a run has not finished; a user's
            objective, head, metric or suite fails.
    """
    names = names_of(models)
    paths = None if data is None else [str(path) for path in ([data] if isinstance(data, str | Path) else data)]
    limits = None if gate is None else Gate.load(Path(gate))
    general = (suite_options or {}).get("forgetting", {}).get("general")
    sampling = Sampling(max_new_tokens, repetition_penalty=repetition_penalty)
    options = CurveOptions(
        data=paths, general=general, tolerance=tolerance, sampling=sampling,
        answered=CURVE_ROWS if rows is None else min(rows, CURVE_ROWS),
        concurrent=concurrent, device=device, cache=cache, subscribers=subscribers,
    )  # fmt: skip
    keeping = Keeping(checkpoints, how_to_keep, rerun_steps, options)
    seconds, rerun_seconds = keeping.budgets(None if budget is None else seconds_of(budget))
    also = ("forgetting",) if keeping.is_asked_for else ()
    measured_suites = open_suites(suites, suite_options, also)
    storages = storages_of(measured_suites)
    own = None if storages else run_alone(models)
    keeping.refuse(own)
    if prompt is not None and keeping.is_asked_for:
        raise UserError("--checkpoints and --how-to-keep evaluate without a prompt. Leave --prompt out.")
    wanted = Wanted(names, paths, rows, bool(suites))
    opening = Opening(concurrent, device, cache, subscribers)
    with failures_named(extensions_of(names)):
        if own is not None:
            trials = opening.run(own, wanted)
        else:
            trials = [opening.forms(wanted, storages) if storages else opening.models(wanted)]
        if prompt is not None:
            trials = [_with_prompt(trial, prompt) for trial in trials]
        count = (
            rows if rows is None or len(trials) == 1 else -(-rows // sum(trial.fold is not None for trial in trials))
        )
        probed = open_suites(suites, suite_options, also) if seconds is not None else {}
        allowed = None if seconds is None else budget_for(trials, probed, sampling, seconds)
        if allowed is not None:
            count = min(count or allowed.rows, allowed.rows)
        judging = open_judging(
            None if judge is None else str(judge), rubric, judge_pairs, labels, trials, count,
            concurrent=concurrent, device=device, keeps=cache,
        )  # fmt: skip
        asked = Asked(metrics, sampling, count, Events(*subscribers))
        last = len(trials) - 1
        measured = [measure(trial, asked, measured_suites if at == last else {}) for at, trial in enumerate(trials)]
        judged = None if judging is None else judging.judged(_cases(measured), asked.events)
        leaks = leaks_of(trials) if leakage else None
        result = _result(trials, measured, metrics, judged, prompt is not None, leaks)
        if own is not None:
            result |= keeping.sections(own, rerun_seconds)
    result["prompt"] = None if prompt is None else prompt.described() | {"notes": _notes(trials)}
    result["budget"] = None if allowed is None else allowed.described()
    result["gate"] = None if limits is None else checked(limits, result)
    if own is not None and output is None:
        own.write_json(FILE, result)
        write_run_card(own.directory)
    if output is not None:
        _write(Path(output), result)
    where = Path(output) if output is not None else None if own is None else own.directory
    if prompt is not None and where is not None:
        prompt.save(where)
    return result


def _with_prompt(trial: Trial, prompt: ChatPrompt) -> Trial:
    """The trial with a prompt before all models' chats."""
    return replace(trial, subjects=[prompt.before(subject) for subject in trial.subjects])


def _notes(trials: Sequence[Trial]) -> dict[str, str]:
    """What models' contexts had no room for, by column."""
    renderers = {each.name: getattr(each, "renderer", None) for trial in trials for each in trial.subjects}
    return {name: each.note for name, each in renderers.items() if each is not None and each.note is not None}


def _cases(measured: Sequence[Measurement]) -> dict[str, list[Case]]:
    """All answers, by column."""
    sides = [(column, side, each.tasks) for each in measured for column, side in each.sides.items()]
    cases: dict[str, list[Case]] = {column: [] for column, *_ in sides}
    for column, side, tasks in sides:
        cases[column] += cases_of(side.answers, tasks)
    return cases


def _result(
    trials: Sequence[Trial],
    measured: Sequence[Measurement],
    metrics: Mapping[str, Metric],
    judged: Judged | None,
    is_prompted: bool,
    leaks: Leaks | None,
) -> dict[str, Any]:
    """The content of `evaluation.json`, without the gate. With a prompt, the losses are of chats' last answers."""
    left_out = {**trials[0].left_out, **measured[-1].left_out}
    columns = [subject.name for subject in trials[0].subjects if subject.name not in left_out]
    tasks = [task for each in measured for task in each.tasks]
    rows = trials[0].rows
    sides: dict[str, Side] = {}
    models: dict[str, Figures] = {column: {} for column in columns}
    if rows is not None:
        sides = {column: Side.pooled([each.sides[column] for each in measured if each.sides]) for column in columns}
        objective = rows.objective
        models = {
            column: figures_of(side, tasks, objective.head, metrics, objective.loss_unit)
            for column, side in sides.items()
        }
        if token_counts_differ(list(sides.values())):
            models = {
                column: _per_byte(figures, sides[column], rows.answer_bytes(sides[column].units, is_prompted))
                for column, figures in models.items()
            }
    models = without_repeats(models, SHOWN_WHERE_THEY_DIFFER)
    for column in columns:
        models[column] |= {} if judged is None else judged.figures.get(column, {})
        models[column] |= measured[-1].suites[column]
    losses = next((side.losses for side in sides.values() if side.losses is not None), None)
    folds = sum(trial.fold is not None for trial in trials)
    return {
        "rows": len(tasks) if losses is None else len(losses.sums),
        "data": None if rows is None else rows.origin,
        "data_sha256": _fingerprint([trial.rows for trial in trials if trial.rows is not None]),
        "loss_tokens": None if losses is None else int(losses.counts.sum()),
        "generated_rows": len(tasks),
        **summary(models, columns[0]),
        "leakage": None if leaks is None else without_leaked(models, leaks, columns[0]),
        "left_out": left_out,
        "samples": samples_of(
            tasks, {column: side.answers for column, side in sides.items()}, spread(len(tasks), SAMPLES)
        ),
        "classification": None if rows is None else _error_tables(rows, sides),
        "loss_unit": None if rows is None else rows.objective.loss_unit,
        "folds": folds or None,
        "judge": None if judged is None else judged.report,
    }


def _fingerprint(rows: Sequence[EvaluationRows]) -> str | None:
    """Of all rows; of those of several folds, of the folds' fingerprints."""
    own = [each.fingerprint for each in rows]
    return own[0] if len(own) == 1 else digest_of(own) if own else None


def _error_tables(rows: EvaluationRows, sides: Mapping[str, Side]) -> dict[str, Any] | None:
    """By model; None unless they predict one class for each text."""
    if "calibration_error" not in rows.objective.head.metrics:
        return None
    return {column: error_tables(side.predictions) for column, side in sides.items() if side.predictions is not None}


def _per_byte(figures: Figures, side: Side, lengths: NDArray[np.int64] | None) -> Figures:
    """The figures of a model beside one with another tokenizer: its loss is compared per byte, since tokens differ."""
    if side.losses is None:
        return figures
    found: Figures = {LOSS: replace(figures[LOSS], is_compared=False)}
    if lengths is not None:
        explanation = "the loss of a byte of the answers, which no tokenizer changes"
        bits = side.losses.sums / math.log(2)
        found["bits_per_byte"] = ratio_of(bits, lengths, side.units, "bits per byte", explanation, "lower", "bits")
    return found | {name: each for name, each in figures.items() if name != LOSS}


def _write(directory: Path, result: dict[str, Any]) -> None:
    """Write `evaluation.json`.

    Raises:
        UserError: it cannot be written.
    """
    with writing(directory / FILE):
        directory.mkdir(parents=True, exist_ok=True)
        with atomic_write(directory / FILE) as file:
            json.dump(jsonable(result), file, indent=2, ensure_ascii=False)
