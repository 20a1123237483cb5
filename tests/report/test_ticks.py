"""Ticks of an axis are round numbers, and no two have the same label."""

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.report.ticks import round_ticks, tick_labels


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-6, 1e6))
def test_ticks_are_round_and_within_the_frame(low: float, width: float) -> None:
    ticks = round_ticks(low, low + width)
    assert 2 <= len(ticks) <= 11
    step = ticks[1] - ticks[0]
    assert float(f"{step:.6e}"[:1]) in (1, 2, 5) or f"{step:.6e}".startswith(("9.99", "4.99", "1.99"))
    assert all(low - step * 0.01 <= tick <= low + width + step * 0.01 for tick in ticks)


@given(low=st.floats(0, 1e6), share=st.floats(1e-4, 10), scale=st.sampled_from([1e-9, 1e-5, 0.01, 1.0, 1e4]))
def test_no_two_ticks_have_the_same_label(low: float, share: float, scale: float) -> None:
    labels = tick_labels(round_ticks(low * scale, (low + max(low, 1.0) * share) * scale))
    assert len(set(labels)) == len(labels)


def test_an_axis_that_counts_has_integer_ticks() -> None:
    assert round_ticks(0, 2, least=1) == [0, 1, 2]


def test_labels_are_as_short_as_possible_while_distinct() -> None:
    assert tick_labels([0, 250, 500]) == ["0", "250", "500"]
    assert tick_labels([0.0, 0.05, 0.1]) == ["0", "0.05", "0.10"]
    assert tick_labels([4.455, 4.46, 4.465]) == ["4.455", "4.460", "4.465"]
    assert tick_labels([0, 20_000, 40_000]) == ["0", "20,000", "40,000"]
    assert tick_labels([150_000, 150_200, 150_400]) == ["150.0k", "150.2k", "150.4k"]
    assert tick_labels([0, 1e-5, 2e-5]) == ["0", "1e-5", "2e-5"]
