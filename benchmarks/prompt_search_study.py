"""Does racing in `tunesmith prompt search` find the prompt that trying everything finds? Two needs, on SmolLM2-135M.

    python benchmarks/prompt_search_study.py [--needs intents sentences] [--seeds 3]

intents     which of eight intents a bank's customer has (Banking77, Casanueva et al. 2020), written as an answer
sentences   a sentence with given words (CommonGen, Lin et al. 2020), by the words that are used

Twelve candidates: no prompt and three written by hand, each alone, with four similar examples, and with four random
ones. For each seed, which draws development rows and examples, `prompt_search` races them; then every candidate answers
every development row. The race is also run again on the same answers with the rows in other orders. The winners answer
the same held-out rows. Each seed of a need is a line of results/prompt_search_study.jsonl; finished ones are not
repeated. Writes prompt_search_study.md beside it. A need whose data is not in TUNESMITH_DATA is left out.
"""

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
from stored_result import add_trial, described_machine, stored_trials
from study_rows import banking77, commongen, write_pairs
from train_speed_report import machine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tunesmith.evaluation.rows import Task
    from tunesmith.prompting.prompt import Prompt
    from tunesmith.statistics.measured import Measured
    from tunesmith.subjects.subject import Subject

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "prompt_search_study.jsonl"
WORK = Path(tempfile.gettempdir()) / "prompt_search_study"
BASE = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Sizes:
    """How much is computed; a trial with other sizes is another trial.

    Attributes:
        development: rows on which candidates are compared.
        training: rows of a need, from which development rows and examples are drawn.
        held_out: rows on which the winners are measured.
        examples: in a prompt that has some.
        labels: intents.
        orders: of the development rows, in which the race is run again.
    """

    development: int = 48
    training: int = 320
    held_out: int = 100
    examples: int = 4
    labels: int = 8
    orders: int = 50


SIZES = Sizes()


@dataclass(frozen=True)
class Need:
    """What is asked of the model.

    Attributes:
        write: writes train.jsonl and held_out.jsonl into a directory, and returns the prompts by name.
        data: a folder of DATA.
        metric: by which candidates are compared.
        answer: the most tokens of an answer.
    """

    write: Callable[[Path], dict[str, str]]
    data: str
    metric: str
    answer: int


def write_intents(directory: Path) -> dict[str, str]:
    """The most frequent intents, in their file's order."""
    train, test = banking77(DATA, "train"), banking77(DATA, "test")
    chosen = [label for label, _ in Counter(row["label"] for row in train).most_common(SIZES.labels)]
    order = np.random.default_rng(0)
    for name, rows, count in (("train", train, SIZES.training), ("held_out", test, SIZES.held_out)):
        own = [(row["text"], row["label"]) for row in rows if row["label"] in chosen]
        write_pairs(directory / f"{name}.jsonl", [own[index] for index in order.permutation(len(own))[:count]])
    task, listed = "Name the intent of the customer's message.", f"The intents are: {', '.join(chosen)}."
    alone = "Write the name alone, and nothing else."
    return {"task": task, "task, listed": f"{task} {listed}", "task, listed, alone": f"{task} {listed} {alone}"}


def write_sentences(directory: Path) -> dict[str, str]:
    pairs = commongen(DATA, SIZES.training + SIZES.held_out)
    write_pairs(directory / "held_out.jsonl", pairs[: SIZES.held_out])
    write_pairs(directory / "train.jsonl", pairs[SIZES.held_out :])
    task = "You write one sentence with the words that you are given."
    return {"task": task, "task, every": f"{task} Use every word.", "task, short": f"{task} Keep it short."}


NEEDS = {
    "intents": Need(write_intents, "banking77", "exact_match", 16),
    "sentences": Need(write_sentences, "commongen", "coverage", 32),
}


