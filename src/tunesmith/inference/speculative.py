"""Speculative decoding in a step of the generation engine: which sequences get drafts, and how long ones."""

from collections.abc import Mapping
from itertools import takewhile

from tunesmith.inference.drafts import Drafter
from tunesmith.inference.running import Running

DRAFTED_ROWS = 12
"""Rows of a step up to which tokens are drafted. The CPU's kernels compute so many in one tile (`native/packed.h`), and
mostly wait for the weights then; a row more costs as much as it is worth at best."""

ROW_COST = 0.05
"""The time of a row more, as a share of a step of one row: measured for 2 to 12 rows of SmolLM2-135M on a CPU."""


def step_drafts(ends: Mapping[Running, int], vocabulary: int) -> dict[Running, list[int]]:
    """What may follow the sequences that are computed to their last token, as long as the step has few rows.

    Args:
        ends: each sequence of the step, with the token up to which it is computed.
        vocabulary: how many tokens the model has.

    Returns:
        The drafts, up to the first token that is none of the model's; of sequences without one, nothing.
    """
    writing = [each for each, end in ends.items() if end == len(each.ids) and each.request.completion is None]
    rows = sum(end - running.computed for running, end in ends.items())
    share = (DRAFTED_ROWS - rows) // max(1, len(writing))
    counts: dict[Drafter, dict[Running, int]] = {}
    for running in writing:
        drafter, most = running.request.drafter, min(share, running.most - len(running.ids) - 1)
        if drafter is None or most < 1:
            continue
        # A step's time is worth a token to each sequence, so that a row costs more where there are more of them.
        count = running.acceptance.length(most, drafter.cost + ROW_COST * len(writing))
        if count:
            counts.setdefault(drafter, {})[running] = count
    return {
        running: list(takewhile(lambda token: token < vocabulary, draft))
        for drafter, own in counts.items()
        for running, draft in zip(own, drafter.drafts([each.text for each in own], list(own.values())), strict=True)
    }
