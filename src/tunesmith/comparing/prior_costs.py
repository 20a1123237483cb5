"""What ways would cost, before there are rows: by the planner's figures and assumed lengths."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.comparing.costs import Cost
from tunesmith.comparing.ways import WAYS, Way
from tunesmith.errors import UserError
from tunesmith.planner.answering import AnswerRates, answer_rates
from tunesmith.planner.plan import IMPORTS
from tunesmith.planner.request import CHARACTERS, plan

QUESTION, ANSWER, INSTRUCTIONS = 100, 100, 150
"""Assumed tokens of a question, of an answer, and of a prompt that is written for the task."""

SHOTS = 8
"""Assumed examples in a prompt: the most that `tunesmith compare` tries."""

EXCERPTS, CHUNK = 3, 200
"""Excerpts in a prompt and tokens of each: the defaults of `tunesmith compare` and `tunesmith index`."""

EPOCHS = 3
"""Passes over the rows: a recipe's default."""

ENCODER = 22.7e6
"""Parameters of all-MiniLM-L6-v2, which embeds documents by default."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the planner says of a base with LoRA on a device.

    Attributes:
        device: its name.
        device_hour: its price in US dollars; None if it has none.
        rates: of answers; None if the base writes no text.
        training_seconds: of a run on the rows.
        training_bytes: of memory at the run's peak.
        available_bytes: of memory on the device.
    """

    device: str
    device_hour: float | None
    rates: AnswerRates | None
    training_seconds: float
    training_bytes: int
    available_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the run's memory suffices."""
        return self.training_bytes <= self.available_bytes

    def described(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"fits": self.fits}


def predicted(base: str, device: str, rows: int) -> Predicted:
    """Plan a run with LoRA, and answers.

    Args:
        base: a directory, a hub name, or a short name.
        device: `here`, or a name of the planner's table.
        rows: to train on.

    Returns:
        The figures.

    Raises:
        UserError: the base or the device is not known, or the base cannot be planned.
    """
    planned = plan(base, device=device)
    rates = answer_rates(planned)
    tokens = rows * (QUESTION + ANSWER) * EPOCHS
    seconds = IMPORTS + tokens / planned.time.tokens_per_second if rows else 0.0
    return Predicted(
        planned.device.name, planned.device.price, rates, seconds, planned.memory.peak_bytes, planned.available
    )


def costs_of(ways: Iterable[str], figures: Predicted, rows: int, megabytes: float) -> dict[str, Cost]:
    """What ways cost.

    Args:
        ways: by name.
        figures: of the planner.
        rows: labeled ones.
        megabytes: of documents.

    Returns:
        By way; empty if the base writes no text.
    """
    return {} if figures.rates is None else {name: _cost(WAYS[name], figures, rows, megabytes) for name in ways}


def _cost(way: Way, figures: Predicted, rows: int, megabytes: float) -> Cost:
    rates, tuned = figures.rates, way.model != "base"
    if rates is None:
        raise UserError(f"{way.name}: the base writes no text.")
    tokens_in = (
        QUESTION
        + INSTRUCTIONS * way.prompt
        + SHOTS * (QUESTION + ANSWER) * way.shots
        + EXCERPTS * CHUNK * way.documents
    )
    longer = (QUESTION + ANSWER + EXCERPTS * CHUNK) / (QUESTION + ANSWER) if way.model == "retrieval_tuned" else 1.0
    training = figures.training_seconds * longer if tuned else 0.0
    indexing = 2 * ENCODER * megabytes * 1e6 / CHARACTERS / rates.flops if way.documents else 0.0
    return Cost(
        labeled_rows=rows if tuned else SHOTS * way.shots,
        seconds_once=training + indexing,
        seconds=rates.seconds(tokens_in, ANSWER),
        tokens_in=tokens_in,
        tokens_out=ANSWER,
        memory_bytes=rates.memory(tokens_in + ANSWER),
        change_seconds=indexing if way.documents else training if tuned else 0.0,
    )
