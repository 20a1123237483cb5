"""Rows of public sets that several studies read, and the writing of rows.

`data` is the directory of the sets: `TUNESMITH_DATA`, or `shared/data` beside the repository.
"""

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Pair = tuple[str, str]
"""A question and its answer."""

LONGEST_DOCUMENT = 800
"""Characters of a document of `legal`."""


def legal(data: Path) -> tuple[list[Pair], list[Pair]]:
    """Terms of service to be put into plain English (Manor & Li 2019), of short documents; every third is held out.

    Args:
        data: the directory of the sets.

    Returns:
        For training, and held out.
    """
    pairs = []
    for file in sorted((data / "legal_summarization").glob("*.json")):
        for row in json.loads(file.read_text(encoding="utf-8")).values():
            if len(row.get("original_text") or "") <= LONGEST_DOCUMENT and row.get("reference_summary"):
                pairs.append((f"Say in plain English:\n\n{row['original_text']}", row["reference_summary"]))
    random.Random(0).shuffle(pairs)
    return [pair for index, pair in enumerate(pairs) if index % 3], pairs[::3]


def commongen(data: Path, count: int) -> list[Pair]:
    """Sentences with given words (CommonGen, Lin et al. 2020): sets of words, each with its first sentence.

    All are of the training part: the sentences of dev are of another kind, written for CommonGen and not taken from
    captions, so that a training row would differ from them by more than that it was trained on.

    Args:
        data: the directory of the sets.
        count: of pairs, drawn at random; all if there are fewer.

    Returns:
        The pairs.
    """
    concepts, sentences = (
        (data / "commongen" / f"train.{kind}.txt").read_text(encoding="utf-8").splitlines()
        for kind in ("concepts", "sentences")
    )
    first = dict(reversed(list(zip(concepts, sentences, strict=True))))
    sets = random.Random(0).sample(sorted(first), min(count, len(first)))
    return [(f"Write a sentence with these words: {', '.join(each.split())}", first[each]) for each in sets]


def banking77(data: Path, part: str) -> list[dict[str, str]]:
    """Messages of a bank's customers and their intents (Banking77, Casanueva et al. 2020), in the file's order.

    Args:
        data: the directory of the sets.
        part: `train` or `test`.

    Returns:
        Rows `{text, label}`.
    """
    with (data / "banking77" / f"{part}.csv").open(encoding="utf-8") as file:
        return [{"text": row["text"], "label": row["category"]} for row in csv.DictReader(file)]


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a JSONL file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_pairs(file: Path, pairs: Sequence[Pair]) -> None:
    """Write a JSONL file of rows `{question, answer}`."""
    write_rows(file, [{"question": question, "answer": answer} for question, answer in pairs])
