"""What a form of a model has to be able to do so that it can be compared: each is read by the program that users read
it with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from tunesmith.data.example import Message
from tunesmith.data.template import Tools
from tunesmith.proving.limits import Kind
from tunesmith.proving.material import Row

AT_ONCE = 64
"""Places that are compared at once, in float64."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two models' next tokens agree, summed over the positions of one row.

    Attributes:
        positions: how many were compared.
        same: at how many the most likely token is the same.
        divergence: Σ KL(first ‖ second), nats.
        losses: Σ −log p(the row's token) of each model, nats.
    """

    positions: int
    same: int
    divergence: float
    losses: tuple[float, float]


def agreement(first: NDArray[np.float32], second: NDArray[np.float32], targets: NDArray[np.int32]) -> Agreement:
    """Compare full distributions. A vocabulary that was padded with unused tokens is cut to the other's size.

    Args:
        first, second: (positions, vocabulary) scores or log p.
        targets: (positions,) the row's tokens.
    """
    size = min(first.shape[1], second.shape[1])
    pieces = [slice(start, start + AT_ONCE) for start in range(0, len(targets), AT_ONCE)]
    return total([_agreement(first[piece, :size], second[piece, :size], targets[piece]) for piece in pieces])


def total(parts: Sequence[Agreement]) -> Agreement:
    """Parts of a row together."""
    return Agreement(
        sum(part.positions for part in parts),
        sum(part.same for part in parts),
        sum(part.divergence for part in parts),
        (sum(part.losses[0] for part in parts), sum(part.losses[1] for part in parts)),
    )


def _agreement(first: NDArray[np.float32], second: NDArray[np.float32], targets: NDArray[np.int32]) -> Agreement:
    one, two = (torch.log_softmax(torch.from_numpy(each).double(), -1) for each in (first, second))
    found = torch.from_numpy(targets.astype(np.int64))[:, None]
    return Agreement(
        len(targets),
        int((one.argmax(-1) == two.argmax(-1)).sum()),
        float(functional.kl_div(two, one, reduction="sum", log_target=True)),
        (-float(one.gather(1, found).sum()), -float(two.gather(1, found).sum())),
    )


Ids = list[int] | int | None
"""Token ids; how many there are, if a program reports only that; None if it reports neither."""


class Reader(Protocol):
    """A model in the program that reads it."""

    program: ClassVar[str]
    """The program's name."""

    kind: Kind
    """How exactly its weights are stored."""

    unchecked: Sequence[str]
    """What cannot be compared through this program, in words."""

    def chat_ids(self, messages: Sequence[Message], tools: Tools) -> Ids:
        """The ids of a chat up to where the model answers."""

    def text_ids(self, text: str) -> Ids:
        """The ids of a raw text, with the tokens that begin one."""

    def agreement(self, row: Row, first: NDArray[np.float32]) -> Agreement:
        """Compare the next tokens at a row's marks.

        Args:
            row: its ids and marks.
            first: (marks, vocabulary) the other model's log p.
        """

    def answers(self, chats: Sequence[Sequence[Message]], max_new_tokens: int) -> list[str]:
        """The most likely answer to each chat, without white space around it."""

    def close(self) -> None:
        """Free the memory of the model."""
