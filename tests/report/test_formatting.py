"""Quantities are formatted briefly, and no value makes formatting fail."""

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.report.formatting import count, duration, figure, number, off_by, size

ODD = st.one_of(st.none(), st.sampled_from(["nan", "inf", "-inf"]), st.floats(), st.integers(), st.text(max_size=3))


def test_quantities_have_readable_units() -> None:
    assert [size(value) for value in (2_062_000_000, 340_000_000, 999_900_000)] == ["2.06 GB", "340 MB", "1.00 GB"]
    assert [count(value) for value in (873, 12_400, 1_234_567, 999_900_000)] == ["873", "12,400", "1.23 M", "1 B"]
    assert [duration(value) for value in (0, 4.25, 45, 59.7, 200, 120, 7500)] == [
        "0 s",
        "4.2 s",
        "45 s",
        "1 min",
        "3 min 20 s",
        "2 min",
        "2 h 5 min",
    ]
    assert [off_by(100, value) for value in (104, 88, 310)] == ["+4%", "−12%", "3.1 times"]


@given(value=st.floats(0, 1e14))
def test_no_count_is_in_scientific_notation(value: float) -> None:
    assert "e+" not in count(value)
    assert len(count(value)) <= 9


@given(value=ODD, other=ODD)
def test_missing_and_non_finite_values_are_formatted(value: object, other: object) -> None:
    for text in (figure(value), size(value), count(value), duration(value), off_by(value, other)):
        assert isinstance(text, str)


def test_metrics_that_json_cannot_hold_are_read_back() -> None:
    assert number("inf") == float("inf")
    assert str(number("nan")) == str(number(None)) == "nan"
    assert [figure("nan"), figure(None), figure(2.34567)] == ["nan", "?", "2.346"]
