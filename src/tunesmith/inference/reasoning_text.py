"""Reasoning in an answer: found in its text between the tags that the model's own chat template writes around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from tunesmith.data.template import ChatTemplate, UnusableError
from tunesmith.inference.text_stream import overlap


@dataclass(frozen=True, slots=True)
class ReasoningForm:
    """How a template writes an answer's reasoning.

    Attributes:
        start: what it begins with; the answer does too, if it reasons. "": every answer begins with reasoning.
        end: what it ends with.
        markers: the special tokens in both, which an answer's text otherwise leaves out.
    """

    start: str
    end: str
    markers: tuple[str, ...] = ()


def reasoning_form_of(template: ChatTemplate, special: Sequence[str]) -> ReasoningForm | None:
    """The form in which the template writes reasoning; None if it knows none, or writes special tokens around the
    content too (gpt-oss).

    Args:
        template: of the model.
        special: the tokenizer's special tokens.
    """
    try:
        tags = template.reasoning_tags
        plain = template.plain_answer
    except UnusableError:
        return None
    if tags is None:
        return None
    markers = tuple(token for token in special if token in tags[0] or token in tags[1])
    form = ReasoningForm(*tags, markers)
    text = ReasoningText(form)
    content = text.add(plain)[1] + text.finish()[1]
    return None if any(marker in content for marker in markers) else form


class _Part(Enum):
    BEFORE = auto()
    REASONING = auto()
    BETWEEN = auto()
    CONTENT = auto()


class ReasoningText:
    """An answer's text as it grows, divided into reasoning and content. White space around the tags belongs to neither:
    templates write it (`data.reasoning.split_reasoning`).

    Args:
        form: of the model's template.
    """

    def __init__(self, form: ReasoningForm) -> None:
        self.form = form
        self._part = _Part.BEFORE
        self._held = ""
        self._began = False  # some reasoning has been returned

    def add(self, piece: str) -> tuple[str, str]:
        """The next piece of the answer. Returns the reasoning and the content that are certain; both may be empty."""
        self._held += piece
        if self._part is _Part.BEFORE:
            self._look_for_start()
        reasoning = self._take_reasoning() if self._part is _Part.REASONING else ""
        if self._part is _Part.BETWEEN:
            self._held = self._held.lstrip("\n")
            self._part = _Part.CONTENT if self._held else _Part.BETWEEN
        if self._part is not _Part.CONTENT:
            return reasoning, ""
        content, self._held = self._held, ""
        return reasoning, content

    def _look_for_start(self) -> None:
        text = self._held.lstrip()
        if text.startswith(self.form.start):
            self._part, self._held = _Part.REASONING, text[len(self.form.start) :]
        elif not self.form.start.startswith(text):
            self._part = _Part.CONTENT

    def _take_reasoning(self) -> str:
        text, tag, rest = self._held.partition(self.form.end)
        certain = text if tag else text[: len(text) - overlap(text, self.form.end)]
        certain = certain.rstrip("\n")  # line breaks belong to the reasoning if more of it follows
        if not self._began:
            certain = certain.lstrip("\n") if certain.strip() else ""
        self._began = self._began or bool(certain)
        if tag:
            self._part, self._held = _Part.BETWEEN, rest
        elif certain:
            self._held = text[text.index(certain) + len(certain) :]
        return certain

    def finish(self) -> tuple[str, str]:
        """The rest, once there is no further piece: reasoning and content."""
        held, self._held = self._held, ""
        if self._part is _Part.REASONING:
            return (held.rstrip("\n") if self._began else held.strip("\n")) if held.strip() else "", ""
        return "", held
