"""The tuned model beside its base on the same held-out rows: loss, perplexity, metrics of what they write, samples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.data.example import Example, Message
from tunesmith.data.prepare import held_out_examples, prepare
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.held_out import RowLosses, held_out_losses
from tunesmith.engine.precision import device_of, dtype_of
from tunesmith.errors import UserError
from tunesmith.evaluation.metrics import (
    CLASS_METRICS,
    METRICS,
    WHOLE_METRICS,
    Metric,
    WholeMetric,
    drawn_again,
    interval_of,
    mean_with_interval,
    scores,
)
from tunesmith.models.attention import use_cached_attention, use_document_attention
from tunesmith.models.generate import Sampling, answers
from tunesmith.models.heads import told
from tunesmith.models.prompts import plain_model
from tunesmith.models.usable import Usable
from tunesmith.recipe import Recipe
from tunesmith.run import Events, Run, Subscriber

SAMPLES = 5


@dataclass(frozen=True, slots=True)
class Task:
    """A question from a held-out row and the answer that the row gives."""

    chat: tuple[Message, ...]
    expected: str
    source: str


@dataclass(frozen=True, slots=True)
class Side:
    """What one model does: its loss on every row, its answers to the tasks."""

    losses: RowLosses
    answers: list[str]
    confidences: list[float] | None = None
    """Of classes told, the probability of each."""


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
        What is in `evaluation.json`: rows, learnt_tokens, generated_rows, base and tuned (loss, loss_interval,
        perplexity, metrics), differences (tuned − base, paired), samples. Intervals are 95 % bootstrap over rows.

    Raises:
        UserError: the run has not finished, or has no held-out rows.
    """
    place = Run.open(run)
    if not place.finished:
        raise UserError(f"{run} has not finished. tunesmith train --resume {run}")
    recipe = Recipe.load(place.folder / "recipe.yaml")
    tuned = Usable.find(str(place.folder))
    tokenizer = tuned.tokenizer()
    table = prepare(recipe, tokenizer).held_out
    if not len(table):
        raise UserError(f"{run} has no held-out rows to evaluate on. Set data.held_out in a new run.")
    tasks = _tasks(recipe, rows) if recipe.objective.labels is None else _texts(recipe)
    events = Events(*subscribers)
    sampling = Sampling(max_new_tokens=max_new_tokens, repetition_penalty=repetition_penalty)
    base, after = (
        _side(name, usable, recipe, tokenizer, table, tasks, sampling, events)
        for name, usable in (("base", Usable(recipe.base, labels=recipe.objective.labels)), ("tuned", tuned))
    )
    result = summarise(base, after, tasks, METRICS if recipe.objective.labels is None else CLASS_METRICS)
    place.write_json("evaluation.json", result)
    return result


def summarise(
    base: Side, tuned: Side, tasks: Sequence[Task], metrics: Mapping[str, Metric] = METRICS
) -> dict[str, Any]:
    """Both sides in figures, with intervals, and what differs between them, row by row."""
    expected = [task.expected for task in tasks]
    differences = {"loss": _interval(base.losses.difference(tuned.losses))}
    sides: dict[str, dict[str, Any]] = {"base": _loss(base.losses), "tuned": _loss(tuned.losses)}
    for name, metric in metrics.items() if tasks else ():
        each = {side: scores(metric, found.answers, expected) for side, found in (("base", base), ("tuned", tuned))}
        for side, values in each.items():
            sides[side]["metrics"][name] = {**_interval(mean_with_interval(values)), "described": metric.described}
        differences[name] = _interval(mean_with_interval(each["tuned"] - each["base"]))
    if base.confidences is not None and tuned.confidences is not None:
        _add_whole_metrics(sides, differences, base, tuned, expected)
    return {
        "rows": len(base.losses.sums),
        "learnt_tokens": int(base.losses.counts.sum()),
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


def _add_whole_metrics(
    sides: dict[str, dict[str, Any]], differences: dict[str, Any], base: Side, tuned: Side, expected: Sequence[str]
) -> None:
    """What all rows together have, each side's and the paired difference's intervals from the same draws."""
    codes = {name: code for code, name in enumerate(sorted({*base.answers, *tuned.answers, *expected}))}
    wanted = np.array([codes[name] for name in expected])
    for name, metric in WHOLE_METRICS.items():
        found = {}
        for side, said in (("base", base), ("tuned", tuned)):
            told_here = np.array([codes[answer] for answer in said.answers])
            sure = np.asarray(said.confidences, np.float64)
            value = partial(_of_rows, metric, told_here, sure, wanted)
            found[side] = drawn_again(value, len(wanted))
            about = {"described": metric.described, "better": metric.better}
            interval = interval_of(found[side][1])
            sides[side]["metrics"][name] = {**_interval((found[side][0], interval)), **about}
        change = found["tuned"][1] - found["base"][1]
        differences[name] = _interval((found["tuned"][0] - found["base"][0], interval_of(change)))


def _of_rows(
    metric: WholeMetric,
    told_here: NDArray[np.int64],
    sure: NDArray[np.float64],
    wanted: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> float:
    return metric.value(told_here[rows], sure[rows], wanted[rows])


def _side(
    name: str,
    usable: Usable,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    table: TokenTable,
    tasks: Sequence[Task],
    sampling: Sampling,
    events: Events,
) -> Side:
    device = device_of(recipe.train.device)
    model = usable.model(dtype_of(recipe.train.precision, device), device)
    events.emit("progress", what=f"{name}: loss", done=0, total=len(table))
    losses = _losses(model, recipe, table, device)
    events.emit("progress", what=f"{name}: loss", done=len(table), total=len(table))
    if recipe.objective.labels is not None:
        said = told(model, recipe.objective.labels, table, recipe.train.tokens_per_batch or 2048)
        return Side(losses, [label for label, _ in said], [confidence for _, confidence in said])
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


def _texts(recipe: Recipe) -> list[Task]:
    """Every held-out text and its class."""
    return [
        Task(({"role": "user", "content": str(each.text)},), str(each.label), str(each.source))
        for each in held_out_examples(recipe)
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


def _loss(losses: RowLosses) -> dict[str, Any]:
    return {
        "loss": losses.loss,
        "loss_interval": losses.interval(),
        "perplexity": math.exp(losses.loss),
        "metrics": {},
    }


def _interval(found: tuple[float, tuple[float, float]]) -> dict[str, Any]:
    value, interval = found
    return {"value": value, "interval": interval}
