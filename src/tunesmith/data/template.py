"""The base's own chat template: it renders a chat as text and finds the assistant's turns in that text.

Stock templates seldom mark the assistant's part. It follows from the template itself: the prompt for turn k is the text
of the turns before it, rendered with `add_generation_prompt`; the text rendered with turn k as the last turn must begin
with that prompt; and the rest, up to the token that ends the turn, is what the model has to write.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from tunesmith.data.example import Message
from tunesmith.data.reasoning import TAGS, as_read, key_in, reasoning_of
from tunesmith.errors import UserError

Span = tuple[int, int]
"""Characters [start, end) of a text."""

DATE = datetime(2025, 1, 1)
"""The date for templates that write one: the same rows must give the same tokens on any day."""

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
"""The mark of what the assistant writes. `add_generation_prompt` alone is none."""

Tools = Sequence[dict[str, Any]] | None

_QUESTION: list[Message] = [{"role": "user", "content": "Question?"}]
_ANSWER: Message = {"role": "assistant", "content": "Tunesmith's own answer."}
_REASONING = "Tunesmith's own reasoning."


class UnusableError(ValueError):
    """Why an example cannot be rendered or trained on; it is reported with the example's row."""


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant turn as the last turn of its chat: the text so far, and the spans that the model has to write."""

    text: str
    spans: tuple[Span, ...]


class ChatTemplate:
    """A tokenizer's chat template.

    Raises:
        UserError: the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise UserError(
                "The base has no chat template, so the format of its prompts is unknown. Set base.chat_template to "
                "a Jinja file, or train on raw text: objective: {kind: text}."
            )
        self._tokenizer = tokenizer
        self._sources: dict[bool, str] = {}
        self._reasoning: dict[bool, tuple[str | None, bool]] = {}
        self.special_tokens = tuple(sorted(special_tokens(tokenizer), key=len, reverse=True))

    def text(self, messages: Sequence[Message], tools: Tools = None) -> str:
        """The chat as text."""
        return self._render(messages, tools)[0]

    def prompt(self, messages: Sequence[Message], tools: Tools = None) -> str:
        """The chat as text, up to where the assistant begins to write: the same in training and inference."""
        return self._render(messages, tools, add_generation_prompt=True)[0].removesuffix(self._prompt_only)

    def turn(self, messages: Sequence[Message], tools: Tools = None, only: bool = False) -> Turn:
        """The last message, which is the assistant's.

        Args:
            messages: the chat, up to and including this turn.
            tools: the tools that it may call.
            only: whether it is the only assistant turn of the chat.

        Raises:
            UnusableError: the template has no prompt for the turn, or does not end it.
        """
        text, marks = self._marked(messages, tools)
        own = marks if only or not marks else marks[len(self._marked(messages[:-1], tools)[1]) :]
        if own:
            return Turn(text, tuple((start, self._with_end(text, end)) for start, end in own))
        prompt = self.prompt(messages[:-1], tools)
        if not text.startswith(prompt):
            raise UnusableError(
                f"the chat template ends its prompt with {prompt[-40:]!r}, but the chat with the answer does not begin "
                "with it. Change the answer, or set base.chat_template to one with {% generation %} marks"
            )
        end = self._end_of_turn(text[len(prompt) :])
        if end is None:
            text, end = text + self._opening, len(text) + len(self._opening) - len(prompt)
        return Turn(text, ((len(prompt), len(prompt) + end),))

    @cached_property
    def _prompt_only(self) -> str:
        """The text that the template puts at the end of a prompt but not before an answer (DeepSeek-R1's `<think>`)."""
        prompt = self._render(_QUESTION, None, add_generation_prompt=True)[0]
        answered = self.text([*_QUESTION, _ANSWER])
        return prompt[len(_common_prefix(prompt, answered)) :]

    @cached_property
    def ends(self) -> frozenset[str]:
        """The special token that ends an assistant turn whatever follows it; without one, the end-of-sequence token."""
        last, inner = self._probe
        _, _, after = _common_prefix(last, inner).partition(_ANSWER["content"])
        by_position = {after.rfind(token): token for token in self.special_tokens if token in after}
        if by_position:
            return frozenset({by_position[max(by_position)]})
        return frozenset({str(self._tokenizer.eos_token), *([] if self._end_of_turn(last, ()) else [self._opening])})

    @cached_property
    def _opening(self) -> str:
        """The special token that opens the user's turn. If an answer has no end token of its own, the model stops there
        (GLM-4.5).

        Raises:
            UnusableError: there is no such token either.
        """
        last, inner = self._probe
        rest = inner.removeprefix(last)
        token = next((token for token in self.special_tokens if rest.startswith(token)), None)
        if token is None:
            raise UnusableError(
                "the chat template ends the answer without a special token, so the model would never learn to stop. "
                "Set base.chat_template to one that has it"
            )
        return token

    @cached_property
    def _probe(self) -> tuple[str, str]:
        """The text after the prompt of a short question: the answer alone, and the answer with another question."""
        prompt = self.prompt(_QUESTION)
        last = self.text([*_QUESTION, _ANSWER])
        inner = self.text([*_QUESTION, _ANSWER, *_QUESTION])
        return last.removeprefix(prompt), inner.removeprefix(prompt)

    def _end_of_turn(self, tail: str, ends: Collection[str] | None = None) -> int | None:
        """Where the turn ends in the text after its prompt: after the first of the trailing special tokens that is an
        end."""
        ends = self.ends if ends is None else ends
        last = list(self._last_special_tokens(tail))[::-1]
        return next((end for token, end in last if token in ends), last[0][1] if last else None)

    def _with_end(self, text: str, end: int) -> int:
        """A span's end, moved past the token that ends the turn if the span stops before it."""
        if next(self._last_special_tokens(text[:end]), None) is not None:
            return end
        rest = text[end:]
        after = len(rest) - len(rest.lstrip())
        token = next((token for token in self.special_tokens if rest.startswith(token, after)), None)
        return end if token is None else end + after + len(token)

    def _last_special_tokens(self, text: str) -> Iterator[tuple[str, int]]:
        """Special tokens followed only by white space, from the last one backwards, each with its end."""
        text = text.rstrip()
        while token := next((token for token in self.special_tokens if text.endswith(token)), None):
            yield token, len(text)
            text = text[: -len(token)].rstrip()

    def _marked(self, messages: Sequence[Message], tools: Tools) -> tuple[str, list[Span]]:
        """The chat as text, and the spans within `{% generation %}`; adjacent spans are merged."""
        if not _GENERATION.search(self._source(tools)) or not messages:
            return self.text(messages, tools) if messages else "", []
        text, spans = self._render(messages, tools, return_assistant_tokens_mask=True)
        merged: list[Span] = []
        for start, end in spans:
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], end)
            elif text[start:end].strip():
                merged.append((start, end))
        return text, merged

    def _source(self, tools: Tools) -> str:
        with_tools = tools is not None  # a tokenizer may have a separate template for tools
        if with_tools not in self._sources:
            source = str(self._tokenizer.get_chat_template(tools=None if tools is None else list(tools)))
            self._sources[with_tools] = with_date(source, DATE)
        return self._sources[with_tools]

    def _with_reasoning(self, messages: Sequence[Message], tools: Tools) -> Sequence[Message]:
        """The chat with each answer's reasoning where this template reads it."""
        if not any(reasoning_of(message)[0] for message in messages):
            return messages
        with_tools = tools is not None
        if with_tools not in self._reasoning:
            key = key_in(self._source(tools))
            self._reasoning[with_tools] = key, key is not None and self._renders(key, tools)
        return [as_read(message, *self._reasoning[with_tools]) for message in messages]

    @cached_property
    def reasoning_tags(self) -> tuple[str, str] | None:
        """What an answer's reasoning begins and ends with, without white space around; None if the template knows none.
        It begins with "" where the prompt ends with what opens it (Qwen 3.5, Nemotron 3).

        Templates that only remove it from earlier turns (DeepSeek-R1's) know `<think>`.
        """
        source, key = self._source(None), key_in(self._source(None))
        if key is None or not self._renders(key, None):
            return TAGS if TAGS[1] in source else None
        prompt = self.prompt(_QUESTION)
        text = self.text([*_QUESTION, {**_ANSWER, "reasoning_content": _REASONING}])
        before, _, after = text.partition(_REASONING)
        start, end = before.removeprefix(prompt).strip(), after.partition(_ANSWER["content"])[0].strip()
        return (start, end) if end and before.startswith(prompt) else None

    @cached_property
    def plain_answer(self) -> str:
        """What the template writes for a short answer without reasoning, with the end of its turn."""
        return self._probe[0]

    def _renders(self, key: str, tools: Tools) -> bool:
        """Whether the template writes an answer's reasoning from that key; some only do so with an option set."""
        try:
            return _REASONING in self._apply([*_QUESTION, {**_ANSWER, key: _REASONING}], tools)[0]
        except UnusableError:
            return False

    def _render(self, messages: Sequence[Message], tools: Tools, **options: bool) -> tuple[str, list[Span]]:
        return self._apply(self._with_reasoning(messages, tools), tools, **options)

    def _apply(self, messages: Sequence[Message], tools: Tools, **options: bool) -> tuple[str, list[Span]]:
        try:
            texts, spans = render_jinja_template(
                [list(messages)],
                tools=None if tools is None else list(tools),
                chat_template=self._source(tools),
                **self._tokenizer.special_tokens_map,
                **options,
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            raise UnusableError(
                f"the chat template rejects it: {str(error).rstrip('.')}. Change the row, or set base.chat_template to "
                "one that accepts it"
            ) from None
        return texts[0], [] if not spans else list(spans[0])


def with_date(source: str, date: datetime) -> str:
    """A template that writes this date wherever it would write today's."""
    return re.sub(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: repr(date.strftime(call[2])), source)


def _common_prefix(one: str, other: str) -> str:
    length = next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    return one[:length]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The texts that the tokenizer reads as control tokens rather than as characters."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)
