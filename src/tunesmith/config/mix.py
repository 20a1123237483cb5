"""A source of `data.mix`: rows of one kind, and how much of the training tokens they are."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from tunesmith.config.registry import Strict

Overflow = Literal["auto", "refuse", "truncate", "split", "drop"]
"""What becomes of an example longer than `data.max_length`."""


class MixSource(Strict):
    """Rows of one kind, and how many of them are trained on."""

    paths: list[str] = Field(min_length=1)
    """As `data.train` takes them."""

    share: float | None = Field(default=None, gt=0, le=1)
    """Its weight: its share of all training tokens. Sources without a share are taken whole, `epochs` times; if all
    have one, the shares add up to 1 and the mix is as large as the sources allow. Default: taken whole."""

    epochs: float = Field(default=1.0, gt=0, le=1000)
    """How often each row is drawn for one epoch of the run: 0.25 draws a quarter of the rows (down-sampling), 3 each
    one three times (up-sampling). With `share`: at most this often. 1: a row that repeats is a choice; up to four
    times, repeated text is nearly as good as new text (Muennighoff et al. 2023)."""

    max_rows: int | None = Field(default=None, ge=1)
    """A cap: no more than this many of its examples, drawn with `train.seed` before any is repeated. Default: all."""

    held_out: bool = True
    """Whether `data.held_out`, if it is a share, holds some of its rows out, so that the held-out loss is also theirs.
    Off for general text against forgetting: the held-out loss is then the task's alone."""

    format: str | None = None
    """The format of its rows. Default: `data.format`; `auto` detects it for each source."""

    columns: dict[str, str] | None = None
    """Names of its columns. Default: `data.columns`."""

    overflow: Overflow | None = None
    """What to do with its examples longer than `data.max_length`. Default: `data.overflow`; if that is `auto`, raw text
    is split."""

    @field_validator("paths", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        return [str(value)] if isinstance(value, str | Path) else value


Order = Literal["as_drawn", "by_length", "by_source"]
"""The order of an epoch's rows."""


def check_shares(mix: dict[str, MixSource]) -> None:
    """Refuse shares that cannot all be met.

    Raises:
        ValueError: they add up to too much, or to too little where every source has one.
    """
    shares = [source.share for source in mix.values() if source.share is not None]
    total = sum(shares)
    if len(shares) == len(mix) and abs(total - 1) > 0.005:
        raise ValueError(
            f"every source of mix has a share, and they add up to {total:.4g}, not to 1. Change one, or leave it out"
        )
    if len(shares) < len(mix) and total >= 1:
        raise ValueError(
            f"the shares of mix add up to {total:.4g}, which leaves nothing for the sources without one. Lower them"
        )
