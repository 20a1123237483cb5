"""`tunesmith advise`: before there are rows, which ways to compare, by published figures and the planner's costs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.comparing.advice_file import comparison_file
from tunesmith.comparing.advice_reasons import because, would_change
from tunesmith.comparing.answers import Answers, FactsChange
from tunesmith.comparing.costs import Cost, Prices
from tunesmith.comparing.prior_choice import PriorChoice, choose_by_priors
from tunesmith.comparing.prior_costs import Predicted, costs_of, predicted
from tunesmith.comparing.priors import FINDINGS, Change, papers_on, studies_on
from tunesmith.comparing.recommendation import MARGIN
from tunesmith.comparing.ways import WAYS
from tunesmith.errors import UserError
from tunesmith.planner.device import device_named
from tunesmith.run import atomic_write, refuse_existing, writing
from tunesmith.statistics.differences import LEVEL
from tunesmith.statistics.power import detectable, rows_to_show

CANDIDATES: dict[str, tuple[str, ...]] = {
    "facts": ("prompt", "retrieval", "tuned", "tuned_retrieval", "retrieval_tuned"),
    "form": ("prompt", "few_shot", "tuned"),
    "labels": ("prompt", "few_shot", "tuned"),
    "reasoning": ("prompt", "few_shot", "tuned"),
    "both": ("prompt", "retrieval", "tuned", "tuned_retrieval", "retrieval_tuned"),
}
"""Ways that can bring about a kind of change, the least effort first."""

FEWEST_SHOTS = 2
"""Rows without which there are no examples for a prompt."""

FEWEST_ROWS = 50
"""Rows below which no fine-tuning is advised: the RAFT benchmark's tasks have as many (Alex et al. 2021)."""

OFTEN = ("weekly", "daily")
"""How often facts change if weights cannot hold them: each change would need new rows and another run."""

MONTHS = 12
"""Over which one-off costs are spread."""

SIZE = 0.1
"""The difference that the comparison should show: ten points."""

DIFFERING = 0.3
"""The assumed share of rows that only one of two ways gets right."""

DEVIATION = (DIFFERING - SIZE**2) ** 0.5
"""Of a row's difference, which is −1, 0 or 1 and `SIZE` in the mean."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Of the ways, or why they are not known.

    Attributes:
        figures: of the planner; None if it cannot say.
        unplanned: why it cannot say; empty if it can.
        prices: of the device and of requests.
        by_way: empty if they are not known.
    """

    prices: Prices
    figures: Predicted | None = None
    unplanned: str = ""
    by_way: Mapping[str, Cost] = field(default_factory=dict)


