"""Figures: their sign and unit, and intervals that contain the value, and the true value as often as promised."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import binom, binomtest, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, root_mean_squared_error

from tunesmith.config.head import Head
from tunesmith.config.objective import PER_TOKEN
from tunesmith.evaluation.figures import Side, figures_of, samples_of
from tunesmith.evaluation.rows import Task, spread
from tunesmith.evaluation.summary import summary
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.heads.sequence_classification import RegressionHead, SequenceClassificationHead
from tunesmith.inference.held_out import RowLosses
from tunesmith.metrics import METRICS, Metric, scores
from tunesmith.metrics.prediction_metrics import PREDICTION_METRICS, Predictions
from tunesmith.metrics.text import exact_match, first_word
from tunesmith.statistics.bootstrap import bootstrap, interval_of
from tunesmith.statistics.intervals import change_with_interval, mean_with_interval, wilson
from tunesmith.subjects.subject import Answer

Values = NDArray[np.float64]
Interval = tuple[float, float]
DATA_SETS = 400


def side_of(losses: RowLosses, answers: Sequence[str] = (), predictions: Predictions | None = None) -> Side:
    """A model's results, on rows that are called by their numbers."""
    written = [Answer(text) for text in answers]
    return Side(losses, written, predictions, [f"row {number}" for number in range(len(losses.sums))])


def summarize(base: Side, tuned: Side, tasks: Sequence[Task], head: Head, metrics: Any = METRICS) -> dict[str, Any]:
    """Both models' figures, and their differences."""
    sides = {"base": base, "tuned": tuned}
    models = {name: figures_of(side, tasks, head, metrics, PER_TOKEN) for name, side in sides.items()}
    answers = {name: side.answers for name, side in sides.items()}
    return summary(models, "base") | {"samples": samples_of(tasks, answers, spread(len(tasks), 5))}


# Intervals contain the true value as often as promised


def check_share(interval: Callable[[], Interval], truth: float, share: float) -> None:
    """Check by a binomial test that the intervals of many data sets contain the true value with probability `share`.

    `share` is below 0.95 where percentiles are used, which are too narrow for few rows; it comes from 8,000 data sets.
    """
    low, high = np.array([interval() for _ in range(DATA_SETS)]).T
    covered = int(((low <= truth) & (truth <= high)).sum())
    assert binomtest(covered, DATA_SETS, share).pvalue > 0.05, covered / DATA_SETS
    assert binomtest(covered, DATA_SETS, share - 0.05).pvalue < 0.05, "as a 90 % interval would"


@pytest.mark.parametrize(
    ("values", "truth", "share"),
    [
        pytest.param(lambda draw: draw.normal(2.0, 3.0, 40), 2.0, 0.95, id="even"),
        pytest.param(lambda draw: draw.gamma(2.0, 1.5, 40), 3.0, 0.95, id="skewed"),
        pytest.param(lambda draw: draw.beta(0.5, 0.8, 40), 0.5 / 1.3, 0.95, id="scores"),
    ],
)
def test_interval_of_a_mean_contains_the_true_mean_as_often_as_promised(
    values: Callable[[np.random.Generator], Values], truth: float, share: float
) -> None:
    draw = np.random.default_rng(1)
    check_share(lambda: mean_with_interval(values(draw))[1], truth, share)


def test_interval_of_a_paired_difference_contains_the_true_one_as_promised() -> None:
    draw = np.random.default_rng(2)
    before = draw.beta(0.6, 0.9, 5000)
    after = np.clip(before + draw.normal(0.1, 0.2, 5000), 0, 1)

    def interval() -> Interval:
        rows = draw.integers(0, 5000, 40)
        return change_with_interval(before[rows], after[rows])[1]

    check_share(interval, (after - before).mean(), 0.95)


def rows_to_draw_from() -> tuple[Values, Values, NDArray[np.int64]]:
    """Summed losses before and after, and loss tokens, of 5,000 rows of unequal length; short rows are harder."""
    draw = np.random.default_rng(0)
    counts = 1 + draw.geometric(0.05, 5000)
    before = counts * draw.gamma(4.0, 0.5, 5000) * (1 + 4 / counts)
    return before, before * draw.beta(6, 3, 5000) + counts * draw.normal(0, 0.2, 5000), counts


def test_intervals_of_losses_contain_the_true_loss_for_rows_of_any_length() -> None:
    before, after, counts = rows_to_draw_from()
    draw = np.random.default_rng(3)

    def sample() -> tuple[RowLosses, RowLosses]:
        rows = draw.integers(0, 5000, 50)
        return RowLosses(before[rows], counts[rows]), RowLosses(after[rows], counts[rows])

    check_share(lambda: sample()[0].interval(), before.sum() / counts.sum(), 0.93)
    check_share(lambda: RowLosses.difference(*sample())[1], (after - before).sum() / counts.sum(), 0.93)


