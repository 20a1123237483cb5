"""What can be evaluated: a model that is loaded here, or one behind a URL."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunesmith.data.example import Message
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score

Chat = Sequence[Message]
"""The turns of a chat, up to where the model answers."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of a model.

    Attributes:
        text: without white space around it.
        tokens: how many there are; None if the program does not report it.
        finish_reason: `stop` or `length`; None if the program does not report it.
    """

    text: str
    tokens: int | None = None
    finish_reason: str | None = None


class Subject(Protocol):
    """A model under evaluation.

    Attributes:
        name: its column in the tables.
        identity: the hash of what determines its answers (weights, adapter, precision, template); figures are cached by
            it. None: unknown (a server), so that nothing is cached beyond the run of the command.
        scores_texts: whether `scores` works (a server reports no log-probabilities of given texts).
    """

    name: str
    identity: str | None
    scores_texts: bool

    def answers(
        self, chats: Sequence[Chat], sampling: Sampling, done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """Answer chats; each answer is independent of the others.

        Args:
            chats: the user's turn last.
            sampling: how tokens are chosen.
            done: called with the number of chats that are answered, as it grows.
        """

    def scores(self, prompts: Sequence[str | Chat] | None, texts: Sequence[str]) -> list[Score]:
        """Log-probabilities of given answers, or of raw texts.

        Args:
            prompts: the question or chat before each text; None: the texts are scored as they are, without a template.
            texts: the answers, each with the token that ends it; or raw texts.

        Raises:
            UserError: the model cannot (`scores_texts` is false).
        """
