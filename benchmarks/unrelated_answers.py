"""How many answers that were swapped between rows `tunesmith data check --model` finds, and how many others it marks.

    python benchmarks/unrelated_answers.py [--base smollm2-135m-instruct]     # results/unrelated_answers.json and .md

In a sample of rows with answers of less than 400 characters, a sixth of the answers go to the next one of the chosen
rows; the sample is checked as it is and with these faults. Recall: swapped rows that are marked. Precision: of the
marked rows, the swapped ones, without rows that are marked in the sample as it is too: no one has read whether they are
faulty, and they are the last column. Intervals are Wilson's, 95 %. One core, about six minutes.

The rows are read from TUNESMITH_DATA: the instructions of LLaMA-Factory's examples, and GSM8K (Cobbe et al. 2021).
"""

import argparse
import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_check_quality import SEED, rows_of, share
from stored_result import described_machine, measure_and_store
from train_speed_report import machine

from tunesmith.checks.driver import check_data

RESULTS = Path(__file__).parent / "results" / "unrelated_answers.json"
CHECK = "unrelated_answers"
FAULTY = 1 / 6
"""The share of rows whose answers are swapped."""

LONGEST = 400
"""Characters of an answer."""


@dataclass(frozen=True)
class Rows:
    """Real rows with prompts and answers.

    Attributes:
        name: in the table.
        path: under `DATA`.
        prompt: the columns of the prompt.
        answer: the column of the answer.
        count: how many are drawn.
    """

    name: str
    path: str
    prompt: tuple[str, ...]
    answer: str
    count: int


SETS = (
    Rows("instructions", "formats/alpaca_en_demo.json", ("instruction", "input"), "output", 120),
    Rows("GSM8K", "gsm8k/train.jsonl", ("question",), "answer", 60),
)


def measured(work: Path, base: str) -> dict[str, Any]:
    """Each set, as it is and with swapped answers."""
    import torch

    torch.set_num_threads(1)
    os.environ["TUNESMITH_CACHE"] = str(work / "cache")
    return {"base": base, "date": time.strftime("%Y-%m-%d"), "sets": [of_set(each, base, work) for each in SETS]}


def of_set(each: Rows, base: str, work: Path) -> dict[str, Any]:
    """Figures of a set."""
    draw = random.Random(SEED)
    every = [
        {
            "question": "\n".join(filter(None, (str(row[column]) for column in each.prompt))),
            "answer": str(row[each.answer]),
        }
        for row in rows_of(each.path)
    ]
    rows = draw.sample(
        [row for row in every if row["question"].strip() and 0 < len(row["answer"]) < LONGEST], each.count
    )
    swapped = draw.sample(range(each.count), round(FAULTY * each.count))
    faulty = [dict(row) for row in rows]
    for one, other in zip(swapped, [*swapped[1:], swapped[0]], strict=True):
        faulty[one]["answer"] = rows[other]["answer"]
    before, _, _ = marked(rows, base, work / f"{each.name}.jsonl")
    found, about, seconds = marked(faulty, base, work / f"{each.name}-faulty.jsonl")
    hits = len(found & {*swapped})
    return {
        "name": each.name,
        "rows": each.count,
        "planted": len(swapped),
        "found": hits,
        "false": len(found - {*swapped} - before),
        "marked_before": len(before),
        "about": about,
        "seconds": seconds,
    }


def marked(rows: list[dict[str, str]], base: str, path: Path) -> tuple[set[int], str, float]:
    """The indices of the rows that the check marks, what it says of the set, and its seconds."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    start = time.perf_counter()
    result = check_data(path, only=[CHECK], model=base)[CHECK]
    return {mark.source.row - 1 for mark in result.marks}, result.about, time.perf_counter() - start


def table(found: dict[str, Any]) -> str:
    """For each set."""
    lines = [
        "| set | swapped | recall | precision | marked in the set as it is |",
        "|---|---:|---|---|---:|",
    ]
    for each in found["sets"]:
        recall, precision = share(each["found"], each["planted"]), share(each["found"], each["found"] + each["false"])
        name = f"{each['name']}, {each['rows']:,} rows"
        before = f"{each['marked_before']} ({each['marked_before'] / each['rows']:.1%})"
        cells = (name, each["planted"], recall, precision, before)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    about = "\n".join(f"- {each['name']}, with the faults: {each['about']}" for each in found["sets"])
    where = f"{found['base']}, one core of {described_machine(machine())}, {found['date']}."
    return "\n".join(lines) + f"\n\n{where}\n\n{about}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    base = parser.parse_args().base
    measure_and_store(RESULTS, lambda work: measured(work, base), table)


if __name__ == "__main__":
    main()