def test_wilson_interval_has_the_coverage_of_the_literature() -> None:
    """Exact coverage: over every number of hits, and true shares in steps of 0.001."""
    rows, truths = 40, np.arange(1, 1000) / 1000
    low, high = np.array([wilson(hits / rows, rows) for hits in range(rows + 1)]).T
    probabilities = binom.pmf(np.arange(rows + 1)[:, None], rows, truths)
    coverage = (probabilities * ((low[:, None] <= truths) & (truths <= high[:, None]))).sum(0)
    assert coverage.mean() == pytest.approx(0.95, abs=0.005)
    assert coverage.min() > 0.83  # Brown et al. 2001, section 3.1.1: at the ends
    for hits in (0, 1, 13, 39, 40):
        theirs = binomtest(hits, rows).proportion_ci(method="wilson")
        assert wilson(hits / rows, rows) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def ratio_error(sums: Values, counts: NDArray[np.int64]) -> float:
    """The standard error of a ratio of sums (Cochran 1977, equation 2.46)."""
    return float(np.sqrt(np.square(sums - sums.sum() / counts.sum() * counts).sum()) / counts.sum())


def test_interval_ends_are_1_96_standard_errors_from_the_value() -> None:
    draw = np.random.default_rng(4)
    values = draw.normal(5.0, 2.0, 900)
    error = values.std() / 30
    (before, after, counts), rows = rows_to_draw_from(), slice(0, 1200)
    losses, later = RowLosses(before[rows], counts[rows]), RowLosses(after[rows], counts[rows])
    change, difference = later.sums - losses.sums, losses.difference(later)
    cases: list[tuple[float, Interval, float]] = [
        (*mean_with_interval(values), error),
        (*change_with_interval(values, values / 2), error / 2),
        (values.mean(), interval_of(bootstrap(lambda rows: float(values[rows].mean()), 900)[1]), error),
        (losses.sums.sum() / losses.counts.sum(), losses.interval(), ratio_error(losses.sums, losses.counts)),
        (change.sum() / losses.counts.sum(), difference[1], ratio_error(change, losses.counts)),
    ]
    for value, (low, high), standard_error in cases:
        assert (low - value) / standard_error == pytest.approx(-1.96, abs=0.2)
        assert (high - value) / standard_error == pytest.approx(1.96, abs=0.2)
    assert difference[0] == pytest.approx(later.loss - losses.loss)
    assert losses.loss == pytest.approx(before[rows].sum() / counts[rows].sum())
    assert mean_with_interval(values)[0] == pytest.approx(values.mean())


def test_bootstrap_draws_rows_with_repetition_and_always_the_same() -> None:
    values = np.random.default_rng(5).gamma(2.0, 1.0, 30)
    value, draws = bootstrap(lambda rows: float(values[rows].mean()), 30)
    assert value == pytest.approx(values.mean())
    assert draws.std() == pytest.approx(values.std() / 30**0.5, rel=0.05)
    assert np.array_equal(draws, bootstrap(lambda rows: float(values[rows].mean()), 30)[1])
    assert interval_of(draws) == (np.quantile(draws, 0.025), np.quantile(draws, 0.975))
    assert len(draws) == 2000
    assert len(np.unique(draws)) > 1900


# Intervals contain their own value


@given(values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30))
@settings(max_examples=40)
def test_interval_always_contains_its_own_value(values: list[float]) -> None:
    array = np.array(values)
    counts = np.arange(1, len(values) + 1) ** 3
    losses, later = RowLosses(np.abs(array) * counts, counts), RowLosses(array + 1, counts)
    cases = [
        mean_with_interval(array),
        mean_with_interval((array > 0).astype(float)),
        change_with_interval(np.zeros(len(values)), array),
        (losses.loss, losses.interval()),
        losses.difference(later),
    ]
    for value, (low, high) in cases:
        assert low - 1e-9 <= value <= high + 1e-9
    value, (low, high) = cases[1]
    assert 0 <= low <= value + 1e-9 <= high + 2e-9 <= 1 + 2e-9


def test_interval_of_a_calibration_error_is_extended_to_contain_its_value() -> None:
    """Resamples have a larger calibration error than the rows themselves: resampling adds noise."""
    draw = np.random.default_rng(3)
    confidence = draw.uniform(0.2, 1.0, 200)
    outputs = np.stack([confidence, 0 * confidence], 1)
    targets = (draw.random(200) > confidence).astype(float)
    predictions = Predictions([row[None] for row in outputs], [np.array([[target]]) for target in targets], ("a", "b"))
    side = side_of(RowLosses(np.ones(200), np.ones(200, np.int64)), [], predictions)
    figure = summarize(side, side, [], SequenceClassificationHead(("a", "b")))["models"]["tuned"]["calibration_error"]
    value, draws = bootstrap(PREDICTION_METRICS["calibration_error"].of(predictions), 200)
    low, high = interval_of(draws)
    assert value < low, "the resamples alone"
    assert figure["value"] == value
    assert figure["interval"] == (value, high)


