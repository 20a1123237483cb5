"""The content of `compare.json`: figures, differences, needs, costs, and the recommendation."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tunesmith.comparing.costs import break_evens
from tunesmith.comparing.experiment import Experiment
from tunesmith.comparing.measured_way import MeasuredWay
from tunesmith.comparing.needs import NEEDS, Need, Passages, content_words, needs_of
from tunesmith.comparing.reasons import because, described, would_change
from tunesmith.comparing.recommendation import Choice, Option, choose
from tunesmith.comparing.rows import question_of
from tunesmith.comparing.spec import Comparison
from tunesmith.evaluation.figures import samples_of
from tunesmith.evaluation.rows import task_of
from tunesmith.evaluation.summary import summary, with_interval
from tunesmith.statistics.measured import Measured, mean_of

SAMPLES = 5
"""Rows that are shown: those in which the ways differ most."""

CHUNKS = 10
"""Of the documents, in which a row's answer is looked for."""

FEWEST_OF_A_NEED = 10
"""Rows. Of fewer, no way is recommended."""

GIGABYTE = 1e9

Quality = Mapping[str, Measured]
"""What decides, by way."""


def result_of(experiment: Experiment, measured: Sequence[MeasuredWay], left_out: Mapping[str, str]) -> dict[str, Any]:
    """The result of a comparison.

    Args:
        experiment: what all ways share.
        measured: the ways, least effort first.
        left_out: ways that were not compared, and why.

    Returns:
        As `tunesmith.compare` describes it, without the budget.
    """
    spec, parts = experiment.comparison, experiment.parts
    decides = next(iter(experiment.metrics))
    compared = _compared(measured, decides)
    quality = {each.way.name: each.figures[decides] for each in measured}
    needs = _needs(experiment)
    return {
        "base": spec.base,
        "rows": len(parts.held_out),
        "unused_rows": parts.unused,
        "training_rows": len(parts.train),
        "development_rows": len(parts.development),
        "removed": parts.removed,
        "metric": decides,
        "margin": spec.margin,
        "cost_unit": "money" if spec.prices.are_stated else "seconds",
        "requests": spec.prices.requests,
        "figures": compared["figures"],
        "ways": {each.way.name: _way(each, compared["models"][each.way.name], spec) for each in measured},
        "reference": compared["reference"],
        "differences": compared["differences"],
        "comparisons": compared["comparisons"],
        "row_needs": needs,
        "left_out": dict(left_out),
        "samples": _samples(measured, quality, experiment),
        **_verdicts(measured, quality, needs, spec),
    }


def _compared(measured: Sequence[MeasuredWay], decides: str) -> dict[str, Any]:
    """The figures and their differences from the first way: of what decides with Holm's correction over the ways, of
    the others over all of them."""
    reference = measured[0].way.name
    first = summary({each.way.name: {decides: each.figures[decides]} for each in measured}, reference)
    others = {each.way.name: {**each.figures, **each.topic} for each in measured}
    rest = summary(
        {way: {name: own[name] for name in own if name != decides} for way, own in others.items()}, reference
    )
    both = ("figures", "models", "differences")
    merged = {part: {key: {**first[part][key], **rest[part].get(key, {})} for key in first[part]} for part in both[1:]}
    return {**first, "figures": first["figures"] | rest["figures"], **merged}


def _way(each: MeasuredWay, figures: Mapping[str, Any], spec: Comparison) -> dict[str, Any]:
    """A way's part of the result."""
    return {
        **figures,
        "cost": each.cost.described(spec.prices),
        "latency": each.latency,
        "first_token": each.first_token,
        "about": dict(each.about),
    }


