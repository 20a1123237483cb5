"""What can be evaluated: a model that is loaded here, or one behind a URL."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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

    def uncached(self) -> "Subject":
        """The same model, of which everything is computed again, to be timed."""

    def close(self) -> None:
        """Free what it holds."""


class SubjectAround:
    """A subject that changes what another one reads; what it does not define is the other's.

    Args:
        subject: the other one.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @property
    def scores_texts(self) -> bool:
        """As the other's."""
        return self.subject.scores_texts

    @property
    def model(self) -> Model | None:
        """The other's, which reads what it is given."""
        return self.subject.model

    def close(self) -> None:
        """Free what the other one holds."""
        self.subject.close()


class ChatRenderer(Protocol):
    """Puts a prompt before the chats of one model."""

    def chat(self, chat: Chat, answer_tokens: int) -> Sequence[Message]:
        """What the model reads for a chat.

        Args:
            chat: the turns up to where the model answers.
            answer_tokens: the most tokens of the answer, for which there must be room.
        """

    @property
    def note(self) -> str | None:
        """What was left out to fit into the model's context, in a sentence; None: nothing."""


class PromptedSubject(Subject, Protocol):
    """A subject with a prompt before its chats."""

    @property
    def subject(self) -> Subject:
        """The subject without the prompt."""

    @property
    def renderer(self) -> ChatRenderer: ...


class ChatPrompt(Protocol):
    """A prompt that is put before chats: `tunesmith.Prompt`."""

    @property
    def version(self) -> str: ...

    def described(self) -> dict[str, Any]:
        """Plain values for a result, `version` among them."""

    def save(self, path: Path) -> None:
        """Write it.

        Args:
            path: a directory, which then has it as `prompt.yaml`, or a file.
        """

    def before(self, subject: Subject) -> PromptedSubject:
        """A subject with the prompt before its chats, under the same name.

        Args:
            subject: that answers.
        """

    def renderer(self, model: Model) -> ChatRenderer:
        """Puts the prompt before the chats of a model, whose weights are not loaded for that.

        Args:
            model: that writes text.
        """
