"""What ways cost, in seconds or in money, and from how many requests on a costlier start pays."""

import math

import pytest

from tunesmith.comparing.costs import BreakEven, Cost, Prices, break_evens

TUNED = Cost(labeled_rows=200, seconds_once=360.0, seconds=0.5)
RETRIEVAL = Cost(seconds_once=30.0, seconds=2.0)


def test_without_prices_costs_are_seconds_of_this_machine() -> None:
    prices = Prices(requests=100)
    assert TUNED.total(prices) == 360 + 100 * 0.5
    assert not prices.are_stated


def test_with_prices_costs_are_money_for_the_machine_and_for_labeled_rows() -> None:
    prices = Prices(device_hour=2.0, labeled_row=0.5, requests=1000)
    assert TUNED.once(prices) == pytest.approx(200 * 0.5 + 0.1 * 2.0)
    assert TUNED.per_request(prices) == pytest.approx(0.5 / 3600 * 2.0)
    assert TUNED.total(prices) == pytest.approx(100.2 + 1000 * 0.5 / 3600 * 2.0)


def test_a_server_costs_its_tokens_and_without_a_price_it_is_never_the_cheaper_one() -> None:
    prices = Prices(device_hour=1.0)
    server = Cost(tokens_in=1000, tokens_out=100, price_in=0.5, price_out=2.0, is_served=True)
    assert server.per_request(prices) == pytest.approx(0.0007)
    assert Cost(tokens_in=1000, is_served=True).per_request(prices) == math.inf
    assert server.per_request(Prices()) == math.inf  # seconds of this machine and money cannot be added
    assert Cost(tokens_in=1, is_served=True).described(prices)["total"] is None


def test_the_break_even_is_where_both_totals_are_equal() -> None:
    (found,) = break_evens([("tuned", TUNED), ("retrieval", RETRIEVAL)], Prices())
    assert (found.way, found.other) == ("tuned", "retrieval")
    assert found.requests == pytest.approx(220)
    at = Prices(requests=220)
    assert TUNED.total(at) == pytest.approx(RETRIEVAL.total(at))


def test_a_way_that_costs_more_at_first_and_for_each_request_never_pays() -> None:
    dear = Cost(seconds_once=100.0, seconds=3.0)
    assert break_evens([("plain", RETRIEVAL), ("dear", dear)], Prices()) == [BreakEven("dear", "plain", None)]
