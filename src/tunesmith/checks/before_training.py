"""Checks that a run asks for with `data.checks`: it is refused if one of severity error marks a row."""

from collections.abc import Sequence

from tunesmith.checks.driver import check_data
from tunesmith.checks.result import CheckResult
from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.run import Subscriber

SHOWN = 3
"""Rows of a check that a message names."""


def check_before_training(recipe: Recipe, subscribers: Sequence[Subscriber] = ()) -> list[str]:
    """Run the checks of `data.checks`.

    Args:
        recipe: of the run.
        subscribers: receive `progress` events.

    Returns:
        A message for each check of severity warning that marks rows.

    Raises:
        UserError: a check is not known, or one of severity error marks rows; the message names the first of them.
    """
    wanted = recipe.data.checks
    if not wanted:
        return []
    found = check_data(recipe, only=() if wanted is True else wanted, subscribers=subscribers)
    if found.failed:
        lines = "".join(f"\n  {_named(result)}" for result in found.failed)
        count = sum(result.count for result in found.failed)
        raise UserError(
            f"data.checks: {count:,} row{'s' if count != 1 else ''} would do harm.{lines}\n"
            "Look at them with `tunesmith data check RECIPE`, correct or remove them (`tunesmith data clean`), or take "
            "the check out of data.checks."
        )
    return [_named(result) for result in found.results if result.count and result.severity == "warning"]


def _named(result: CheckResult) -> str:
    shown = "; ".join(f"{mark.source}: {mark.detail}" for mark in result.first(SHOWN))
    more = f"; and {result.count - SHOWN:,} more" if result.count > SHOWN else ""
    return f"{result.name}: {result.count:,} {'rows' if result.count > 1 else 'row'} ({shown}{more})"
