"""What is measured of a way: its answers to the held-out rows, how long they take, and what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.comparing.costs import Cost
from tunesmith.comparing.ways import Way
from tunesmith.statistics.measured import Measured
from tunesmith.subjects.subject import Answer, Timing

TIMED = 12
"""Requests of each way whose time is measured, one after another; a 95th percentile of so few is close to the
slowest."""


@dataclass(frozen=True)
class MeasuredWay:
    """A way and its figures.

    Attributes:
        way: which.
        answers: to the held-out rows, in their order.
        figures: of the answers, by metric.
        timings: of some requests, one after another.
        cost: on this machine and elsewhere.
        about: what was chosen or made for it, such as the prompt, the number of examples, or the run.
        topic: figures of the suite `topic`, if it was measured.
    """

    way: Way
    answers: Sequence[Answer]
    figures: Mapping[str, Measured]
    timings: Sequence[Timing]
    cost: Cost
    about: Mapping[str, Any]
    topic: Mapping[str, Measured]

    @property
    def latency(self) -> dict[str, float]:
        """Seconds from a request to its answer's end: the median, and the 95th percentile."""
        totals = [timing.total for timing in self.timings]
        return {f"p{percentile}": float(np.percentile(totals, percentile)) for percentile in (50, 95)}

    @property
    def first_token(self) -> dict[str, float]:
        """Seconds from a request to its answer's first token: the median, and the 95th percentile."""
        firsts = [timing.first_token for timing in self.timings]
        return {f"p{percentile}": float(np.percentile(firsts, percentile)) for percentile in (50, 95)}
