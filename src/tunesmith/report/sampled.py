"""What a policy has written in the course of its training, for its page: the best and the worst of some phases."""

import math
from collections.abc import Sequence
from typing import Any

from tunesmith.report.formatting import figure, number
from tunesmith.run import Event

PHASES = 5
"""That are shown, spread over the run, the first and the last among them."""

CHARACTERS = 400
"""Of a text that are shown."""


def sampled(events: Sequence[Event]) -> dict[str, Any] | None:
    """Samples over time.

    Args:
        events: `sample` events, in order.

    Returns:
        `phases` of the run, and `rows` with `step`, `prompt`, `completion` and `reward`; None without samples.
    """
    steps = list(dict.fromkeys(_step(event) for event in events))
    if not steps:
        return None
    last = len(steps) - 1
    shown = {steps[round(part * last / (PHASES - 1))] for part in range(PHASES)}
    rows = [
        {
            "step": f"{_step(event):,}",
            "prompt": _cut(event.get("prompt")),
            "completion": _cut(event.get("completion")),
            "reward": figure(number(event.get("reward"))),
        }
        for event in events
        if _step(event) in shown
    ]
    return {"phases": len(steps), "shown": len(shown), "rows": rows}


def _step(event: Event) -> int:
    value = number(event.get("step"))
    return int(value) if math.isfinite(value) else 0


def _cut(text: Any) -> str:
    whole = str(text or "")
    return whole if len(whole) <= CHARACTERS else f"{whole[: CHARACTERS - 1]}…"
