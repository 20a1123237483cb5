"""How many planted faults `tunesmith data check` finds in real rows, and how many rows it marks that have none.

    python benchmarks/data_check_quality.py     # writes results/data_check_quality.json and .md

Into a copy of each set, faults of each kind are planted in rows of their own, drawn with a seed; the copy and the set
as it is are checked. Recall: planted rows that the check for this fault marks. Precision: of the rows that it marks,
those in which a fault was planted that it is about: a wrong label may contradict another row, and the other way round;
a text that was replaced by one in another language lacks the last line of the others, and its label is another's.
Rows that it marks in the set as it is too are not counted there, because no one has read whether they are faulty: they
are the last column. Intervals are Wilson's, 95 %.

Generators and patterns are by the same authors: figures for secrets, personal data and injections say how well known
forms are found between other text, not how many forms are known.

The rows are read from TUNESMITH_DATA: Banking77 (Casanueva et al. 2020), GSM8K (Cobbe et al. 2021), and the
instructions and web pages of LLaMA-Factory's examples.
"""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_faults import FAULTS, Fault
from stored_result import measure_and_store

from tunesmith.checks.driver import check_data
from tunesmith.data.read import Row, read
from tunesmith.statistics.intervals import wilson

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "data_check_quality.json"
SEED = 0

SKIPPED = (
    "length_outliers label_imbalance repeated_answers repeated_openings near_duplicates group_associations".split()
)
"""Checks for which no fault is planted."""


@dataclass(frozen=True)
class RowSet:
    """Real rows.

    Attributes:
        name: in the table.
        path: under `DATA`.
        text: the column that faults are planted in; also what is cut.
        prompt: what the model is given; empty for raw text.
        planted: rows for each fault.
        against: a test set to leak from; empty for none.
    """

    name: str
    path: str
    text: str
    prompt: str
    planted: int
    against: str = ""


SETS = (
    RowSet("Banking77", "banking77/train.csv", "text", "", 100, "banking77/test.csv"),
    RowSet("GSM8K", "gsm8k/train.jsonl", "answer", "question", 100, "gsm8k/test.jsonl"),
    RowSet("instructions", "formats/alpaca_en_demo.json", "output", "instruction", 30),
    RowSet("web pages", "formats/c4_demo.jsonl", "text", "", 15),
)


def main() -> None:
    measure_and_store(RESULTS, measured, table)


def measured(work: Path) -> dict[str, Any]:
    """Each set, as it is and with faults."""
    os.environ["TUNESMITH_CACHE"] = str(work / "cache")
    return {"sets": [of_set(each, work) for each in SETS]}


def of_set(each: RowSet, work: Path) -> dict[str, Any]:
    """Figures of a set, by fault."""
    rows = rows_of(each.path)
    others = rows_of(each.against) if each.against else []
    draw = random.Random(SEED)
    clean = marked(each, rows, others, work / "clean")
    order = draw.sample(range(len(rows)), len(rows))
    changed, added = [dict(row) for row in rows], list[dict[str, Any]]()
    planted: dict[str, set[int]] = {}
    for fault in FAULTS:
        if not fault.fits(each, rows[0]):
            continue
        chosen, order = order[: each.planted], order[each.planted :]
        if fault.adds:
            first = len(rows) + len(added)
            added += [fault.change(each, dict(rows[index]), draw, others) for index in chosen]
            planted[fault.name] = set(range(first, len(rows) + len(added)))
        else:
            for index in chosen:
                changed[index] = fault.change(each, changed[index], draw, others)
            planted[fault.name] = set(chosen)
    found = marked(each, changed + added, others, work / "faulty")
    about: dict[str, set[int]] = {}
    for fault in FAULTS:
        for check in (fault.check, *fault.also):
            about.setdefault(check, set()).update(planted.get(fault.name, ()))
    faults = [
        figures(fault, planted[fault.name], found, clean, about[fault.check])
        for fault in FAULTS
        if fault.name in planted
    ]
    return {"name": each.name, "rows": len(rows), "faults": faults}


def figures(
    fault: Fault, planted: set[int], found: dict[str, set[int]], clean: dict[str, set[int]], about: set[int]
) -> dict[str, Any]:
    """Of one fault in one set; `about` are the rows with any fault that its check is about."""
    marks, before = found.get(fault.check, set()), clean.get(fault.check, set())
    hits = len(planted & marks)
    right, false = len(about & marks), len(marks - before - about)
    return {
        "fault": fault.name,
        "check": fault.check,
        "planted": len(planted),
        "found": hits,
        "right": right,
        "false": false,
        "marked_before": len(before),
    }


def marked(each: RowSet, rows: list[dict[str, Any]], others: list[dict[str, Any]], work: Path) -> dict[str, set[int]]:
    """The indices of the rows that each check marks."""
    work.mkdir(parents=True, exist_ok=True)
    path, test = work / f"{each.name}.jsonl", work / f"{each.name}-test.jsonl"
    for where, written in ((path, rows), (test, others)):
        where.write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    result = check_data(path, skip=SKIPPED, against=[test] if others else [])
    return {check.name: {mark.source.row - 1 for mark in check.marks} for check in result.results}


def rows_of(path: str) -> list[dict[str, Any]]:
    rows = (row.values for row in read([str(DATA / path)], DATA) if isinstance(row, Row))
    return [values if isinstance(values, dict) else {"text": values} for values in rows]


def table(found: dict[str, Any]) -> str:
    """For each set and fault."""
    lines = [
        "| set | fault | check | planted | recall | precision | marked in the set as it is |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in found["sets"]:
        for index, row in enumerate(each["faults"]):
            name = f"{each['name']}, {each['rows']:,} rows" if not index else ""
            recall, precision = share(row["found"], row["planted"]), share(row["right"], row["right"] + row["false"])
            check = f"`{row['check']}`"
            cells = (name, row["fault"], check, row["planted"], recall, precision, f"{row['marked_before']:,}")
            lines.append(("| " + " | ".join(map(str, cells)) + " |").replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def share(hits: int, rows: int) -> str:
    if not rows:
        return "none marked"
    low, high = wilson(hits / rows, rows)
    return f"{hits / rows:.2f} ({low:.2f}–{high:.2f})"


if __name__ == "__main__":
    main()