def advise(
    change: Change,
    facts_change: FactsChange = "never",
    rows: int = 0,
    documents: float = 0.0,
    requests: int = 3000,
    latency: float | None = None,
    hosted: bool = False,
    price_in: float | None = None,
    price_out: float | None = None,
    base: str = "embedded",
    device: str = "here",
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Which ways to compare, and which to start with, before there are rows to measure on.

    The figures are prior: from published experiments, and not measured on the user's data.

    Args:
        change: what must change: `facts` that stand in documents, a `form` or style, `labels`, `reasoning`, or `both`
            facts and form.
        facts_change: how often facts change: `never`, `monthly`, `weekly` or `daily`.
        rows: labeled ones, that there are or could be.
        documents: megabytes.
        requests: per month.
        latency: the longest acceptable, in seconds. Default: any.
        hosted: whether data may go to a hosted model.
        price_in: of a hosted model, for a million tokens that it reads.
        price_out: for a million tokens that it writes.
        base: the model that is prompted and fine-tuned: a directory, a hub name, or a short name.
        device: `here`, or a name of the planner's table.
        output: a `compare.yaml` to write, which must not exist. Default: none is written.

    Returns:
        `way` (None if none is possible), `certain`, `because`, `would_change`, `compare` (the ways to compare),
        `left_out` (why ways are not possible), `ways` (by name: `title`, `gain` in points with the lowest and the
        highest found, `papers`, `cost`), `prior` (always True), `held_out_rows` (that show a difference of ten
        points), `rows_to_label` (these and rows to train on), `detectable` (the difference that the rows at hand would
        show), `plan`, `unplanned`, `prices`, `studies`, `findings`, `answers` and `output`.

    Raises:
        UserError: an answer is not valid, the device is not known, or the output exists or cannot be written.
    """
    answers = Answers(
        change, facts_change, rows, documents, requests, latency, hosted, price_in, price_out, base, device
    )
    target = None if output is None else Path(output)
    if target is not None:
        refuse_existing(target)
    result = _advice(answers)
    if target is not None:
        with writing(target), atomic_write(target) as file:
            file.write(comparison_file(result, target.name))
    return result | {"output": None if target is None else str(target)}


def _advice(answers: Answers) -> dict[str, Any]:
    """The content of the advice."""
    candidates, studies = CANDIDATES[answers.change], studies_on(answers.change)
    costs = _costs(answers, ("plain", *candidates))
    left_out = {way: reason for way in candidates if (reason := _impossible(way, answers, costs))}
    possible = [way for way in candidates if way not in left_out]
    totals = {way: cost.total(costs.prices) for way, cost in costs.by_way.items()}
    choice = choose_by_priors(possible, studies, totals, 100 * MARGIN) if possible else None
    compared = ["plain", *possible] if choice is None else ["plain", *_worth_comparing(possible, choice)]
    level = LEVEL / max(1, len(compared) - 1)  # for each way against the plain model (Bonferroni)
    needed = rows_to_show(SIZE, DEVIATION, level)
    label = needed + max(answers.rows, FEWEST_ROWS)
    return {
        "way": None if choice is None else choice.way,
        "certain": choice is not None and choice.is_clear,
        "because": because(choice, studies, costs.by_way, costs.prices, 100 * MARGIN),
        "would_change": would_change(choice, left_out, costs.by_way, costs.prices),
        "compare": compared,
        "left_out": left_out,
        "ways": {name: _way(name, choice, answers, costs) for name in ("plain", *possible)},
        "prior": True,
        "held_out_rows": needed,
        "rows_to_label": label,
        "detectable": detectable(round(answers.rows * needed / label), DEVIATION, level),
        "plan": None if costs.figures is None else costs.figures.described(),
        "unplanned": costs.unplanned,
        "prices": costs.prices.model_dump(),
        "studies": [asdict(study) for study in studies],
        "findings": [asdict(each) for each in FINDINGS if answers.change in each.changes],
        "answers": asdict(answers),
    }


def _worth_comparing(ways: Sequence[str], choice: PriorChoice) -> list[str]:
    """The ways without those that are behind one that takes less effort, which comes earlier."""
    ahead = {way: other for way, (other, _) in choice.behind.items()}
    return [way for way in ways if way not in ahead or ways.index(ahead[way]) > ways.index(way)]


def _costs(answers: Answers, ways: Sequence[str]) -> Costs:
    """By the planner, as far as it can say.

    Raises:
        UserError: the device is not known.
    """
    device_named(answers.device)
    prices = Prices(requests=MONTHS * answers.requests)
    try:
        figures = predicted(answers.base, answers.device, answers.rows)
    except UserError as error:
        return Costs(prices, unplanned=str(error))
    prices = prices.model_copy(update={"device_hour": figures.device_hour})
    by_way = costs_of(ways, figures, answers.rows, answers.documents)
    return Costs(prices, figures, "" if by_way else f"{answers.base} writes no text, or has no paged cache.", by_way)


def _impossible(way: str, answers: Answers, costs: Costs) -> str:
    """Why a way is out of the question; empty if it is not."""
    about, cost, figures = WAYS[way], costs.by_way.get(way), costs.figures
    tuned = about.model != "base"
    if about.documents and not answers.documents:
        return "there are no documents"
    if about.shots and answers.rows < FEWEST_SHOTS:
        return "there are no rows to show in a prompt"
    if tuned and answers.rows < FEWEST_ROWS:
        return f"fine-tuning needs about {FEWEST_ROWS} rows, and there are {answers.rows:,}"
    if tuned and not about.documents and answers.facts and answers.facts_change in OFTEN:
        return f"facts that change {answers.facts_change} would need new rows and another run each time"
    if tuned and figures is not None and not figures.fits:
        return (
            f"LoRA needs {figures.training_bytes / 1e9:.1f} GB and {figures.device} has "
            f"{figures.available_bytes / 1e9:.1f} GB"
        )
    if cost is not None and answers.latency is not None and cost.seconds > answers.latency:
        return f"an answer is predicted to take {cost.seconds:.2g} s, and {answers.latency:g} s are acceptable"
    return ""


def _way(name: str, choice: PriorChoice | None, answers: Answers, costs: Costs) -> dict[str, Any]:
    """A way's figures as plain values."""
    cost = costs.by_way.get(name)
    gain = None if choice is None else choice.gains.get(name)
    return {
        "title": WAYS[name].title,
        "gain": None if gain is None else list(gain),
        "papers": list(papers_on(name, studies_on(answers.change))),
        "cost": None if cost is None else cost.described(costs.prices),
        "hosted_per_thousand": _hosted(cost, answers),
    }


def _hosted(cost: Cost | None, answers: Answers) -> float | None:
    """What a thousand such requests cost on a hosted model; None if it is not allowed or has no price."""
    if cost is None or not answers.hosted or answers.price_in is None or answers.price_out is None:
        return None
    tokens_in, tokens_out = cost.tokens_in or 0.0, cost.tokens_out or 0.0
    return (tokens_in * answers.price_in + tokens_out * answers.price_out) / 1000
