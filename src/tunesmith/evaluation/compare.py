"""The tuned model beside its base on the same held-out rows: loss, perplexity, metrics of what they write, samples."""

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
    change_with_interval,
    drawn_again,
    interval_of,
    mean_with_interval,
    scores,
    wilson,
)
from tunesmith.evaluation.prediction_metrics import PREDICTION_METRICS, Predictions
from tunesmith.models.attention import use_cached_attention, use_document_attention
from tunesmith.models.generate import Sampling, answers
from tunesmith.models.model_reference import ModelReference
from tunesmith.models.predict import predictions_of, spans_of
from tunesmith.models.prompts import plain_model
from tunesmith.run import Events, Run, Subscriber, whole_run

SAMPLES = 5


@dataclass(frozen=True, slots=True)
class Task:
    """A question from a held-out row and the answer that the row gives."""

    chat: tuple[Message, ...]
    expected: str
    source: str


@dataclass(frozen=True, slots=True)
class Side:
    """What one model does: its loss on every row, its answers to the tasks, what it tells of the rows if it tells."""

    losses: RowLosses
    answers: list[str]
    predictions: Predictions | None = None

    @classmethod
    def pooled(cls, sides: Sequence["Side"]) -> "Side":
        """What several models do, each on rows of its own."""
        sums, counts = ([getattr(side.losses, name) for side in sides] for name in ("sums", "counts"))
        losses = RowLosses(np.concatenate(sums), np.concatenate(counts))
        all_predictions = [side.predictions for side in sides if side.predictions is not None]
        predictions = None
        if all_predictions:
            said, told = ([row for each in all_predictions for row in getattr(each, name)] for name in ("said", "told"))
            models = [number for number, each in enumerate(all_predictions) for _ in each.said]
            predictions = Predictions(said, told, all_predictions[0].labels, models)
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
        rows: how many held-out rows to write answers to, spread evenly; the loss is taken over all.
        max_new_tokens: at which an answer is cut.
        repetition_penalty: of both models' answers, which are otherwise the likeliest token each time.
        subscribers: told of `progress` events (what, done, total).

    Returns:
        What is in `evaluation.json`: rows, loss_tokens, generated_rows, base and tuned (loss, loss_interval,
        metrics; perplexity, where they write), differences (tuned − base, paired), samples, loss_unit, folds (whose
        models judged the rows; None: one model did). Intervals are 95 % bootstrap over rows.

    Raises:
        UserError: the run has not finished, or has no held-out rows.
    """
    place = Run.open(whole_run(Path(run).absolute()))
    if not place.finished:
        raise UserError(f"{run} has not finished. tunesmith train --resume {run}")
    recipe = Recipe.load(place.directory / "recipe.yaml")
    events = Events(*subscribers)
    sampling = Sampling(max_new_tokens=max_new_tokens, repetition_penalty=repetition_penalty)
    if recipe.data.folds is not None and recipe.data.fold is None:  # every row by the model that has not seen it
        parts = place.stages[:-1]
        trials = [_trial(part, -(-rows // len(parts)), sampling, events) for part in parts]
    else:
        trials = [_trial(place.directory, rows, sampling, events)]
    base, after = Side.pooled([before for before, *_ in trials]), Side.pooled([after for _, after, _ in trials])
    result = summarize(base, after, [task for *_, tasks in trials for task in tasks], recipe.objective.metrics)
    result |= {"loss_unit": recipe.objective.loss_unit, "folds": recipe.data.folds if len(trials) > 1 else None}
    place.write_json("evaluation.json", result)
    return result


def _trial(directory: Path, rows: int, sampling: Sampling, events: Events) -> tuple[Side, Side, list[Task]]:
    """Base and tuned on a run's own held-out rows."""
    recipe = Recipe.load(directory / "recipe.yaml")
    tuned = ModelReference.find(str(directory))
    tokenizer = tuned.tokenizer()
    prepared = prepare(recipe, tokenizer)
    if not len(prepared.held_out):
        raise UserError(
            f"{directory} has no held-out rows to evaluate on. Set data.held_out, or data.folds, in a new run."
        )
    writes = recipe.objective.ending.kind == "vocabulary"
    tasks = _tasks(recipe, rows) if writes else _texts(recipe, prepared.held_out)
    base, after = (
        _side(name, usable, recipe, tokenizer, prepared, tasks, sampling, events)
        for name, usable in (("base", ModelReference(recipe.base, ending=recipe.objective.ending)), ("tuned", tuned))
    )
    return base, after, tasks


def summarize(base: Side, tuned: Side, tasks: Sequence[Task], prediction_metrics: Sequence[str] = ()) -> dict[str, Any]:
    """Both sides in figures, with intervals, and what differs between them, row by row."""
    expected = [task.expected for task in tasks]
    differences = {"loss": _interval(base.losses.difference(tuned.losses))}
    sides: dict[str, dict[str, Any]] = {"base": _loss(base), "tuned": _loss(tuned)}
    for name, metric in METRICS.items() if tasks and base.predictions is None else ():
        each = {side: scores(metric, found.answers, expected) for side, found in (("base", base), ("tuned", tuned))}
        for side, values in each.items():
            sides[side]["metrics"][name] = {**_interval(mean_with_interval(values)), "described": metric.described}
        differences[name] = _interval(change_with_interval(each["base"], each["tuned"]))
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
                "source": tasks[place].source,
                "prompt": str(tasks[place].chat[-1]["content"]),
                "expected": tasks[place].expected,
                "base": base.answers[place],
                "tuned": tuned.answers[place],
            }
            for place in _spread(len(tasks), SAMPLES)
        ],
    }


