"""Near-duplicates against planted truth and brute force, and on a long chain of rows each like the next.

    python benchmarks/near_duplicates.py --rows ../shared/data/gsm8k/train.jsonl

1. 20,000 rows: 12,000 originals, each a few sentences of the given rows, and 8,000 copies of some with edits: 1 to 20 %
   of the words replaced, sentences in another order, numbers changed. Compared with all pairs: recall among the rows
   that are at least 0.8 similar to an earlier kept row by exact Jaccard similarity, precision of the marks, and the
   share of the copies that is found by how they were edited.
2. 859,092 rows, each like the next (0.78 similar), none more similar to another: the length of the data set that a
   deduplicator took to 2 rows by transitive closure (marin#6854). All should be kept.

Writes results/near_duplicates.{json,md}.
"""

import argparse
import json
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.stats import binomtest
from stored_result import measure_and_store

from tunesmith.checks.driver import check_data
from tunesmith.checks.shingles import SIMILAR

HERE = Path(__file__).resolve().parent
ORIGINALS, COPIES, CHAIN = 12_000, 8_000, 859_092
WINDOW, STEP = 40, 5
"""Words of a row of the chain, and how many of them the next one does not have: 33 of 43 triples in common."""

EDITS = ("1 % of words", "2 % of words", "5 % of words", "10 % of words", "20 % of words", "sentences", "numbers")


def sentences_of(rows: Path) -> list[str]:
    lines = rows.read_text(encoding="utf-8").splitlines()
    return [each for line in lines for each in re.split(r"(?<=[.?!])\s", json.loads(line)["question"]) if each]


def edited(text: str, how: str, words: Sequence[str], draw: random.Random) -> str:
    """A copy of the text with such an edit."""
    if how == "sentences":
        parts = re.split(r"(?<=[.?!])\s", text)
        draw.shuffle(parts)
        return " ".join(parts)
    if how == "numbers":
        return re.sub(r"\d+", lambda match: str(int(match[0]) + draw.randint(1, 9)), text)
    share = int(how.split()[0]) / 100
    return " ".join(draw.choice(words) if draw.random() < share else word for word in text.split())


def planted(rows: Path) -> tuple[list[str], list[str]]:
    """The texts, and how each was edited; empty for originals."""
    draw = random.Random(0)
    sentences = sentences_of(rows)
    words = [word for sentence in sentences[:2000] for word in sentence.split()]
    originals = [" ".join(draw.sample(sentences, draw.randint(3, 9))) for _ in range(ORIGINALS)]
    copies = [(draw.choice(originals), EDITS[number % len(EDITS)]) for number in range(COPIES)]
    copied = [edited(text, how, words, draw) for text, how in copies]
    return [*originals, *copied], ["" for _ in originals] + [how for _, how in copies]


def triples(text: str) -> list[tuple[str, ...]]:
    """The runs of three words, by their spelling."""
    words = re.findall(r"\w+", text.casefold())
    return [tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))]


def brute_force(texts: Sequence[str]) -> tuple[Any, set[int]]:
    """All Jaccard similarities of at least 0.8 (sparse), and the rows that are so similar to an earlier kept row."""
    numbers: dict[tuple[str, ...], int] = {}
    rows = [sorted({numbers.setdefault(each, len(numbers)) for each in triples(text)}) for text in texts]
    sizes = np.array([len(row) for row in rows])
    ends, columns = np.concatenate([[0], np.cumsum(sizes)]), np.concatenate(rows)
    sets = csr_matrix((np.ones(len(columns), np.int32), columns, ends))
    shared = (sets @ sets.T).tocoo()
    values = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
    is_similar = (values >= SIMILAR) & (shared.row != shared.col)
    similar = csr_matrix((values[is_similar], (shared.row[is_similar], shared.col[is_similar])), shared.shape)
    marked: set[int] = set()
    for row in range(len(texts)):
        others = similar.indices[similar.indptr[row] : similar.indptr[row + 1]]
        if any(other < row and other not in marked for other in others.tolist()):
            marked.add(row)
    return similar, marked


def write(path: Path, texts: Sequence[str]) -> str:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return str(path)


def against_brute_force(rows: Path, directory: Path) -> dict[str, Any]:
    texts, how = planted(rows)
    checks = check_data(write(directory / "planted.jsonl", texts), only=["near_duplicates", "exact_duplicates"])
    similar, expected = brute_force(texts)
    near = {mark.source.row - 1: mark.others[0].row - 1 for mark in checks["near_duplicates"].marks}
    found = {*near, *(mark.source.row - 1 for mark in checks["exact_duplicates"].marks)}
    right = sum(similar[row, other] >= SIMILAR for row, other in near.items())
    return {
        "rows": len(texts),
        "expected": len(expected),
        "found of them": len(expected & found),
        "near-duplicates marked": len(near),
        "of them similar": int(right),
        "representatives that are marked": sum(other in near for other in near.values()),
        "edits": {
            each: [sum(how[row] == each and row in found for row in range(len(texts))), how.count(each)]
            for each in EDITS
        },
    }


def along_a_chain(directory: Path, count: int) -> dict[str, Any]:
    words = [f"w{number:x}" for number in range(count * STEP + WINDOW)]
    chain = (" ".join(words[STEP * number : STEP * number + WINDOW]) for number in range(count))
    path = directory / "chain.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f'{{"text": "{text}"}}\n' for text in chain)
    del words
    began = time.perf_counter()
    checks = check_data(str(path), only=["near_duplicates", "exact_duplicates"])
    return {
        "rows": count,
        "kept": count - checks["near_duplicates"].count - checks["exact_duplicates"].count,
        "seconds": time.perf_counter() - began,
        "bytes": path.stat().st_size,
    }


def table_of(found: dict[str, Any]) -> str:
    planted_, chain = found["planted"], found["chain"]
    within = binomtest(planted_["found of them"], planted_["expected"]).proportion_ci(method="wilson")
    recall = planted_["found of them"] / planted_["expected"]
    lines = [
        "| | |",
        "|---|---|",
        f"| rows | {planted_['rows']:,} |",
        f"| rows that all pairs mark (Jaccard ≥ {SIMILAR}) | {planted_['expected']:,} |",
        f"| recall | {recall:.4f} ({within.low:.4f}–{within.high:.4f}) |",
        f"| precision | {planted_['of them similar'] / planted_['near-duplicates marked']:.4f} of "
        f"{planted_['near-duplicates marked']:,} |",
        f"| representatives that are themselves marked | {planted_['representatives that are marked']} |",
        *(
            f"| copies found, edited in {how} | {found_:,} of {all_:,} |"
            for how, (found_, all_) in planted_["edits"].items()
        ),
        f"| chain of {chain['rows']:,} rows, each 0.77 like the next | {chain['kept'] / chain['rows']:.2%} kept, "
        f"{chain['bytes'] / chain['seconds'] / 1e6:.1f} MB/s |",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--chain", type=int, default=CHAIN)
    asked = parser.parse_args()

    def measured(directory: Path) -> dict[str, Any]:
        return {"planted": against_brute_force(asked.rows, directory), "chain": along_a_chain(directory, asked.chain)}

    measure_and_store(HERE / "results" / "near_duplicates.json", measured, table_of)


if __name__ == "__main__":
    main()
