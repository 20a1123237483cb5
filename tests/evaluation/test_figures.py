"""What a figure promises: its sign, its unit, an interval that holds it, and the truth as often as it says."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import binom, binomtest, pearsonr, spearmanr, t
from sklearn.metrics import accuracy_score, f1_score, root_mean_squared_error

from tunesmith.engine.held_out import RowLosses
from tunesmith.evaluation.compare import Side, Task, summarize
from tunesmith.evaluation.metrics import (
    METRICS,
    change_with_interval,
    drawn_again,
    exact_match,
    first_word,
    interval_of,
    mean_with_interval,
    scores,
    wilson,
)
from tunesmith.evaluation.prediction_metrics import PREDICTION_METRICS, Predictions

Values = NDArray[np.float64]
Interval = tuple[float, float]
DATA_SETS = 400


# An interval holds the truth as often as it says


def check_share(interval: Callable[[], Interval], truth: float, share: float) -> None:
    """That intervals of many data sets hold the truth as often as a coin of that share would fall.

    Percentiles are too narrow where rows are few; `share` is what 8,000 others gave, or what a formula says.
    """
    low, high = np.array([interval() for _ in range(DATA_SETS)]).T
    held = int(((low <= truth) & (truth <= high)).sum())
    assert binomtest(held, DATA_SETS, share).pvalue > 0.05, held / DATA_SETS
    assert binomtest(held, DATA_SETS, share - 0.05).pvalue < 0.05, "as an interval of 90 % would"


@pytest.mark.parametrize(
    ("values", "truth", "share"),
    [
        # of normal values: those of a normal whose spread is divided by n and not by n - 1
        pytest.param(
            lambda draw: draw.normal(2.0, 3.0, 40), 2.0, 2 * t.cdf(1.96 * (39 / 40) ** 0.5, 39) - 1, id="even"
        ),
        pytest.param(lambda draw: draw.gamma(2.0, 1.5, 40), 3.0, 0.93, id="skewed"),
        pytest.param(lambda draw: draw.beta(0.5, 0.8, 40), 0.5 / 1.3, 0.94, id="scores"),
    ],
)
def test_a_means_interval_holds_the_truth_as_often_as_it_says(
    values: Callable[[np.random.Generator], Values], truth: float, share: float
) -> None:
    draw = np.random.default_rng(1)
    check_share(lambda: mean_with_interval(values(draw))[1], truth, share)


def test_a_paired_differences_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(2)
    before = draw.beta(0.6, 0.9, 5000)
    after = np.clip(before + draw.normal(0.1, 0.2, 5000), 0, 1)

    def interval() -> Interval:
        rows = draw.integers(0, 5000, 40)
        return change_with_interval(before[rows], after[rows])[1]

    check_share(interval, (after - before).mean(), 0.94)


def rows_to_draw_from() -> tuple[Values, Values, NDArray[np.int64]]:
    """Summed losses before and after and learnt tokens of 5,000 rows: unequal, short ones harder."""
    draw = np.random.default_rng(0)
    counts = 1 + draw.geometric(0.05, 5000)
    before = counts * draw.gamma(4.0, 0.5, 5000) * (1 + 4 / counts)
    return before, before * draw.beta(6, 3, 5000) + counts * draw.normal(0, 0.2, 5000), counts


def test_the_losses_intervals_hold_the_truth_as_often_as_they_say_whatever_the_rows_lengths() -> None:
    before, after, counts = rows_to_draw_from()
    draw = np.random.default_rng(3)

    def drawn() -> tuple[RowLosses, RowLosses]:
        rows = draw.integers(0, 5000, 50)
        return RowLosses(before[rows], counts[rows]), RowLosses(after[rows], counts[rows])

    check_share(lambda: drawn()[0].interval(), before.sum() / counts.sum(), 0.93)
    check_share(lambda: RowLosses.difference(*drawn())[1], (after - before).sum() / counts.sum(), 0.93)


def test_a_share_of_hits_is_held_as_often_as_wilsons_intervals_hold_it() -> None:
    """Exactly: over every number of hits, and the true shares that a thousand rows could have."""
    rows, truths = 40, np.arange(1, 1000) / 1000
    low, high = np.array([wilson(hits / rows, rows) for hits in range(rows + 1)]).T
    probabilities = binom.pmf(np.arange(rows + 1)[:, None], rows, truths)
    held = (probabilities * ((low[:, None] <= truths) & (truths <= high[:, None]))).sum(0)
    assert held.mean() == pytest.approx(0.95, abs=0.005)
    assert held.min() > 0.83  # Brown et al. 2001, section 3.1.1: at the ends
    for hits in (0, 1, 13, 39, 40):
        theirs = binomtest(hits, rows).proportion_ci(method="wilson")
        assert wilson(hits / rows, rows) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def ratio_error(sums: Values, counts: NDArray[np.int64]) -> float:
    """The standard error of a ratio of sums (Cochran 1977, equation 2.46)."""
    return float(np.sqrt(np.square(sums - sums.sum() / counts.sum() * counts).sum()) / counts.sum())


def test_an_intervals_ends_lie_two_standard_errors_from_its_value() -> None:
    draw = np.random.default_rng(4)
    values = draw.normal(5.0, 2.0, 900)
    error = values.std() / 30
    (before, after, counts), rows = rows_to_draw_from(), slice(0, 1200)
    losses, later = RowLosses(before[rows], counts[rows]), RowLosses(after[rows], counts[rows])
    change, moved = later.sums - losses.sums, losses.difference(later)
    cases: list[tuple[float, Interval, float]] = [
        (*mean_with_interval(values), error),
        (*change_with_interval(values, values / 2), error / 2),
        (values.mean(), interval_of(drawn_again(lambda each: float(values[each].mean()), 900)[1]), error),
        (losses.sums.sum() / losses.counts.sum(), losses.interval(), ratio_error(losses.sums, losses.counts)),
        (change.sum() / losses.counts.sum(), moved[1], ratio_error(change, losses.counts)),
    ]
    for value, (low, high), one in cases:
        assert (low - value) / one == pytest.approx(-1.96, abs=0.2)
        assert (high - value) / one == pytest.approx(1.96, abs=0.2)
    assert moved[0] == pytest.approx(later.loss - losses.loss)
    assert losses.loss == pytest.approx(before[rows].sum() / counts[rows].sum())
    assert mean_with_interval(values)[0] == pytest.approx(values.mean())


def test_a_mean_of_all_rows_together_has_the_interval_of_a_mean_over_rows() -> None:
    values = np.random.default_rng(5).gamma(2.0, 1.0, 30)
    value, draws = drawn_again(lambda rows: float(values[rows].mean()), 30)
    assert value == pytest.approx(mean_with_interval(values)[0])
    assert interval_of(draws) == pytest.approx(mean_with_interval(values)[1])
    assert len(draws) == 2000
    assert len(np.unique(draws)) > 1900


# An interval holds its own value


@given(values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_an_interval_always_holds_its_own_value(values: list[float]) -> None:
    found = np.array(values)
    counts = np.arange(1, len(values) + 1) ** 3
    losses, later = RowLosses(np.abs(found) * counts, counts), RowLosses(found + 1, counts)
    cases = [
        mean_with_interval(found),
        mean_with_interval((found > 0).astype(float)),
        change_with_interval(np.zeros(len(values)), found),
        (losses.loss, losses.interval()),
        losses.difference(later),
    ]
    for value, (low, high) in cases:
        assert low - 1e-9 <= value <= high + 1e-9
    value, (low, high) = cases[1]
    assert 0 <= low <= value + 1e-9 <= high + 2e-9 <= 1 + 2e-9


def test_the_calibration_error_of_a_model_that_is_right_as_often_as_it_says_holds_its_value() -> None:
    """Draws of rows have a larger error than the rows themselves: chance comes to chance."""
    draw = np.random.default_rng(3)
    sure = draw.uniform(0.2, 1.0, 200)
    said = np.stack([sure, 0 * sure], 1)
    right = (draw.random(200) > sure).astype(float)
    predictions = Predictions([each[None] for each in said], [np.array([[each]]) for each in right], ("a", "b"))
    side = Side(RowLosses(np.ones(200), np.ones(200, np.int64)), [], predictions)
    figure = summarize(side, side, [], ["calibration_error"])["tuned"]["metrics"]["calibration_error"]
    value, draws = drawn_again(PREDICTION_METRICS["calibration_error"].of(predictions), 200)
    low, high = interval_of(draws)
    assert value < low, "by the draws alone"
    assert figure["value"] == value
    assert figure["interval"] == (value, high)


# A difference is tuned less base


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(([0, 1, 0, 0, 1, 0], [1, 1, 1, 0, 1, 1]), id="no row is worse"),
        pytest.param(([1, 1, 1, 0, 1, 1], [0, 1, 0, 0, 1, 0]), id="no row is better"),
        pytest.param(([0, 0, 0, 0], [1, 1, 1, 1]), id="all are better"),
        pytest.param(([0, 1, 1, 0], [0, 1, 1, 0]), id="none is other"),
        pytest.param(([0.2, 0.9, 0.4, 0.1], [0.3, 0.1, 0.5, 0.8]), id="of scores"),
        pytest.param(([0.25, 0.5], [0.25, 0.5]), id="equal scores"),
    ],
)
def test_a_difference_turns_its_sign_where_the_sides_are_exchanged(pair: tuple[list[float], list[float]]) -> None:
    before, after = map(np.array, pair)
    value, (low, high) = change_with_interval(before * 1.0, after * 1.0)
    turned, ends = change_with_interval(after * 1.0, before * 1.0)
    assert value == pytest.approx(np.mean(after - before))
    assert turned == pytest.approx(-value)
    assert ends == pytest.approx((-high, -low))


def test_a_few_rows_that_are_all_the_same_or_all_better_prove_little() -> None:
    same = change_with_interval(np.ones(10), np.ones(10))[1]
    assert same == pytest.approx((-wilson(0, 10)[1], wilson(0, 10)[1]))
    better = change_with_interval(np.zeros(10), np.ones(10))[1]
    assert better == pytest.approx((wilson(1, 10)[0], 1.0))


EXPECTED = ["red fox", "blue hen", "grey owl", "a b c d", "yes", "no", "seven"]
BASE = ["red cat", "hen", "grey owl", "a c x d", "maybe", "no", ""]
TUNED = ["Red fox.", "blue hen", "grey cow", "a b c d e", "yes", "yes", "seven"]


def task(number: int, expected: str) -> Task:
    chat = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {number}?"})
    return Task(chat, expected, f"rows.jsonl row {number}")


def test_a_comparison_has_each_sides_figures_on_its_own_side_and_tuned_less_base_as_difference() -> None:
    counts = np.array([2, 3, 1])
    base = Side(RowLosses(np.array([4.0, 6.0, 2.0]), counts), BASE)
    tuned = Side(RowLosses(np.array([1.0, 3.0, 0.5]), counts), TUNED)
    tasks = [task(number, expected) for number, expected in enumerate(EXPECTED)]
    found = summarize(base, tuned, tasks)
    assert (found["rows"], found["loss_tokens"], found["generated_rows"]) == (3, 6, 7)
    assert (found["base"]["loss"], found["tuned"]["loss"]) == pytest.approx((2.0, 0.75))
    assert (found["base"]["perplexity"], found["tuned"]["perplexity"]) == pytest.approx((np.exp(2.0), np.exp(0.75)))
    assert found["base"]["loss_interval"] == base.losses.interval()
    assert found["tuned"]["loss_interval"] == tuned.losses.interval()
    assert found["differences"]["loss"]["value"] == pytest.approx(-1.25)
    assert found["differences"]["loss"]["interval"][1] < 0

    wanted = {
        "exact_match": ([0, 0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 0, 1]),
        "first_word": ([1, 0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 0, 1]),
        # F1 of the longest common subsequence, by hand
        "rouge_l": ([1 / 2, 2 / 3, 1, 3 / 4, 0, 1, 0], [1, 1, 1 / 2, 8 / 9, 1, 0, 1]),
    }
    assert set(found["base"]["metrics"]) == set(found["tuned"]["metrics"]) == set(wanted) == set(METRICS)
    for name, pair in wanted.items():
        before, after = map(np.array, pair)
        assert found["base"]["metrics"][name] == figure_of(before, METRICS[name].described), name
        assert found["tuned"]["metrics"][name] == figure_of(after, METRICS[name].described), name
        value, ends = change_with_interval(before * 1.0, after * 1.0)
        assert found["differences"][name] == {"value": pytest.approx(value), "interval": pytest.approx(ends)}, name
        assert value == pytest.approx(after.mean() - before.mean())
        assert value > 0
    titles = [found["base"]["metrics"][name]["described"] for name in ("rouge_l", "first_word", "exact_match")]
    assert titles == ["word overlap", "first word right", "exactly right"]
    places = [0, 2, 3, 4, 6]  # five, spread evenly
    assert found["samples"] == [
        {
            "source": f"rows.jsonl row {place}",
            "prompt": f"Question {place}?",
            "expected": EXPECTED[place],
            "base": BASE[place],
            "tuned": TUNED[place],
        }
        for place in places
    ]


def figure_of(values: Values, described: str) -> dict[str, Any]:
    value, ends = mean_with_interval(values * 1.0)
    return {"value": pytest.approx(value), "interval": pytest.approx(ends), "described": described}


def class_predictions(said: Any, right: Any, labels: str = "abc") -> Predictions:
    return Predictions([np.array([each]) for each in said], [np.array([[each * 1.0]]) for each in right], tuple(labels))


def test_of_what_is_told_each_side_has_its_own_figures_and_the_difference_is_tuned_less_base() -> None:
    before = class_predictions([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7]], [1, 1, 2, 0])
    after = class_predictions([[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.1, 0.2, 0.7]], [1, 1, 2, 0])
    losses = RowLosses(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4, np.int64))
    said = [["a", "b", "a", "c"], ["b", "b", "c", "c"]]
    tasks = [task(number, "b") for number in range(4)]
    found = summarize(Side(losses, said[0], before), Side(losses, said[1], after), tasks, ["accuracy", "macro_f1"])
    accuracy = {"described": "accuracy", "better": 1, "unit": "%"}
    for side, value in (("base", 0.25), ("tuned", 0.75)):
        figure = found[side]["metrics"]["accuracy"]
        theirs = binomtest(round(4 * value), 4).proportion_ci(method="wilson")
        assert figure == {"value": value, "interval": pytest.approx((theirs.low, theirs.high), abs=1e-6), **accuracy}
        assert set(found[side]["metrics"]) == {"accuracy", "macro_f1"}, "none of what is written"
        assert "perplexity" not in found[side]
    f1 = [f1_score([1, 1, 2, 0], each, average="macro") for each in ([0, 1, 0, 2], [1, 1, 2, 2])]
    assert [found[side]["metrics"]["macro_f1"]["value"] for side in ("base", "tuned")] == pytest.approx(f1)
    assert set(found["differences"]) == {"loss", "accuracy", "macro_f1"}
    assert found["differences"]["accuracy"]["value"] == pytest.approx(0.5)
    assert found["differences"]["accuracy"]["interval"] == (0.0, 1.0)
    assert found["differences"]["macro_f1"]["value"] == pytest.approx(f1[1] - f1[0])
    assert [each["tuned"] for each in found["samples"]] == said[1]
    assert [each["base"] for each in found["samples"]] == said[0]


def test_a_difference_of_what_is_told_is_of_the_same_rows_on_both_sides() -> None:
    draw = np.random.default_rng(6)
    right = draw.normal(3.0, 1.0, 60)
    far, near = (right + error for error in (draw.normal(0, 2.0, 60), np.zeros(60)))
    sides = []
    for said in (far, far, near):
        predictions = Predictions(
            [np.array([[each]]) for each in said], [np.array([[each]]) for each in right], ("value",)
        )
        sides.append(Side(RowLosses(np.ones(60), np.ones(60, np.int64)), [], predictions))
    same = summarize(sides[0], sides[1], [], ["root_mean_square_error"])["differences"]["root_mean_square_error"]
    assert same == {"value": 0.0, "interval": (0.0, 0.0)}
    found = summarize(sides[0], sides[2], [], ["root_mean_square_error"])
    error = found["base"]["metrics"]["root_mean_square_error"]
    assert found["tuned"]["metrics"]["root_mean_square_error"]["value"] == 0.0
    assert error == {"value": error["value"], "interval": error["interval"], "better": -1, "unit": ""} | {
        "described": "root mean square error"
    }
    low, high = error["interval"]
    assert 0 < low < error["value"] < high
    less = found["differences"]["root_mean_square_error"]
    assert less == {"value": pytest.approx(-error["value"]), "interval": pytest.approx((-high, -low))}


def test_sides_that_judge_rows_of_their_own_are_pooled_in_order() -> None:
    all_predictions = [
        class_predictions([[0.9, 0.1]] * count, [number] * count, "ab") for number, count in enumerate((2, 3))
    ]
    sides = [
        Side(RowLosses(np.array([1.0, 2.0]), np.array([3, 4])), ["p", "q"], all_predictions[0]),
        Side(RowLosses(np.array([5.0, 6.0, 7.0]), np.array([8, 9, 1])), ["r", "s", "t"], all_predictions[1]),
    ]
    whole = Side.pooled(sides)
    assert (whole.losses.sums.tolist(), whole.losses.counts.tolist()) == ([1, 2, 5, 6, 7], [3, 4, 8, 9, 1])
    assert whole.answers == ["p", "q", "r", "s", "t"]
    assert whole.predictions is not None
    assert list(whole.predictions.models) == [0, 0, 1, 1, 1]
    assert [float(each[0, 0]) for each in whole.predictions.told] == [0, 0, 1, 1, 1]
    assert [each.shape for each in whole.predictions.said] == [(1, 2)] * 5
    assert whole.predictions.labels == ("a", "b")
    writing = Side.pooled([Side(each.losses, each.answers) for each in sides])
    assert writing.predictions is None


# Scores of answers


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "first"),
    [
        ("The  Path.", "the path", 1, 1),
        ("the path...", "the path", 1, 1),
        ("the path!", "the path", 0, 1),
        (".the path", "the path", 0, 1),
        ("STRASSE", "straße", 1, 1),
        ("", "", 1, 0),
        ("...", "yes", 0, 0),
        ("don't go", "don", 0, 0),
        ("well-known, yes", "Well-known!", 0, 1),
        ("_yes_ it is", "yes", 0, 1),
        ("path the", "the path", 0, 0),
    ],
)
def test_answers_are_compared_without_case_spaces_and_last_stops(
    answer: str, expected: str, exact: int, first: int
) -> None:
    assert (exact_match(answer, expected), first_word(answer, expected)) == (exact, first)


def test_word_overlap_is_the_rouge_packages_f1_with_stems() -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = [("he was running fast", "he runs"), ("b a", "a b c d"), ("", "x"), ("cats sat", "the cat sat down")]
    answers, expected = [list(side) for side in zip(*pairs, strict=True)]
    theirs = [scorer.score(wanted, answer)["rougeL"].fmeasure for answer, wanted in pairs]
    assert scores(METRICS["rouge_l"], answers, expected).tolist() == theirs
    assert theirs[0] == pytest.approx(2 / 3)  # he, run; of four and of two words
    with pytest.raises(ValueError, match="longer"):
        scores(METRICS["exact_match"], ["a"], ["a", "b"])


# Figures of what is told


DRAW = np.random.default_rng(0)
CLASSES = DRAW.dirichlet(np.ones(5) * 0.6, 80)
RIGHT = np.where(DRAW.random(80) < 0.6, CLASSES.argmax(1), DRAW.integers(0, 4, 80))
DRAWN_ROWS = DRAW.integers(0, 80, 80)
"""As a bootstrap draws them: some several times, some not at all."""


@pytest.mark.parametrize("rows", [np.arange(80), DRAWN_ROWS, np.array([3, 3, 7])])
def test_accuracy_and_f1_of_classes_are_scikit_learns_absent_classes_left_out(rows: NDArray[np.int64]) -> None:
    predictions = class_predictions(CLASSES, RIGHT, "abcdefg")  # g is neither said nor right, f in few draws
    said, right = CLASSES.argmax(1)[rows], RIGHT[rows]
    assert PREDICTION_METRICS["accuracy"].of(predictions)(rows) == pytest.approx(accuracy_score(right, said))
    theirs = f1_score(right, said, average="macro", zero_division=0)  # over the classes that are there
    assert PREDICTION_METRICS["macro_f1"].of(predictions)(rows) == pytest.approx(theirs)


def calibration_by_hand(sure: Values, hits: NDArray[np.bool_]) -> float:
    """Guo et al. 2017, equation 3, with 15 bins."""
    error = 0.0
    for place in range(15):
        last = place == 14
        inside = (sure >= place / 15) & ((sure < (place + 1) / 15) | last)
        if inside.any():
            error += inside.mean() * abs(hits[inside].mean() - sure[inside].mean())
    return float(error)


@pytest.mark.parametrize("rows", [np.arange(80), DRAWN_ROWS])
def test_calibration_errors_are_the_papers_sum_over_bins(rows: NDArray[np.int64]) -> None:
    predictions = class_predictions(CLASSES, RIGHT, "abcde")
    sure, hits = CLASSES.max(1)[rows], (CLASSES.argmax(1) == RIGHT)[rows]
    assert PREDICTION_METRICS["calibration_error"].of(predictions)(rows) == pytest.approx(
        calibration_by_hand(sure, hits)
    )
    certain = class_predictions([[1.0, 0.0], [0.95, 0.05], [0.2, 0.8]], [0, 1, 1], "ab")
    by_hand = (abs(1 - 1.95) + abs(1 - 0.8)) / 3  # 1.0 and 0.95 lie in one bin
    assert PREDICTION_METRICS["calibration_error"].of(certain)(np.arange(3)) == pytest.approx(by_hand)
    probabilities, right = CLASSES[:, :3], np.arange(240).reshape(80, 3) % 7 < 2
    apart = Predictions([each[None] for each in probabilities], [each[None] * 1.0 for each in right], tuple("abc"))
    flat, held = probabilities[rows].ravel(), right[rows].ravel()
    wanted = calibration_by_hand(np.maximum(flat, 1 - flat), (flat >= 0.5) == held)
    assert PREDICTION_METRICS["calibration_of_labels"].of(apart)(rows) == pytest.approx(wanted)


def label_predictions(said: Any, right: Any) -> Predictions:
    return Predictions([np.array([each]) for each in said], [np.array([each]) * 1.0 for each in right], tuple("abcd"))


@pytest.mark.parametrize("rows", [np.arange(60), DRAW.integers(0, 60, 60)])
def test_labels_apart_have_scikit_learns_f1_and_are_right_all_together_or_not(rows: NDArray[np.int64]) -> None:
    probabilities, right = DRAW.random((60, 4)), DRAW.random((60, 4)) < 0.4
    probabilities[:, 3], right[:, 3] = 0.1, False  # a label that is neither said nor right is left out of the mean
    probabilities[0, 0] = 0.5  # from here on a label holds
    predictions, held = label_predictions(probabilities, right), probabilities >= 0.5
    assert PREDICTION_METRICS["exact_labels"].of(predictions)(rows) == pytest.approx(
        accuracy_score(right[rows], held[rows])
    )
    micro = f1_score(right[rows], held[rows], average="micro")
    assert PREDICTION_METRICS["micro_f1"].of(predictions)(rows) == pytest.approx(micro)
    macro = f1_score(right[rows][:, :3], held[rows][:, :3], average="macro")
    assert PREDICTION_METRICS["macro_f1_of_labels"].of(predictions)(rows) == pytest.approx(macro)


def test_where_no_label_is_right_and_none_is_said_all_is_right() -> None:
    nothing = label_predictions([[0.1] * 4, [0.2] * 4], [[False] * 4] * 2)
    for name in ("micro_f1", "macro_f1_of_labels", "exact_labels"):
        assert PREDICTION_METRICS[name].of(nothing)(np.arange(2)) == 1.0
    too_much = label_predictions([[0.5, 0.1, 0.1, 0.1]], [[False] * 4])
    for name in ("micro_f1", "macro_f1_of_labels", "exact_labels"):
        assert PREDICTION_METRICS[name].of(too_much)(np.arange(1)) == 0.0


def value_predictions(said: Any, right: Any) -> Predictions:
    return Predictions([np.array([[each]]) for each in said], [np.array([[each]]) for each in right], ("value",))


@pytest.mark.parametrize("rows", [np.arange(80), DRAWN_ROWS])
def test_figures_of_values_are_scipys_and_scikit_learns_ties_and_all(rows: NDArray[np.int64]) -> None:
    right = DRAW.normal(7.0, 2.0, 80).round()
    said = (right + DRAW.normal(0.5, 2.0, 80)).round()
    predictions = value_predictions(said, right)
    figures = {
        name: PREDICTION_METRICS[name].of(predictions)(rows) for name in PREDICTION_METRICS if "correlation" in name
    }
    assert figures["correlation"] == pytest.approx(pearsonr(said[rows], right[rows]).statistic)
    assert figures["rank_correlation"] == pytest.approx(spearmanr(said[rows], right[rows]).statistic)
    error = PREDICTION_METRICS["root_mean_square_error"].of(predictions)(rows)
    assert error == pytest.approx(root_mean_squared_error(right[rows], said[rows]))


@pytest.mark.parametrize("name", ["correlation", "rank_correlation"])
def test_what_does_not_vary_is_not_correlated(name: str) -> None:
    for said, right in (([2.0] * 3, [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [0.1] * 3)):
        assert PREDICTION_METRICS[name].of(value_predictions(said, right))(np.arange(3)) == 0.0


TAGS = ("O", "B-A", "I-A", "B-B", "I-B")


def tag_predictions(*pairs: tuple[str, str]) -> Predictions:
    """Of rows, as what is said and what is right: `O B-A I-A`."""
    said, told = [], []
    for pair in pairs:
        places = [[TAGS.index(tag) for tag in side.split()] for side in pair]
        said.append(np.eye(len(TAGS))[places[0]] * 0.6 + 0.1)
        told.append(np.array(places[1], float)[:, None])
    return Predictions(said, told, TAGS)


def test_entities_are_right_with_their_words_and_their_label_and_are_counted_over_all_rows() -> None:
    predictions = tag_predictions(
        ("B-A I-A O B-B", "B-A I-A O B-B"),  # 2 of 2 of 2
        ("B-A O O B-B", "B-A I-A O B-A"),  # too short, another label: 0 of 2 of 2
        ("O B-B", "O B-B"),  # 1 of 1 of 1
        ("B-A B-A", "O O"),  # 0 of 2 of 0
    )
    figure = PREDICTION_METRICS["entity_f1"].of(predictions)
    assert figure(np.arange(4)) == pytest.approx(2 * 3 / (7 + 5))
    assert figure(np.array([0, 0, 1])) == pytest.approx(2 * 4 / (6 + 6))
    assert PREDICTION_METRICS["tag_accuracy"].of(predictions)(np.arange(4)) == pytest.approx((4 + 2 + 2 + 0) / 12)
    assert PREDICTION_METRICS["tag_accuracy"].of(predictions)(np.array([1, 2, 2])) == pytest.approx((2 + 2 + 2) / 8)
    assert PREDICTION_METRICS["entity_f1"].of(tag_predictions(("O O", "O O")))(np.arange(1)) == 1.0


def on_the_circle(*degrees: float) -> NDArray[np.float64]:
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1)


def vector_predictions(*rows: NDArray[np.float64], models: tuple[int, ...] = ()) -> Predictions:
    return Predictions(rows, [np.zeros((len(each), 0)) for each in rows], (), models)


def ranks_by_hand(rows: list[NDArray[np.float64]], asked: list[int]) -> list[int]:
    """Texts that are nearer than an anchor's own positive, but for positives of the same anchor in other rows."""
    found = []
    for row in asked:
        anchor, positive = rows[row][:2]
        own, nearer = anchor @ positive, 0
        for other, each in enumerate(rows):
            own_anchor = other == row or np.allclose(each[0], anchor, atol=1e-7)
            nearer += int(not own_anchor and anchor @ each[1] > own + 1e-6)
            nearer += sum(int(anchor @ negative > own + 1e-6) for negative in each[2:])
        found.append(1 + nearer)
    return found


