"""Rewards for code that passes tests. It executes what the model wrote, in a sandbox."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import Field

from tunesmith.metrics.code import code_passes
from tunesmith.metrics.sandbox import Limits
from tunesmith.rewards.function import RewardFunction, Text, answer_of, column_of


class Code(RewardFunction):
    """1 if the row's tests pass after the answer's Python code, else 0. A row without tests has no reward.

    It executes what the model wrote, in a process of its own without environment variables, input or network, and
    with limits of time and memory.
    """

    column: str = "tests"
    """The column with the tests: code that raises an error if the answer is wrong, such as
    `assert add(1, 2) == 3`."""

    seconds: int = Field(default=5, ge=1)
    """Of the processor for each completion."""

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        tests = column_of(columns, self.column)
        limits = Limits(seconds=self.seconds)

        def score(completion: Text, expected: str | None) -> float | None:
            return None if expected is None else code_passes(limits, answer_of(completion), expected)

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each waits for a process
            return list(pool.map(score, completions, tests))
