"""What can be evaluated: a model that is loaded here, or one behind a URL."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tunesmith.data.example import Message
from tunesmith.inference.model import Model
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score

NO_LOG_PROBABILITIES = "a server reports no log-probabilities of given texts"
"""Why a server lacks figures that are computed from them."""

Chat = Sequence[Message]
"""The turns of a chat, up to where the model answers."""


def as_chat(prompt: str | Chat) -> Chat:
    """A question as a chat of one turn; a chat as it is."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


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


@dataclass(frozen=True, slots=True)
class Timing:
    """How long an answer took.

    Attributes:
        first_token: seconds from the request to the answer's first token.
        total: seconds from the request to the answer's end.
        tokens: of the answer.
        prompt_tokens: that the model read; None if the program does not report it.
    """

    first_token: float
    total: float
    tokens: int
    prompt_tokens: int | None = None


class Subject(Protocol):
    """A model under evaluation. Only one is in memory at a time: `close` frees it.

    Attributes:
        name: its column in the tables.
        identity: the hash of what determines its answers (weights, adapter, precision, template); figures are cached by
            it. None: unknown (a server), so that nothing is cached beyond the run of the command.
        scores_texts: whether `scores` works (a server reports no log-probabilities of given texts).
        model: the model in this process, for what needs more than the methods below; None for a server.
    """

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str | None: ...

    @property
    def scores_texts(self) -> bool: ...

    @property
    def model(self) -> Model | None: ...

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

    def timings(self, chats: Sequence[Chat], sampling: Sampling, concurrent: int) -> list[Timing]:
        """Answer chats while a number of them is always being answered; nothing is read from a cache.

        Args:
            chats: in this order.
            sampling: how tokens are chosen.
            concurrent: how many are answered at the same time.
        """

    def close(self) -> None:
        """Free what it holds."""
