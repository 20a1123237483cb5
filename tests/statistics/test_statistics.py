"""95 % intervals contain the true value in 93 to 97 of 100 data sets; p-values, Holm's correction, numbers of rows."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from combinations import few
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, multinomial, spearmanr, ttest_1samp
from sklearn.metrics import roc_auc_score

from tunesmith.evaluation.auc import Area, area_of
from tunesmith.statistics.bootstrap import Interval
from tunesmith.statistics.differences import Difference, holm, paired
from tunesmith.statistics.intervals import (
    change_with_interval,
    equal_values,
    estimate,
    mean_with_interval,
    tango,
    wilson,
)
from tunesmith.statistics.measured import Measured, mean_of, ratio_of
from tunesmith.statistics.power import detectable, rows_needed, rows_to_show
from tunesmith.statistics.prediction_powered import prediction_powered

Values = NDArray[np.float64]
Draw = np.random.Generator

SHORT, LONG = 400, 4000
"""Data sets. 400 reject an interval that contains the value in fewer than 91 or more than 98.5 of 100; 4,000 have a
standard error of 0.3 of 100."""

SIZES = [pytest.param(SHORT, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.long)]
ROWS = [20, pytest.param(100, marks=pytest.mark.long)]
"""The fewer, the harder to cover."""


def check_coverage(interval_of_data: Callable[[Draw], Interval], truth: float, data_sets: int) -> None:
    """Check that the share of data sets whose interval contains the true value is between 93 % and 97 %."""
    draw = np.random.default_rng(1)
    low, high = np.array([interval_of_data(draw) for _ in range(data_sets)]).T
    covered = int(((low <= truth) & (truth <= high)).sum())
    if data_sets == LONG:
        assert 0.93 <= covered / data_sets <= 0.97
    assert binomtest(covered, data_sets, 0.93, alternative="less").pvalue > 0.02, covered / data_sets
    assert binomtest(covered, data_sets, 0.97, alternative="greater").pvalue > 0.02, covered / data_sets


# Shares


SHARES = (0.02, 0.3, 0.5, 0.95)


def possible_coverages(rows: int, share: float) -> Values:
    """Of every interval that covers the true share for hits from a to b: P(a ≤ hits ≤ b), which is all there can be."""
    below = np.concatenate([[0.0], binom.cdf(np.arange(rows + 1), rows, share)])
    return (below[None, :] - below[:, None])[np.triu_indices(rows + 2, 1)]


@pytest.mark.parametrize(("share", "rows"), [*product(SHARES, (20, 100, 500))])
def test_share_is_covered_as_promised_where_counts_allow_it(share: float, rows: int) -> None:
    """Exactly, over every number of hits. Of 20 rows with a share of 0.95, no interval covers 93 % to 97 %; with one
    of 0.3, Wilson's covers 97.5 %, the next smaller set of hits 94.7 % (Brown et al. 2001 show such steps)."""
    hits = np.arange(rows + 1)
    low, high = np.array([mean_with_interval(np.arange(rows) < count)[1] for count in hits.tolist()]).T
    covered = float(binom.pmf(hits, rows, share)[(low <= share) & (share <= high)].sum())
    possible = possible_coverages(rows, share)
    if not ((possible >= 0.93) & (possible <= 0.97)).any():
        assert (share, rows) == (0.95, 20)
        assert covered == pytest.approx(0.9245, abs=1e-4)
    elif (share, rows) == (0.3, 20):
        assert covered == pytest.approx(0.9752, abs=1e-4)
    else:
        assert 0.93 <= covered <= 0.97


# Means


SKEWED: dict[str, tuple[Callable[[Draw, int], Values], float]] = {
    "gamma": (lambda draw, rows: draw.gamma(2.0, 1.5, rows), 3.0),
    "exponential": (lambda draw, rows: draw.exponential(1.0, rows), 1.0),
    "scores": (lambda draw, rows: draw.beta(0.5, 0.8, rows), 0.5 / 1.3),
    "high scores": (lambda draw, rows: draw.beta(5.0, 0.5, rows), 5 / 5.5),
    "mostly zero": (lambda draw, rows: (draw.random(rows) < 0.3) * draw.random(rows), 0.15),
}