def _add_prediction_metrics(
    sides: dict[str, dict[str, Any]],
    differences: dict[str, Any],
    base: Predictions,
    tuned: Predictions,
    names: Sequence[str],
) -> None:
    """What all rows together have, each side's and the paired difference's intervals from the same draws."""
    for name in names:
        metric = PREDICTION_METRICS[name]
        about = {"described": metric.described, "better": metric.better, "unit": metric.unit}
        before, after = (drawn_again(metric.of(predictions), len(predictions.said)) for predictions in (base, tuned))
        for side, (value, draws) in (("base", before), ("tuned", after)):
            within = wilson(value, len(base.said)) if metric.of_hits else interval_of(draws)
            sides[side]["metrics"][name] = {**_interval((value, within)), **about}
        differences[name] = _interval((after[0] - before[0], interval_of(after[1] - before[1])))


def _side(
    name: str,
    usable: ModelReference,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    prepared: Prepared,
    tasks: Sequence[Task],
    sampling: Sampling,
    events: Events,
) -> Side:
    device = device_of(recipe.train.device)
    model = usable.model(dtype_of(recipe.precision, device), device)
    if name == "base" and recipe.objective.ending.has_head:
        recipe.objective.begin(model, recipe.base)  # its head, which knows nothing yet
    table = prepared.held_out
    events.emit("progress", what=f"{name}: loss", done=0, total=len(table))
    losses = _losses(model, recipe, table, device)
    events.emit("progress", what=f"{name}: loss", done=len(table), total=len(table))
    if recipe.objective.ending.kind != "vocabulary":
        predictions = _telling(model, usable, recipe, prepared)
        ending = recipe.objective.ending
        return Side(losses, [_in_words(each, ending) for each in predictions.said] if tasks else [], predictions)
    use_cached_attention(plain_model(model))
    found = answers(
        model,
        tokenizer,
        [task.chat for task in tasks],
        sampling,
        done=lambda count: events.emit("progress", what=f"{name}: answers", done=count, total=len(tasks)),
    )
    return Side(losses, found)


def _losses(model: PreTrainedModel, recipe: Recipe, table: TokenTable, device: torch.device) -> RowLosses:
    use_document_attention(plain_model(model))
    budget = recipe.train.tokens_per_batch or 2048
    return held_out_losses(model, recipe.objective, table, range(len(table)), budget, device)


def _telling(model: PreTrainedModel, usable: ModelReference, recipe: Recipe, prepared: Prepared) -> Predictions:
    """What the model says of every held-out row. A head on vectors, where the model has none of its own (the base), is
    fitted on its vectors of the training rows."""
    objective, table = recipe.objective, prepared.held_out
    budget = recipe.train.tokens_per_batch or 2048
    head = usable.head()
    if head is None:
        head = objective.finish(model, lambda: rows_with_vectors(objective, model, prepared.train, budget))
    shape = (-1, 1) if objective.ending.kind == "tags" else (1, -1)
    told = [table.targets_of(row).reshape(shape) for row in range(len(table))]
    return Predictions(outputs_of(objective, model, table, budget, head), told, objective.ending.labels)


def _in_words(each: NDArray[np.float32], ending: Ending) -> str:
    """What a row's outputs (marks, outputs) tell."""
    if ending.kind == "tags":
        return _tags_in_words(each.argmax(-1), ending)
    return ", ".join(map(str, predictions_of(each, ending))) or "(none)"


def _right_in_words(told: NDArray[np.float32], ending: Ending) -> str:
    """What is told of a row (values,)."""
    if ending.kind == "tags":
        return _tags_in_words(told.astype(np.int64), ending)
    if ending.problem == "single_label_classification":
        return ending.labels[int(told[0])]
    return _in_words(told[None], ending)


def _tags_in_words(tags: NDArray[np.int64], ending: Ending) -> str:
    spans = spans_of([ending.labels[int(place)] for place in tags])
    return ", ".join(f"{label} ({_places(first + 1, end)})" for first, end, label in spans) or "(none)"


def _places(first: int, last: int) -> str:
    return f"word {first}" if first == last else f"words {first}–{last}"


def _texts(recipe: Recipe, table: TokenTable) -> list[Task]:
    """Every held-out text and what is told of it; of texts that are compared, nothing can be said in words."""
    ending = recipe.objective.ending
    if ending.kind == "vectors" and not ending.labels:
        return []
    texts = {str(each.source): str(each.text) for each in held_out_examples(recipe)}
    sources = [str(table.source(row)) for row in range(len(table))]
    return [
        Task(({"role": "user", "content": texts[source]},), _right_in_words(table.targets_of(row), ending), source)
        for row, source in enumerate(sources)
    ]


def _tasks(recipe: Recipe, rows: int) -> list[Task]:
    chats = [example for example in held_out_examples(recipe) if example.messages is not None]
    return [_task(chats[place]) for place in _spread(len(chats), rows)]


def _task(example: Example) -> Task:
    """The last answer and what stands before it."""
    messages = example.messages or ()
    last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
    return Task(messages[:last], str(messages[last]["content"]), str(example.source))


def _spread(total: int, wanted: int) -> list[int]:
    """`wanted` places spread evenly over `total`, or all of them."""
    return [round(place) for place in np.linspace(0, total - 1, min(wanted, total))]


def _loss(side: Side) -> dict[str, Any]:
    losses = side.losses
    perplexity = {"perplexity": losses.perplexity} if side.predictions is None else {}
    return {"loss": losses.loss, "loss_interval": losses.interval(), **perplexity, "metrics": {}}


def _interval(found: tuple[float, tuple[float, float]]) -> dict[str, Any]:
    """The interval holds the value, also where the draws lie beyond it: a calibration error's, since resampling adds
    chance to chance."""
    value, (low, high) = found
    return {"value": value, "interval": (min(low, value), max(high, value))}
