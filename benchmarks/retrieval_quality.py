"""How well each way to search finds known passages, on three sets of real texts; and whether it finds what brute force
finds.

    tunesmith bases get all-minilm-l6-v2
    python benchmarks/retrieval_quality.py     # writes results/retrieval_quality.json and .md

- docstrings: the first sentence of a docstring of Python's standard library is the question, the rest the passage.
- terms of service: a person's summary of a clause is the question, the clause the passage (Manor & Li 2019).
- bank questions: a customer's question; relevant are all others of the same intent (Casanueva et al. 2020, BANKING77).

The last two are read from TUNESMITH_DATA and left out without it. The weight is tuned on one half of the questions of
each set (`tunesmith search --tune`), and all ways are measured on the other half. Brute force computes BM25 in plain
Python by its formula and cosines in float64, and has to give the same ten passages up to equal scores.
"""

import ast
import json
import math
import os
import re
import shutil
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stored_result import store
from study_rows import banking77

import tunesmith
from tunesmith.retrieval.full_text import K1, B, words_of
from tunesmith.retrieval.measures import Scored, measure, ndcg, scored
from tunesmith.retrieval.questions import read_questions
from tunesmith.retrieval.search import Index
from tunesmith.retrieval.tuning import WEIGHTS

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "retrieval_quality.json"
WORK = Path(tempfile.gettempdir()) / "retrieval_quality"
ENCODER = "all-minilm-l6-v2"
WAYS = {
    "dense": ("dense", 1.0), "text": ("text", 0.0), "rrf": ("rrf", 0.0),
    **{f"weighted, {weight:g}": ("weighted", weight) for weight in (0.5, 0.6, 0.7, 0.8, 0.9)},
}  # fmt: skip
DOCSTRINGS, BANK_PASSAGES, BANK_QUESTIONS = 600, 10, 400
BRUTE = 40
K = 10

Rows = list[tuple[str, list[str]]]
"""Questions, each with the names of the passages that answer it."""


def main() -> None:
    sets = {"docstrings": docstrings}
    if (DATA / "banking77").exists():
        sets |= {"terms of service": terms, "bank questions": bank}
    found = {name: quality(name, *make()) for name, make in sets.items()}
    store(RESULTS, {"encoder": ENCODER, "sets": found}, table(found))


def docstrings() -> tuple[dict[str, str], Rows]:
    """Descriptions of functions and classes, without their first sentences."""
    passages: dict[str, str] = {}
    rows: Rows = []
    library = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests", "lib2to3", "idlelib"} & set(file.parts):
            continue
        for name, text in documented(file):
            first, _, rest = " ".join(text.split()).partition(". ")
            if 5 <= len(first.split()) <= 30 and 25 <= len(rest.split()) <= 200 and rest not in passages.values():
                key = f"{file.relative_to(library).with_suffix('')}.{name}".replace("/", ".")
                passages[key] = rest
                rows.append((first, [key]))
    chosen = [rows[number] for number in np.random.default_rng(0).permutation(len(rows))[:DOCSTRINGS].tolist()]
    return {keys[0]: passages[keys[0]] for _, keys in chosen}, chosen


def documented(file: Path) -> Iterator[tuple[str, str]]:
    """The functions and classes of a file that have a docstring."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for number, node in enumerate(ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
            yield f"{node.name}-{number}", text


def terms() -> tuple[dict[str, str], Rows]:
    """Clauses of contracts, and their summaries."""
    passages: dict[str, str] = {}
    names: dict[str, str] = {}
    rows: Rows = []
    for name in ("tldrlegal_v1", "tosdr_annotated_v1"):
        clauses = json.loads((DATA / "legal_summarization" / f"{name}.json").read_text(encoding="utf-8"))
        for clause in clauses.values():
            text, summary = clause["original_text"], clause["reference_summary"]
            key = names.setdefault(text, clause["uid"])
            passages[key] = text
            if len(summary.split()) >= 4:
                rows.append((summary, [key]))
    return passages, rows


def bank() -> tuple[dict[str, str], Rows]:
    """Customers' questions."""
    by_intent: dict[str, list[str]] = {}
    passages: dict[str, str] = {}
    for number, row in enumerate(banking77(DATA, "train")):
        own = by_intent.setdefault(row["label"], [])
        if len(own) < BANK_PASSAGES:
            own.append(f"{number:05}")
            passages[f"{number:05}"] = row["text"]
    questions = banking77(DATA, "test")
    chosen = np.random.default_rng(0).choice(len(questions), BANK_QUESTIONS, replace=False).tolist()
    return passages, [(questions[number]["text"], by_intent[questions[number]["label"]]) for number in chosen]


