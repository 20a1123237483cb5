"""Compare the tuned model with its base on the same held-out rows: loss, perplexity, metrics, samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.data import Data
from tunesmith.config.head import Head
from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import ObjectiveConfig
from tunesmith.config.train import Train
from tunesmith.data.example import Example, Message
from tunesmith.data.prepare import Prepared, held_out_examples, prepare
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.precision import device_of, dtype_of
from tunesmith.errors import UserError
from tunesmith.evaluation.metrics import (
    METRICS,
    bootstrap,
    change_with_interval,
    interval_of,
    mean_with_interval,
    scores,
    wilson,
)
from tunesmith.evaluation.prediction_metrics import PREDICTION_METRICS, Predictions
from tunesmith.inference.generate import Sampling, answers
from tunesmith.inference.held_out import RowLosses, held_out_losses, row_outputs, row_vectors
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.attention import use_cached_attention, use_document_attention
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
    rows: int = 200,
    max_new_tokens: int = 128,
    repetition_penalty: float = 1.0,
    subscribers: Sequence[Subscriber] = (),
) -> dict[str, Any]:
    """Compare a finished run with its base on its held-out rows; write `evaluation.json` into the run.

    Args:
        run: the run's directory.
        rows: how many held-out rows to generate answers for, evenly spaced. The loss covers all rows.
        max_new_tokens: the maximum length of an answer.
        repetition_penalty: for both models' answers; decoding is greedy.
        subscribers: receive `progress` events (what, done, total).

    Returns:
        The content of `evaluation.json`: rows, loss_tokens, generated_rows, base and tuned (loss, loss_interval,
        metrics; perplexity for models that generate text), differences (tuned − base, paired), samples, loss_unit,
        folds (how many models evaluated the rows, each on its own fold; None: one model). Intervals are 95 %
        bootstrap intervals over rows.

    Raises:
        UserError: the run has not finished, or has no held-out rows.
    """
    opened = Run.open(resolve_run(Path(run).absolute()))
    if not opened.finished:
        raise UserError(f"{run} has not finished. Resume it: tunesmith train --resume {run}")
    recipe = Recipe.load(opened.directory / "recipe.yaml")
    events = Events(*subscribers)
    sampling = Sampling(max_new_tokens=max_new_tokens, repetition_penalty=repetition_penalty)
    if (
        recipe.data.folds is not None and recipe.data.fold is None
    ):  # evaluate every row with the model that was not trained on it
        parts = opened.stages[:-1]
        trials = [_trial(part, -(-rows // len(parts)), sampling, events) for part in parts]
    else:
        trials = [_trial(opened.directory, rows, sampling, events)]
    base, tuned = Side.pooled([base for base, *_ in trials]), Side.pooled([tuned for _, tuned, _ in trials])
    result = summarize(base, tuned, [task for *_, tasks in trials for task in tasks], recipe.objective.head)
    result |= {"loss_unit": recipe.objective.loss_unit, "folds": recipe.data.folds if len(trials) > 1 else None}
    opened.write_json("evaluation.json", result)
    return result


def _trial(directory: Path, rows: int, sampling: Sampling, events: Events) -> tuple[Side, Side, list[Task]]:
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
        _side(name, reference, recipe, tokenizer, prepared, tasks, sampling, events)
        for name, reference in (("base", ModelReference(recipe.base, recipe.objective.head)), ("tuned", tuned))
    )
    return base_side, tuned_side, tasks


def summarize(base: Side, tuned: Side, tasks: Sequence[Task], head: Head) -> dict[str, Any]:
    """Each side's figures with intervals, and the paired differences between the sides."""
    expected = [task.expected for task in tasks]
    differences = {"loss": _interval(base.losses.difference(tuned.losses))}
    sides: dict[str, dict[str, Any]] = {"base": _loss(base, head), "tuned": _loss(tuned, head)}
    for name, metric in METRICS.items() if tasks and base.predictions is None else ():
        by_side = {side: scores(metric, one.answers, expected) for side, one in (("base", base), ("tuned", tuned))}
        for side, values in by_side.items():
            sides[side]["metrics"][name] = {**_interval(mean_with_interval(values)), "title": metric.title}
        differences[name] = _interval(change_with_interval(by_side["base"], by_side["tuned"]))
    if base.predictions is not None and tuned.predictions is not None:
        _add_prediction_metrics(sides, differences, base.predictions, tuned.predictions, head.metrics)
    return {
        "rows": len(base.losses.sums),
        "loss_tokens": int(base.losses.counts.sum()),
        "generated_rows": len(tasks),
        **sides,
        "differences": differences,
        "samples": [
            {
                "source": tasks[index].source,
                "prompt": str(tasks[index].chat[-1]["content"]),
                "expected": tasks[index].expected,
                "base": base.answers[index],
                "tuned": tuned.answers[index],
            }
            for index in _spread(len(tasks), SAMPLES)
        ],
    }


