"""People's labels of answers, which a judge's verdicts are compared with and corrected by.

    {"source": "faq.jsonl row 3", "model": "tuned", "score": 4}
    {"source": "faq.jsonl row 3", "model": "tuned", "preferred": "tuned"}

`source` is the row, and `model` the column of the model that answered, as `evaluation.json` calls them. `score` is from
1 to 5; `preferred` is the column of the better answer, or `tie`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.example import Malformed
from tunesmith.data.read import Row, read
from tunesmith.errors import UserError
from tunesmith.subjects.verdicts import HIGHEST, LOWEST

TIE = "tie"


@dataclass(frozen=True)
class Labels:
    """Labels by row and model.

    Attributes:
        file: where they come from.
        values: by source and column: a score, or 1 if the model is preferred to the first one, 0 if the first is, 0.5
            if neither.
    """

    file: Path
    values: Mapping[tuple[str, str], float]

    @classmethod
    def read(cls, file: str | Path, reference: str | None) -> "Labels":
        """Read labels.

        Args:
            file: of rows, in any format that data is read from.
            reference: the column that the others are preferred to, or not; None: the labels are scores.

        Returns:
            The labels.

        Raises:
            UserError: they cannot be read, or one is not as it should be; the message names the row.
        """
        value: Callable[[dict[str, Any]], float | None] = _score if reference is None else _preference(reference)
        wanted = (
            f"a score from {LOWEST} to {HIGHEST}" if reference is None else f"preferred: its model, {reference}, or tie"
        )
        values = {}
        for row in read([str(file)], Path.cwd()):
            found = row.values if isinstance(row, Row) and isinstance(row.values, dict) else {}
            label = value(found)
            if isinstance(row, Malformed) or not {"source", "model"} <= found.keys() or label is None:
                why = f" ({row.reason})" if isinstance(row, Malformed) else ""
                raise UserError(f"{row.source}: a label has source, model and {wanted}{why}.")
            values[str(found["source"]), str(found["model"])] = label
        return cls(Path(file), values)

    def of(self, model: str, sources: Sequence[str]) -> NDArray[np.float64]:
        """The labels of a model's answers.

        Args:
            model: its column.
            sources: of the answers.

        Returns:
            (answers,); NaN: no label.
        """
        return np.array([self.values.get((source, model), np.nan) for source in sources], np.float64)


def _score(row: dict[str, Any]) -> float | None:
    try:
        score = float(row["score"])
    except (KeyError, TypeError, ValueError):
        return None
    return score if LOWEST <= score <= HIGHEST else None


def _preference(reference: str) -> Callable[[dict[str, Any]], float | None]:
    def preference(row: dict[str, Any]) -> float | None:
        return {reference: 0.0, TIE: 0.5, str(row.get("model")): 1.0}.get(str(row.get("preferred")))

    return preference
