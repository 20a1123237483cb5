"""Raw text, without a chat template: how likely a continuation is, and what a model writes after a beginning.

Texts become tokens as in EleutherAI's lm-eval, so that figures can be compared with those that others publish.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.errors import UserError
from tunesmith.inference.generate import Generator
from tunesmith.inference.request import Request
from tunesmith.inference.result_cache import ResultCache, digest_of
from tunesmith.inference.sampling import Sampling
from tunesmith.subjects.local_subject import LocalSubject
from tunesmith.subjects.subject import Subject

KEPT = 256
"""Texts after which those that are complete are written to the cache."""

UNLIMITED = 2048
"""The context of a model that states none, as in lm-eval."""

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Continuation:
    """How likely a continuation is.

    Attributes:
        total: log p(continuation | what is before it), in nats.
        is_greedy: whether each of its tokens is the most likely one.
    """

    total: float
    is_greedy: bool


class RawText:
    """Scores and continues raw text. What is known already is not computed again.

    Args:
        subject: a decoder in this process.

    Raises:
        UserError: it is a server or an encoder–decoder, or does not write text.
    """

    def __init__(self, subject: Subject) -> None:
        subject = getattr(subject, "subject", subject)  # a prompt is before chats, not before raw text
        if not isinstance(subject, LocalSubject):
            raise UserError(f"{subject.name} is a server, and raw text is scored by models of this process only.")
        self._subject = subject
        if self.generator.model.config.is_encoder_decoder:
            raise UserError(f"{subject.name} is an encoder–decoder, and raw text is scored by decoders only.")

    @property
    def generator(self) -> Generator:
        """The model in the generation engine."""
        return self._subject.generator()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self._subject.tokenizer

    @property
    def context(self) -> int:
        """The most tokens that the model reads."""
        return self.generator.engine.room or UNLIMITED

    @property
    def first_token(self) -> int:
        """The token before a text that has nothing before it: the one that begins texts, or the one that ends them.

        Raises:
            UserError: the tokenizer has neither.
        """
        first = self.tokenizer.bos_token_id
        first = self.tokenizer.eos_token_id if first is None else first
        if first is None:
            raise UserError(f"The tokenizer of {self._subject.name} has no token that begins or ends a text.")
        return int(first)

    def ids(self, text: str) -> list[int]:
        """A text's ids, with the special tokens that the tokenizer adds, unless the text begins with one of them.

        Args:
            text: a beginning, or a chat that is rendered.
        """
        begins = text.startswith(str(self.tokenizer.decode([self.first_token])))
        return list(self.tokenizer.encode(text, **({"add_special_tokens": False} if begins else {})))

    def pair(self, beginning: str, continuation: str) -> tuple[list[int], list[int]]:
        """A beginning and its continuation as ids. White space between them belongs to the continuation, where
        tokenizers have it.

        Args:
            beginning: may be empty.
            continuation: of it.
        """
        if not beginning.strip():
            ids = list(self.tokenizer.encode(beginning + continuation, add_special_tokens=False))
            return (ids[:1], ids[1:]) if ids[:1] == [self.first_token] else ([self.first_token], ids)
        whole, before = self.ids(beginning + continuation), self.ids(beginning.rstrip())
        return before, whole[len(before) :]

    def scores(
        self, pairs: Sequence[tuple[Ids, Ids]], done: Callable[[int], None] = lambda count: None
    ) -> list[Continuation]:
        """How likely continuations are. Of what is longer than the context, the beginning is cut off.

        Args:
            pairs: beginning and continuation, as ids. A beginning has at least one.
            done: called with the number of continuations that are scored, as it grows.

        Raises:
            UserError: a continuation alone is longer than the context.
        """
        asked = [(self._cut(*pair), pair[1]) for pair in pairs]
        cache = ResultCache(self._subject.identity, ["continuations"])
        keys = [digest_of([list(map(int, part)) for part in pair]) for pair in asked]
        requests = {
            key: self.generator.scoring(before, after, top_logprobs=1)
            for key, (before, after) in zip(keys, asked, strict=True)
        }
        self._run(requests, cache, _scored, done)
        return [Continuation(*cache[key]) for key in keys]

    def written(
        self,
        prompts: Sequence[str],
        samplings: Sequence[Sampling],
        done: Callable[[int], None] = lambda count: None,
    ) -> list[str]:
        """What the model writes after beginnings. Of one that leaves too little room, the first part is cut off.

        Args:
            prompts: beginnings.
            samplings: how each is continued.
            done: called with the number of continuations that are written, as it grows.

        Raises:
            UserError: an answer takes the whole context.
        """
        cache = ResultCache(self._subject.identity, ["written"])
        keys, writings = [], {}
        for number, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            room = self.context - sampling.max_new_tokens
            if room < 1:
                raise UserError(f"{sampling.max_new_tokens:,} new tokens take the whole context of {self.context:,}.")
            ids = self.ids(prompt)[-room:]
            number = number if sampling.temperature else 0
            keys.append(digest_of([ids, asdict(sampling), number]))
            writings[keys[-1]] = self.generator.begin(ids, sampling, number)
        requests = {key: writing.request for key, writing in writings.items()}
        self._run(requests, cache, lambda key, request: writings[key].finish().text, done)
        return [cache[key] for key in keys]

    def _cut(self, before: Ids, after: Ids) -> Ids:
        """The end of the beginning that has room before the continuation, whose last token needs none."""
        room = self.context + 1 - len(after)
        if room < 1:
            raise UserError(f"A continuation of {len(after):,} tokens is longer than the context of {self.context:,}.")
        return before[-room:]

    def _run(
        self,
        requests: Mapping[str, Request],
        cache: ResultCache,
        result: Callable[[str, Request], Any],
        done: Callable[[int], None],
    ) -> None:
        """Compute what is not in the cache yet, and put it there part by part."""
        missing = [key for key in requests if key not in cache]
        known = len(requests) - len(missing)
        for start in range(0, len(missing), KEPT):
            part = missing[start : start + KEPT]
            self.generator.engine.run([requests[key] for key in part], _after(known + start, done))
            cache.add({key: result(key, requests[key]) for key in part})
        done(len(requests))


def _after(before: int, done: Callable[[int], None]) -> Callable[[int], None]:
    """Reports what is done in all, of a part."""
    return lambda count: done(before + count)


def _scored(key: str, request: Request) -> tuple[float, bool]:
    """log p of a completion, and whether it is what the model would have written."""
    best = [likeliest[0][0] for likeliest in request.alternatives]
    return sum(request.log_probabilities), best == list(request.completion or ())