def studied(name: str, seed: int, directory: Path) -> dict[str, Any]:
    """Search once by racing and once by trying everything.

    Args:
        name: of the need.
        seed: of the development rows and of the examples.
        directory: an empty one.

    Returns:
        `candidates`; `answers` of the race and of trying everything; `raced` and `best`: both winners' names;
        `values`: of each candidate on all development rows; `orders`: of the race in each other order of them, by
        how much its winner is below the best on all of them, and how many answers it took; `held_out`: on these rows,
        `plain`, `raced` and `best` with value and interval, and `gain`: of the race's winner over the plain model.
    """
    import tunesmith
    from tunesmith.evaluation.rows import task_of
    from tunesmith.evaluation.subjects import SubjectName, open_subject
    from tunesmith.evaluation.summary import summary, with_interval
    from tunesmith.prompting.candidates import PLAIN, Candidate, Showing, of_files, with_examples
    from tunesmith.prompting.prompt import Prompt
    from tunesmith.prompting.rows import recipe_of, split_rows

    need, prompts = NEEDS[name], []
    for title, text in need.write(directory).items():
        prompts.append(directory / f"{title}.txt")
        prompts[-1].write_text(text, encoding="utf-8")
    recipe = directory / "recipe.yaml"
    files = {"train": str(directory / "train.jsonl"), "held_out": [str(directory / "held_out.jsonl")]}
    recipe.write_text(json.dumps({"base": BASE, "data": files}), encoding="utf-8")  # JSON is YAML
    showing = Showing((0, SIZES.examples), ("similar", "random"), seed)
    found = tunesmith.prompt_search(
        BASE, recipe, candidates=prompts, k=showing.k, choose=showing.choose, metric=need.metric,
        rows=SIZES.development, max_new_tokens=need.answer, seed=seed,
    )  # fmt: skip

    split = split_rows(*recipe_of(BASE, recipe), SIZES.development, True, seed)
    apart = [*split.development, *split.held_out.examples]
    tried = with_examples([Candidate(PLAIN, Prompt(), PLAIN), *of_files(prompts)], split.pool, apart, showing)
    subject = open_subject(SubjectName.parse(BASE), BASE)
    answering = Answering(subject, need, {candidate.name: candidate.prompt for candidate in tried})
    development = {each.name: answering.figure(each.name, list(map(task_of, split.development))) for each in tried}
    best, raced = max(development, key=lambda each: development[each].value), found["winner"]
    held_out = {each: answering.figure(each, split.held_out.tasks(None)) for each in {PLAIN: 0, raced: 0, best: 0}}
    subject.close()
    result = summary({each: {need.metric: figure} for each, figure in held_out.items()}, PLAIN)
    return {
        "candidates": len(tried),
        "answers": [sum(each["rows"] for each in found["candidates"]), len(tried) * len(split.development)],
        "raced": raced,
        "best": best,
        "values": {each: figure.value for each, figure in development.items()},
        "orders": [list(raced_again(development, number)) for number in range(SIZES.orders)],
        "held_out": {
            "rows": len(held_out[PLAIN].units),
            "plain": with_interval(held_out[PLAIN]),
            "raced": with_interval(held_out[raced]),
            "best": with_interval(held_out[best]),
            "gain": result["differences"].get(raced, {}).get(need.metric),
        },
    }


class Answering:
    """A model with each prompt before its chats; what it has answered comes from the user's cache.

    Args:
        subject: the model.
        need: whose metric is computed.
        prompts: by the names of the candidates.
    """

    def __init__(self, subject: "Subject", need: Need, prompts: "Mapping[str, Prompt]") -> None:
        self._subject, self._need, self._prompts = subject, need, prompts

    def figure(self, name: str, tasks: "Sequence[Task]") -> "Measured":
        """A candidate's figure on some rows."""
        from tunesmith.evaluation.figures import cases_of
        from tunesmith.inference.sampling import Sampling
        from tunesmith.metrics import measured, metric_named
        from tunesmith.prompting.prompted import Prompted
        from tunesmith.prompting.shots import Shots

        prompt = self._prompts[name]
        prompted = Prompted(self._subject, prompt, Shots.of(prompt), name)
        answers = prompted.answers([task.chat for task in tasks], Sampling(self._need.answer))
        return measured({"metric": metric_named(self._need.metric)}, cases_of(answers, tasks))["metric"]


