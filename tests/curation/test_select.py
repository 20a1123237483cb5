"""Selected rows cover the others, as well as is proven, or are the hardest or the best formed."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curated import read, sentence, write
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.curation.facility import by_vectors, by_words, facility_location
from tunesmith.curation.select import _hardest, data_select
from tunesmith.data.example import Row, Source
from tunesmith.errors import UserError
from tunesmith.report.curation import selection_parts


def value(similar: np.ndarray, rows: tuple[int, ...]) -> float:
    return float(similar[:, list(rows)].max(axis=1).sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 7), st.integers(1, 3), st.integers(0, 1000))
def test_lazy_greedy_reaches_the_proven_share_of_the_best_choice(rows: int, count: int, seed: int) -> None:
    """At least 1 − 1/e of the best value (Nemhauser et al. 1978), and each row is the one with the largest gain."""
    count = min(count, rows)
    vectors = np.random.default_rng(seed).normal(size=(rows, 3))
    gains, similarities = by_vectors(vectors)
    similar = np.stack([similarities(row) for row in range(rows)], axis=1)
    np.testing.assert_allclose(gains, similar.sum(axis=0))
    chosen = facility_location(gains, similarities, count, lambda done: None)
    best = max(value(similar, each) for each in combinations(range(rows), count))
    assert len(set(chosen)) == count
    assert value(similar, tuple(chosen)) >= (1 - 1 / np.e) * best - 1e-9
    for number in range(count):
        before = tuple(chosen[:number])
        values = [value(similar, (*before, row)) for row in range(rows) if row not in before]
        assert value(similar, (*before, chosen[number])) >= max(values) - 1e-9


def test_by_words_gains_are_sums_of_similarities() -> None:
    gains, similarities = by_words(["a b c", "b c d", "x y", ""])
    similar = np.stack([similarities(row) for row in range(4)], axis=1)
    np.testing.assert_allclose(gains, similar.sum(axis=0))
    np.testing.assert_allclose(np.diag(similar), [1, 1, 1, 0])
    assert similar[0, 1] > similar[0, 2] == 0


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Three topics of very different sizes."""
    topics = ["reset the password of an account"] * 20 + ["cancel an order of shoes"] * 3 + ["weather on the moon"]
    answers = [f"{topic} {n}." for n, topic in enumerate(topics)]
    return write(tmp_path / "rows.jsonl", [{"question": f"How to {a}?", "answer": a} for a in answers])


def test_diverse_rows_are_of_all_topics(rows: Path, tmp_path: Path) -> None:
    found = data_select(rows, 6, tmp_path / "out.jsonl")
    assert {row["question"].split()[2] for row in read(found.file)} == {"reset", "cancel", "weather"}
    assert (found.rows, found.read) == (6, 24)
    assert data_select(rows, 99, tmp_path / "all.jsonl").file.read_bytes() == rows.read_bytes()


def test_random_rows_differ_by_seed(rows: Path, tmp_path: Path) -> None:
    one, two, again = (
        data_select(rows, 8, tmp_path / f"{n}.jsonl", by="random", seed=seed).file.read_bytes()
        for n, seed in enumerate((0, 1, 0))
    )
    assert one == again != two


def test_the_best_formed_rows_are_selected(tmp_path: Path) -> None:
    good = [{"question": f"What about {sentence(n)}?", "answer": f"{sentence(n, 40)}."} for n in range(4)]
    bad = [{"question": "What?", "answer": "ok"}, {"question": "Why?", "answer": "no no no no no no no no"}]
    found = data_select(write(tmp_path / "rows.jsonl", [*bad, *good]), 4, tmp_path / "out.jsonl", by="quality")
    assert read(found.file) == good


def test_classes_without_a_chosen_row_are_named(tmp_path: Path) -> None:
    texts = [{"text": f"What about {sentence(n)}?", "label": "long"} for n in range(4)]
    texts += [{"text": "ok", "label": label} for label in ("short", "a word", "short")]
    source = write(tmp_path / "rows.jsonl", texts)
    found = data_select(source, 4, tmp_path / "few.jsonl", by="quality")
    assert found.lost == ("a word", "short")
    assert "No row of 2 classes was chosen: a word, short." in " ".join(map(str, selection_parts(found)))
    assert data_select(source, 7, tmp_path / "all.jsonl", by="quality").lost == ()


def test_the_most_difficult_rows_are_selected_those_from_one_on_last(
    rows: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from tunesmith.checks.difficulty import AnswerLosses, difficulties
    from tunesmith.data.row_formats import to_example

    found = data_select(rows, 5, tmp_path / "out.jsonl", by="difficulty", model=str(tiny_model))
    every = read(rows)
    examples: Any = [to_example(Row(row, Source("", 1)), "question_answer", {}) for row in every]
    ratios = difficulties(AnswerLosses(str(tiny_model)), examples).tolist()
    assert found.hopeless == sum(ratio >= 1 for ratio in ratios)
    usual = sorted((ratio for ratio in ratios if ratio < 1), reverse=True)
    hard = sorted((ratio for ratio in ratios if ratio >= 1), reverse=True)
    chosen = [ratios[every.index(row)] for row in read(found.file)]
    assert sorted(chosen) == pytest.approx(sorted((usual + hard)[:5]), rel=1e-5)
    ranked, hopeless = _hardest(np.array([0.5, 1.5, 0.9, 1.0]), np.array([3, 2, 1, 0]), 3)
    assert (ranked.tolist(), hopeless) == ([2, 0, 1], 2)


def test_what_cannot_be_selected_is_refused(rows: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"by": "beauty"}, "beauty is not one of diversity, difficulty, quality, random"),
        ({"by": "random", "model": "x"}, "--by random needs no model"),
    ):
        with pytest.raises(UserError, match=message):
            data_select(rows, 3, tmp_path / "out.jsonl", **options)  # type: ignore[arg-type]
    raw = write(tmp_path / "raw.jsonl", [{"text": "Only text."}])
    with pytest.raises(UserError, match="needs rows with a prompt and an answer"):
        data_select(raw, 1, tmp_path / "out.jsonl", by="difficulty")
