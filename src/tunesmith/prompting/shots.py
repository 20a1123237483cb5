"""The few-shot examples of a prompt: which rows are shown before a chat."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from tunesmith.data.example import Example, Message
from tunesmith.data.reasoning import reasoning_of
from tunesmith.errors import UserError
from tunesmith.inference.result_cache import digest_of
from tunesmith.prompting.prompt import Prompt, example_of
from tunesmith.prompting.sections import CHOICES
from tunesmith.prompting.similarity import Similarity, VectorSimilarity, WordSimilarity, representatives
from tunesmith.retrieval.encoder import Encoder
from tunesmith.retrieval.full_text import words_of
from tunesmith.subjects.subject import Chat

MOST_COMPARED = 2000
"""Rows among which diverse ones are chosen: each is compared with each. More are sampled."""


class Shots:
    """Few-shot examples, chosen from rows. What they are chosen from must hold training rows alone.

    Of each row, the first question and its answer are shown, without system turns and reasoning. Rows without a plain
    question and answer are left out, and counted; so are all but the first of those with the same question.

    Args:
        examples: the rows.
        k: how many are shown.
        choose: `random`; `similar`: with the questions that are most like the chat's; `diverse`: those that together
            stand for as many others as possible.
        seed: of `random`, and of the sample in which `diverse` looks.
        encoder: by whose vectors questions are compared; None: by their words.

    Attributes:
        examples: the rows that may be shown, each a question and its answer.
        left_out: how many rows have none.
        repeated: how many rows repeat an earlier question.

    Raises:
        UserError: there is no such choice, or no row to show.
    """

    def __init__(
        self, examples: Sequence[Example], k: int, choose: str, seed: int = 0, encoder: Encoder | None = None
    ) -> None:
        if choose not in CHOICES:
            raise UserError(f"choose: {choose} is not one of {', '.join(CHOICES)}.")
        self.k, self.choose, self.seed, self.encoder = k, choose, seed, encoder
        plain = [first_exchange(example) for example in examples]
        usable = [example for example in plain if example is not None]
        by_question: dict[str, Example] = {}
        for example in usable:
            by_question.setdefault(question_key(_question(example)), example)
        self.examples, self._keys = list(by_question.values()), list(by_question)
        self.left_out, self.repeated = plain.count(None), len(usable) - len(self.examples)
        if k and not self.examples:
            raise UserError("No row has a question and an answer in plain text, so there is no example to show.")

    @classmethod
    def of(cls, prompt: Prompt) -> "Shots | None":
        """The examples of a prompt.

        Args:
            prompt: the prompt.

        Returns:
            The examples; None if it has none.

        Raises:
            UserError: the rows or the encoder cannot be read.
        """
        asked = prompt.examples
        if asked is None:
            return None
        encoder = None if asked.encoder is None else Encoder(asked.encoder)
        k = len(prompt.pool) if asked.k is None else asked.k
        return cls(prompt.pool, k, asked.choose, asked.seed, encoder)

    @cached_property
    def identity(self) -> str:
        """A hash of all that determines which examples a chat has."""
        encoder = None if self.encoder is None else self.encoder.fingerprint
        rows = [example.messages for example in self.examples]
        return digest_of([self.k, self.choose, self.seed, encoder, rows])

    def for_chat(self, chat: Chat) -> list[Example]:
        """The examples before a chat.

        Args:
            chat: the turns up to where the model answers.

        Returns:
            At most `k` examples, the best choice last, next to the chat. None has the chat's own question, in whatever
            case and punctuation.
        """
        if not self.k:
            return []
        question = last_question(chat)
        key = question_key(question)
        order = self._most_similar(question) if self.choose == "similar" else self._fixed
        chosen = [index for index in order if self._keys[index] != key][: self.k]
        return [self.examples[index] for index in reversed(chosen)]

    def _most_similar(self, question: str) -> list[int]:
        scores = self._similarity.to(question)
        return [int(index) for index in np.argsort(-scores, kind="stable")[: self.k + 1]]

    @cached_property
    def _similarity(self) -> Similarity:
        questions = [_question(example) for example in self.examples]
        return WordSimilarity(questions) if self.encoder is None else VectorSimilarity(questions, self.encoder)

    @cached_property
    def _fixed(self) -> list[int]:
        """The choice for every chat, the best first, and one more in place of a chat's own question. All rows stay in
        their order."""
        count = len(self.examples)
        if self.k >= count:
            return list(range(count))[::-1]
        order = np.random.default_rng(self.seed).permutation(count)
        if self.choose == "random":
            return [int(index) for index in order[: self.k + 1]]
        sample = np.sort(order[:MOST_COMPARED])
        questions = [_question(self.examples[index]) for index in sample]
        compared = WordSimilarity(questions) if self.encoder is None else VectorSimilarity(questions, self.encoder)
        return [int(sample[index]) for index in representatives(compared.among(), self.k + 1)]


def first_exchange(example: Example) -> Example | None:
    """The first question of a row and its answer, in plain text.

    Args:
        example: the row.

    Returns:
        Both, as a row; None if it has none, or tools.
    """
    messages = example.messages or ()
    first = next((index for index, turn in enumerate(messages) if turn["role"] == "user"), None)
    if first is None or first + 1 >= len(messages) or example.tools:
        return None
    question, answer = messages[first], messages[first + 1]
    texts = question.get("content"), reasoning_of(answer)[1]
    if answer["role"] != "assistant" or answer.get("tool_calls") or not all(isinstance(text, str) for text in texts):
        return None
    if not all(str(text).strip() for text in texts):
        return None
    return example_of(str(texts[0]), texts[1].strip(), example.source)


def last_question(chat: Sequence[Message]) -> str:
    """The text of the user's last turn; empty if there is none.

    Args:
        chat: the turns.
    """
    return next((str(turn["content"]) for turn in reversed(chat) if turn["role"] == "user"), "")


def question_key(question: str) -> str:
    """What questions have in common that differ only in case, punctuation and white space.

    Args:
        question: in words.
    """
    return " ".join(words_of(question)) or question


def _question(example: Example) -> str:
    assert example.messages is not None
    return str(example.messages[0]["content"])