@pytest.mark.parametrize("data_sets", SIZES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", SKEWED)
def test_mean_of_skewed_or_bounded_values_is_covered_as_promised(kind: str, rows: int, data_sets: int) -> None:
    values, truth = SKEWED[kind]
    check_coverage(lambda draw: mean_with_interval(values(draw, rows))[1], truth, data_sets)


def test_percentiles_of_resamples_would_be_too_narrow_for_few_skewed_rows() -> None:
    """The reason for the bootstrap-t."""

    def percentiles(draw: Draw) -> Interval:
        values = draw.exponential(1.0, 20)
        means = values[draw.integers(0, 20, (2000, 20))].mean(1)
        return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))

    with pytest.raises(AssertionError):
        check_coverage(percentiles, 1.0, SHORT)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("loss of a token", marks=pytest.mark.long),
        pytest.param("correlation", marks=pytest.mark.long),
        pytest.param("quantile", marks=pytest.mark.long),
    ],
)
def test_figure_that_is_not_a_mean_is_covered_as_promised(kind: str) -> None:
    rows = 60
    units = [str(row) for row in range(rows)]

    def of_data(draw: Draw) -> Interval:
        x = draw.normal(size=rows)
        if kind == "loss of a token":
            counts = 1 + draw.geometric(0.05, rows)
            return estimate(ratio_of(counts * draw.gamma(4.0, 0.5, rows), counts, units, "", ""))[1]
        if kind == "correlation":
            y = 0.7 * x + (1 - 0.7**2) ** 0.5 * draw.normal(size=rows)
            return estimate(Measured("", "", lambda picked: float(np.corrcoef(x[picked], y[picked])[0, 1]), units))[1]
        return estimate(Measured("", "", lambda picked: float(np.quantile(x[picked], 0.8)), units))[1]

    truth = {"loss of a token": 2.0, "correlation": 0.7, "quantile": 0.8416}[kind]
    check_coverage(of_data, truth, SHORT)


@pytest.mark.parametrize("rows", [5, 20, 50])
@pytest.mark.parametrize(("other", "share"), [(1.0, 0.03), (4.0, 0.03), (1.0, 0.1), (3.0, 0.01)])
def test_scores_that_are_all_equal_do_not_promise_that_others_never_come(rows: int, other: float, share: float) -> None:
    """Most samples of so few rows have one value; without a width, few of 100 intervals would contain the mean."""
    draw, units, covered = np.random.default_rng(0), [str(row) for row in range(rows)], 0
    truth = 5 * (1 - share) + other * share
    for _ in range(SHORT):
        scores = np.where(draw.random(rows) < share, other, 5.0)
        low, high = mean_of(scores, units, "", "", unit="points", bounds=(1.0, 5.0)).estimate[1]
        assert 1 <= low <= high
        covered += low <= truth <= high
    assert covered / SHORT >= 0.93


def test_the_interval_of_equal_scores_ends_where_they_would_come_in_one_of_twenty_samples() -> None:
    low, high = equal_values(4.0, 20, (1.0, 5.0))
    for end, other in ((low, 1.0), (high, 5.0)):
        share = (end - 4) / (other - 4)
        assert (1 - share) ** 20 == pytest.approx(0.05)
    assert mean_with_interval(np.full(7, 0.5), (0.5, 0.5)) == (0.5, (0.5, 0.5)), "a value that cannot differ"


@pytest.mark.parametrize("rows", [3, 10, 40])
def test_a_difference_that_all_rows_share_is_shown_only_by_enough_of_them(rows: int) -> None:
    """The p-value is below 5 % where the interval is without 0; no rows are so alike that it is 0."""
    units = [str(row) for row in range(rows)]
    before, after = (
        mean_of(np.full(rows, score), units, "", "", unit="points", bounds=(1.0, 5.0)) for score in (3.0, 4.0)
    )
    found = paired(before, after)
    assert found is not None
    assert found.value == 1
    assert found.p_value == pytest.approx(0.8**rows)
    assert (found.p_value < 0.05) == (found.interval[0] > 0) == (rows > 13)
    back = paired(after, before)
    assert back is not None
    assert back.interval == pytest.approx((-found.interval[1], -found.interval[0]))
    assert back.p_value == pytest.approx(found.p_value)
    same = paired(before, before)
    assert same is not None
    assert (same.p_value, same.interval[1]) == (1.0, pytest.approx(4 * (1 - 0.05 ** (1 / rows))))