def raced_again(figures: "Mapping[str, Measured]", number: int) -> tuple[float, int]:
    """The race on the same answers, with the rows in another order.

    Args:
        figures: of all candidates on all rows.
        number: of the order.

    Returns:
        By how much the race's winner is below the best on all rows, and how many answers the race took.
    """
    from tunesmith.prompting.race import race

    rows = len(next(iter(figures.values())).units)
    order = np.random.default_rng(number).permutation(rows)
    read: dict[str, int] = {}

    def measure(names: Sequence[str], _: int, count: int) -> "dict[str, Measured]":
        read.update(dict.fromkeys(names, count))
        return {name: on(figures[name], order[:count]) for name in names}

    places = race(list(figures), measure, rows)
    winner = next(name for name, place in places.items() if place.why == "winner")
    return max(figure.value for figure in figures.values()) - figures[winner].value, sum(read.values())


def on(figure: "Measured", rows: "NDArray[np.int64]") -> "Measured":
    """A figure on some of its rows."""
    return replace(
        figure,
        of=lambda picked: figure.of(rows[picked]),
        units=[figure.units[row] for row in rows],
        values=None if figure.values is None else figure.values[rows],
        estimator=None if figure.estimator is None else figure.estimator.on(rows),
    )


def table(trials: Sequence[dict[str, Any]]) -> str:
    """As Markdown.

    Args:
        trials: of `studied`, with what identifies them.

    Returns:
        What was measured on what, and a row for each seed of a need.
    """
    sizes, first = trials[0]["setting"], trials[0]
    machines = " and ".join(sorted({each["machine"] for each in trials}))
    dates = " and ".join(sorted({each["date"] for each in trials}))
    lines = [
        f"SmolLM2-135M-Instruct, {first['candidates']} candidates on {sizes['development']} development rows, "
        f"{first['held_out']['rows']} held-out rows. Answers: of the race, and of trying everything. Best: in how many "
        f"of {len(first['orders'])} other orders of the development rows the race ends with the candidate that is best "
        "on all of them, or with its equal; in brackets by how many points its winner is below that one, on average "
        f"and at most. Gain: of the race's winner over no prompt, with its 95 % interval; bold: shown. {machines}, "
        f"{dates}.",
        "",
        "| need, seed | answers | best, of other orders | the race's winner | best of all | held-out: plain → winner "
        "| gain | best of all |",
        "|---|---:|---:|---|---|---:|---:|---:|",
    ]
    for each in sorted(trials, key=lambda trial: (trial["need"], trial["seed"])):
        raced, every = each["answers"]
        below = [short for short, _ in each["orders"]]
        held_out, gain = each["held_out"], each["held_out"]["gain"]
        plain, winner, best = (f"{100 * held_out[side]['value']:.0f}" for side in ("plain", "raced", "best"))
        cells = [
            f"{each['need']}, {each['seed']}",
            f"{raced} of {every} ({raced / every:.0%})",
            f"{mean(short == 0 for short in below):.0%} ({100 * mean(below):.1f}; {100 * max(below):.1f})",
            each["raced"],
            "the same" if each["best"] == each["raced"] else each["best"],
            f"{plain} → {winner} %",
            "" if gain is None else _gain(gain),
            f"{best} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _gain(gain: dict[str, Any]) -> str:
    low, high = gain["interval"]
    value = f"{100 * gain['value']:+.0f}"
    shown = value if gain["verdict"] == "not shown" else f"**{value}**"
    return f"{shown} ({100 * low:.0f} to {100 * high:.0f})"


def done() -> list[dict[str, Any]]:
    """The finished trials."""
    return stored_trials(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--needs", nargs="+", choices=list(NEEDS), default=list(NEEDS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    current = {"setting": asdict(SIZES), "base": BASE}
    finished = {(each["need"], each["seed"]) for each in done() if current.items() <= each.items()}
    here = [name for name in options.needs if (DATA / NEEDS[name].data).is_dir()]
    for name in options.needs:
        if name not in here:
            print(f"{name} is left out: there is no {DATA / NEEDS[name].data}.", flush=True)
    for seed, name in product(range(options.seeds), here):
        if (name, seed) in finished:
            continue
        WORK.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=WORK) as directory:
            found = studied(name, seed, Path(directory))
        when = {"date": str(date.today()), "machine": described_machine(machine())}
        add_trial(RESULTS, {"need": name, "seed": seed, **current, **when, **found})
        RESULTS.with_suffix(".md").write_text(table(done()), encoding="utf-8")
        print(f"{name}, {seed}: done", flush=True)


if __name__ == "__main__":
    main()