def _verdicts(
    measured: Sequence[MeasuredWay], quality: Quality, needs: Mapping[str, Need], spec: Comparison
) -> dict[str, Any]:
    """`needs`, `break_even` and `recommendation`."""
    refused = _refused(spec, measured)
    considered = [each for each in measured if each.way.name not in refused] or list(measured)
    choice = _choice(quality, considered, spec)
    by_need = {need: _of_need(need, needs, quality, considered, spec) for need in NEEDS if need in needs.values()}
    costs = {each.way.name: each.cost for each in measured}
    breaks = break_evens(list(costs.items()), spec.prices)
    bests = {need: each["way"] for need, each in by_need.items() if each["certain"]}
    ways = {each.way.name: each.way for each in considered}
    reasons = because(choice, ways, {name: quality[name] for name in ways}, costs, spec.prices, spec.margin)
    return {
        "needs": by_need,
        "break_even": [asdict(each) for each in breaks],
        "recommendation": described(choice, reasons, would_change(choice, costs, spec.prices, breaks, refused, bests)),
    }


def _choice(quality: Quality, considered: Sequence[MeasuredWay], spec: Comparison) -> Choice:
    options = [Option(each.way.name, quality[each.way.name], each.cost.total(spec.prices)) for each in considered]
    return choose(options, spec.margin)


def _refused(spec: Comparison, measured: Sequence[MeasuredWay]) -> dict[str, str]:
    """Ways that do not keep a limit, and why."""
    limits, refused = spec.limits, {}
    for each in measured:
        memory, cost = each.cost.memory_bytes, 1000 * each.cost.per_request(spec.prices)
        if limits.latency_p95 is not None and each.latency["p95"] > limits.latency_p95:
            refused[each.way.name] = f"its latency (p95 {each.latency['p95']:.2f} s) is beyond limits.latency_p95"
        elif limits.memory_gb is not None and memory is not None and memory > limits.memory_gb * GIGABYTE:
            refused[each.way.name] = f"its memory ({memory / GIGABYTE:.2f} GB) is beyond limits.memory_gb"
        elif limits.cost_per_thousand is not None and cost > limits.cost_per_thousand:
            refused[each.way.name] = f"a thousand requests cost {cost:,.2f}, beyond limits.cost_per_thousand"
    return refused


def _needs(experiment: Experiment) -> dict[str, Need]:
    """What each held-out row needs, by its source."""
    parts, passages = experiment.parts, None
    if experiment.comparison.documents is not None:
        known = [content_words(f"{question_of(row)} {task_of(row).expected}") for row in parts.train]
        passages = Passages(lambda asked: experiment.excerpts.texts(asked, CHUNKS), known)
    return needs_of(
        parts.tasks,
        passages,
        experiment.plain_answers(parts.tasks),
        experiment.plain_answers(parts.development_tasks),
        [task_of(row).expected for row in parts.train],
    )


def _of_need(
    need: str, needs: Mapping[str, Need], quality: Quality, considered: Sequence[MeasuredWay], spec: Comparison
) -> dict[str, Any]:
    """The ways' figures among the rows of one need, and the way that is recommended for such rows."""
    figures = {each.way.name: _among(quality[each.way.name], needs, need) for each in considered}
    rows = len(next(iter(figures.values())).units)
    choice = _choice(figures, considered, spec) if rows >= FEWEST_OF_A_NEED else None
    return {
        "rows": rows,
        "ways": {name: with_interval(figure) for name, figure in figures.items()},
        "way": None if choice is None else choice.way,
        "certain": choice is not None and choice.is_certain,
    }


def _among(figure: Measured, needs: Mapping[str, Need], need: str) -> Measured:
    """A mean among the rows of one need."""
    assert figure.values is not None
    rows = [row for row, unit in enumerate(figure.units) if needs[unit] == need]
    units = [figure.units[row] for row in rows]
    return mean_of(figure.values[rows], units, figure.title, figure.explanation, figure.better, figure.unit)


def _samples(measured: Sequence[MeasuredWay], quality: Quality, experiment: Experiment) -> list[dict[str, Any]]:
    """The rows in which the ways' scores differ most, with all answers."""
    scores = np.stack([values for each in measured if (values := quality[each.way.name].values) is not None])
    rows = np.argsort(-scores.std(0), kind="stable")[:SAMPLES].tolist()
    shown = samples_of(experiment.parts.tasks, {each.way.name: each.answers for each in measured}, sorted(rows))
    for row, sample in zip(sorted(rows), shown, strict=True):
        sample["scores"] = {each.way.name: float(scores[at, row]) for at, each in enumerate(measured)}
    return shown
