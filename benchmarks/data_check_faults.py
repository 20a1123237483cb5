"""Faults planted in Banking77 and GSM8K: how many each check finds, and how many of its marks are planted ones.

    python benchmarks/data_check_faults.py --data ../shared/data

Planted in 2 % of the rows each: copies with another label or answer (contradictions), half of them with one word
changed; rows of the test set (leakage), a third as they are, a third with one word changed, a third within a longer
question; and, in Banking77, 5 % of the labels replaced (suspicious labels, labels that no similar row has). Rows that
are marked without planted faults too are left out of the precision, and counted: they may be faults of the set itself.
Writes results/data_check_faults.{json,md}.
"""

import argparse
import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scipy.stats import binomtest
from stored_result import measure_and_store

from tunesmith.checks.driver import check_data

HERE = Path(__file__).resolve().parent
SHARE, WRONG = 0.02, 0.05

Row = dict[str, str]
Plant = Callable[[list[Row], list[Row], random.Random], set[int]]
"""Changes the rows, given the test rows; returns the indices of those that are faults now."""


def read(data: Path, name: str, part: str) -> tuple[list[Row], str, str]:
    """The rows, and the columns of the input and the output."""
    if name == "banking77":
        with (data / name / f"{part}.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file)), "text", "category"
    lines = (data / name / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return list(map(json.loads, lines)), "question", "answer"


def one_word_changed(text: str, draw: random.Random) -> str:
    words = text.split()
    words[draw.randrange(len(words))] = "really"
    return " ".join(words)


def contradictions(given: str, wanted: str) -> Plant:
    def plant(rows: list[Row], test: list[Row], draw: random.Random) -> set[int]:
        faults = set()
        for number in range(int(SHARE * len(rows))):
            row = dict(draw.choice(rows))
            other = draw.choice([each for each in draw.sample(rows, 50) if each[wanted] != row[wanted]])
            row[given] = row[given] if number % 2 else one_word_changed(row[given], draw)
            faults.add(len(rows))
            rows.append({**row, wanted: other[wanted]})
        return faults

    return plant


def leakage(given: str, wanted: str) -> Plant:
    def plant(rows: list[Row], test: list[Row], draw: random.Random) -> set[int]:
        faults = set()
        for number, leaked in enumerate(draw.sample(test, int(SHARE * len(rows)))):
            text = leaked[given]
            texts = (text, one_word_changed(text, draw), f"{draw.choice(rows)[given]} {text}")
            faults.add(len(rows))
            rows.append({**leaked, given: texts[number % 3]})
        return faults

    return plant


def wrong_labels(given: str, wanted: str) -> Plant:
    def plant(rows: list[Row], test: list[Row], draw: random.Random) -> set[int]:
        labels = sorted({row[wanted] for row in rows})
        faults = set(draw.sample(range(len(rows)), int(WRONG * len(rows))))
        for row in faults:
            rows[row][wanted] = draw.choice([label for label in labels if label != rows[row][wanted]])
        return faults

    return plant


PLANTED: dict[str, tuple[Callable[[str, str], Plant], tuple[str, ...]]] = {
    "contradictions": (contradictions, ("banking77", "gsm8k")),
    "leakage": (leakage, ("banking77", "gsm8k")),
    "suspicious_labels": (wrong_labels, ("banking77",)),
    "label_neighbors": (wrong_labels, ("banking77",)),
}


def marked(rows: list[Row], test: list[Row], check: str, directory: Path) -> set[int]:
    for name, each in (("rows", rows), ("test", test)):
        text = "".join(json.dumps(row) + "\n" for row in each)
        (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
    against = [directory / "test.jsonl"] if check == "leakage" else []
    found = check_data(directory / "rows.jsonl", only=[check], against=against)
    return {mark.source.row - 1 for mark in found[check].marks}


def measured(directory: Path, data: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for check, (make, sets) in PLANTED.items():
        for name in sets:
            (rows, given, wanted), (test, _, _) = read(data, name, "train"), read(data, name, "test")
            clean = marked(rows, test, check, directory)
            faults = make(given, wanted)(rows, test, random.Random(0))
            marks = marked(rows, test, check, directory) - clean
            found[f"{check} {name}"] = {
                "rows": len(rows),
                "planted": len(faults),
                "found": len(marks & faults),
                "marked": len(marks),
                "marked in the set as published": len(clean),
            }
    return {"found": found}


def share(part: int, whole: int) -> str:
    if not whole:
        return "–"
    within = binomtest(part, whole).proportion_ci(method="wilson")
    return f"{part / whole:.3f} ({within.low:.3f}–{within.high:.3f})"


def table_of(result: dict[str, Any]) -> str:
    lines = ["| check | set | planted | recall | precision | rows marked as published |", "|---|---|---|---|---|---|"]
    for key, each in result["found"].items():
        check, name = key.split()
        alarms = (
            f"{each['marked in the set as published']:,} ({each['marked in the set as published'] / each['rows']:.2%})"
        )
        lines.append(
            f"| `{check}` | {name} | {each['planted']:,} | {share(each['found'], each['planted'])} | "
            f"{share(each['found'], each['marked'])} | {alarms} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    asked = parser.parse_args()
    measure_and_store(
        HERE / "results" / "data_check_faults.json", lambda directory: measured(directory, asked.data), table_of
    )


if __name__ == "__main__":
    main()
