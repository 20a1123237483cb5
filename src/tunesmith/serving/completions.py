"""`/v1/completions`: a text continued as it is."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tunesmith.inference.writing import Generation
from tunesmith.serving.answering import Answering, Asked, Usage
from tunesmith.serving.bodies import CompletionBody
from tunesmith.serving.chat import usage_of
from tunesmith.serving.choices import TokenTexts
from tunesmith.serving.echo import prompt_text, with_prompt
from tunesmith.serving.engine_thread import Piece
from tunesmith.serving.errors import ApiError
from tunesmith.serving.events import DONE, event, stream
from tunesmith.serving.prompts import sampling_of
from tunesmith.serving.service import Service, Target, about, unless_gone

MOST_ANSWERS = 2048
"""Of one request: its prompts, as often as each is to be continued."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Texts to continue.

    Attributes:
        target: which model.
        prompts: as the client sent them.
        asked: the answers: `each` to the first prompt, then `each` to the second …
        each: how many are sampled for a prompt.
        n: how many of them are sent.
        logprobs: whether log-probabilities are reported.
        ids: of the prompts.
        echo: whether the prompts are repeated before their continuations.
        scored: of these, what their log-probabilities are computed from.
        with_ids: whether the ids of prompts and answers are sent.
    """

    target: Target
    prompts: Sequence[Any]
    asked: Sequence[Asked]
    each: int
    n: int
    logprobs: bool
    ids: Sequence[Sequence[int]]
    echo: bool = False
    scored: Sequence[Asked] = ()
    with_ids: bool = False


class Completions:
    """Continues texts.

    Args:
        service: of the model.
        answering: writes the continuations.
    """

    def __init__(self, service: Service, answering: Answering) -> None:
        self._service, self._answering = service, answering
        self._texts = TokenTexts(service.model.tokenizer)

    async def __call__(self, request: Request) -> Response:
        """The endpoint."""
        service = self._service
        body, target = await service.asked(request, CompletionBody)
        plan = await service.prepare(partial(self._plan, body, target))
        if not body.stream:
            return await unless_gone(request, self._at_once(plan))
        return await stream(request, self._events(plan, body.tells_usage))

    def _plan(self, body: CompletionBody, target: Target) -> Plan:
        n, each = body.n or 1, body.best_of or body.n or 1
        if each < n:
            raise ApiError(400, f"best_of is {each}, and n is {n}. Sample at least as many.", "best_of")
        if body.stream and each > n:
            raise ApiError(400, "best_of cannot be streamed: which answers are best is known at the end.", "best_of")
        body.refuse_unused_stream_options()
        self._refuse_impossible(body)
        prompts = _prompts(body.prompt)
        if len(prompts) * each > MOST_ANSWERS:
            message = f"{len(prompts):,} prompts are to have {each} answers each. Ask for at most {MOST_ANSWERS:,}."
            raise ApiError(400, message, "prompt")
        ids = [self._ids(prompt) for prompt in prompts]
        most = 16 if body.max_tokens is None else max(body.max_tokens, 1)  # 16 is OpenAI's default
        tokens = self._answering.answer_tokens(ids, most, "max_tokens")
        sampling = sampling_of(body, self._service.default, max_new_tokens=tokens, top_logprobs=body.logprobs or 0)
        stops = tuple(body.stop_token_ids or ())
        asked = [
            Asked(own, sampling, number * each + k, stops=stops) for number, own in enumerate(ids) for k in range(each)
        ]
        plan = Plan(
            target, prompts, asked, each, n, body.logprobs is not None, ids, with_ids=bool(body.return_token_ids)
        )
        if not body.echo:
            return plan
        scored = [Asked(own[:1], sampling, scored=own[1:]) for own in ids if body.logprobs is not None]
        return replace(plan, asked=asked if body.max_tokens != 0 else (), echo=True, scored=scored)

    def _refuse_impossible(self, body: CompletionBody) -> None:
        """Refuse an empty answer without the prompt, a prompt that cannot be repeated, and ids in a stream.

        Raises:
            ApiError: it is asked for.
        """
        if body.max_tokens == 0 and not body.echo:
            raise ApiError(400, "max_tokens is 0. Ask for at least 1, or for the prompt alone with echo.", "max_tokens")
        if body.echo and body.stream:
            raise ApiError(400, "echo cannot be streamed. Leave out one of them.", "echo")
        if body.return_token_ids and body.stream:
            raise ApiError(400, "return_token_ids cannot be streamed. Leave out one of them.", "return_token_ids")
        if body.echo and self._service.model.generator.model.config.is_encoder_decoder:
            raise ApiError(400, "echo is for decoders, and the model is an encoder–decoder. Leave it out.", "echo")

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return self._service.model.generator.ids(prompt)
        vocabulary = self._service.model.generator.model.config.get_text_config().vocab_size
        wrong = next((token for token in prompt if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise ApiError(400, f"prompt: the model has no token {wrong}. It has 0 to {vocabulary - 1:,}.", "prompt")
        return prompt

    async def _at_once(self, plan: Plan) -> Response:
        usage, head = Usage(), about(plan.target, "cmpl", "text_completion")
        if not plan.asked:  # of a prompt alone: otherwise the answers count it
            usage.prompt = sum(map(len, plan.ids))
        asked = [*plan.asked, *plan.scored]
        all_texts = [_Text(self._texts, plan.logprobs, with_end=plan.echo or plan.with_ids) for _ in asked]
        if asked:
            async for _ in self._answering.answers(plan.target, asked, all_texts, usage):
                pass
        texts, prompts = all_texts[: len(plan.asked)], all_texts[len(plan.asked) :]
        if not plan.asked:
            texts = [_Text(self._texts, False, finish="length") for _ in range(len(plan.prompts) * plan.each)]
        groups = [texts[start : start + plan.each] for start in range(0, len(texts), plan.each)]
        best = [text for group in groups for text in sorted(group, key=lambda each: -each.mean)[: plan.n]]
        chosen = best if plan.each > plan.n else texts
        self._remember(head["id"], plan, chosen)
        choices = [_choice(index, each.text, each.logprobs, each.finish) for index, each in enumerate(chosen)]
        if plan.echo:
            self._repeat_prompts(plan, prompts, choices)
        if plan.with_ids:
            for choice, each in zip(choices, chosen, strict=True):
                choice |= {"prompt_token_ids": list(plan.ids[choice["index"] // plan.n]), "token_ids": each.ids}
        return JSONResponse({**head, "choices": choices, "usage": usage_of(usage)})

    def _repeat_prompts(self, plan: Plan, scored: Sequence["_Text"], choices: Sequence[dict[str, Any]]) -> None:
        """Put each prompt before its continuations."""
        for choice in choices:
            prompt = choice["index"] // plan.n
            choice["text"] = prompt_text(plan.prompts[prompt], self._service.model.tokenizer) + choice["text"]
            if plan.logprobs:
                own = scored[prompt].logprobs
                choice["logprobs"] = with_prompt(plan.ids[prompt][0], own, choice["logprobs"], self._texts)

    async def _events(self, plan: Plan, include_usage: bool) -> AsyncGenerator[bytes]:
        usage, head = Usage(), about(plan.target, "cmpl", "text_completion")
        if include_usage:
            head["usage"] = None
        texts = [_Text(self._texts, plan.logprobs) for _ in plan.asked]
        async with aclosing(self._answering.answers(plan.target, plan.asked, texts, usage)) as news:
            async for number, new in news:
                if new.text or new.logprobs or texts[number].finish is not None:
                    yield event({**head, "choices": [_choice(number, new.text, new.logprobs, texts[number].finish)]})
        if include_usage:
            yield event({**head, "choices": [], "usage": usage_of(usage)})
        yield DONE
        self._remember(head["id"], plan, texts)

    def _remember(self, identity: str, plan: Plan, texts: Sequence["_Text"]) -> None:
        self._service.remember(identity, plan.target, prompts=plan.prompts, answers=[each.text for each in texts])


@dataclass(frozen=True, slots=True)
class _New:
    """What a piece adds to a continuation."""

    text: str
    logprobs: dict[str, list[Any]] | None


class _Text:
    """One continuation, piece by piece.

    Args:
        texts: of tokens.
        with_logprobs: whether log-probabilities are asked for.
        with_end: whether they and the ids have the token that ends the answer too.
        finish: why it ended, if there is nothing to write.
    """

    def __init__(
        self, texts: TokenTexts, with_logprobs: bool, with_end: bool = False, finish: str | None = None
    ) -> None:
        self._texts, self._with, self._with_end = texts, with_logprobs, with_end
        self._length = 0  # of the tokens' texts
        self.text, self.mean = "", 0.0
        self.ids: list[int] = []
        self.finish = finish
        self.logprobs: dict[str, list[Any]] | None = None

    def take(self, piece: Piece) -> _New:
        """The next piece."""
        self.text += piece.text
        self.ids += piece.tokens
        if isinstance(piece.end, Generation):
            self.finish, self.mean = piece.end.finish_reason, piece.end.mean_logprob
            if self._with_end and piece.end.end is not None:
                self.ids.append(piece.end.end[0])
        return _New(piece.text, self._logprobs(piece) if self._with else None)

    def _logprobs(self, piece: Piece) -> dict[str, list[Any]]:
        """Of the piece's tokens, as `/v1/completions` has them."""
        new: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        tops = piece.top_logprobs or [()] * len(piece.tokens)
        entries = [*zip(piece.tokens, piece.logprobs, tops, strict=True)]
        if self._with_end and isinstance(piece.end, Generation) and piece.end.end is not None:
            entries.append((*piece.end.end, (piece.end.end,)))
        for token, logprob, top in entries:
            text = self._texts.of(token)[0]
            new["tokens"].append(text)
            new["token_logprobs"].append(logprob)
            new["top_logprobs"].append({self._texts.of(other)[0]: value for other, value in top})
            new["text_offset"].append(self._length)
            self._length += len(text)
        self.logprobs = new if self.logprobs is None else {key: self.logprobs[key] + new[key] for key in new}
        return new


def _prompts(given: Any) -> list[Any]:
    """A list of prompts: texts, or lists of ids."""
    if isinstance(given, str) or not given or isinstance(given[0], int):
        return [given]
    return list(given)


def _choice(index: int, text: str, logprobs: dict[str, list[Any]] | None, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