def test_equal_labels_of_people_leave_room_for_others_on_the_scale() -> None:
    low, high = prediction_powered(np.full(20, 4.0), np.full(20, 4.0), np.full(100, 4.0), (1.0, 5.0))[1]
    assert (low, high) == pytest.approx(equal_values(4.0, 20, (1.0, 5.0)))


def test_interval_of_a_share_unit_stays_within_0_and_1() -> None:
    values = np.array([1.0] * 15 + [0.2])
    units = [str(row) for row in range(16)]
    assert mean_with_interval(values)[1][1] > 1
    assert estimate(mean_of(values, units, "", ""))[1][1] == 1
    assert estimate(mean_of(values, units, "", "", unit="seconds"))[1] == mean_with_interval(values)[1]


def test_value_below_all_resamples_is_within_its_interval() -> None:
    """A figure that noise only increases, as a calibration error."""
    x = np.random.default_rng(0).normal(size=100)
    value, (low, high) = estimate(Measured("", "", lambda rows: float(abs(x[rows].mean() - x.mean())), ["row"] * 100))
    assert value == low == 0
    assert high > 0.1


# Paired differences


def compared(before: Measured, after: Measured) -> Difference:
    found = paired(before, after)
    assert found is not None
    return found


def exact_coverage_of_tango(rows: int, better: float, worse: float) -> float:
    """Over every number of rows that get better or worse."""
    counts = [(b, c) for b in range(rows + 1) for c in range(rows + 1 - b)]
    weights = multinomial.pmf([[b, c, rows - b - c] for b, c in counts], rows, [better, worse, 1 - better - worse])
    covered = 0.0
    for (b, c), weight in zip(counts, weights, strict=True):
        if weight > 1e-7:
            low, high = tango(b, c, rows)
            covered += float(weight) * (low <= better - worse <= high)
    return covered


@pytest.mark.parametrize(
    ("rows", "better", "worse"),
    [(20, 0.3, 0.1), (20, 0.25, 0.25), (50, 0.1, 0.05), (100, 0.05, 0.05), (100, 0.4, 0.2), (100, 0.02, 0.1)],
)
def test_paired_difference_of_shares_is_covered_as_promised(rows: int, better: float, worse: float) -> None:
    assert 0.93 <= exact_coverage_of_tango(rows, better, worse) <= 0.97


def test_interval_of_paired_shares_solves_the_equation_and_flips_with_the_sides() -> None:
    """The ends solve his equation: the observed difference is z standard errors away, under each end."""
    low, high = tango(12, 2, 50)
    assert tango(2, 12, 50) == pytest.approx((-high, -low))
    z = 1.959964
    for end in (low, high):
        gap = 12 - 2 - 50 * end
        linear = -14 + (100 - 10) * end
        q = (np.sqrt(linear**2 + 8 * 50 * 2 * end * (1 - end)) - linear) / (4 * 50)
        assert abs(gap) / np.sqrt(50 * (2 * q + end * (1 - end))) == pytest.approx(z, abs=1e-5)


