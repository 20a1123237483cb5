"""Rollouts: what a run generates and then trains on, phase by phase. Objectives that learn from it implement `collect`.

A phase samples completions with the weights as they are, and serves one optimizer step or several. Everything that the
objective computes of the completions is in the columns of a token table, so that the loop packs, splits and accumulates
its rows like any others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.data.example import Message, Source
from tunesmith.data.tokens import Completions, TokenTable


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row that the model answers.

    Attributes:
        ids: of the rendered chat, up to where the model begins to write.
        given: the prompt as the row has it: a text, or messages.
        messages: the chat.
        columns: what else the row has.
        source: of the row.
    """

    ids: Sequence[int]
    given: str | Sequence[Message]
    messages: tuple[Message, ...]
    columns: Mapping[str, Any]
    source: Source

    @property
    def text(self) -> str:
        """The content of the last turn."""
        return str(self.messages[-1]["content"])


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer that the model has sampled.

    Attributes:
        tokens: its ids, with the one that ends it.
        log_probs: log p of each token by the sampler, without temperature, in nats.
        text: without special tokens.
        is_truncated: whether it ended because it was too long.
    """

    tokens: Sequence[int]
    log_probs: Sequence[float]
    text: str
    is_truncated: bool


class RewardValues(Protocol):
    """What reward functions say of completions."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the functions."""

    @property
    def values(self) -> NDArray[np.float64]:
        """(completions, functions); NaN where a function does not apply."""

    @property
    def noted_metrics(self) -> Mapping[str, float]:
        """Means of what the functions noted, by name."""

    @property
    def total(self) -> NDArray[np.float64]:
        """(completions,) the rewards; NaN where no function applies."""


@dataclass(frozen=True)
class Phase:
    """What an objective collects with.

    Attributes:
        number: of the phase, from 0.
        rows: the prompts that it takes.
        prompt: the prompt of a row.
        sample: samples completions of some rows, `samples` each, in a round from 0: other rounds have other random
            numbers.
        answer: the most likely completion of each of some rows, token by token.
        score: the sampler's log p of the tokens of given completions.
        reward: the rewards of completions, one for each prompt.
        more_rows: further rows for a round, in an order that follows from the seed.
        model: in training.
        initial: within its context, the model has the weights that the run started with.
        tokens_per_batch: the most tokens in a batch.
        seed: of the run.
        events: emits an event of the run.
    """

    number: int
    rows: Sequence[int]
    prompt: Callable[[int], Prompt]
    sample: "Callable[[Sequence[int], int, int], list[list[Completion]]]"
    answer: Callable[[Sequence[int]], list[Completion]]
    score: Callable[[Sequence[tuple[Sequence[int], Sequence[int]]]], list[list[float]]]
    reward: Callable[[Sequence[Prompt], Sequence[Completion]], RewardValues]
    more_rows: Callable[[int], Sequence[int]]
    model: PreTrainedModel
    initial: Callable[[], AbstractContextManager[None]]
    tokens_per_batch: int
    seed: int
    events: Callable[..., None]


@dataclass(frozen=True)
class Collected:
    """What a phase has sampled, ready for its optimizer steps.

    Attributes:
        phase: its number.
        table: a row for each prompt with its completions, or for some of them if all are longer than a batch; only the
            completions' tokens have a loss.
        prompts: (rows,) the prompt of each row, as an index into the run's prompts.
        updates: the rows of each optimizer step.
        metrics: of the phase, for its first step's event.
        samples: some of the completions, as plain JSON values, to be shown.
    """

    phase: int
    table: TokenTable
    prompts: Sequence[int]
    updates: Sequence[Sequence[int]]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()

    def state(self) -> dict[str, Tensor]:
        """Everything that its steps depend on, as tensors."""
        table, completions = self.table, self.table.completions
        assert completions is not None
        flat = [row for rows in self.updates for row in rows]
        return {
            "phase": torch.tensor(self.phase),
            "ids": torch.from_numpy(np.array(table.ids)),
            "loss_mask": torch.from_numpy(np.array(table.loss_mask)),
            "offsets": torch.from_numpy(np.array(table.offsets)),
            "completions": torch.from_numpy(np.array(completions.offsets)),
            "lengths": torch.from_numpy(np.array(completions.lengths)),
            "scores": torch.from_numpy(np.array(completions.scores)),
            "prompts": torch.tensor(list(self.prompts), dtype=torch.int64),
            "rows": torch.tensor(flat, dtype=torch.int64),
            "counts": torch.tensor([len(rows) for rows in self.updates], dtype=torch.int64),
            **{f"column.{name}": torch.from_numpy(np.array(values)) for name, values in table.columns.items()},
        }

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], prompts: TokenTable) -> "Collected":
        """From the tensors of `state`.

        Args:
            tensors: by name.
            prompts: the run's prompts.
        """
        at = tensors["prompts"].numpy()
        prefix = "column."
        scores = tensors["scores"].numpy()
        table = TokenTable(
            tensors["ids"].numpy(),
            tensors["loss_mask"].numpy(),
            tensors["offsets"].numpy(),
            prompts.files,
            prompts.file[at],
            prompts.row[at],
            completions=Completions(
                tensors["completions"].numpy(), tensors["lengths"].numpy(), scores, np.full_like(scores, np.nan)
            ),
            columns={
                name.removeprefix(prefix): values.numpy() for name, values in tensors.items() if name.startswith(prefix)
            },
        )
        updates = [part.tolist() for part in torch.split(tensors["rows"], tensors["counts"].tolist())]
        return cls(int(tensors["phase"]), table, at.tolist(), updates)


def row_ends(prompt: int, completions: Sequence[int], most: int, are_compared: bool = False) -> Iterator[int]:
    """How a prompt's completions are laid out in rows that share it.

    Args:
        prompt: its tokens.
        completions: the tokens of each.
        most: tokens of a row, unless a single completion has more.
        are_compared: whether all of them are in one row, whatever its length.

    Yields:
        After how many of the completions each row ends; nothing without completions.
    """
    tokens = prompt
    for index, length in enumerate(completions):
        if tokens > prompt and tokens + length > most and not are_compared:
            yield index
            tokens = prompt
        tokens += length
    if completions:
        yield len(completions)