# Differences are tuned − base


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(([0, 1, 0, 0, 1, 0], [1, 1, 1, 0, 1, 1]), id="no row is worse"),
        pytest.param(([1, 1, 1, 0, 1, 1], [0, 1, 0, 0, 1, 0]), id="no row is better"),
        pytest.param(([0, 0, 0, 0], [1, 1, 1, 1]), id="all are better"),
        pytest.param(([0, 1, 1, 0], [0, 1, 1, 0]), id="no row changes"),
        pytest.param(([0.2, 0.9, 0.4, 0.1], [0.3, 0.1, 0.5, 0.8]), id="scores"),
        pytest.param(([0.25, 0.5], [0.25, 0.5]), id="equal scores"),
    ],
)
def test_swapping_the_sides_flips_the_sign_of_a_difference(pair: tuple[list[float], list[float]]) -> None:
    before, after = map(np.array, pair)
    value, (low, high) = change_with_interval(before * 1.0, after * 1.0)
    swapped, ends = change_with_interval(after * 1.0, before * 1.0)
    assert value == pytest.approx(np.mean(after - before))
    assert swapped == pytest.approx(-value)
    assert ends == pytest.approx((-high, -low))


def test_few_rows_that_are_all_equal_or_all_better_have_a_wide_interval() -> None:
    same = change_with_interval(np.ones(10), np.ones(10))[1]
    assert same == pytest.approx((-wilson(0, 10)[1], wilson(0, 10)[1]))
    better = change_with_interval(np.zeros(10), np.ones(10))[1]
    assert better == pytest.approx(((10 - 1.96**2) / (10 + 1.96**2), 1.0), abs=1e-4)


BESIDE = {"loss", "perplexity"}
"""What a language model has beside the metrics of its answers."""

EXPECTED = ["red fox", "blue hen", "grey owl", "a b c d", "yes", "no", "seven"]
BASE = ["red cat", "hen", "grey owl", "a c x d", "maybe", "no", ""]
TUNED = ["Red fox.", "blue hen", "grey cow", "a b c d e", "yes", "yes", "seven"]


def task(number: int, expected: str) -> Task:
    chat = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {number}?"})
    return Task(chat, expected, f"rows.jsonl row {number}")


def test_comparison_has_each_sides_figures_and_tuned_minus_base() -> None:
    counts = np.array([2, 3, 1])
    base = side_of(RowLosses(np.array([4.0, 6.0, 2.0]), counts), BASE)
    tuned = side_of(RowLosses(np.array([1.0, 3.0, 0.5]), counts), TUNED)
    tasks = [task(number, expected) for number, expected in enumerate(EXPECTED)]
    found = summarize(base, tuned, tasks, CausalLMHead())
    models, differences = found["models"], found["differences"]["tuned"]
    for name, side, loss in (("base", base, 2.0), ("tuned", tuned, 0.75)):
        sums = side.losses.sums
        ends = interval_of(bootstrap(lambda rows, sums=sums: float(sums[rows].sum() / counts[rows].sum()), 3)[1])
        assert models[name]["loss"] == {"value": pytest.approx(loss), "interval": pytest.approx(ends), "rows": 3}
        perplexity = models[name]["perplexity"]
        assert perplexity["value"] == pytest.approx(np.exp(loss))
        assert perplexity["interval"] == pytest.approx(np.exp(ends), rel=1e-3)
    assert differences["loss"]["value"] == pytest.approx(-1.25)
    assert differences["loss"]["interval"][1] < 0
    assert "perplexity" not in differences, "the loss says the same"

    scores_by_hand = {
        "exact_match": ([0, 0, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 0, 1]),
        "first_word": ([1, 0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 0, 1]),
        # F1 of the longest common subsequence, by hand
        "rouge_l": ([1 / 2, 2 / 3, 1, 3 / 4, 0, 1, 0], [1, 1, 1 / 2, 8 / 9, 1, 0, 1]),
    }
    assert set(models["base"]) == set(models["tuned"]) == {"loss", "perplexity", *scores_by_hand}
    assert set(differences) == {"loss", *scores_by_hand}
    for name, pair in scores_by_hand.items():
        before, after = map(np.array, pair)
        assert models["base"][name] == figure_of(before), name
        assert models["tuned"][name] == figure_of(after), name
        value, ends = change_with_interval(before * 1.0, after * 1.0)
        assert (differences[name]["value"], differences[name]["interval"]) == (
            pytest.approx(value),
            pytest.approx(ends),
        ), name
        assert value == pytest.approx(after.mean() - before.mean())
        assert value > 0
    titles = [found["figures"][name]["title"] for name in ("rouge_l", "first_word", "exact_match")]
    assert titles == ["word overlap", "first word correct", "exact match"]
    indices = [0, 2, 3, 4, 6]  # five, evenly spaced
    assert found["samples"] == [
        {
            "source": f"rows.jsonl row {index}",
            "prompt": f"Question {index}?",
            "expected": EXPECTED[index],
            "answers": {"base": BASE[index], "tuned": TUNED[index]},
        }
        for index in indices
    ]


