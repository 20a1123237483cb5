"""A prompt before the chats of a model: the same for every model, whatever its chat template takes."""

from collections.abc import Callable, Sequence
from functools import cached_property

from tunesmith.data.example import Example, Message
from tunesmith.errors import UserError
from tunesmith.inference.model import Model
from tunesmith.inference.result_cache import digest_of
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score
from tunesmith.prompting.prompt import Prompt
from tunesmith.prompting.reading import Reading
from tunesmith.prompting.shots import Shots
from tunesmith.subjects.subject import Answer, Chat, Subject, SubjectAround, Timing, as_chat

SYSTEM = ("system", "developer")
"""Roles of a turn that instructs the model."""


def render(prompt: Prompt, chat: Chat, shots: Sequence[Example]) -> tuple[Message, ...]:
    """A chat with a prompt before it.

    Args:
        prompt: the system prompt, and the template of the user's last turn.
        chat: the turns up to where the model answers. If it begins with a system turn, the prompt's own text goes
            before that one's, with a blank line between.
        shots: examples, as `Shots.for_chat` chooses them.

    Returns:
        The system turn, the examples as turns of the user and the assistant, and the chat. Questions of examples are in
        the template too.
    """
    own = list(chat)
    begins_with_system = bool(own) and own[0]["role"] in SYSTEM
    first = [own.pop(0)] if begins_with_system else []
    text = prompt.system_text
    if text is not None:
        role, more = ("system", "") if not first else (first[0]["role"], f"\n\n{first[0]['content']}")
        first = [{**(first[0] if first else {}), "role": role, "content": text + more}]
    turns = [turn for example in shots for turn in example.messages or ()]
    asked = next((index for index in range(len(own) - 1, -1, -1) if own[index]["role"] == "user"), None)
    return (
        *first,
        *(_in_template(prompt, turn) if turn["role"] == "user" else turn for turn in turns),
        *(_in_template(prompt, turn) if index == asked else turn for index, turn in enumerate(own)),
    )


