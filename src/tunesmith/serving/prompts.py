"""From a request's messages, tools and settings to prompts and sampling."""

import json
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from tunesmith.data.example import Message
from tunesmith.data.template import UnusableError, special_tokens
from tunesmith.data.turns import MalformedRowError, tools_of, turns_of
from tunesmith.inference.generate import Generator
from tunesmith.inference.reasoning_text import ReasoningForm, reasoning_form_of
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.tool_calls import ToolCallForm, Tools, form_of
from tunesmith.prompting.prompted import PromptRenderer
from tunesmith.serving.bodies import Sampled
from tunesmith.serving.errors import ApiError

log = logging.getLogger("tunesmith.serving")

ANSWER = 256
"""Tokens of an answer for which there must be room, if the client names no limit."""


class Prompts:
    """Renders chats for one model.

    Args:
        generator: of the model.
        prompt: put before chats; None: none.
    """

    def __init__(self, generator: Generator, prompt: PromptRenderer | None = None) -> None:
        self._generator, self._prompt = generator, prompt
        self._special = sorted(special_tokens(generator.tokenizer))

    @cached_property
    def tool_form(self) -> ToolCallForm | None:
        """How the model's chat template writes tool calls; None if it writes none that are known."""
        if self._generator.model.config.is_encoder_decoder or not self._generator.tokenizer.chat_template:
            return None
        return form_of(self._generator.renderer.template, self._special)

    @cached_property
    def reasoning_form(self) -> ReasoningForm | None:
        """How the model's chat template writes reasoning; None if it writes none."""
        if self._generator.model.config.is_encoder_decoder or not self._generator.tokenizer.chat_template:
            return None
        return reasoning_form_of(self._generator.renderer.template, self._special)

    def ids(self, messages: Sequence[Mapping[str, Any]], tools: Tools, answer_tokens: int = ANSWER) -> list[int]:
        """The ids of a chat's prompt: the same rendering as in training.

        Args:
            messages: as the client sent them.
            tools: that the answer may call.
            answer_tokens: for which there must be room, beside the examples of the server's prompt.

        Raises:
            ApiError: a message is malformed, or the chat template cannot render the chat.
        """
        try:
            turns = turns_of(list(messages), "messages")
            if turns[-1]["role"] not in ("user", "tool", "system"):
                raise MalformedRowError("the last message is the assistant's. End with a message of the user or a tool")
            for number, turn in enumerate(turns, 1):
                self._refuse_control_tokens(turn, f"message {number} ({turn['role']}) holds")
            self._refuse_control_tokens(tools, "tools hold")
            wanted = tools_of([dict(tool) for tool in tools]) if tools else None
            text = self._generator.prompt_of(self._with_prompt(turns, answer_tokens), wanted)
        except (MalformedRowError, UnusableError) as error:
            raise ApiError(400, f"{error}.", "messages", "invalid_messages") from None
        return self._generator.ids(text)

    def _with_prompt(self, turns: Sequence[Message], answer_tokens: int) -> Sequence[Message]:
        """The chat with the server's prompt before it; what had no room is in the log."""
        if self._prompt is None:
            return turns
        chat = self._prompt.chat(turns, answer_tokens)
        if self._prompt.note is not None:
            log.warning(self._prompt.note)
            self._prompt.shortened.clear()
        return chat

    def _refuse_control_tokens(self, value: Any, what: str) -> None:
        """Refuse control tokens in any text, which could pretend to be another turn."""
        found = next((token for text in _texts(value) for token in self._special if token in text), None)
        if found is not None:
            raise MalformedRowError(f"{what} the control token {found}. Remove it")


def _texts(value: Any) -> Iterator[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield str(key)
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


def sampling_of(body: Sampled, default: Sampling, **more: Any) -> Sampling:
    """The body's settings, with the server's defaults for those that it leaves out.

    Args:
        body: of the request.
        default: the server's.
        more: settings that are not fields of the same name.
    """
    names = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "top_k", "min_p", "repetition_penalty")
    given = {name: getattr(body, name) for name in (*names, "seed", "regex", "grammar")}
    stop = () if body.stop is None else (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    sampling = replace(
        default, **{name: value for name, value in given.items() if value is not None}, stop=stop, **more
    )
    if body.logit_bias:
        sampling = replace(sampling, logit_bias=_bias(body.logit_bias))
    return sampling if body.seed is not None else replace(sampling, seed=secrets.randbits(31))


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        raise ApiError(400, "logit_bias: the keys must be token ids.", "logit_bias", "invalid_value") from None


def schema_text(kind: str, schema: Mapping[str, Any] | None, param: str) -> str | None:
    """The JSON schema of an answer in the asked-for format; None for text.

    Args:
        kind: `text`, `json_object` or `json_schema`.
        schema: of `json_schema`.
        param: the field's name.

    Raises:
        ApiError: the schema is missing.
    """
    if kind == "text":
        return None
    if kind == "json_schema" and schema is None:
        raise ApiError(400, f"{param}.schema is missing.", param, "missing_field")
    return json.dumps({"type": "object"} if schema is None else schema)