@pytest.mark.parametrize("data_sets", SIZES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", ["correlated scores", "few rows change"])
def test_paired_difference_of_scores_is_covered_as_promised(kind: str, rows: int, data_sets: int) -> None:
    units = [str(row) for row in range(rows)]

    def of_data(draw: Draw) -> Interval:
        before = draw.beta(0.6, 0.9, rows)
        after = 0.7 * before + 0.3 * draw.random(rows)
        if kind == "few rows change":
            after = np.where(draw.random(rows) < 0.4, after, before)
        return compared(mean_of(before, units, "", ""), mean_of(after, units, "", "")).interval

    change = 0.3 * (0.5 - 0.6 / 1.5)
    check_coverage(of_data, change * (0.4 if kind == "few rows change" else 1), data_sets)


def test_difference_is_of_the_rows_that_both_have_in_any_order() -> None:
    before = mean_of([0.0, 1.0, 1.0, 0.0], ["a", "b", "c", "d"], "", "")
    after = mean_of([1.0, 1.0, 1.0], ["d", "x", "b"], "", "")
    found = compared(before, after)
    assert (found.value, found.rows) == (0.5, 2)
    assert found.interval == tango(1, 0, 2)
    assert paired(before, mean_of([1.0], ["z"], "", "")) is None


def test_p_value_of_shares_is_mcnemars_exact_one() -> None:
    before = np.array([0.0] * 12 + [1.0] * 2 + [1.0] * 6)
    after = np.array([1.0] * 12 + [0.0] * 2 + [1.0] * 6)
    units = [str(row) for row in range(20)]
    found = compared(mean_of(before, units, "", ""), mean_of(after, units, "", ""))
    assert found.p_value == pytest.approx(binomtest(2, 14).pvalue)
    assert found.value == pytest.approx(0.5)
    same = compared(mean_of(before, units, "", ""), mean_of(before, units, "", ""))
    assert (same.value, same.p_value) == (0.0, 1.0)
    assert same.interval[1] > 0.1


@pytest.mark.parametrize("kind", ["mean", pytest.param("ratio", marks=pytest.mark.long)])
def test_p_values_of_no_difference_are_uniform_and_agree_with_the_interval(kind: str) -> None:
    draw, units, found = np.random.default_rng(2), [str(row) for row in range(40)], []
    for _ in range(150):
        before, after = draw.gamma(2.0, 1.0, (2, 40))
        if kind == "mean":
            found.append(compared(mean_of(before, units, "", ""), mean_of(after, units, "", "")))
        else:
            counts = draw.integers(5, 15, 40)
            found.append(compared(*(ratio_of(side * counts, counts, units, "", "") for side in (before, after))))
    assert binomtest(sum(each.p_value < 0.05 for each in found), 150, 0.05).pvalue > 0.02
    assert binomtest(sum(each.p_value < 0.5 for each in found), 150, 0.5).pvalue > 0.02
    for each in found:
        if abs(each.p_value - 0.05) > 0.01:
            assert (each.p_value < 0.05) == (not each.interval[0] <= 0 <= each.interval[1])


def test_small_p_values_are_those_of_students_test_and_not_the_number_of_resamples() -> None:
    change = np.random.default_rng(3).normal(1.0, 1.0, 100)
    units = [str(row) for row in range(100)]
    found = compared(mean_of(np.zeros(100), units, "", ""), mean_of(change, units, "", "")).p_value
    assert found == pytest.approx(ttest_1samp(change, 0).pvalue, rel=0.01)
    assert found < 1e-10


# Many comparisons, and how many rows are enough


def test_holm_gives_the_adjusted_values_of_the_definition() -> None:
    """The worked example of R's p.adjust(c(0.01, 0.02, 0.03, 0.04), "holm"), and ties in any order."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_step_down(p_values: list[float]) -> None:
    rejected = set()
    for k, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[index] * (len(p_values) - k) >= 0.05:
            break
        rejected.add(index)
    assert {index for index, value in enumerate(holm(p_values)) if value < 0.05} == rejected


def test_holm_keeps_the_chance_of_any_false_finding_below_5_percent() -> None:
    p_values = np.random.default_rng(4).random((2000, 10))
    found = sum(min(holm(list(row))) < 0.05 for row in p_values)
    assert binomtest(found, 2000, 0.05, alternative="greater").pvalue > 0.02
    assert binomtest(int((p_values.min(1) < 0.05).sum()), 2000, 0.05, alternative="greater").pvalue < 1e-9


@pytest.mark.parametrize("kind", ["scores", "shares"])
def test_the_number_of_rows_that_is_called_for_shows_the_difference_in_80_percent(kind: str) -> None:
    draw = np.random.default_rng(5)
    change, deviation = (0.1, 0.3) if kind == "scores" else (0.1, (0.3 - 0.1**2) ** 0.5)
    rows = rows_to_show(change, deviation)
    units, shown = [str(row) for row in range(rows)], 0
    assert rows == {"scores": 73, "shares": 230}[kind]
    for _ in range(300):
        if kind == "scores":
            before = draw.random(rows)
            after = before + draw.normal(change, deviation, rows)
        else:
            kinds = draw.choice(3, rows, p=[0.2, 0.1, 0.7])
            before, after = np.where(kinds == 1, 1.0, 0.0), np.where(kinds == 0, 1.0, 0.0)
        low, high = compared(mean_of(before, units, "", ""), mean_of(after, units, "", "")).interval
        shown += not low <= 0 <= high
    assert binomtest(shown, 300, 0.8).pvalue > 0.02, shown / 300


def test_the_smallest_difference_that_rows_show_is_the_inverse_of_the_rows_it_needs() -> None:
    for rows in (20, 200, 5000):
        smallest = detectable(rows, 0.4)
        assert rows_to_show(smallest * 1.0001, 0.4) == rows
    assert rows_to_show(0.1, 0.4, level=0.005) > rows_to_show(0.1, 0.4)
    assert detectable(100, 0.4, level=0.005) > detectable(100, 0.4)
    assert rows_to_show(0.1, 0.4, power=0.9) > rows_to_show(0.1, 0.4)
    assert detectable(1, 0.4) == float("inf")


def test_rows_without_any_difference_still_ask_for_more_rows() -> None:
    units = [str(row) for row in range(30)]
    same = compared(mean_of(np.ones(30), units, "", ""), mean_of(np.ones(30), units, "", ""))
    assert same.deviation == pytest.approx((2 * 0.5 / 32) ** 0.5)
    assert rows_to_show(0.05, same.deviation) > 50


# A judge corrected by labels


def judged(draw: Draw, rows: int, share: float) -> tuple[Values, Values]:
    """Labels, and a judge's verdicts who misses 20 % of the good answers and accepts 30 % of the bad ones."""
    labels = draw.random(rows) < share
    verdicts = np.where(labels, draw.random(rows) < 0.8, draw.random(rows) < 0.3)
    return labels.astype(float), verdicts.astype(float)


@pytest.mark.parametrize("data_sets", [pytest.param(2000, id="short"), pytest.param(20_000, marks=pytest.mark.long)])
@pytest.mark.parametrize(("labeled", "share"), [(50, 0.5), (50, 0.85), (100, 0.3), (200, 0.95)])
def test_a_judge_corrected_by_labels_covers_the_true_share(labeled: int, share: float, data_sets: int) -> None:
    draw, covered = np.random.default_rng(6), 0
    for _ in range(data_sets):
        labels, verdicts = judged(draw, labeled, share)
        low, high = prediction_powered(verdicts, labels, judged(draw, 1000, share)[1])[1]
        covered += low <= share <= high
    assert 0.93 - 0.01 * (data_sets == 2000) <= covered / data_sets <= 0.97 + 0.01 * (data_sets == 2000)


def test_a_judge_corrected_by_labels_covers_the_true_mean_score() -> None:
    draw, covered = np.random.default_rng(7), 0
    for _ in range(2000):
        labels = draw.integers(1, 6, 60) * 1.0
        scores = np.clip(labels + draw.integers(-1, 3, 60), 1, 5)
        others = np.clip(draw.integers(1, 6, 800) + draw.integers(-1, 3, 800), 1, 5) * 1.0
        low, high = prediction_powered(scores, labels, others)[1]
        covered += low <= 3 <= high
    assert 0.93 <= covered / 2000 <= 0.97


def test_a_good_judge_narrows_the_interval_and_a_useless_one_does_not_widen_it() -> None:
    draw = np.random.default_rng(8)
    labels = draw.normal(3, 1, 100)
    others = draw.normal(3, 1, 5000)
    alone = np.diff(mean_with_interval(labels)[1])[0]
    good = np.diff(prediction_powered(labels + draw.normal(0.5, 0.2, 100), labels, others + 0.5)[1])[0]
    useless = np.diff(prediction_powered(draw.normal(0, 9, 100), labels, draw.normal(0, 9, 5000))[1])[0]
    assert good < 0.4 * alone
    assert useless < 1.1 * alone


def test_prediction_powered_mean_is_the_formula_of_the_paper() -> None:
    draw = np.random.default_rng(9)
    labels, scores, others = draw.normal(size=40), draw.normal(size=40), draw.normal(size=300)
    scores += labels
    weight = np.cov(labels, scores)[0, 1] / ((1 + 40 / 300) * scores.var(ddof=1))
    value, (low, high) = prediction_powered(scores, labels, others)
    assert value == pytest.approx(labels.mean() + weight * (others.mean() - scores.mean()))
    error = ((labels - weight * scores).var(ddof=1) / 40 + weight**2 * others.var() / 300) ** 0.5
    assert (high - low) / 2 / error == pytest.approx(2.0227, abs=1e-3)  # Student's t with 39 degrees of freedom
    assert prediction_powered(scores, labels, others[:0]) == mean_with_interval(labels)
    with pytest.raises(ValueError, match="1 labels of 2"):
        prediction_powered(scores[:2], labels[:1], others)


def test_few_labels_that_all_agree_leave_room_for_disagreement() -> None:
    value, (low, high) = prediction_powered(np.ones(20), np.ones(20), np.ones(1000))
    assert value == 1
    assert high == 1
    assert low < wilson(1, 20)[0] + 0.1


# Area under the curve


def test_area_equals_scikit_learn_with_ties() -> None:
    draw = np.random.default_rng(10)
    scores, positive = draw.integers(0, 9, 80) * 1.0, draw.random(80) < 0.4
    scores[positive] += 2
    value, (low, high) = Area(scores, positive).estimate()
    assert value == pytest.approx(roc_auc_score(positive, scores))
    assert low < value < high
    turned, (other_low, other_high) = Area(-scores, positive).estimate()
    assert (turned, other_low, other_high) == pytest.approx((1 - value, 1 - high, 1 - low))
    assert Area(np.array([1.0, 2, 3, 4]), np.array([False, False, True, True])).estimate() == (1.0, wilson(1.0, 2))
    assert Area(scores, np.ones(80, bool)).estimate() == (0.5, (0.0, 1.0)), "there is nothing to compare with"


def test_delongs_variance_is_the_published_formula() -> None:
    draw = np.random.default_rng(11)
    above, below = draw.normal(1, 1, 30), draw.normal(0, 1, 50)
    wins = (above[:, None] > below).astype(float)
    variance = wins.mean(1).var(ddof=1) / 30 + wins.mean(0).var(ddof=1) / 50
    value, (low, high) = Area(np.concatenate([above, below]), np.arange(80) < 30).estimate()
    logit = np.log(np.array([low, high]) / (1 - np.array([low, high])))
    assert np.diff(logit)[0] / 2 == pytest.approx(1.959964 * variance**0.5 / (value * (1 - value)))


@pytest.mark.parametrize(("gap", "rows"), few([(0.0, 30), (1.0, 30), (1.0, 100), (2.0, 100)], [(1.0, 30), (2.0, 100)]))
def test_area_is_covered_as_promised(gap: float, rows: int) -> None:
    draw, covered, truth = np.random.default_rng(12), 0, 0.5 * (1 + float(_erf(gap / 2)))
    positive = np.arange(2 * rows) < rows
    for _ in range(2000):
        low, high = Area(draw.normal(size=2 * rows) + gap * positive, positive).estimate()[1]
        covered += low <= truth <= high
    assert 0.93 <= covered / 2000 <= 0.97


def test_the_difference_of_areas_has_delongs_covariance() -> None:
    draw, positive = np.random.default_rng(13), np.arange(80) < 30
    before = draw.normal(size=80) + positive
    after = before + draw.normal(size=80)
    units = [str(row) for row in range(80)]
    found = compared(*(area_of(scores, positive, units, "", "") for scores in (before, after)))
    wins = np.stack([scores[positive][:, None] > scores[~positive] for scores in (before, after)]).astype(float)
    covariance = np.cov(wins.mean(2)) / 30 + np.cov(wins.mean(1)) / 50  # S of the paper, (2, 2)
    assert found.standard_error**2 == pytest.approx(np.array([-1, 1]) @ covariance @ np.array([-1, 1]))
    assert found.value == pytest.approx(wins[1].mean() - wins[0].mean())
    swapped = compared(*(area_of(scores, positive, units, "", "") for scores in (after, before)))
    assert (swapped.value, swapped.p_value) == pytest.approx((-found.value, found.p_value))
    assert swapped.interval == pytest.approx((-found.interval[1], -found.interval[0]))
    assert found.interval[0] < found.value < found.interval[1]


@pytest.mark.parametrize("data_sets", SIZES)
@pytest.mark.parametrize(("first", "second"), [(0.0, 0.0), (0.0, 1.0), (1.0, 2.5)])
def test_difference_of_areas_is_covered_as_promised(first: float, second: float, data_sets: int) -> None:
    positive, units = np.arange(60) < 30, [str(row) for row in range(60)]

    def of_data(draw: Draw) -> Interval:
        before, other = draw.normal(size=(2, 60))
        after = 0.6 * before + 0.8 * other
        sides = (before + first * positive, after + second * positive)
        return compared(*(area_of(scores, positive, units, "", "") for scores in sides)).interval

    check_coverage(of_data, 0.5 * float(_erf(second / 2) - _erf(first / 2)), data_sets)


def test_areas_that_did_not_change_or_have_few_rows_leave_room_for_a_difference() -> None:
    positive, scores = np.array([True, True, True, False, False]), np.array([5.0, 4, 3, 2, 1])
    same = Area(scores, positive).change_from(Area(scores, positive))
    assert (same.value, same.interval, same.p_value) == (0.0, tango(0, 0, 2), 1.0)
    turned = Area(scores, positive).change_from(Area(-scores, positive))
    assert (turned.value, turned.interval) == (1.0, tango(2, 0, 2))
    one = np.arange(5) < 1
    assert Area(scores, one).change_from(Area(-scores, one)).interval == (-1.0, 1.0)


def _erf(value: float) -> float:
    from scipy.special import erf

    return float(erf(value))


def test_change_of_values_that_are_equal_is_as_uncertain_as_that_of_hits() -> None:
    values = np.random.default_rng(13).random(12)
    assert change_with_interval(values, values) == (0.0, tango(0, 0, 12))
    assert tango(0, 0, 12)[1] == pytest.approx(wilson(0, 12)[1], abs=1e-9)


@given(st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=20))
def test_swapping_the_sides_of_a_difference_flips_its_interval(values: list[float]) -> None:
    change = np.array(values)
    value, (low, high) = change_with_interval(np.zeros(len(change)), change)
    swapped, (other_low, other_high) = change_with_interval(change, np.zeros(len(change)))
    assert (swapped, other_low, other_high) == pytest.approx((-value, -high, -low), abs=1e-9)
    assert low <= value <= high