def _add_prediction_metrics(
    sides: dict[str, dict[str, Any]],
    differences: dict[str, Any],
    base: Predictions,
    tuned: Predictions,
    names: Sequence[str],
) -> None:
    """Add the metrics over all rows. Each side and the paired difference take intervals from the same resamples."""
    for name in names:
        metric = PREDICTION_METRICS[name]
        fields = {"title": metric.title, "better": metric.better, "unit": metric.unit}
        before, after = (bootstrap(metric.of(side), len(side.outputs)) for side in (base, tuned))
        for side, (value, draws) in (("base", before), ("tuned", after)):
            interval = wilson(value, len(base.outputs)) if metric.of_hits else interval_of(draws)
            sides[side]["metrics"][name] = {**_interval((value, interval)), **fields}
        differences[name] = _interval((after[0] - before[0], interval_of(after[1] - before[1])))


def _side(
    name: str,
    reference: ModelReference,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    tasks: Sequence[Task],
    sampling: Sampling,
    events: Events,
) -> Side:
    device = device_of(recipe.train.device)
    model = reference.model(dtype_of(recipe.precision, device), device)
    if name == "base":
        recipe.objective.initialize_head(model)
    table = prepared.held_out
    events.emit("progress", what=f"{name}: loss", done=0, total=len(table))
    use_document_attention(plain_model(model))
    losses = held_out_losses(model, recipe.objective.build(), table, range(len(table)), _budget(recipe.train))
    events.emit("progress", what=f"{name}: loss", done=len(table), total=len(table))
    head = recipe.objective.head
    if not head.generates_text:
        predictions = _predictions(model, reference, recipe.objective, prepared, _budget(recipe.train))
        texts = [head.describe(output) for output in predictions.outputs] if tasks else []
        return Side(losses, texts, predictions)
    use_cached_attention(plain_model(model))
    texts = answers(
        model,
        tokenizer,
        [task.chat for task in tasks],
        sampling,
        done=lambda count: events.emit("progress", what=f"{name}: answers", done=count, total=len(tasks)),
    )
    return Side(losses, texts)


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


def _tasks(data: Data, formats: Sequence[str], rows: int) -> list[Task]:
    chats = [example for example in held_out_examples(data, formats) if example.messages is not None]
    return [_task(chats[index]) for index in _spread(len(chats), rows)]


def _task(example: Example) -> Task:
    """The last answer, and the messages before it."""
    messages = example.messages or ()
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return Task(messages[:last], str(messages[last]["content"]), str(example.source))


def _spread(total: int, count: int) -> list[int]:
    """`count` indices evenly spaced over `total`, or all of them if there are fewer."""
    return [round(index) for index in np.linspace(0, total - 1, min(count, total))]


def _loss(side: Side, head: Head) -> dict[str, Any]:
    losses = side.losses
    figures = head.loss_metrics(losses.loss)
    return {"loss": losses.loss, "loss_interval": losses.interval(), **figures, "metrics": {}}


def _interval(estimate: tuple[float, tuple[float, float]]) -> dict[str, Any]:
    """The value, and the interval extended to contain it.

    Resampling adds noise, which increases a calibration error, so that all of its resamples may lie above the value.
    """
    value, (low, high) = estimate
    return {"value": value, "interval": (min(low, value), max(high, value))}
