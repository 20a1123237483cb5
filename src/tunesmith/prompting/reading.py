"""What a model can read before a question: whether its chat template takes a system turn, and how much fits."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.data.render import Renderer, source_text
from tunesmith.data.template import UnusableError
from tunesmith.errors import UserError
from tunesmith.inference.model import Model
from tunesmith.models.load import config_of
from tunesmith.subjects.subject import Chat

_MARK = "Tunesmith's own system prompt."

Count = Callable[[Chat], int]


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model reads chats.

    Attributes:
        takes_system: whether its chat template writes a system turn. Some refuse it, or leave it out.
        takes_turns: whether it reads turns of the assistant. An encoder–decoder reads one text.
        count: the tokens of a chat up to where the model answers; None: they cannot be counted (a server).
        room: the most tokens of a chat and its answer; None: it is not known, or there is no limit.
    """

    takes_system: bool = True
    takes_turns: bool = True
    count: Count | None = None
    room: int | None = None

    @classmethod
    def of(cls, model: Model | None) -> "Reading":
        """How a model reads. Its weights are not loaded for that.

        Args:
            model: that writes text; None: it is behind a URL, and is taken to read system turns.

        Returns:
            What it can read.

        Raises:
            UserError: the model writes no text, or its tokenizer or config cannot be read.
        """
        if model is None:
            return cls()
        model.require("generate")
        config = config_of(model.reference.base)
        positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
        room = None if positions is None else positions - _virtual_tokens(model)
        tokenizer = model.tokenizer
        renderer = Renderer(tokenizer)
        text = source_text if config.is_encoder_decoder else renderer.prompt

        def count(chat: Chat) -> int:
            return len(tokenizer(text(chat), add_special_tokens=config.is_encoder_decoder, verbose=False)["input_ids"])

        takes_system = config.is_encoder_decoder or _takes_system(renderer)
        return cls(takes_system, not config.is_encoder_decoder, count, room)

    def fits(self, chat: Chat, answer_tokens: int) -> bool:
        """Whether a chat and its answer fit into the model's context.

        Args:
            chat: up to where the model answers.
            answer_tokens: the most tokens of the answer.

        Returns:
            True also if that is not known, or the template cannot render the chat, which is refused later.
        """
        if self.count is None or self.room is None:
            return True
        try:
            return self.count(chat) + answer_tokens <= self.room
        except UnusableError:
            return True

    def refuse_examples(self, what: str) -> None:
        """Refuse examples that the model cannot read.

        Args:
            what: has them, for the error.

        Raises:
            UserError: it reads no turns of the assistant.
        """
        if not self.takes_turns:
            raise UserError(
                f"{what} has examples, which are turns, and an encoder–decoder reads one text. Remove them."
            )


def _takes_system(renderer: Renderer) -> bool:
    """Whether the chat template writes what a system turn says."""
    chat = [{"role": "system", "content": _MARK}, {"role": "user", "content": "Question?"}]
    try:
        return _MARK in renderer.prompt(chat)
    except UnusableError:
        return False


def _virtual_tokens(model: Model) -> int:
    """The positions that the prompt or prefix of an adapter takes."""
    adapter = model.reference.adapter
    if adapter is None:
        return 0
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return int(settings.get("num_virtual_tokens") or 0)