def figure_of(values: Values) -> dict[str, Any]:
    value, (low, high) = mean_with_interval(values * 1.0)
    ends = (max(0.0, low), min(1.0, high))  # of a share
    return {"value": pytest.approx(value), "interval": pytest.approx(ends), "rows": len(values)}


def compared_answers(base: list[str], tuned: list[str], expected: list[str], **metrics: Any) -> dict[str, Any]:
    losses = RowLosses(np.ones(2), np.ones(2, np.int64))
    tasks = [task(number, text) for number, text in enumerate(expected)]
    return summarize(side_of(losses, base), side_of(losses, tuned), tasks, CausalLMHead(), **metrics)


@pytest.mark.parametrize("last", ['["x"]', "no JSON"])
def test_json_is_scored_only_if_every_expected_answer_is_json(last: str) -> None:
    found = compared_answers(["so", "[1]", "x"], ['{"a": 1}', "[2]", "x"], ['{"a": 1}', "[1, 2]", last])
    if last == "no JSON":
        assert set(found["models"]["tuned"]) == {*BESIDE, "rouge_l", "first_word", "exact_match"}
        return
    by_hand = {"valid_json": ([0, 1, 0], [1, 1, 0]), "fields": ([0, 2 / 3, 0], [1, 0, 0])}
    assert set(found["models"]["tuned"]) == {*BESIDE, *METRICS}
    assert set(METRICS) == {"rouge_l", "first_word", "exact_match", *by_hand}
    for name, (before, after) in by_hand.items():
        assert found["models"]["base"][name] == figure_of(np.array(before)), name
        assert found["models"]["tuned"][name] == figure_of(np.array(after)), name
        assert found["differences"]["tuned"][name]["value"] == pytest.approx(np.mean(after) - np.mean(before))
    assert [found["figures"][name]["title"] for name in by_hand] == ["valid JSON", "fields right"]


def test_own_metrics_replace_the_built_in_ones() -> None:
    own = {
        "length": Metric("same length", "as long as expected", lambda answer, text: float(len(answer) == len(text))),
        "digits": Metric("digits", "never fits here", lambda answer, text: 1.0, str.isdigit),
    }
    found = compared_answers(["a", "bc"], ["ab", "cd"], ["xy", "zw"], metrics=own)
    assert set(found["models"]["base"]) == {*BESIDE, "length"}
    assert found["models"]["base"]["length"] == figure_of(np.array([0, 1]))
    assert found["models"]["tuned"]["length"] == figure_of(np.array([1, 1]))
    assert found["differences"]["tuned"]["length"]["value"] == 0.5


def test_without_answers_there_are_no_metrics() -> None:
    assert set(compared_answers([], [], [])["models"]["tuned"]) == BESIDE


def class_predictions(outputs: Any, targets: Any, labels: str = "abc") -> Predictions:
    rows = [np.array([row]) for row in outputs]
    return Predictions(rows, [np.array([[target * 1.0]]) for target in targets], tuple(labels))


def test_prediction_metrics_have_each_sides_figures_and_tuned_minus_base() -> None:
    before = class_predictions([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1], [0.1, 0.2, 0.7]], [1, 1, 2, 0])
    after = class_predictions([[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.1, 0.2, 0.7]], [1, 1, 2, 0])
    losses = RowLosses(np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4, np.int64))
    texts = [["a", "b", "a", "c"], ["b", "b", "c", "c"]]
    tasks = [task(number, "b") for number in range(4)]
    head = SequenceClassificationHead(("a", "b", "c"))
    found = summarize(side_of(losses, texts[0], before), side_of(losses, texts[1], after), tasks, head)
    assert found["figures"]["accuracy"] == {
        "title": "accuracy",
        "explanation": "texts whose class is predicted correctly",
        "better": "higher",
        "unit": "share",
    }
    for side, value in (("base", 0.25), ("tuned", 0.75)):
        figure = found["models"][side]["accuracy"]
        theirs = binomtest(round(4 * value), 4).proportion_ci(method="wilson")
        assert figure == {"value": value, "interval": pytest.approx((theirs.low, theirs.high), abs=1e-6), "rows": 4}
        assert set(found["models"][side]) == {"loss", *head.metrics}, "no perplexity, no metrics of generated answers"
    f1 = [f1_score([1, 1, 2, 0], predicted, average="macro") for predicted in ([0, 1, 0, 2], [1, 1, 2, 2])]
    assert [found["models"][side]["macro_f1"]["value"] for side in ("base", "tuned")] == pytest.approx(f1)
    differences = found["differences"]["tuned"]
    assert set(differences) == {"loss", "accuracy", "macro_f1", "calibration_error"}
    assert differences["accuracy"]["value"] == pytest.approx(0.5)
    hits = np.array([0.0, 1, 0, 0]), np.array([1.0, 1, 1, 0])
    assert differences["accuracy"]["interval"] == pytest.approx(change_with_interval(*hits)[1])
    assert differences["macro_f1"]["value"] == pytest.approx(f1[1] - f1[0])
    assert [sample["answers"]["tuned"] for sample in found["samples"]] == texts[1]
    assert [sample["answers"]["base"] for sample in found["samples"]] == texts[0]


