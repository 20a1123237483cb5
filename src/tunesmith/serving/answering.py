"""Answers to one request: within the server's limits, written on the engine's thread, counted on their way."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from tunesmith.errors import UserError
from tunesmith.inference.constraint import Grammar
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.writing import Generation, Writing
from tunesmith.serving.engine_thread import Answers, Piece
from tunesmith.serving.errors import ApiError
from tunesmith.serving.service import Service, Target, reserve

D = TypeVar("D")
D_co = TypeVar("D_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer that is asked for: its prompt's ids, how it is sampled, its number among those with the same seed,
    the special tokens that its text keeps, ids that are scored as the answer, so that nothing is written, and ids that
    end it beside the model's own. The answers of a request are sampled alike."""

    ids: Sequence[int]
    sampling: Sampling
    number: int = 0
    keep: tuple[str, ...] = ()
    scored: Sequence[int] | None = None
    stops: tuple[int, ...] = ()


@dataclass
class Usage:
    """Numbers of tokens: of prompts, each once, however many answers it has; of these, from the cache; of answers."""

    prompt: int = 0
    cached: int = 0
    answer: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.answer


class Taker(Protocol[D_co]):
    """What becomes of one answer's pieces."""

    def take(self, piece: Piece) -> D_co:
        """The next piece. Returns what it adds."""
        ...


class Answering:
    """Has answers written.

    Args:
        service: of the model.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._compiling = ThreadPoolExecutor(1, "compile")

    @property
    def room(self) -> int | None:
        """The most tokens of a prompt and its answer together; None: no limit."""
        return self._service.model.generator.engine.room

    def answer_tokens(self, prompts: Sequence[Sequence[int]], asked: int | None, param: str) -> int:
        """The most tokens of the answers to these prompts.

        Args:
            prompts: their ids.
            asked: by the client; None: as many as there is room for.
            param: the name of the client's field.

        Raises:
            ApiError: a prompt leaves no room for an answer, or more is asked for than the server gives.
        """
        longest, most = max(len(ids) for ids in prompts), self._service.limits.max_tokens
        if not min(len(ids) for ids in prompts):
            raise ApiError(400, "The prompt is empty. Give it some text.")
        if self.room is not None and longest >= self.room:
            message = f"The prompt has {longest:,} tokens, and the model's context holds {self.room:,}. Shorten it."
            raise ApiError(400, message, code="context_length_exceeded")
        if asked is not None and asked > most:
            raise ApiError(400, f"{param} is {asked:,}, and this server writes at most {most:,}.", param)
        return asked or most

    async def answers(
        self, target: Target, asked: Sequence[Asked], takers: Sequence[Taker[D]], usage: Usage
    ) -> AsyncGenerator[tuple[int, D]]:
        """Write the answers. Leaving early cancels them.

        Args:
            target: which model, for whom.
            asked: what is asked for.
            takers: one for each answer.
            usage: counts the tokens.

        Yields:
            An answer's number, and what its taker made of its next piece.

        Raises:
            ApiError: too much is asked for at present, an answer is not possible, or the time is over.
        """
        self._service.refuse_full(len(asked))
        needed, begun = self._needed(asked), time.perf_counter()
        deadline = asyncio.get_running_loop().time() + self._service.limits.seconds
        reserve(target.client, needed)
        open_answers = self._service.metrics.open_answers.labels(target.model)
        open_answers.inc(len(asked))
        try:
            async with asyncio.timeout_at(deadline):
                grammar = await self._grammar(asked[0].sampling)
            begin = [partial(self._begin, target, each, grammar) for each in asked]
            source = Answers(self._service.thread, begin, deadline).pieces()
            try:
                async for number, piece in self._counted(source, target, asked, usage):
                    yield number, takers[number].take(piece)
            finally:
                await source.aclose()
        except TimeoutError:
            raise ApiError(408, f"The answer took more than {self._service.limits.seconds:g} seconds.") from None
        except UserError as error:
            raise ApiError(400, str(error)) from None
        finally:
            open_answers.dec(len(asked))
            target.client.give_back(needed - usage.total)
            self._service.answered_in(time.perf_counter() - begun)

    def _needed(self, asked: Sequence[Asked]) -> int:
        """The most tokens that the answers and their prompts can have."""
        room = math.inf if self.room is None else self.room
        return int(sum(min(len(each.ids) + each.sampling.max_new_tokens, room) for each in asked))

    async def _grammar(self, sampling: Sampling) -> Grammar | None:
        """What binds the answers. Compiling takes up to a second, and neither the engine nor the event loop waits."""
        if not sampling.is_bound:
            return None
        compile_it = partial(self._service.model.generator.grammar, sampling)
        return await asyncio.get_running_loop().run_in_executor(self._compiling, compile_it)

    def _begin(self, target: Target, asked: Asked, grammar: Grammar | None) -> Writing:
        if asked.scored is not None:
            return self._service.model.generator.begin_scoring(
                asked.ids, asked.scored, target.adapter, asked.sampling.top_logprobs
            )
        return self._service.model.generator.begin(
            asked.ids, asked.sampling, asked.number, target.adapter, keep=asked.keep, draft=self._service.draft,
            grammar=grammar, stops=asked.stops,
        )  # fmt: skip

    async def _counted(
        self, source: AsyncGenerator[tuple[int, Piece]], target: Target, asked: Sequence[Asked], usage: Usage
    ) -> AsyncGenerator[tuple[int, Piece]]:
        """The pieces, counted on their way; not those of prompts that are scored."""
        metrics, model = self._service.metrics, target.model
        first: dict[int, float] = {}
        async for number, piece in source:
            if asked[number].scored is not None:
                yield number, piece
                continue
            now, is_first = time.perf_counter(), number not in first
            counts_prompt = number == 0 or asked[number].ids is not asked[number - 1].ids
            first.setdefault(number, now)
            if is_first and counts_prompt:
                usage.prompt += len(asked[number].ids)
                metrics.prompt_tokens.labels(model).inc(len(asked[number].ids))
            if is_first and piece.tokens:
                metrics.first_token.labels(model).observe(now - target.arrived)
            usage.answer += len(piece.tokens)
            metrics.answer_tokens.labels(model).inc(len(piece.tokens))
            if isinstance(piece.end, Generation):
                if counts_prompt:
                    usage.cached += piece.end.cached_tokens
                    metrics.cached_tokens.labels(model).inc(piece.end.cached_tokens)
                if len(piece.end.tokens) > 1:
                    metrics.per_token.labels(model).observe((now - first[number]) / (len(piece.end.tokens) - 1))
            yield number, piece
