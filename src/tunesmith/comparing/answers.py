"""The answers to `tunesmith advise`'s eight questions."""

from dataclasses import dataclass
from typing import Literal, get_args

from tunesmith.comparing.priors import Change
from tunesmith.errors import UserError

FactsChange = Literal["never", "monthly", "weekly", "daily"]

CHANGES: tuple[str, ...] = get_args(Change)
FACTS_CHANGE: tuple[str, ...] = get_args(FactsChange)


@dataclass(frozen=True, slots=True)
class Answers:
    """To the eight questions.

    Attributes:
        change: what must change.
        facts_change: how often facts change.
        rows: labeled ones, that there are or could be.
        documents: megabytes.
        requests: per month.
        latency: the longest acceptable, in seconds; None: any.
        hosted: whether data may go to a hosted model.
        price_in, price_out: of it, for a million tokens read and written; None: not known.
        base: the model that is prompted and fine-tuned.
        device: `here`, or a name of the planner's table.
    """

    change: Change
    facts_change: FactsChange = "never"
    rows: int = 0
    documents: float = 0.0
    requests: int = 3000
    latency: float | None = None
    hosted: bool = False
    price_in: float | None = None
    price_out: float | None = None
    base: str = "embedded"
    device: str = "here"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("change", self.change, CHANGES),
            ("facts_change", self.facts_change, FACTS_CHANGE),
        ):
            if value not in known:
                raise UserError(f"{name}: {value} is not known. Known: {', '.join(known)}.")
        for name, least in (("rows", 0), ("documents", 0), ("requests", 1), ("price_in", 0), ("price_out", 0)):
            given = getattr(self, name)
            if given is not None and not given >= least:
                raise UserError(f"{name}: {given} is too small. It is at least {least}.")
        if self.latency is not None and not self.latency > 0:
            raise UserError(f"latency: {self.latency} is no time. Give seconds, or leave it out.")

    @property
    def facts(self) -> bool:
        """Whether facts must change."""
        return self.change in ("facts", "both")