def mean_rank_figures(predictions: Predictions, rows: Any = None) -> tuple[float, float, float]:
    rows = np.arange(len(predictions.said)) if rows is None else np.array(rows)
    first, ten, reciprocal = (
        PREDICTION_METRICS[name].of(predictions)(rows) for name in ("found_first", "found_in_ten", "reciprocal_rank")
    )
    return first, ten, reciprocal


def test_an_anchors_own_positive_is_ranked_among_all_positives_and_negatives() -> None:
    rows = (
        on_the_circle(0, 30),  # nearer: 20 of the next row
        on_the_circle(90, 20),  # nearer: 30, 60, -80 is not; and 40
        on_the_circle(0, 60, 40),  # nearer: 20 and its own negative; 30 belongs to the same anchor
    )
    assert mean_rank_figures(vector_predictions(*rows)) == pytest.approx((0, 1, (1 / 2 + 1 / 4 + 1 / 3) / 3))
    assert ranks_by_hand(list(rows), [0, 1, 2]) == [2, 4, 3]
    assert mean_rank_figures(vector_predictions(*rows), [0, 0, 2]) == pytest.approx((0, 1, (1 / 2 + 1 / 2 + 1 / 3) / 3))


def test_texts_as_near_as_the_own_one_stand_behind_it() -> None:
    tied = vector_predictions(on_the_circle(0, 10), on_the_circle(5, 10), on_the_circle(180, 0))
    found = PREDICTION_METRICS["reciprocal_rank"].of(tied)  # to 5 degrees, 0 and 10 are as near, as are both at 10
    assert [found(np.array([row])) for row in range(3)] == pytest.approx([1 / 2, 1, 1 / 3])


