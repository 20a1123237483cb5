"""What is done with the rows that a check marks."""

import difflib
from collections.abc import Mapping
from typing import Literal, get_args

from tunesmith.checks import registry
from tunesmith.errors import UserError

Action = Literal["keep", "drop", "fix", "mask"]

POLICY: dict[str, Action] = {
    "malformed": "drop",
    "empty": "drop",
    "encoding": "fix",
    "exact_duplicates": "drop",
    "near_duplicates": "drop",
    "leakage": "drop",
    "truncated_answers": "drop",
    "wrong_language": "drop",
    "suspicious_labels": "drop",
    "personal_data": "mask",
    "secrets": "mask",
}
"""What is done unless something else is asked for; rows that other checks mark are kept."""

POSSIBLE: dict[str, tuple[Action, ...]] = {
    "malformed": ("drop",),
    "encoding": ("fix", "drop", "keep"),
    "personal_data": ("mask", "drop", "keep"),
    "secrets": ("mask", "drop", "keep"),
}
"""What can be done; with rows of other checks, `drop` or `keep`."""


def policy(changes: Mapping[str, str]) -> dict[str, Action]:
    """What is done for each check.

    Args:
        changes: actions by check, instead of those in `POLICY`.

    Returns:
        An action for each check that does not only keep rows.

    Raises:
        UserError: a check is not known, or the action is not possible for it.
    """
    known = [*dict.fromkeys([*registry.CHECKS, *POLICY])]
    chosen = dict(POLICY)
    for check, action in changes.items():
        if check not in known:
            near = difflib.get_close_matches(check, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
            raise UserError(f"{check} is not a check. {hint}")
        possible = possible_actions(check)
        if action not in possible:
            raise UserError(f"{check}: {action} is not one of {', '.join(possible)}.")
        chosen[check] = next(each for each in get_args(Action) if each == action)
    return {check: action for check, action in chosen.items() if action != "keep" and check in registry.CHECKS}


def possible_actions(check: str) -> tuple[Action, ...]:
    """What can be done with the rows that a check marks.

    Args:
        check: its name.
    """
    return POSSIBLE.get(check, ("drop", "keep"))


def changes_of(texts: list[str]) -> dict[str, str]:
    """Actions from the command line.

    Args:
        texts: each `CHECK=ACTION`.

    Raises:
        UserError: a text has another form.
    """
    found = {}
    for text in texts:
        check, sign, action = text.partition("=")
        if not sign:
            raise UserError(f"--do {text}: write CHECK=ACTION, for example near_duplicates=keep.")
        found[check.strip()] = action.strip()
    return found
