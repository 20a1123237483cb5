"""Questions with excerpts of documents: for a model that is asked, and for one that is trained to use them."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from tunesmith.comparing.needs import COVERED, content_words, coverage
from tunesmith.data.example import Example, Message
from tunesmith.data.template import special_tokens
from tunesmith.evaluation.rows import task_of
from tunesmith.inference.result_cache import digest_of
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score
from tunesmith.prompting.reading import Reading
from tunesmith.retrieval.chunk import searched_text
from tunesmith.retrieval.prompt import with_context
from tunesmith.retrieval.search import Hit, Index
from tunesmith.subjects.subject import Answer, Chat, Subject, SubjectAround, Timing, as_chat

WITH_ANSWER = 0.8
"""The share of training rows whose excerpts hold the one with the answer, if there is one (Zhang et al. 2024, P; they
found 60 to 100 % best, depending on the data)."""


class Excerpts:
    """Puts the chunks that fit a question before it.

    Args:
        index: of the documents.
        count: of chunks.
    """

    def __init__(self, index: Index, count: int) -> None:
        self.index, self.count = index, count
        self._found: dict[str, list[Hit]] = {}

    def hits(self, question: str) -> list[Hit]:
        """The chunks that fit a question, the best first.

        Args:
            question: in words; an empty one has none.
        """
        if not question.strip():
            return []
        if question not in self._found:
            self._found[question] = self.index.search(question, self.count)
        return self._found[question]

    def texts(self, question: str, count: int) -> list[str]:
        """The texts of chunks that share words with a question, headings included.

        Args:
            question: in words.
            count: of chunks.
        """
        found = self.index.search(question, count, "text") if question.strip() else []
        return [searched_text(hit.text, hit.headings) for hit in found]

    def before(self, chat: Chat, hits: Sequence[Hit], special: Sequence[str] = ()) -> tuple[Message, ...]:
        """A chat with chunks before its last question.

        Args:
            chat: the question last.
            hits: the chunks.
            special: control tokens, which are broken in the chunks.
        """
        *earlier, last = chat
        return (*earlier, {**last, "content": with_context(str(last["content"]), hits, special)})

    def of_row(self, example: Example, seed: int = 0) -> tuple[Message, ...]:
        """A training row with excerpts (RAFT, Zhang et al. 2024): mostly with the chunk that holds the answer, if there
        is one, at a random position, and always with chunks that do not.

        Args:
            example: a question with its answer.
            seed: of the draws, which also depend on the question.

        Returns:
            The row's messages.
        """
        task = task_of(example)
        question = str(task.chat[-1]["content"])
        hits, answering = list(self.hits(question)), self._answering(question, task.expected)
        if answering is not None:
            draw = random.Random(f"{seed} {question}")
            hits = [hit for hit in hits if hit.chunk != answering.chunk]
            if draw.random() < WITH_ANSWER:
                hits = hits[: self.count - 1]
                hits.insert(draw.randint(0, len(hits)), answering)
        answer = (example.messages or ())[len(task.chat) :]
        return (*self.before(task.chat, hits), *answer)

    def _answering(self, question: str, answer: str) -> Hit | None:
        """The chunk that holds most of the answer's new words; None if none holds enough."""
        new = content_words(answer) - content_words(question)
        if not new:
            return None
        found = self.index.search(f"{question} {answer}", 2 * self.count, "text")
        shares = [coverage(new, [content_words(searched_text(hit.text, hit.headings))]) for hit in found]
        best = max(range(len(found)), key=shares.__getitem__, default=None)
        return None if best is None or shares[best] < COVERED else found[best]


class Retrieved(SubjectAround):
    """A model whose questions come with excerpts (`tunesmith.subjects.subject.Subject`).

    Args:
        subject: the model.
        excerpts: of the documents.
        name: its column in the tables.

    Attributes:
        shortened: the chats whose excerpts did not all fit into the model's context, by hash.
    """

    def __init__(self, subject: Subject, excerpts: Excerpts, name: str) -> None:
        super().__init__(subject)
        self.name, self._excerpts = name, excerpts
        self._reading = Reading.of(subject.model)
        self.shortened: set[str] = set()

    @property
    def identity(self) -> str | None:
        """The hash of the model, of the index and of how many chunks there are."""
        version = self._excerpts.index.version
        inner = self.subject.identity
        return None if inner is None else digest_of([inner, str(version.directory), self._excerpts.count])

    def uncached(self) -> "Retrieved":
        """The same, of which everything is computed again, to be timed."""
        return Retrieved(self.subject.uncached(), self._excerpts, self.name)

    @property
    def note(self) -> str | None:
        """How many chats have fewer excerpts than were found, in a sentence; None if none has."""
        if not self.shortened:
            return None
        chats = f"{len(self.shortened):,} chats have" if len(self.shortened) > 1 else "A chat has"
        return (
            f"{chats} fewer than {self._excerpts.count} excerpts, since the model reads {self._reading.room:,} tokens."
        )

    def chat_of(self, chat: Chat, sampling: Sampling) -> tuple[Message, ...]:
        """A chat with as many excerpts as fit beside its answer.

        Args:
            chat: the question last.
            sampling: with the most tokens of the answer.
        """
        hits = self._excerpts.hits(str(chat[-1]["content"]))
        model = self.subject.model
        special = () if model is None else tuple(special_tokens(model.tokenizer))
        for count in range(len(hits), -1, -1):
            messages = self._excerpts.before(chat, hits[:count], special)
            if count == 0 or self._reading.fits(messages, sampling.max_new_tokens):
                break
        if count < len(hits):
            self.shortened.add(digest_of(list(chat)))
        return messages

    def answers(
        self, chats: Sequence[Chat], sampling: Sampling, done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """As `Subject.answers`."""
        return self.subject.answers([self.chat_of(chat, sampling) for chat in chats], sampling, done)

    def scores(self, prompts: Sequence[str | Chat] | None, texts: Sequence[str]) -> list[Score]:
        """As `Subject.scores`; raw texts have no excerpts.

        Raises:
            UserError: the model cannot.
        """
        if prompts is None:
            return self.subject.scores(None, texts)
        chats = [as_chat(prompt) for prompt in prompts]
        return self.subject.scores([self.chat_of(chat, Sampling(1)) for chat in chats], texts)

    def timings(self, chats: Sequence[Chat], sampling: Sampling, concurrent: int) -> list[Timing]:
        """As `Subject.timings`, with the time of the search."""
        searched, full = [], []
        for chat in chats:
            started = time.perf_counter()
            self._excerpts.index.search(str(chat[-1]["content"]), self._excerpts.count)
            searched.append(time.perf_counter() - started)
            full.append(self.chat_of(chat, sampling))
        timed = self.subject.timings(full, sampling, concurrent)
        return [
            replace(each, first_token=each.first_token + seconds, total=each.total + seconds)
            for each, seconds in zip(timed, searched, strict=True)
        ]
