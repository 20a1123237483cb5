"""Compare the tuned model with its base on the same held-out rows: loss, perplexity, metrics, samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Example, Message
from tunesmith.data.prepare import Prepared, held_out_examples, prepare
from tunesmith.data.tokens import TokenTable
from tunesmith.ending import Ending
from tunesmith.engine.held_out import RowLosses, held_out_losses, outputs_of, rows_with_vectors
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
from tunesmith.inference.predict import predictions_of, spans_of
from tunesmith.models.attention import use_cached_attention, use_document_attention
from tunesmith.models.model_reference import ModelReference
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
    result = summarize(base, tuned, [task for *_, tasks in trials for task in tasks], recipe.objective.metrics)
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
    generates_text = recipe.objective.ending.kind == "vocabulary"
    tasks = _tasks(recipe, rows) if generates_text else _texts(recipe, prepared.held_out)
    base_side, tuned_side = (
        _side(name, reference, recipe, tokenizer, prepared, tasks, sampling, events)
        for name, reference in (("base", ModelReference(recipe.base, ending=recipe.objective.ending)), ("tuned", tuned))
    )
    return base_side, tuned_side, tasks


def summarize(base: Side, tuned: Side, tasks: Sequence[Task], prediction_metrics: Sequence[str] = ()) -> dict[str, Any]:
    """Each side's figures with intervals, and the paired differences between the sides."""
    expected = [task.expected for task in tasks]
    differences = {"loss": _interval(base.losses.difference(tuned.losses))}
    sides: dict[str, dict[str, Any]] = {"base": _loss(base), "tuned": _loss(tuned)}
    for name, metric in METRICS.items() if tasks and base.predictions is None else ():
        by_side = {side: scores(metric, one.answers, expected) for side, one in (("base", base), ("tuned", tuned))}
        for side, values in by_side.items():
            sides[side]["metrics"][name] = {**_interval(mean_with_interval(values)), "described": metric.described}
        differences[name] = _interval(change_with_interval(by_side["base"], by_side["tuned"]))
    if base.predictions is not None and tuned.predictions is not None:
        _add_prediction_metrics(sides, differences, base.predictions, tuned.predictions, prediction_metrics)
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
        fields = {"described": metric.described, "better": metric.better, "unit": metric.unit}
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
    if name == "base" and recipe.objective.ending.has_head:
        recipe.objective.set_up(model, recipe.base)  # initialize its untrained head
    table = prepared.held_out
    events.emit("progress", what=f"{name}: loss", done=0, total=len(table))
    losses = _losses(model, recipe, table, device)
    events.emit("progress", what=f"{name}: loss", done=len(table), total=len(table))
    if recipe.objective.ending.kind != "vocabulary":
        predictions = _predictions(model, reference, recipe, prepared)
        ending = recipe.objective.ending
        texts = [_describe(output, ending) for output in predictions.outputs] if tasks else []
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


def _losses(model: PreTrainedModel, recipe: Recipe, table: TokenTable, device: torch.device) -> RowLosses:
    use_document_attention(plain_model(model))
    budget = recipe.train.tokens_per_batch or 2048
    return held_out_losses(model, recipe.objective, table, range(len(table)), budget, device)


def _predictions(model: PreTrainedModel, reference: ModelReference, recipe: Recipe, prepared: Prepared) -> Predictions:
    """The model's predictions for every held-out row.

    If the objective has a head on vectors and the model has none (the base), one is fitted on the model's vectors of
    the training rows.
    """
    objective, table = recipe.objective, prepared.held_out
    budget = recipe.train.tokens_per_batch or 2048
    head = reference.head()
    if head is None:
        head = objective.fit_head(model, lambda: rows_with_vectors(objective, model, prepared.train, budget))
    shape = (-1, 1) if objective.ending.kind == "tags" else (1, -1)
    targets = [table.targets_of(row).reshape(shape) for row in range(len(table))]
    return Predictions(outputs_of(objective, model, table, budget, head), targets, objective.ending.labels)


def _describe(output: NDArray[np.float32], ending: Ending) -> str:
    """A row's prediction as text, from its outputs (positions, outputs)."""
    if ending.kind == "tags":
        return _describe_tags(output.argmax(-1), ending)
    return ", ".join(map(str, predictions_of(output, ending))) or "(none)"


def _describe_target(target: NDArray[np.float32], ending: Ending) -> str:
    """A row's target (values,) as text."""
    if ending.kind == "tags":
        return _describe_tags(target.astype(np.int64), ending)
    if ending.problem == "single_label_classification":
        return ending.labels[int(target[0])]
    return _describe(target[None], ending)


def _describe_tags(tags: NDArray[np.int64], ending: Ending) -> str:
    spans = spans_of([ending.labels[int(tag)] for tag in tags])
    return ", ".join(f"{label} ({_word_range(first + 1, end)})" for first, end, label in spans) or "(none)"


def _word_range(first: int, last: int) -> str:
    return f"word {first}" if first == last else f"words {first}–{last}"


def _texts(recipe: Recipe, table: TokenTable) -> list[Task]:
    """Every held-out text with its target as text; none for embeddings, whose targets have no text form."""
    ending = recipe.objective.ending
    if ending.kind == "vectors" and not ending.labels:
        return []
    texts = {str(example.source): str(example.text) for example in held_out_examples(recipe)}
    sources = [str(table.source(row)) for row in range(len(table))]
    return [
        Task(({"role": "user", "content": texts[source]},), _describe_target(table.targets_of(row), ending), source)
        for row, source in enumerate(sources)
    ]


def _tasks(recipe: Recipe, rows: int) -> list[Task]:
    chats = [example for example in held_out_examples(recipe) if example.messages is not None]
    return [_task(chats[index]) for index in _spread(len(chats), rows)]


def _task(example: Example) -> Task:
    """The last answer, and the messages before it."""
    messages = example.messages or ()
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return Task(messages[:last], str(messages[last]["content"]), str(example.source))


def _spread(total: int, count: int) -> list[int]:
    """`count` indices evenly spaced over `total`, or all of them if there are fewer."""
    return [round(index) for index in np.linspace(0, total - 1, min(count, total))]


def _loss(side: Side) -> dict[str, Any]:
    losses = side.losses
    perplexity = {"perplexity": losses.perplexity} if side.predictions is None else {}
    return {"loss": losses.loss, "loss_interval": losses.interval(), **perplexity, "metrics": {}}


def _interval(estimate: tuple[float, tuple[float, float]]) -> dict[str, Any]:
    """The value, and the interval extended to contain it.

    Resampling adds noise, which increases a calibration error, so that all of its resamples may lie above the value.
    """
    value, (low, high) = estimate
    return {"value": value, "interval": (min(low, value), max(high, value))}