@pytest.mark.long
def test_differences_of_prediction_metrics_resample_the_same_rows() -> None:
    draw = np.random.default_rng(6)
    targets = draw.normal(3.0, 1.0, 60)
    far, near = (targets + error for error in (draw.normal(0, 2.0, 60), np.zeros(60)))
    sides = []
    for predicted in (far, far, near):
        predictions = value_predictions(predicted, targets)
        sides.append(side_of(RowLosses(np.ones(60), np.ones(60, np.int64)), [], predictions))
    same = summarize(sides[0], sides[1], [], RegressionHead())["differences"]["tuned"]["root_mean_square_error"]
    assert (same["value"], same["interval"], same["verdict"]) == (0.0, (0.0, 0.0), "not shown")
    found = summarize(sides[0], sides[2], [], RegressionHead())
    error = found["models"]["base"]["root_mean_square_error"]
    assert found["models"]["tuned"]["root_mean_square_error"]["value"] == 0.0
    assert found["figures"]["root_mean_square_error"] == {
        "better": "lower",
        "unit": "",
        "title": "root mean square error",
        "explanation": "typical size of the error, in the unit of the values",
    }
    low, high = error["interval"]
    assert 0 < low < error["value"] < high
    difference = found["differences"]["tuned"]["root_mean_square_error"]
    assert (difference["value"], difference["interval"]) == (
        pytest.approx(-error["value"]),
        pytest.approx((-high, -low)),
    )


def test_sides_with_different_rows_are_pooled_in_order() -> None:
    all_predictions = [
        class_predictions([[0.9, 0.1]] * count, [number] * count, "ab") for number, count in enumerate((2, 3))
    ]
    sides = [
        side_of(RowLosses(np.array([1.0, 2.0]), np.array([3, 4])), ["p", "q"], all_predictions[0]),
        side_of(RowLosses(np.array([5.0, 6.0, 7.0]), np.array([8, 9, 1])), ["r", "s", "t"], all_predictions[1]),
    ]
    pooled = Side.pooled(sides)
    assert (pooled.losses.sums.tolist(), pooled.losses.counts.tolist()) == ([1, 2, 5, 6, 7], [3, 4, 8, 9, 1])
    assert [answer.text for answer in pooled.answers] == ["p", "q", "r", "s", "t"]
    assert pooled.predictions is not None
    assert list(pooled.predictions.models) == [0, 0, 1, 1, 1]
    assert [float(row[0, 0]) for row in pooled.predictions.targets] == [0, 0, 1, 1, 1]
    assert [row.shape for row in pooled.predictions.outputs] == [(1, 2)] * 5
    assert pooled.predictions.labels == ("a", "b")
    without_predictions = Side.pooled([Side(side.losses, side.answers) for side in sides])
    assert without_predictions.predictions is None


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
def test_answers_are_compared_without_case_spaces_and_final_periods(
    answer: str, expected: str, exact: int, first: int
) -> None:
    assert (exact_match(answer, expected), first_word(answer, expected)) == (exact, first)


def test_word_overlap_is_the_rouge_packages_f1_with_stemming() -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = [("he was running fast", "he runs"), ("b a", "a b c d"), ("", "x"), ("cats sat", "the cat sat down")]
    answers, expected = [list(side) for side in zip(*pairs, strict=True)]
    theirs = [scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs]
    assert scores(METRICS["rouge_l"], answers, expected).tolist() == theirs
    assert theirs[0] == pytest.approx(2 / 3)  # he, run: two words in common, of four and of two
    with pytest.raises(ValueError, match="longer"):
        scores(METRICS["exact_match"], ["a"], ["a", "b"])


# Prediction metrics


DRAW = np.random.default_rng(0)
CLASSES = DRAW.dirichlet(np.ones(5) * 0.6, 80)
TARGETS = np.where(DRAW.random(80) < 0.6, CLASSES.argmax(1), DRAW.integers(0, 4, 80))
DRAWN_ROWS = DRAW.integers(0, 80, 80)
"""A bootstrap resample: some rows several times, some not at all."""


@pytest.mark.parametrize("rows", [np.arange(80), DRAWN_ROWS, np.array([3, 3, 7])])
def test_accuracy_and_macro_f1_equal_scikit_learn_over_the_present_classes(rows: NDArray[np.int64]) -> None:
    predictions = class_predictions(CLASSES, TARGETS, "abcdefg")  # g is never predicted nor a target
    predicted, targets = CLASSES.argmax(1)[rows], TARGETS[rows]
    assert PREDICTION_METRICS["accuracy"].of(predictions)(rows) == pytest.approx(accuracy_score(targets, predicted))
    theirs = f1_score(targets, predicted, average="macro", zero_division=0)  # over the classes that occur
    assert PREDICTION_METRICS["macro_f1"].of(predictions)(rows) == pytest.approx(theirs)


