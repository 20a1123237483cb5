"""Objectives that compare the vectors of a batch's texts with each other."""

from abc import ABC
from typing import ClassVar, Literal

from tunesmith.config.objective import BaseKind, ObjectiveConfig
from tunesmith.models.forward import Pooling


class Contrastive(ObjectiveConfig, ABC):
    """A loss per row of a batch, from the vectors of all its texts."""

    pooling: Pooling = "mean"
    """How a text's last hidden states become its vector: their mean, the first one, or the last one (for decoders)."""

    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "truncate"
    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder", "encoder")
    rate_factor: ClassVar[float] = 0.3  # sentence encoders need small steps; tuned on MiniLM, 8 and 64 rows per class
    compares_rows: ClassVar[bool] = True
