"""The checks by name, in the order in which they are run and shown."""

import difflib
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from tunesmith.checks.check import RowCheck
from tunesmith.checks.table_check import TableCheck
from tunesmith.errors import UserError

CHECKS = {
    "malformed": "tunesmith.checks.form:MALFORMED",
    "empty": "tunesmith.checks.form:EMPTY",
    "unusable": "tunesmith.checks.rendering:UNUSABLE",
    "over_max_length": "tunesmith.checks.rendering:OVER_MAX_LENGTH",
    "unknown_tokens": "tunesmith.checks.split_tokens:UNKNOWN_TOKENS",
    "length_outliers": "tunesmith.checks.form:LENGTH_OUTLIERS",
    "encoding": "tunesmith.checks.encoding:ENCODING",
    "control_tokens": "tunesmith.checks.markup:CONTROL_TOKENS",
    "html": "tunesmith.checks.markup:HTML",
    "truncated_answers": "tunesmith.checks.endings:TRUNCATED_ANSWERS",
    "wrong_language": "tunesmith.checks.language:WRONG_LANGUAGE",
    "personal_data": "tunesmith.checks.personal_data:PERSONAL_DATA",
    "secrets": "tunesmith.checks.secrets:SECRETS",
    "names": "tunesmith.checks.names:NAMES",
    "prompt_injections": "tunesmith.checks.injections:PROMPT_INJECTIONS",
    "toxicity": "tunesmith.checks.toxicity:TOXICITY",
    "exact_duplicates": "tunesmith.checks.repetition:EXACT_DUPLICATES",
    "near_duplicates": "tunesmith.checks.repetition:NEAR_DUPLICATES",
    "semantic_duplicates": "tunesmith.checks.semantic:SEMANTIC_DUPLICATES",
    "repeated_answers": "tunesmith.checks.repetition:REPEATED_ANSWERS",
    "repeated_openings": "tunesmith.checks.repetition:REPEATED_OPENINGS",
    "contradictions": "tunesmith.checks.contradiction:CONTRADICTIONS",
    "unrelated_answers": "tunesmith.checks.unrelated_answers:UNRELATED_ANSWERS",
    "leakage": "tunesmith.checks.leakage:LEAKAGE",
    "label_imbalance": "tunesmith.checks.labels:LABEL_IMBALANCE",
    "label_neighbors": "tunesmith.checks.labels:LABEL_NEIGHBORS",
    "suspicious_labels": "tunesmith.checks.confident_learning:SUSPICIOUS_LABELS",
    "group_associations": "tunesmith.checks.bias:GROUP_ASSOCIATIONS",
}
"""Where each check is: `module:NAME`, a `RowCheck` or a `TableCheck`. A new check is one file and one line here."""

ONLY_IF_NAMED = ("names",)
"""Checks that need an extra."""


def selected(only: Sequence[str] = (), skip: Sequence[str] = ()) -> list[str]:
    """The names of the checks to run.

    Args:
        only: these; empty for all but those that need an extra.
        skip: but not these.

    Raises:
        UserError: a name is not known, or nothing is left.
    """
    for name in (*only, *skip):
        if name not in CHECKS:
            near = difflib.get_close_matches(name, CHECKS, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(CHECKS)}."
            raise UserError(f"{name} is not a check. {hint}")
    left = [name for name in CHECKS if (name in only or not (only or name in ONLY_IF_NAMED)) and name not in skip]
    if not left:
        raise UserError("No check is left. Skip fewer.")
    return left


def load(name: str) -> RowCheck | TableCheck:
    """The check of that name, whose module is imported now."""
    module, _, attribute = CHECKS[name].partition(":")
    check: Any = getattr(import_module(module), attribute)
    assert check.name == name
    return check  # type: ignore[no-any-return]