def calibration_by_hand(confidence: Values, hits: NDArray[np.bool_]) -> float:
    """Guo et al. 2017, equation 3, with 15 bins."""
    error = 0.0
    for index in range(15):
        last = index == 14
        inside = (confidence >= index / 15) & ((confidence < (index + 1) / 15) | last)
        if inside.any():
            error += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    return float(error)


@pytest.mark.parametrize("rows", [np.arange(80), DRAWN_ROWS])
def test_calibration_errors_equal_the_papers_sum_over_bins(rows: NDArray[np.int64]) -> None:
    predictions = class_predictions(CLASSES, TARGETS, "abcde")
    confidence, hits = CLASSES.max(1)[rows], (CLASSES.argmax(1) == TARGETS)[rows]
    assert PREDICTION_METRICS["calibration_error"].of(predictions)(rows) == pytest.approx(
        calibration_by_hand(confidence, hits)
    )
    certain = class_predictions([[1.0, 0.0], [0.95, 0.05], [0.2, 0.8]], [0, 1, 1], "ab")
    by_hand = (abs(1 - 1.95) + abs(1 - 0.8)) / 3  # 1.0 and 0.95 are in one bin
    assert PREDICTION_METRICS["calibration_error"].of(certain)(np.arange(3)) == pytest.approx(by_hand)
    probabilities, targets = CLASSES[:, :3], np.arange(240).reshape(80, 3) % 7 < 2
    labels = Predictions([row[None] for row in probabilities], [row[None] * 1.0 for row in targets], tuple("abc"))
    flat, present = probabilities[rows].ravel(), targets[rows].ravel()
    expected = calibration_by_hand(np.maximum(flat, 1 - flat), (flat >= 0.5) == present)
    assert PREDICTION_METRICS["calibration_of_labels"].of(labels)(rows) == pytest.approx(expected)


@pytest.mark.parametrize("rows", [np.arange(80), DRAWN_ROWS])
def test_the_calibration_error_of_rewards_is_that_of_which_answer_is_better(rows: NDArray[np.int64]) -> None:
    draw = np.random.default_rng(5)
    rewards = draw.normal(0, 2, (80, 2))
    first_is_better = draw.random(80) < 0.7
    scores = np.stack([first_is_better, ~first_is_better], 1)
    predictions = Predictions(list(rewards[..., None]), list(1.0 * scores[..., None]), ("reward",))
    difference = rewards[:, 0] - rewards[:, 1]
    confidence = 1 / (1 + np.exp(-abs(difference)))
    expected = calibration_by_hand(confidence[rows], ((difference > 0) == first_is_better)[rows])
    assert PREDICTION_METRICS["pair_calibration_error"].of(predictions)(rows) == pytest.approx(expected)


def test_rewards_are_calibrated_over_all_pairs_of_a_ranking_but_ties() -> None:
    """σ(2) and σ(1), both right, and σ(1), which is wrong; the fourth answer is as good as the third."""
    predictions = Predictions(
        [np.array([[2.0], [0.0], [1.0]]), np.array([[0.0], [0.0]])],
        [np.array([[2.0], [1.0], [1.0]]), np.array([[1.0], [0.0]])],
        ("reward",),
    )
    of = PREDICTION_METRICS["pair_calibration_error"].of(predictions)
    two, one = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))
    assert of(np.array([0])) == pytest.approx(((1 - two) + (1 - one)) / 2)
    assert of(np.array([1])) == 0.0  # equal rewards: a probability of one half, half right


def label_predictions(outputs: Any, targets: Any) -> Predictions:
    return Predictions([np.array([row]) for row in outputs], [np.array([row]) * 1.0 for row in targets], tuple("abcd"))


@pytest.mark.parametrize("rows", [np.arange(60), DRAW.integers(0, 60, 60)])
def test_multi_label_metrics_equal_scikit_learn(rows: NDArray[np.int64]) -> None:
    probabilities, targets = DRAW.random((60, 4)), DRAW.random((60, 4)) < 0.4
    probabilities[:, 3], targets[:, 3] = 0.1, False  # a label that never occurs is left out of the mean
    probabilities[0, 0] = 0.5  # a label is predicted from 0.5 on
    predictions, predicted = label_predictions(probabilities, targets), probabilities >= 0.5
    assert PREDICTION_METRICS["exact_match_of_labels"].of(predictions)(rows) == pytest.approx(
        accuracy_score(targets[rows], predicted[rows])
    )
    micro = f1_score(targets[rows], predicted[rows], average="micro")
    assert PREDICTION_METRICS["micro_f1"].of(predictions)(rows) == pytest.approx(micro)
    macro = f1_score(targets[rows][:, :3], predicted[rows][:, :3], average="macro")
    assert PREDICTION_METRICS["macro_f1_of_labels"].of(predictions)(rows) == pytest.approx(macro)