def test_the_tenth_is_among_ten_and_the_eleventh_is_not() -> None:
    others = [on_the_circle(180 + place, place) for place in range(1, 10)]
    tenth = vector_predictions(on_the_circle(0, 11), *others)
    assert PREDICTION_METRICS["found_in_ten"].of(tenth)(np.array([0])) == 1.0
    eleventh = vector_predictions(on_the_circle(0, 11, 10.5), *others)
    assert PREDICTION_METRICS["found_in_ten"].of(eleventh)(np.array([0])) == 0.0
    assert PREDICTION_METRICS["reciprocal_rank"].of(eleventh)(np.array([0])) == pytest.approx(1 / 11)


def test_ranks_of_many_rows_are_those_counted_one_by_one() -> None:
    draw = np.random.default_rng(1)
    rows = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in draw.normal(size=(270, 3, 4))]
    rows[269][0] = rows[3][0]  # one anchor in two rows, in two blocks of 256
    found = PREDICTION_METRICS["reciprocal_rank"].of(vector_predictions(*rows))
    asked = [0, 3, 100, 254, 255, 256, 257, 269]
    assert [1 / found(np.array([row])) for row in asked] == pytest.approx(ranks_by_hand(rows, asked))


def test_vectors_of_one_model_are_not_compared_with_another_ones() -> None:
    rows = (on_the_circle(0, 30), on_the_circle(90, 20), on_the_circle(0, 60, 40))
    apart = vector_predictions(*rows, models=(0, 1, 0))
    assert PREDICTION_METRICS["reciprocal_rank"].of(apart)(np.array([1])) == 1.0
    found = PREDICTION_METRICS["reciprocal_rank"].of(apart)
    assert [found(np.array([row])) for row in range(3)] == pytest.approx([1, 1, 1 / 2])


