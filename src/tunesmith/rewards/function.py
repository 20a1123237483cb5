"""What a shipped reward function is, and how it reads completions and the rows' columns.

A reward function maps completions to rewards, as those of `trl.GRPOTrainer` do:

    function(prompts, completions, completion_ids, **columns) -> list[float | None]

Prompts and completions are texts, or lists of messages where the row is a chat. `None`: it does not apply.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from tunesmith.config.registry import Strict
from tunesmith.data.example import Message
from tunesmith.data.reasoning import TAGS, final_answer
from tunesmith.errors import UserError

Text = str | Sequence[Message]
"""A prompt or a completion: a text, or the messages of a chat."""


EXTRAS = ("trainer_state", "log_extra", "log_metric")
"""What a function receives besides columns, since one of `trl.GRPOTrainer` may ask for it."""


class RewardFunction(Strict, ABC):
    """A reward function; its fields are the `options` in a recipe."""

    paths: ClassVar[tuple[str, ...]] = ()
    """The options that name files or models."""

    def with_absolute_paths(self, absolute: Callable[[str], str]) -> dict[str, Any]:
        """The options that name files or models, resolved.

        Args:
            absolute: resolves a path beside the recipe; returns what is no path as it is.
        """
        values = {name: getattr(self, name) for name in self.paths}
        return {name: absolute(value) for name, value in values.items() if isinstance(value, str) and is_path(value)}

    def check(self) -> None:  # most need nothing
        """Refuse what cannot work, before anything is trained; models are found, not loaded.

        Raises:
            UserError: a model, a file or a package is missing, or an option is wrong.
        """

    def close(self) -> None:  # most hold nothing
        """Free what it holds, such as a model."""

    @abstractmethod
    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None,
        **columns: Any,
    ) -> list[float | None]:
        """Score completions.

        Args:
            prompts: (completions,).
            completions: (completions,).
            completion_ids: (completions,) their tokens; None: not known.
            columns: the rows' other columns, each (completions,).

        Returns:
            (completions,) rewards; None where it does not apply.

        Raises:
            UserError: a column is missing, or a model fails.
        """


def is_path(value: str) -> bool:
    """Whether an option that takes a path or a text has a path, which has no white space.

    Args:
        value: of the option.
    """
    return len(value.split()) == 1


def text_of(text: Text) -> str:
    """A prompt or completion as one text: itself, or its messages' contents, one below the other.

    Args:
        text: a text or messages.
    """
    if isinstance(text, str):
        return text
    return "\n".join(_content(message) for message in text)


def _content(message: Message) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if isinstance(part, dict))


def answer_of(completion: Text) -> str:
    """What a completion says after its reasoning.

    Args:
        completion: a text or messages. Where the prompt opens the reasoning, only its end is in the completion.

    Returns:
        The answer; empty if the reasoning does not end.
    """
    text = text_of(completion)
    opening, closing = TAGS
    if closing in text and not text.lstrip().startswith(opening):
        text = text.partition(closing)[2]
    return final_answer(text)


def question_of(prompt: Text) -> str:
    """The last turn of the user in a prompt, or the prompt itself.

    Args:
        prompt: a text or messages.
    """
    if isinstance(prompt, str):
        return prompt
    turns = [message for message in prompt if message.get("role") == "user"] or list(prompt)
    return _content(turns[-1]) if turns else ""


def column_of(columns: Mapping[str, Any], name: str) -> list[str | None]:
    """A column of the rows as texts.

    Args:
        columns: by name.
        name: of the column.

    Returns:
        (completions,) texts; a chat's text is that of its messages; None where a row has none.

    Raises:
        UserError: there is no such column.
    """
    if name not in columns:
        known = ", ".join(each for each in columns if each not in EXTRAS) or "none"
        raise UserError(f"it needs a column {name}, and the rows' columns are: {known}. Set options.column.")
    return [_text_in(value) for value in columns[name]]


def _text_in(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(each, dict) and "content" in each for each in value):
        return text_of(value)
    return str(value)
