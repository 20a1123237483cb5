"""Worker processes end at once when what they were started for is interrupted."""

import time

import pytest

from tunesmith.data.workers import in_order, workers


def start() -> None:
    pass


def test_an_interrupted_pool_does_not_wait_for_its_workers() -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), workers(2, start) as pool:  # noqa: PT012
        results = in_order(pool, 2, time.sleep, [0.0, *[60.0] * 4])
        next(results, None)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30


def test_results_come_in_the_order_of_the_tasks() -> None:
    with workers(2, start) as pool:
        assert list(in_order(pool, 2, abs, range(-9, 0))) == list(range(9, 0, -1))