@pytest.mark.long
def test_rank_correlation_of_two_models_is_compared_on_the_same_resamples() -> None:
    draw = np.random.default_rng(14)
    truth = draw.normal(size=80)
    noise = draw.normal(size=80)
    figures = [
        Measured(
            "", "", lambda rows, side=side: float(spearmanr(truth[rows], side[rows]).statistic), [*map(str, range(80))]
        )
        for side in (truth + noise, truth + 0.9 * noise)
    ]
    found = compared(*figures)
    assert 0 < found.value < 0.1
    assert found.interval[1] - found.interval[0] < 0.1, "paired"
    assert estimate(figures[0])[1][1] - estimate(figures[0])[1][0] > 0.15
    assert found.p_value < 0.05


def test_rows_needed_are_those_for_the_difference_found_or_none() -> None:
    found = Difference(0.1, (-0.02, 0.22), 0.1, 0.03, 100)
    assert found.deviation == pytest.approx(0.3)
    assert rows_needed(found) == rows_to_show(0.1, 0.3) == 73
    assert rows_needed(found, level=0.05 / 10) == rows_to_show(0.1, 0.3, level=0.005)
    assert rows_needed(Difference(0.0, (-0.1, 0.1), 1.0, 0.03, 100)) is None
    assert rows_needed(Difference(1e-6, (-0.1, 0.1), 1.0, 0.03, 100)) is None


def test_scores_of_one_are_no_hits() -> None:
    scores = mean_of([1.0] * 8, [str(row) for row in range(8)], "score", "from 1 to 5", unit="points")
    assert scores.estimate == (1.0, (1.0, 1.0))