def without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A chat for a model whose template takes no system turn: its text is at the head of the first user turn.

    Args:
        messages: with or without a system turn at its beginning.

    Returns:
        The chat.
    """
    if not messages or messages[0]["role"] not in SYSTEM:
        return tuple(messages)
    system, *rest = messages
    first = next((index for index, turn in enumerate(rest) if turn["role"] == "user"), None)
    if first is None:
        return ({**system, "role": "user"}, *rest)
    rest[first] = {**rest[first], "content": f"{system['content']}\n\n{rest[first]['content']}"}
    return tuple(rest)


def _in_template(prompt: Prompt, turn: Message) -> Message:
    return {**turn, "content": prompt.user_text(str(turn["content"]))}


class PromptRenderer:
    """Puts a prompt before the chats of one model. A chat that would not fit into the model's context has fewer
    examples, which is counted: the first go first, since the best choice stands last.

    Args:
        prompt: the prompt.
        shots: its examples; None: none.
        reading: how the model reads.

    Attributes:
        shortened: how many examples are left of those chosen, by chat, for chats that have fewer.

    Raises:
        UserError: the model reads no examples.
    """

    def __init__(self, prompt: Prompt, shots: Shots | None, reading: Reading) -> None:
        self.prompt, self._shots, self._reading = prompt, shots, reading
        self.shortened: dict[str, int] = {}
        if shots is not None and shots.k:
            reading.refuse_examples("The prompt")

    @classmethod
    def of(cls, prompt: Prompt, model: Model | None) -> "PromptRenderer":
        """Puts a prompt before the chats of a model.

        Args:
            prompt: the prompt.
            model: that writes text; its weights are not loaded for that. None: it is behind a URL.

        Returns:
            The renderer.

        Raises:
            UserError: example rows cannot be read, or the model does not read them.
        """
        return cls(prompt, Shots.of(prompt), Reading.of(model))

    @property
    def k(self) -> int:
        """How many examples a chat has, if all fit."""
        return 0 if self._shots is None else self._shots.k

    def chat(self, chat: Chat, answer_tokens: int) -> tuple[Message, ...]:
        """A chat with the prompt before it.

        Args:
            chat: the turns up to where the model answers.
            answer_tokens: the most tokens of the answer, for which there must be room.

        Returns:
            What the model reads.
        """
        shots = [] if self._shots is None else self._shots.for_chat(chat)
        for dropped in range(len(shots) + 1):
            messages = render(self.prompt, chat, shots[dropped:])
            messages = messages if self._reading.takes_system else without_system(messages)
            if dropped == len(shots) or self._reading.fits(messages, answer_tokens):
                break
        if dropped:
            self.shortened[digest_of(list(chat))] = len(shots) - dropped
        return messages

    @property
    def note(self) -> str | None:
        """How many chats have fewer examples than were asked for, in a sentence; None if none has."""
        if not self.shortened:
            return None
        chats = f"{len(self.shortened):,} chats have" if len(self.shortened) > 1 else "A chat has"
        return (
            f"{chats} fewer examples than {self.k} ({min(self.shortened.values())} at least), since the model reads "
            f"{self._reading.room:,} tokens."
        )


class Prompted(SubjectAround):
    """A subject with a prompt before its chats, itself a subject.

    Args:
        subject: that answers.
        prompt: the prompt.
        shots: its examples, as `Shots.of` makes them; None: none.
        name: its column in tables.

    Attributes:
        renderer: puts the prompt before chats, and counts those with fewer examples.

    Raises:
        UserError: the model writes no text, or does not read examples.
    """

    def __init__(self, subject: Subject, prompt: Prompt, shots: Shots | None, name: str) -> None:
        super().__init__(subject)
        self.name, self.prompt, self.shots = name, prompt, shots
        self.renderer = PromptRenderer(prompt, shots, Reading.of(subject.model))

    @cached_property
    def identity(self) -> str | None:
        """As `Subject.identity`: of the model, the prompt and its examples."""
        inner = self.subject.identity
        shots = None if self.shots is None else self.shots.identity
        return None if inner is None else digest_of([inner, self.prompt.version, shots])

    def uncached(self) -> "Prompted":
        """The same, of which everything is computed again, to be timed."""
        return Prompted(self.subject.uncached(), self.prompt, self.shots, self.name)

    def answers(
        self, chats: Sequence[Chat], sampling: Sampling, done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """As `Subject.answers`, with the prompt before each chat.

        Raises:
            UserError: as the subject's.
        """
        return self.subject.answers(
            [self.renderer.chat(chat, sampling.max_new_tokens) for chat in chats], sampling, done
        )

    def scores(self, prompts: Sequence[str | Chat] | None, texts: Sequence[str]) -> list[Score]:
        """As `Subject.scores`, with the prompt before each question or chat; raw texts have none.

        Raises:
            UserError: as the subject's.
        """
        if prompts is None:
            return self.subject.scores(None, texts)
        chats: list[str | Chat] = [
            self.renderer.chat(as_chat(prompt), self._tokens(text)) for prompt, text in zip(prompts, texts, strict=True)
        ]
        return self.subject.scores(chats, texts)

    def _tokens(self, text: str) -> int:
        """Of an answer, with the token that ends it."""
        model = self.subject.model
        if model is None:
            raise UserError(
                f"{self.name} is a server, and OpenAI's protocol reports no log-probabilities of given texts."
            )
        return len(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) + 1

    def timings(self, chats: Sequence[Chat], sampling: Sampling, concurrent: int) -> list[Timing]:
        """As `Subject.timings`, with the prompt before each chat.

        Raises:
            UserError: as the subject's.
        """
        rendered = [self.renderer.chat(chat, sampling.max_new_tokens) for chat in chats]
        return self.subject.timings(rendered, sampling, concurrent)