def test_rows_without_labels_and_without_predicted_labels_are_correct() -> None:
    nothing = label_predictions([[0.1] * 4, [0.2] * 4], [[False] * 4] * 2)
    for name in ("micro_f1", "macro_f1_of_labels", "exact_match_of_labels"):
        assert PREDICTION_METRICS[name].of(nothing)(np.arange(2)) == 1.0
    too_much = label_predictions([[0.5, 0.1, 0.1, 0.1]], [[False] * 4])
    for name in ("micro_f1", "macro_f1_of_labels", "exact_match_of_labels"):
        assert PREDICTION_METRICS[name].of(too_much)(np.arange(1)) == 0.0


def value_predictions(outputs: Any, targets: Any) -> Predictions:
    rows = [np.array([[value]]) for value in outputs]
    return Predictions(rows, [np.array([[value]]) for value in targets], ("value",))


@pytest.mark.parametrize("rows", [np.arange(80), DRAWN_ROWS])
def test_regression_metrics_equal_scipy_and_scikit_learn_with_ties(rows: NDArray[np.int64]) -> None:
    targets = DRAW.normal(7.0, 2.0, 80).round()
    predicted = (targets + DRAW.normal(0.5, 2.0, 80)).round()
    predictions = value_predictions(predicted, targets)
    figures = {
        name: PREDICTION_METRICS[name].of(predictions)(rows) for name in PREDICTION_METRICS if "correlation" in name
    }
    assert figures["correlation"] == pytest.approx(pearsonr(predicted[rows], targets[rows]).statistic)
    assert figures["rank_correlation"] == pytest.approx(spearmanr(predicted[rows], targets[rows]).statistic)
    error = PREDICTION_METRICS["root_mean_square_error"].of(predictions)(rows)
    assert error == pytest.approx(root_mean_squared_error(targets[rows], predicted[rows]))