GOOD_AND_BAD: dict[str, tuple[Predictions, Predictions]] = {
    **dict.fromkeys(
        ("accuracy", "macro_f1", "calibration_error"),
        (class_predictions([[1.0, 0.0], [0.0, 1.0]], [0, 1]), class_predictions([[1.0, 0.0], [0.9, 0.1]], [1, 1])),
    ),
    **dict.fromkeys(
        ("exact_labels", "micro_f1", "macro_f1_of_labels", "calibration_of_labels"),
        (label_predictions([[1.0, 0, 0, 1]], [[1, 0, 0, 1]]), label_predictions([[1.0, 0, 1, 1]], [[0, 1, 0, 1]])),
    ),
    **dict.fromkeys(
        ("root_mean_square_error", "correlation", "rank_correlation"),
        (value_predictions([1.0, 2.0, 3.5], [1.0, 2.0, 3.0]), value_predictions([30.0, 1.0, 7.0], [1.0, 2.0, 3.0])),
    ),
    **dict.fromkeys(
        ("entity_f1", "tag_accuracy"), (tag_predictions(("B-A O", "B-A O")), tag_predictions(("O O", "B-A O")))
    ),
    **dict.fromkeys(
        ("found_first", "found_in_ten", "reciprocal_rank"),
        (
            vector_predictions(on_the_circle(0, 1), on_the_circle(90, 91)),
            vector_predictions(on_the_circle(0, 180, *range(20)), on_the_circle(90, 270)),
        ),
    ),
}
"""A telling that is right, and one that is wrong."""


@pytest.mark.parametrize("name", PREDICTION_METRICS)
def test_a_metric_says_rightly_which_way_is_better_and_in_what_unit(name: str) -> None:
    metric = PREDICTION_METRICS[name]
    good, bad = (metric.of(predictions)(np.arange(len(predictions.said))) for predictions in GOOD_AND_BAD[name])
    assert abs(metric.better) == 1
    assert metric.better * (good - bad) > 0
    has_own_size = {"root_mean_square_error", "correlation", "rank_correlation", "reciprocal_rank"}
    assert metric.unit == ("" if name in has_own_size else "%")
    if metric.unit == "%":
        assert (good, 0 <= bad <= 1) == (1.0 if metric.better == 1 else 0.0, True)
    assert metric.of_hits == (name in {"accuracy", "exact_labels", "found_first", "found_in_ten"})