def quality(name: str, passages: dict[str, str], rows: Rows) -> dict[str, Any]:
    """Index the passages and measure all ways."""
    place = WORK / name.replace(" ", "-")
    shutil.rmtree(place / "passages", ignore_errors=True)
    (place / "passages").mkdir(parents=True)
    for key, text in passages.items():
        (place / "passages" / f"{key}.txt").write_text(text, encoding="utf-8")
    tunesmith.index(place / "passages", place / "index", ENCODER)
    questions = place / "questions.jsonl"
    lines = [{"question": text, "relevant": [{"file": f"{key}.txt"} for key in keys]} for text, keys in rows]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    index = Index(place / "index")
    all_rows = scored(index, read_questions(questions))
    development = [row for row in all_rows if row.question.is_development]
    held_out = [row for row in all_rows if not row.question.is_development]
    curve = {weight: mean_ndcg(development, weight) for weight in WEIGHTS}
    tuned = max(curve, key=curve.__getitem__)
    result = measure(held_out, {**WAYS, "weighted, tuned": ("weighted", tuned)}, K, name)
    same = brute_force(index, [row.question.text for row in held_out[:BRUTE]])
    kept = ("models", "differences", "rows")
    return {"passages": len(passages), "chunks": len(index.version), "tuned": tuned, "curve": curve, "same": same,
            **{key: result[key] for key in kept}}  # fmt: skip


def mean_ndcg(rows: list[Scored], weight: float) -> float:
    return float(np.mean([ndcg(row.order("weighted", weight).tolist(), row.relevant, K) for row in rows]))


def brute_force(index: Index, questions: list[str]) -> dict[str, int]:
    """How many questions get brute force's ten passages, by BM25 and by the cosine."""
    version = index.version
    assert version.dense is not None
    texts = [words_of(version.chunk(number)["text"]) for number in range(len(version))]
    counts = [Counter(words) for words in texts]
    chunks_with = Counter(word for count in counts for word in count)
    mean = sum(map(len, texts)) / len(texts)
    vectors = np.array(version.dense.vectors, np.float64)
    same = Counter[str](questions=len(questions))
    for question in questions:
        assert index.encoder is not None
        bm25 = np.array([score_of(words_of(question), count, chunks_with, len(texts), mean) for count in counts])
        cosines = vectors @ index.encoder.question(question).astype(np.float64)
        for way, scores in (("text", bm25), ("dense", cosines)):
            found = [hit.chunk for hit in index.search(question, K, way)]
            expected = np.sort(scores)[::-1][: len(found)]
            same[way] += bool(np.allclose(scores[found], expected, rtol=1e-5, atol=1e-6))
    return dict(same)


def score_of(question: list[str], count: Counter[str], chunks_with: Counter[str], total: int, mean: float) -> float:
    """BM25 by its formula."""
    length = count.total()
    return sum(
        math.log1p((total - chunks_with[word] + 0.5) / (chunks_with[word] + 0.5))
        * count[word] / (count[word] + K1 * (1 - B + B * length / mean))
        for word in question
        if count[word]
    )  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """nDCG of each way on each set, and its difference from the cosine alone."""
    heads = [f"{name} ({each['rows']} of {each['passages']:,} passages)" for name, each in found.items()]
    lines = [f"| nDCG@{K} | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for way in next(iter(found.values()))["models"]:
        cells = []
        for each in found.values():
            value, (low, high) = (each["models"][way]["ndcg"][key] for key in ("value", "interval"))
            cell = f"{value:.3f} [{low:.3f}, {high:.3f}]"
            if way != "dense":
                change = each["differences"][way]["ndcg"]
                cell += f"; {change['value']:+.3f} [{change['interval'][0]:+.3f}, {change['interval'][1]:+.3f}]"
            cells.append(cell + (f", w = {each['tuned']:g}" if way == "weighted, tuned" else ""))
        lines.append(f"| {re.sub('^[a-z]+', lambda match: f'`{match.group()}`', way)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