@pytest.mark.parametrize("name", ["correlation", "rank_correlation"])
def test_constant_values_have_correlation_0(name: str) -> None:
    for predicted, targets in (([2.0] * 3, [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [0.1] * 3)):
        assert PREDICTION_METRICS[name].of(value_predictions(predicted, targets))(np.arange(3)) == 0.0


TAGS = ("O", "B-A", "I-A", "B-B", "I-B")


def tag_predictions(*pairs: tuple[str, str]) -> Predictions:
    """Per row the predicted and the target tags, such as `O B-A I-A`."""
    outputs, targets = [], []
    for pair in pairs:
        tags = [[TAGS.index(tag) for tag in side.split()] for side in pair]
        outputs.append(np.eye(len(TAGS))[tags[0]] * 0.6 + 0.1)
        targets.append(np.array(tags[1], float)[:, None])
    return Predictions(outputs, targets, TAGS)


def test_entity_f1_needs_words_and_label_and_counts_over_all_rows() -> None:
    predictions = tag_predictions(
        ("B-A I-A O B-B", "B-A I-A O B-B"),  # 2 correct of 2 predicted, 2 expected
        ("B-A O O B-B", "B-A I-A O B-A"),  # too short, wrong label: 0 of 2, 2
        ("O B-B", "O B-B"),  # 1 of 1, 1
        ("B-A B-A", "O O"),  # 0 of 2, 0
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


def ranks_by_hand(rows: list[NDArray[np.float64]], indices: list[int]) -> list[int]:
    """1 + how many texts are nearer than an anchor's positive, without positives of the same anchor in other rows."""
    ranks = []
    for row in indices:
        anchor, positive = rows[row][:2]
        own, nearer = anchor @ positive, 0
        for other, each in enumerate(rows):
            own_anchor = other == row or np.allclose(each[0], anchor, atol=1e-7)
            nearer += int(not own_anchor and anchor @ each[1] > own + 1e-6)
            nearer += sum(int(anchor @ negative > own + 1e-6) for negative in each[2:])
        ranks.append(1 + nearer)
    return ranks


def mean_rank_figures(predictions: Predictions, rows: Any = None) -> tuple[float, float, float]:
    rows = np.arange(len(predictions.outputs)) if rows is None else np.array(rows)
    first, ten, reciprocal = (
        PREDICTION_METRICS[name].of(predictions)(rows)
        for name in ("recall_at_1", "recall_at_10", "mean_reciprocal_rank")
    )
    return first, ten, reciprocal


def test_positive_is_ranked_among_all_positives_and_negatives() -> None:
    rows = (
        on_the_circle(0, 30),  # nearer: 20 of the next row
        on_the_circle(90, 20),  # nearer: 30, 60, -80 is not; and 40
        on_the_circle(0, 60, 40),  # nearer: 20 and its own negative; 30 belongs to the same anchor
    )
    assert mean_rank_figures(vector_predictions(*rows)) == pytest.approx((0, 1, (1 / 2 + 1 / 4 + 1 / 3) / 3))
    assert ranks_by_hand(list(rows), [0, 1, 2]) == [2, 4, 3]
    assert mean_rank_figures(vector_predictions(*rows), [0, 0, 2]) == pytest.approx((0, 1, (1 / 2 + 1 / 2 + 1 / 3) / 3))


def test_equally_near_texts_rank_behind_the_positive() -> None:
    tied = vector_predictions(on_the_circle(0, 10), on_the_circle(5, 10), on_the_circle(180, 0))
    found = PREDICTION_METRICS["mean_reciprocal_rank"].of(
        tied
    )  # from 5°, 0° and 10° are equally near, as are both at 10°
    assert [found(np.array([row])) for row in range(3)] == pytest.approx([1 / 2, 1, 1 / 3])


def test_rank_10_counts_for_recall_at_10_and_rank_11_does_not() -> None:
    others = [on_the_circle(180 + angle, angle) for angle in range(1, 10)]
    tenth = vector_predictions(on_the_circle(0, 11), *others)
    assert PREDICTION_METRICS["recall_at_10"].of(tenth)(np.array([0])) == 1.0
    eleventh = vector_predictions(on_the_circle(0, 11, 10.5), *others)
    assert PREDICTION_METRICS["recall_at_10"].of(eleventh)(np.array([0])) == 0.0
    assert PREDICTION_METRICS["mean_reciprocal_rank"].of(eleventh)(np.array([0])) == pytest.approx(1 / 11)


def test_ranks_of_many_rows_equal_those_counted_one_by_one() -> None:
    draw = np.random.default_rng(1)
    rows = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in draw.normal(size=(270, 3, 4))]
    rows[269][0] = rows[3][0]  # one anchor in two rows, in two blocks of 256
    found = PREDICTION_METRICS["mean_reciprocal_rank"].of(vector_predictions(*rows))
    indices = [0, 3, 100, 254, 255, 256, 257, 269]
    assert [1 / found(np.array([row])) for row in indices] == pytest.approx(ranks_by_hand(rows, indices))


def test_vectors_of_different_models_are_not_compared() -> None:
    rows = (on_the_circle(0, 30), on_the_circle(90, 20), on_the_circle(0, 60, 40))
    predictions = vector_predictions(*rows, models=(0, 1, 0))
    assert PREDICTION_METRICS["mean_reciprocal_rank"].of(predictions)(np.array([1])) == 1.0
    found = PREDICTION_METRICS["mean_reciprocal_rank"].of(predictions)
    assert [found(np.array([row])) for row in range(3)] == pytest.approx([1, 1, 1 / 2])


GOOD_AND_BAD: dict[str, tuple[Predictions, Predictions]] = {
    **dict.fromkeys(
        ("accuracy", "macro_f1", "calibration_error"),
        (class_predictions([[1.0, 0.0], [0.0, 1.0]], [0, 1]), class_predictions([[1.0, 0.0], [0.9, 0.1]], [1, 1])),
    ),
    "pair_calibration_error": (
        Predictions([np.array([[999.0], [0.0]])], [np.array([[1.0], [0.0]])], ("reward",)),
        Predictions([np.array([[0.0], [999.0]])], [np.array([[1.0], [0.0]])], ("reward",)),
    ),
    **dict.fromkeys(
        ("exact_match_of_labels", "micro_f1", "macro_f1_of_labels", "calibration_of_labels"),
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
        ("recall_at_1", "recall_at_10", "mean_reciprocal_rank"),
        (
            vector_predictions(on_the_circle(0, 1), on_the_circle(90, 91)),
            vector_predictions(on_the_circle(0, 180, *range(20)), on_the_circle(90, 270)),
        ),
    ),
}
"""For each metric correct predictions, and wrong ones."""


@pytest.mark.parametrize("name", PREDICTION_METRICS)
def test_metric_declares_its_direction_and_unit(name: str) -> None:
    metric = PREDICTION_METRICS[name]
    good, bad = (metric.of(predictions)(np.arange(len(predictions.outputs))) for predictions in GOOD_AND_BAD[name])
    assert abs(metric.better) == 1
    assert metric.better * (good - bad) > 0
    has_own_size = {"root_mean_square_error", "correlation", "rank_correlation", "mean_reciprocal_rank"}
    assert metric.unit == ("" if name in has_own_size else "%")
    if metric.unit == "%":
        assert (good, 0 <= bad <= 1) == (1.0 if metric.better == 1 else 0.0, True)
    assert metric.of_hits == (name in {"accuracy", "exact_match_of_labels", "recall_at_1", "recall_at_10"})


TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "calibration_error": "calibration error",
    "pair_calibration_error": "calibration error",
    "exact_match_of_labels": "exact match",
    "micro_f1": "micro F1",
    "macro_f1_of_labels": "macro F1",
    "calibration_of_labels": "calibration error",
    "root_mean_square_error": "root mean square error",
    "correlation": "correlation",
    "rank_correlation": "rank correlation",
    "entity_f1": "entity F1",
    "tag_accuracy": "tag accuracy",
    "recall_at_1": "recall@1",
    "recall_at_10": "recall@10",
    "mean_reciprocal_rank": "mean reciprocal rank",
}


def test_prediction_metrics_have_a_short_title_and_a_longer_explanation() -> None:
    assert {name: metric.title for name, metric in PREDICTION_METRICS.items()} == TITLES
    assert all(len(metric.title) < len(metric.explanation) for metric in PREDICTION_METRICS.values())
