"""What a check sees of a row, whatever its format."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tunesmith.checks.nested import named_texts
from tunesmith.data.example import Example, Message, Source

Argument = tuple[str, str]
"""The name and the text of an argument of a tool call."""

_WORDS_ONLY = bytes(code if code >= 128 or chr(code).isalnum() else ord(" ") for code in range(256))


@dataclass(frozen=True, slots=True)
class Record:
    """A row's texts, by what they are to the model.

    Attributes:
        source: the file and row.
        prompt: what the model is given: the turns before the last answer, or the text to label; empty for raw text.
        answer: what the model learns to write: the last answer, or the raw text; empty for a labeled text.
        label: the class name, or the names joined by a comma, or the value; None if the row has none.
        messages: of a chat; empty otherwise.
        others: its other texts: the positive and negatives of a pair, the answers that are compared.
        calls: the arguments of the tool calls that the last answer makes, which the model learns to write.
        given_calls: those of the turns before it.
        reasoning: before answers.
    """

    source: Source
    prompt: str
    answer: str
    label: str | None = None
    messages: tuple[Message, ...] = ()
    others: tuple[str, ...] = ()
    calls: tuple[Argument, ...] = ()
    given_calls: tuple[Argument, ...] = ()
    reasoning: tuple[str, ...] = ()
    _words: list[frozenset[bytes]] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def words(self) -> frozenset[bytes]:
        """The words of all texts, in lower case and in UTF-8; computed once, for all checks."""
        if not self._words:
            text = "\n".join(self.texts).lower().encode("utf-8", "replace")
            self._words.append(frozenset(text.translate(_WORDS_ONLY).split()))
        return self._words[0]

    @property
    def every_text(self) -> tuple[str, ...]:
        """All texts, also those that are empty."""
        if not (self.given_calls or self.calls or self.reasoning):
            return (self.prompt, self.answer, *self.others)
        beside = (*map(_line, self.given_calls), *map(_line, self.calls), *self.reasoning)
        return (self.prompt, self.answer, *self.others, *beside)

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts that are not empty."""
        return tuple(text for text in self.every_text if text)

    @property
    def given(self) -> str:
        """The prompt with the tool calls in it."""
        return "\n".join((self.prompt, *map(_line, self.given_calls))) if self.given_calls else self.prompt

    @property
    def learned(self) -> str:
        """The answer with the tool calls that it makes."""
        return "\n".join(filter(None, (self.answer, *map(_line, self.calls)))) if self.calls else self.answer

    def places(self) -> Iterator[tuple[str, str]]:
        """The texts that are not empty, each with its name in a sentence."""
        named = [("the prompt", self.prompt), ("the answer" if self.prompt else "the text", self.answer)]
        named += [("another answer", other) for other in self.others]
        named += [(f"the argument {call[0]}", _line(call)) for call in (*self.given_calls, *self.calls)]
        named += [("the reasoning", text) for text in self.reasoning]
        return ((name, text) for name, text in named if text)


def record_of(example: Example) -> Record:
    """An example as checks see it.

    Args:
        example: of any format.
    """
    label = _label(example.label)
    if example.messages is None:
        text = example.text or ""
        is_raw = label is None and not example.others and example.spans is None
        return Record(example.source, "" if is_raw else text, text if is_raw else "", label, (), example.others)
    messages = example.messages
    answers = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
    last = answers[-1] if answers and not example.completions else len(messages)
    prompt = "\n".join(filter(None, map(_content, messages[:last])))
    answer = _content(messages[last]) if last < len(messages) else ""
    others = tuple("\n".join(filter(None, map(_content_and_calls, each.messages))) for each in example.completions)
    if others:  # the best answer is what the model learns to write
        best = max(range(len(others)), key=lambda index: example.completions[index].score)
        answer, others = others[best], others[:best] + others[best + 1 :]
    calls, given_calls = _arguments(messages[last:]), _arguments(messages[:last])
    reasoning = tuple(str(turn["reasoning_content"]) for turn in messages if turn.get("reasoning_content"))
    return Record(example.source, prompt, answer, label, messages, others, calls, given_calls, reasoning)


def _label(label: Any) -> str | None:
    if label is None:
        return None
    return ", ".join(label) if isinstance(label, tuple) else str(label)


def _line(argument: Argument) -> str:
    return f"{argument[0]}: {argument[1]}"


def _arguments(messages: tuple[Message, ...]) -> tuple[Argument, ...]:
    """Of all tool calls, each after the name of its function."""
    functions = [call["function"] for turn in messages for call in turn.get("tool_calls") or ()]
    return tuple(
        argument
        for function in functions
        for argument in (("function", str(function["name"])), *named_texts(function["arguments"]))
    )


def _content_and_calls(message: Message) -> str:
    return "\n".join(filter(None, (_content(message), *map(_line, _arguments((message,))))))


def _content(message: Message) -> str:
    """A turn's text; of parts, their texts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and part.get("text"))
    return content if isinstance(content, str) else ""
