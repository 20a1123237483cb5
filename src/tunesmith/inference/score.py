"""The log-probabilities of given texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.example import Example, Source
from tunesmith.data.render import Renderer, Tokenized
from tunesmith.inference.generate import Generator

SOURCE = Source("texts", 1)
"""Where a text comes from that is in no file."""


@dataclass(frozen=True, slots=True)
class Score:
    """A text's log-probabilities.

    Attributes:
        tokens: the text's tokens that were scored.
        log_probabilities: (tokens,) float64: log p(token | everything before it), in nats.
    """

    tokens: tuple[str, ...]
    log_probabilities: NDArray[np.float64]

    @property
    def total(self) -> float:
        """log p(text), in nats."""
        return float(self.log_probabilities.sum())

    @property
    def mean(self) -> float:
        """Nats per token; exp(−mean) is the perplexity."""
        return float(self.log_probabilities.mean())


def text_rows(renderer: Renderer, texts: Sequence[str]) -> list[Tokenized]:
    """Raw documents without the token that ends them, as rows to score."""
    renderings = [each for text in texts for each in renderer.render(Example(SOURCE, text=text))]
    rows = []
    for ids, mask in renderer.tokenize_many(renderings):
        ends = len(ids) > 1 and ids[-1] == renderer.end_of_document
        rows.append((ids[:-1], mask[:-1]) if ends else (ids, mask))
    return rows


def answer_rows(renderer: Renderer, prompts: Sequence[str], answers: Sequence[str]) -> list[Tokenized]:
    """Chats with loss on the answer, as rows to score.

    Raises:
        UnusableError: the chat template cannot render one.
    """
    renderings = []
    for prompt, answer in zip(prompts, answers, strict=True):
        turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
        renderings += renderer.render(Example(SOURCE, messages=turns))
    return renderer.tokenize_many(renderings)


def scores_of(generator: Generator, rows: Sequence[Tokenized], adapter: str | None = None) -> list[Score]:
    """The log-probabilities of the rows' loss tokens, by the tokens before each.

    Args:
        generator: of the model.
        rows: ids and loss mask of each.
        adapter: the name of an adapter; None: the model as it is.

    Raises:
        UserError: a row is longer than the model's context.
    """
    firsts = [_first_scored(mask) for _, mask in rows]
    scored = [(row, first) for row, first in enumerate(firsts) if first is not None]
    pairs = [(rows[row][0][:first].tolist(), rows[row][0][first:].tolist()) for row, first in scored]
    found = [Score((), np.zeros(0)) for _ in rows]
    for (row, first), logs in zip(scored, generator.scores(pairs, adapter), strict=True):
        ids, mask = rows[row][0][first:], rows[row][1][first:]
        tokens = generator.tokenizer.convert_ids_to_tokens(ids[mask].tolist())
        found[row] = Score(tuple(tokens), np.array(logs)[mask])
    return found


def _first_scored(mask: NDArray[np.bool_]) -> int | None:
    """The first token that is scored: it has a loss, and a token before it. None if there is none."""
    indices = np.flatnonzero(mask[1:])
    return int(indices[0]) + 1 if len(indices) else None
