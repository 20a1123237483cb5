"""What a way costs: once, for each request, and when a fact changes; and when a costlier start pays."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

from pydantic import Field

from tunesmith.config.registry import Strict

MILLION = 1_000_000
HOUR = 3600.0


class Prices(Strict):
    """What things cost, in a currency of your choice. What is not stated costs nothing."""

    device_hour: float | None = Field(default=None, ge=0)
    """Of this machine, such as its rent. Default: not stated. Without any price, ways are compared by the machine's
    seconds."""

    labeled_row: float = Field(default=0.0, ge=0)
    """Of a row that a person writes or checks."""

    requests: int = Field(default=10_000, ge=1)
    """How many requests are expected in all, over which one-off costs are spread. Default: a hundred a day for a
    quarter."""

    @property
    def are_stated(self) -> bool:
        """Whether costs are in money, and not in seconds of this machine."""
        return self.device_hour is not None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a way costs on this machine and elsewhere.

    Attributes:
        labeled_rows: that people write or check for it.
        seconds_once: of this machine before the first request: training, indexing, comparing prompts.
        seconds: of this machine for a request that is answered alone.
        tokens_in: of a request, on average.
        tokens_out: of its answer, on average; None: the server does not report it.
        memory_bytes: of weights, of keys and values of one request, and of an index; None: on a server.
        change_seconds: of this machine until a changed fact is known: reindexing or retraining; None: it cannot be
            changed here.
        price_in, price_out: of a million tokens on a server; None: not stated, or no server.
        is_served: whether a server answers.
    """

    labeled_rows: int = 0
    seconds_once: float = 0.0
    seconds: float = 0.0
    tokens_in: float | None = None
    tokens_out: float | None = None
    memory_bytes: int | None = None
    change_seconds: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    is_served: bool = False

    def once(self, prices: Prices) -> float:
        """Before the first request: in money, or in seconds of this machine if no price is stated.

        Args:
            prices: of the machine and of rows.
        """
        rows = self.labeled_rows * prices.labeled_row
        return self.seconds_once if prices.device_hour is None else rows + self.seconds_once * prices.device_hour / HOUR

    def per_request(self, prices: Prices) -> float:
        """Of a request, in the same unit. Infinite for a server without a price.

        Args:
            prices: of the machine and of rows.
        """
        if self.is_served:
            stated = self.price_in is not None and self.price_out is not None and prices.are_stated
            return self._tokens_price() if stated else inf
        return self.seconds if prices.device_hour is None else self.seconds * prices.device_hour / HOUR

    def total(self, prices: Prices) -> float:
        """Of all expected requests.

        Args:
            prices: with their number.
        """
        return self.once(prices) + prices.requests * self.per_request(prices)

    def described(self, prices: Prices) -> dict[str, Any]:
        """Plain values: the attributes, and `once`, `per_thousand` and `total` in the unit of the prices.

        Args:
            prices: of the machine and of rows.
        """
        each = self.per_request(prices)
        known = each < inf
        return {
            **asdict(self),
            "once": self.once(prices),
            "per_thousand": 1000 * each if known else None,
            "total": self.total(prices) if known else None,
        }

    def _tokens_price(self) -> float:
        tokens_in, tokens_out = self.tokens_in or 0.0, self.tokens_out or 0.0
        return (tokens_in * (self.price_in or 0.0) + tokens_out * (self.price_out or 0.0)) / MILLION


@dataclass(frozen=True, slots=True)
class BreakEven:
    """From how many requests on a way with higher one-off costs is the cheaper one.

    Attributes:
        way: that costs more at first.
        other: that costs less at first.
        requests: from which `way` costs less in total; None: never, since it also costs more for each request.
    """

    way: str
    other: str
    requests: float | None


def break_evens(costs: Sequence[tuple[str, Cost]], prices: Prices) -> list[BreakEven]:
    """Between every two ways.

    Args:
        costs: of each way, in order.
        prices: of the machine and of rows.

    Returns:
        For each pair with different one-off costs, n with once_a + n · each_a = once_b + n · each_b.
    """
    found = []
    for index, (first, own) in enumerate(costs):
        for second, theirs in costs[index + 1 :]:
            (cheap, low), (dear, high) = sorted(((first, own), (second, theirs)), key=lambda pair: pair[1].once(prices))
            gap, saved = high.once(prices) - low.once(prices), low.per_request(prices) - high.per_request(prices)
            if gap > 0:
                found.append(BreakEven(dear, cheap, gap / saved if saved > 0 else None))
    return found
