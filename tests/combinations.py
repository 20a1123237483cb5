"""Of many combinations, `make test` tries a few that cover every code path; `make test-all` tries all."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def few(values: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """Parameters of a test.

    Args:
        values: all of them: single values, or tuples for several arguments.
        kept: those that `make test` tries too.

    Returns:
        The values, of which those that are not kept are marked `long`.
    """
    values = list(values)
    assert all(value in values for value in kept), "a value that is kept is not one of them"
    return [value if value in kept else _long(value) for value in values]


def _long(value: Any) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.long)
