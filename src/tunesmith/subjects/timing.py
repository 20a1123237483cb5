"""How long answers of a model of this process take, while a number of them is always being answered."""

import time
from collections.abc import Sequence

from tunesmith.inference.engine import Engine
from tunesmith.inference.padded_engine import PaddedEngine
from tunesmith.inference.writing import Writing
from tunesmith.subjects.subject import Timing


def timed(engine: Engine | PaddedEngine, writings: Sequence[Writing], concurrent: int) -> list[Timing]:
    """Answer requests in their order.

    Args:
        engine: that answers them.
        writings: not submitted yet.
        concurrent: how many are answered at the same time.

    Returns:
        The time of each.

    Raises:
        Exception: what ended a request, if one fails.
    """
    order = {id(writing.request): number for number, writing in enumerate(writings)}
    waiting = list(reversed(writings))
    timings: dict[int, Timing] = {}
    clocks: dict[int, _Clock] = {}
    while waiting or not engine.is_idle:
        while waiting and len(clocks) < concurrent:
            writing = waiting.pop()
            clocks[id(writing.request)] = _Clock(writing)
            engine.submit(writing.request)
        for request in engine.step():
            if request.exception is not None:
                raise request.exception
            timings[order[id(request)]] = clocks.pop(id(request)).timing()
    return [timings[number] for number in range(len(writings))]


class _Clock:
    """Notes when an answer's first token and its end come."""

    def __init__(self, writing: Writing) -> None:
        self._writing = writing
        writing.request.submitted = time.perf_counter()

    def timing(self) -> Timing:
        request = self._writing.request
        total, first = time.perf_counter() - request.submitted, request.first_token_seconds
        return Timing(total if first is None else first, total, len(request.tokens), len(request.prompt))
