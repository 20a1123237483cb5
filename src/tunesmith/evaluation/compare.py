"""Compare the tuned model with its base on the same held-out rows: loss, perplexity, metrics, samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.data import Data
from tunesmith.config.extensions import failures_named
from tunesmith.config.head import Head
from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import ObjectiveConfig
from tunesmith.config.train import Train
from tunesmith.data.example import Example, Message
from tunesmith.data.prepare import Prepared, held_out_examples, prepare
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.evaluation.metrics import METRICS, Metric, fitting, scores
from tunesmith.evaluation.prediction_metrics import PREDICTION_METRICS, PredictionMetric, Predictions
from tunesmith.evaluation.statistics import (
    bootstrap,
    change_with_interval,
    interval_of,
    mean_with_interval,
    wilson,
)
from tunesmith.inference.generate import Generator
from tunesmith.inference.held_out import RowLosses, held_out_losses, row_outputs, row_vectors
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.sampling import Sampling
from tunesmith.models.attention import use_document_attention
from tunesmith.models.precision import device_of, dtype_of
from tunesmith.models.prompts import plain_model
from tunesmith.run import Events, Run, Subscriber, resolve_run

SAMPLES = 5


@dataclass(frozen=True, slots=True)
class Task:
    """A question from a held-out row, and the expected answer."""

    chat: tuple[Message, ...]
    expected: str
    source: str


@dataclass(frozen=True, slots=True)
class Side:
    """One model's results: its loss on every row, its answers to the tasks, and its predictions if it has a head."""

    losses: RowLosses
    answers: list[str]
    predictions: Predictions | None = None

    @classmethod
    def pooled(cls, sides: Sequence["Side"]) -> "Side":
        """Pool the results of several models, each on its own rows."""
        sums, counts = ([getattr(side.losses, name) for side in sides] for name in ("sums", "counts"))
        losses = RowLosses(np.concatenate(sums), np.concatenate(counts))
        all_predictions = [side.predictions for side in sides if side.predictions is not None]
        predictions = None
        if all_predictions:
            outputs = [row for part in all_predictions for row in part.outputs]
            targets = [row for part in all_predictions for row in part.targets]
            models = [number for number, part in enumerate(all_predictions) for _ in part.outputs]
            predictions = Predictions(outputs, targets, all_predictions[0].labels, models)
        return cls(losses, [answer for side in sides for answer in side.answers], predictions)


