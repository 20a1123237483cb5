"""The last number of an answer, as people and models write numbers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import UserError
from tunesmith.metrics import metric_named
from tunesmith.metrics.numbers import last_number, number_equal


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("She pays $18.", (18.0,)),
        ("9 * 2 = <<9*2=18>>18 every day.\n#### 1,234", (1234.0,)),
        ("#### 18\nSo the answer is 18, not 20.", (18.0,)),
        ("1,234,567.5 in all", (1234567.5,)),
        ("1\u00a0234", (1234.0,)),
        ("1'234 francs", (1234.0,)),
        ("values 1,2", (2.0,)),
        ("in 1999, 20000 people", (20000.0,)),
        ("-5 degrees", (-5.0,)),
        ("− 5", (5.0,)),
        ("it fell to −5", (-5.0,)),
        ("3-4 days", (4.0,)),
        ("about 3/4 of it", (0.75,)),
        ("50%", (50.0, 0.5)),
        ("12.5 percent of them", (12.5, 0.125)),
        (".5", (0.5,)),
        ("1.5e3", (1500.0,)),
        ("7.", (7.0,)),
        ("1/0", ()),
        ("no number", ()),
        ("", ()),
    ],
)  # fmt: skip
def test_last_number_is_read_as_written(text: str, values: tuple[float, ...]) -> None:
    assert last_number(text) == pytest.approx(values)


@given(st.integers(-(10**9), 10**9))
def test_thousands_separators_change_nothing(value: int) -> None:
    assert last_number(f"It is {value:,}.") == last_number(f"It is {value}.") == (value,)


def test_percent_equals_the_share_and_the_bare_number() -> None:
    assert number_equal(0.0, "It is 50%", "50") == 1
    assert number_equal(0.0, "It is 50%", "0.5") == 1
    assert number_equal(0.0, "0.5", "50%") == 1
    assert number_equal(0.0, "50", "0.5") == 0


def test_tolerance_is_a_share_of_the_right_number() -> None:
    one_percent = metric_named("number:1%")
    assert one_percent.score is not None
    assert [one_percent.score(answer, "200") for answer in ("202", "198", "202.1", "197.9", "none")] == [1, 1, 0, 0, 0]
    assert metric_named("number:0.01").title == one_percent.title == "number right ±0.01"
    exact = metric_named("number")
    assert exact.score is not None
    assert [exact.score("0.1 + 0.2 = 0.30000000000000004", "0.3"), exact.score("0.301", "0.3")] == [1, 0]
    assert exact.fits("#### 3")
    assert not exact.fits("three")


@pytest.mark.parametrize("tolerance", ["x", "-1", "nan", "inf", "%"])
def test_wrong_tolerance_is_refused_with_an_example(tolerance: str) -> None:
    with pytest.raises(UserError, match=r"such as number:0.01 or number:1%"):
        metric_named(f"number:{tolerance}")


GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k" / "test.jsonl"


@pytest.mark.skipif(not GSM8K.exists(), reason="the data set is not here")
def test_every_answer_of_gsm8k_has_the_number_after_its_mark() -> None:
    """Cobbe et al. 2021 mark the result by ####; lm-eval reads the last number in its flexible form."""
    for line in GSM8K.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)["answer"]
        assert last_number(answer) == (float(answer.rpartition("####")[2].strip().replace(",", "")),)
