"""Metrics of words equal their reference libraries and the papers' examples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tunesmith.errors import UserError
from tunesmith.metrics import NAMED
from tunesmith.metrics.metric import Case, Metric, measured, scores, without_repeats
from tunesmith.metrics.text import SHOWN_WHERE_THEY_DIFFER, _chrf, exact_match, exact_match_strict, word_f1

ANSWERS = [
    "The cat sat on the mat.",
    "A dog ran through the park, barking.",
    "It is a guide to action which ensures that the military always obeys the commands of the party.",
    "",
    "Two men are playing football in a field.",
]
EXPECTED = [
    "The cat is on the mat.",
    "A dog runs barking through the park.",
    "It is a guide to action that ensures that the military will forever heed Party commands.",
    "Nothing to see here at all.",
    "Two men play football on the field.",
]
CASES = [Case(f"row {row}", "", *pair) for row, pair in enumerate(zip(ANSWERS, EXPECTED, strict=True))]
RESAMPLE = np.array([0, 2, 2, 4, 1, 0])


def figure(name: str, cases: list[Case] = CASES) -> float:
    return measured({name: NAMED[name]}, cases)[name].of(np.arange(len(cases)))


@pytest.mark.parametrize(("name", "reference"), [("bleu", BLEU()), ("chrf", CHRF())])
def test_corpus_figures_equal_sacrebleu_over_all_rows_and_over_resamples(name: str, reference: BLEU | CHRF) -> None:
    found = measured({name: NAMED[name]}, CASES)[name]
    assert found.of(np.arange(5)) == pytest.approx(reference.corpus_score(ANSWERS, [EXPECTED]).score)
    picked = RESAMPLE.tolist()
    theirs = reference.corpus_score([ANSWERS[row] for row in picked], [[EXPECTED[row] for row in picked]]).score
    assert found.of(RESAMPLE) == pytest.approx(theirs)
    assert (found.unit, found.values, found.units[2]) == ("points", None, "row 2")
    assert found.of(np.arange(5)) != pytest.approx(100 * scores(NAMED[name], ANSWERS, EXPECTED).mean(), abs=0.5)


def test_chrf_is_the_same_without_the_internals_of_sacrebleu(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = measured({"chrf": NAMED["chrf"]}, CASES)["chrf"].of(RESAMPLE)
    monkeypatch.setattr("tunesmith.metrics.text._chrf_counts", lambda *_: None)
    assert measured({"chrf": NAMED["chrf"]}, CASES)["chrf"].of(RESAMPLE) == pytest.approx(fast)
    assert hasattr(_chrf(), "_extract_corpus_statistics"), "this version has what makes it fast"


def test_bleu_of_the_papers_candidates_clips_repeated_words() -> None:
    """Papineni et al. 2002, section 2.1: seven times "the" has a modified unigram precision of 2/7."""
    from sacrebleu.metrics.bleu import BLEU

    found = BLEU(effective_order=True, lowercase=True).sentence_score(
        "the the the the the the the", ["The cat is on the mat"]
    )
    assert found.counts[0] / found.totals[0] == pytest.approx(2 / 7)


@given(st.lists(st.sampled_from("the cat sat ran far away".split()), max_size=8).map(" ".join))
@settings(max_examples=30)
def test_rouge_equals_the_rouge_score_package(answer: str) -> None:
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score("The cat ran far away", answer)
    for name, key in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        score = NAMED[name].score
        assert score is not None
        assert score(answer, "The cat ran far away") == pytest.approx(theirs[key].fmeasure)


@pytest.mark.parametrize(
    ("answer", "expected", "f1"),
    [
        ("The Eiffel Tower!", "Eiffel tower", 1.0),
        ("in the city of Paris", "Paris", 2 * 1 / (4 + 1)),
        ("ate apples and apples", "apples", 2 * 1 / (4 + 1)),
        ("London", "Paris", 0.0),
        ("", "Paris", 0.0),
        ("the", "A.", 1.0),
    ],
)
def test_f1_of_words_is_that_of_the_squad_script(answer: str, expected: str, f1: float) -> None:
    assert word_f1(answer, expected) == pytest.approx(f1)


def test_strict_match_counts_case_and_periods_and_normalized_match_does_not() -> None:
    assert [exact_match(answer, "Yes.") for answer in ("yes", " Yes. ", "YES", "Yes!")] == [1, 1, 1, 0]
    assert [exact_match_strict(answer, "Yes.") for answer in ("yes", " Yes. ", "YES", "Yes!")] == [0, 1, 0, 0]


def test_strict_match_is_shown_only_where_it_differs_for_some_model() -> None:
    metrics = {name: NAMED[name] for name in ("exact_match", "exact_match_strict", "bleu")}

    def of(*answers: str) -> dict[str, object]:
        return measured(metrics, [Case(str(row), "", answer, "Yes.") for row, answer in enumerate(answers)])

    same = without_repeats({"a": of("Yes.", "No."), "b": of("No.", "No.")}, SHOWN_WHERE_THEY_DIFFER)
    assert [set(each) for each in same.values()] == [{"exact_match", "bleu"}] * 2
    different = without_repeats({"a": of("Yes.", "No."), "b": of("yes", "No.")}, SHOWN_WHERE_THEY_DIFFER)
    assert [set(each) for each in different.values()] == [set(metrics)] * 2


def test_metrics_that_do_not_fit_every_expected_answer_are_left_out() -> None:
    cases = [Case("a", "", "x", "y"), Case("b", "", "x", "…")]
    assert set(measured({name: NAMED[name] for name in ("bleu", "word_f1")}, cases)) == {"word_f1"}
    assert set(measured({"bleu": NAMED["bleu"]}, cases[:1])) == {"bleu"}


def test_every_named_metric_explains_itself() -> None:
    assert len({metric.title for metric in NAMED.values()}) == len(NAMED)
    for metric in NAMED.values():
        assert isinstance(metric, Metric)
        assert len(metric.title) < len(metric.explanation)
        assert metric.score is not None or metric.figure is not None
    with pytest.raises(UserError, match="concept coverage has no score of a single answer"):
        scores(NAMED["coverage"], ["a"], ["b"])