def evaluate(
    run: str | Path,
    rows: int | None = 200,
    max_new_tokens: int = 128,
    repetition_penalty: float = 1.0,
    subscribers: Sequence[Subscriber] = (),
    metrics: Mapping[str, Metric] = METRICS,
) -> dict[str, Any]:
    """Compare a finished run with its base on its held-out rows; write `evaluation.json` into the run.

    Args:
        run: the run's directory.
        rows: how many held-out rows to generate answers for, evenly spaced; None: all. The loss covers all rows.
        max_new_tokens: the maximum length of an answer.
        repetition_penalty: for both models' answers; decoding is greedy.
        subscribers: receive `progress` events (what, done, total), and `figures` events as soon as a figure is known:
            the base's loss, the base's metrics, then the tuned model's.
        metrics: of generated answers, by name; those that fit every expected answer are computed. Models that predict
            something about texts have the metrics of their head instead.

    Returns:
        The content of `evaluation.json`: rows, loss_tokens, generated_rows, base and tuned (loss, loss_interval,
        metrics with value, interval, title and explanation; perplexity for models that generate text), differences
        (tuned − base, paired), samples, loss_unit, folds (how many models evaluated the rows, each on its own fold;
        None: one model). Intervals are 95 % bootstrap intervals over rows.

    Raises:
        UserError: the run has not finished, or has no held-out rows; or a user's objective, head or metric fails.
    """
    opened = Run.open(resolve_run(Path(run).absolute()))
    if not opened.finished:
        raise UserError(f"{run} has not finished. Resume it: tunesmith train --resume {run}")
    recipe = Recipe.load(opened.directory / "recipe.yaml")
    events = Events(*subscribers)
    sampling = Sampling(max_new_tokens=max_new_tokens, repetition_penalty=repetition_penalty)
    with failures_named(recipe.extensions):
        if recipe.data.folds is None or recipe.data.fold is not None:
            trials = [_trial(opened.directory, rows, sampling, metrics, events)]
        else:  # evaluate every row with the model that was not trained on it
            parts = opened.stages[:-1]
            share = None if rows is None else -(-rows // len(parts))
            trials = [_trial(part, share, sampling, metrics, events, fold) for fold, part in enumerate(parts, 1)]
    base, tuned = Side.pooled([base for base, *_ in trials]), Side.pooled([tuned for _, tuned, _ in trials])
    result = summarize(base, tuned, [task for *_, tasks in trials for task in tasks], recipe.objective.head, metrics)
    result |= {"loss_unit": recipe.objective.loss_unit, "folds": recipe.data.folds if len(trials) > 1 else None}
    opened.write_json("evaluation.json", result)
    return result


def _trial(
    directory: Path,
    rows: int | None,
    sampling: Sampling,
    metrics: Mapping[str, Metric],
    events: Events,
    fold: int | None = None,
) -> tuple[Side, Side, list[Task]]:
    """Evaluate base and tuned model on a run's own held-out rows."""
    recipe = Recipe.load(directory / "recipe.yaml")
    tuned = ModelReference.find(str(directory))
    tokenizer = tuned.tokenizer()
    prepared = prepare(recipe, tokenizer)
    if not len(prepared.held_out):
        raise UserError(
            f"{directory} has no held-out rows to evaluate on. Set data.held_out, or data.folds, in a new run."
        )
    tasks = (
        _tasks(recipe.data, recipe.objective.formats, rows)
        if recipe.objective.head.generates_text
        else _texts(recipe.data, recipe.objective, prepared.held_out)
    )
    base_side, tuned_side = (
        _side(name, reference, recipe, tokenizer, prepared, tasks, sampling, metrics, events, fold)
        for name, reference in (("base", ModelReference(recipe.base, recipe.objective.head)), ("tuned", tuned))
    )
    return base_side, tuned_side, tasks


def summarize(
    base: Side, tuned: Side, tasks: Sequence[Task], head: Head, metrics: Mapping[str, Metric] = METRICS
) -> dict[str, Any]:
    """Each side's figures with intervals, and the paired differences between the sides."""
    if base.predictions is not None and tuned.predictions is not None:
        before, after, differences = _compared_predictions(base.predictions, tuned.predictions, head.metrics)
    else:
        before, after, differences = _compared_answers(base.answers, tuned.answers, tasks, metrics)
    return {
        "rows": len(base.losses.sums),
        "loss_tokens": int(base.losses.counts.sum()),
        "generated_rows": len(tasks),
        "base": {**_loss(base, head), "metrics": before},
        "tuned": {**_loss(tuned, head), "metrics": after},
        "differences": {"loss": with_interval(base.losses.difference(tuned.losses)), **differences},
        "samples": [
            {
                "source": tasks[index].source,
                "prompt": str(tasks[index].chat[-1]["content"]),
                "expected": tasks[index].expected,
                "base": base.answers[index],
                "tuned": tuned.answers[index],
            }
            for index in spread(len(tasks), SAMPLES)
        ],
    }


Figures = dict[str, Any]
"""By metric, as in `evaluation.json`."""


def _compared_answers(
    base: Sequence[str], tuned: Sequence[str], tasks: Sequence[Task], metrics: Mapping[str, Metric]
) -> tuple[Figures, Figures, Figures]:
    """The figures of each side's answers, and their paired differences."""
    before, after = (scored(side, tasks, metrics) for side in (base, tuned))
    differences = {name: with_interval(change_with_interval(before[name], after[name])) for name in before}
    return score_figures(before, metrics), score_figures(after, metrics), differences


def scored(
    answers: Sequence[str], tasks: Sequence[Task], metrics: Mapping[str, Metric]
) -> dict[str, NDArray[np.float64]]:
    """The score of each answer (rows,), by metric."""
    expected = [task.expected for task in tasks]
    return {name: scores(metric, answers, expected) for name, metric in fitting(metrics, expected).items()}


def score_figures(scores: Mapping[str, NDArray[np.float64]], metrics: Mapping[str, Metric]) -> Figures:
    """The mean of each metric's scores (rows,), with its interval."""
    return {name: with_interval(mean_with_interval(values)) | _about(metrics[name]) for name, values in scores.items()}


Resampled = tuple[float, NDArray[np.float64]]
"""A figure over all rows, and over each bootstrap resample (resamples,)."""


def _compared_predictions(
    base: Predictions, tuned: Predictions, names: Sequence[str]
) -> tuple[Figures, Figures, Figures]:
    """The figures of each side's predictions, and their differences, which are paired: both have the same resamples."""
    before, after = (_resampled(side, names) for side in (base, tuned))
    differences = {
        name: with_interval((after[name][0] - before[name][0], interval_of(after[name][1] - before[name][1])))
        for name in names
    }
    rows = len(base.outputs)
    return _prediction_figures(before, rows), _prediction_figures(after, rows), differences


def _resampled(predictions: Predictions, names: Sequence[str]) -> dict[str, Resampled]:
    """Each metric over all rows, and over each resample of them."""
    return {name: bootstrap(PREDICTION_METRICS[name].of(predictions), len(predictions.outputs)) for name in names}


def _prediction_figures(resampled: Mapping[str, Resampled], rows: int) -> Figures:
    figures = {}
    for name, (value, draws) in resampled.items():
        metric = PREDICTION_METRICS[name]
        interval = wilson(value, rows) if metric.of_hits else interval_of(draws)
        fields = {"better": metric.better, "unit": metric.unit}
        figures[name] = with_interval((value, interval)) | _about(metric) | fields
    return figures


def _about(metric: Metric | PredictionMetric) -> dict[str, Any]:
    return {"title": metric.title, "explanation": metric.explanation}


def _side(
    name: str,
    reference: ModelReference,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    tasks: Sequence[Task],
    sampling: Sampling,
    metrics: Mapping[str, Metric],
    events: Events,
    fold: int | None,
) -> Side:
    """Measure one model, and emit each figure as soon as it is known."""
    device = device_of(recipe.train.device)
    head, table = recipe.objective.head, prepared.held_out
    within = "" if fold is None else f", fold {fold}"
    model = reference.model(dtype_of(recipe.precision, device), device)
    if name == "base":
        recipe.objective.initialize_head(model)
    events.emit("progress", what=f"{name}: loss{within}", done=0, total=len(table))
    use_document_attention(plain_model(model))
    losses = held_out_losses(model, recipe.objective.build(), table, range(len(table)), _budget(recipe.train))
    events.emit("progress", what=f"{name}: loss{within}", done=len(table), total=len(table))
    events.emit("figures", side=name, fold=fold, **_loss(Side(losses, []), head))
    if head.generates_text:
        generator = Generator.of(reference, model.dtype, device, loaded=model, tokenizer=tokenizer)
        texts = _answers(f"{name}: answers{within}", generator, tasks, sampling, events)
        figures = score_figures(scored(texts, tasks, metrics), metrics)
        events.emit("figures", side=name, fold=fold, metrics=figures)
        return Side(losses, texts)
    predictions = _predictions(model, reference, recipe.objective, prepared, _budget(recipe.train))
    figures = _prediction_figures(_resampled(predictions, head.metrics), len(table))
    events.emit("figures", side=name, fold=fold, metrics=figures)
    texts = [head.describe(output) for output in predictions.outputs] if tasks else []
    return Side(losses, texts, predictions)


def _answers(what: str, generator: Generator, tasks: Sequence[Task], sampling: Sampling, events: Events) -> list[str]:
    """The model's answers to the tasks, with `progress` events from the start to the end."""

    def emit(done: int) -> None:
        events.emit("progress", what=what, done=done, total=len(tasks))

    emit(0)
    return generator.answers([task.chat for task in tasks], sampling, emit)


def _budget(train: Train) -> int:
    """The most tokens in a batch."""
    return train.tokens_per_batch or 2048


def _predictions(
    model: PreTrainedModel, reference: ModelReference, objective: ObjectiveConfig, prepared: Prepared, budget: int
) -> Predictions:
    """The model's predictions for every held-out row.

    If the objective has a classifier of vectors and the model has none (the base), one is fitted on the model's vectors
    of the training rows.
    """
    head, table = objective.head, prepared.held_out
    classifier = reference.classifier() or objective.build().fit_classifier(
        lambda: row_vectors(head, model, prepared.train, budget)
    )
    targets = [head.targets(table.targets_of(row)) for row in range(len(table))]
    return Predictions(row_outputs(head, model, table, budget, classifier), targets, head.labels)


def _texts(data: Data, objective: ObjectiveConfig, table: TokenTable) -> list[Task]:
    """Every held-out text with its target as text; none if targets have no text form."""
    expected = [objective.head.describe_target(table.targets_of(row)) for row in range(len(table))]
    if None in expected:
        return []
    texts = {str(example.source): str(example.text) for example in held_out_examples(data, objective.formats)}
    sources = [str(table.source(row)) for row in range(len(table))]
    return [
        Task(({"role": "user", "content": texts[source]},), str(target), source)
        for source, target in zip(sources, expected, strict=True)
    ]


def _tasks(data: Data, formats: Sequence[str], rows: int | None) -> list[Task]:
    chats = [example for example in held_out_examples(data, formats) if example.messages is not None]
    return [task_of(chats[index]) for index in spread(len(chats), len(chats) if rows is None else rows)]


def task_of(example: Example) -> Task:
    """The last answer, and the messages before it."""
    messages = example.messages or ()
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return Task(messages[:last], str(messages[last]["content"]), str(example.source))


def spread(total: int, count: int) -> list[int]:
    """`count` indices evenly spaced over `total`, or all of them if there are fewer."""
    return [round(index) for index in np.linspace(0, total - 1, min(count, total))]


def _loss(side: Side, head: Head) -> dict[str, Any]:
    losses = side.losses
    figures = head.loss_metrics(losses.loss)
    return {"loss": losses.loss, "loss_interval": losses.interval(), **figures}


def with_interval(estimate: tuple[float, tuple[float, float]]) -> dict[str, Any]:
    """The value, and the interval extended to contain it.

    Resampling adds noise, which increases a calibration error, so that all of its resamples may lie above the value.
    """
    value, (low, high) = estimate
    return {"value": value, "interval": (min(low, value), max(high, value))}
