"""`tunesmith evaluate --leakage`: the figures without rows that the run was also trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunesmith.checks.leaked_rows import Leak, leaked_rows
from tunesmith.errors import UserError
from tunesmith.evaluation.figures import Figures
from tunesmith.evaluation.measuring import Trial
from tunesmith.evaluation.rows import EvaluationRows
from tunesmith.evaluation.summary import summary

LISTED = 20
"""Leaked rows that the result names."""


@dataclass(frozen=True)
class Leaks:
    """What the evaluated rows have in common with those that were trained on.

    Attributes:
        names: of all evaluated rows.
        training: rows that they were compared with.
        found: why, by the name of a leaked row.
    """

    names: frozenset[str]
    training: int
    found: Mapping[str, Leak]


def leaks_of(trials: Sequence[Trial]) -> Leaks:
    """Compare the rows of each trial with those that its run was trained on.

    Args:
        trials: of an evaluation; of a run with folds, each has the rows that its own model was trained on.

    Returns:
        What was found, of all trials.

    Raises:
        UserError: there are no rows, or there is no run among the models; the rows cannot be read.
    """
    names: set[str] = set()
    found: dict[str, Leak] = {}
    training = 0
    for trial in trials:
        if trial.rows is None:
            continue
        run = trial.run or trial.rows.run
        if run is None:
            raise UserError("--leakage compares with the rows that a run was trained on. Name a run among the models.")
        others = EvaluationRows.of_run(run).training_examples if trial.rows.is_whole else trial.rows.training_examples
        rows = trial.rows.examples
        training = max(training, len(others))
        names.update(str(row.source) for row in rows)
        found |= {str(rows[index].source): leak for index, leak in leaked_rows(rows, others).items()}
    if not names:
        raise UserError("--leakage is about rows, and only suites are measured. Leave it out.")
    return Leaks(frozenset(names), training, found)


def without_leaked(models: Mapping[str, Figures], leaks: Leaks, reference: str) -> dict[str, Any]:
    """The figures of all models without leaked rows.

    Args:
        models: figures on all rows, by column name.
        leaks: of the rows.
        reference: the model that the others are compared with.

    Returns:
        `rows`, `training_rows`, `leaked`: how many rows there are, how many they were compared with, how many are
        leaked; `leaks`: `source` and `detail` of the first ones; and what `summary` has, of the rows that are left.
    """
    left = {
        model: {name: kept for name, measured in figures.items() if (kept := _kept(measured, leaks)) is not None}
        for model, figures in models.items()
    }
    listed = [{"source": name, "detail": leak.detail} for name, leak in list(leaks.found.items())[:LISTED]]
    return {
        "rows": len(leaks.names),
        "training_rows": leaks.training,
        "leaked": len(leaks.found),
        "leaks": listed,
        **summary(left, reference),
    }


def _kept(measured: Any, leaks: Leaks) -> Any:
    """A figure on the rows that are not leaked; None if it is of none of them, or not of these rows."""
    names = [str(unit).partition(", part ")[0] for unit in measured.units]
    if not names or not all(name in leaks.names for name in names):
        return None
    rows = np.flatnonzero([name not in leaks.found for name in names])
    return measured.on(rows) if len(rows) else None
