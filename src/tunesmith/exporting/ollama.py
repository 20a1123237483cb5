"""Write a directory from which `ollama create` makes a model: a GGUF file and its Modelfile.

Ollama renders chats with a Go template, not with the Jinja template in the GGUF file. If a chat is its turns one after
the other, each between fixed texts, then it can be written in Go: this is tried on a few chats. If not, the Modelfile
says so, and Ollama looks for a known template that resembles the GGUF file's.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tunesmith.exporting.gguf_tokenizer import begins_with_bos
from tunesmith.exporting.subject import Subject

_ROLES = ("system", "user", "assistant")
_MARK = "\ue000content\ue000"
_CHATS = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
_NAMES = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


def modelfile(subject: Subject, file: str) -> str:
    """The Modelfile of a GGUF file with this name beside it."""
    lines = [f"FROM ./{file}"]
    generation = subject.generation
    given = {} if generation is None or not generation.do_sample else generation.to_diff_dict()
    lines += [f"PARAMETER {name} {given[key]}" for key, name in _NAMES.items() if given.get(key) is not None]
    lines += [f"PARAMETER stop {json.dumps(token)}" for token in _ends(subject)]
    template = None if subject.tokenizer.chat_template is None else go_template(subject.tokenizer)
    if template is not None:
        lines += [] if template.system is None else [f'SYSTEM """{template.system}"""']
        lines.append(f'TEMPLATE """{template}"""')
    elif subject.tokenizer.chat_template is not None:
        lines.append(
            "# The chat template cannot be written in Go. Ollama takes a known one that resembles the Jinja template "
            "in the GGUF file: check it with `ollama show --template`."
        )
    return "\n".join(lines) + "\n"


def _ends(subject: Subject) -> Sequence[str]:
    tokens: list[str] = subject.tokenizer.convert_ids_to_tokens(subject.ends)
    return tokens


@dataclass(frozen=True)
class GoTemplate:
    """A chat template that puts fixed texts around turns.

    Attributes:
        around: what is before and after the content of a turn, by role.
        opening: what begins the model's answer.
        system: the system prompt of a chat without one; None if there is none.
    """

    around: dict[str, tuple[str, str]]
    opening: str
    system: str | None

    def text(self, chat: Sequence[dict[str, str]]) -> str:
        """A chat up to where the model answers."""
        if self.system is not None and chat[0]["role"] != "system":
            chat = [{"role": "system", "content": self.system}, *chat]
        return "".join(turn["content"].join(self.around[turn["role"]]) for turn in chat) + self.opening

    def __str__(self) -> str:
        turns = [
            f'{{{{ {"if" if role == _ROLES[0] else "else if"} eq .Role "{role}" }}}}' + "{{ .Content }}".join(around)
            for role, around in self.around.items()
        ]
        return "{{ range .Messages }}" + "".join(turns) + "{{ end }}{{ end }}" + self.opening


def go_template(tokenizer: PreTrainedTokenizerBase) -> GoTemplate | None:
    """The chat template in Go, for system, user and assistant turns; None if it does more than to put texts around
    them, or refuses these roles. Ollama adds the token that begins a text itself."""
    try:
        template = _template(tokenizer)
        chats = [
            [{"role": role, "content": f"{index}: {role}"} for index, role in enumerate(roles)] for roles in _CHATS
        ]
        return template if all(template.text(chat) == _rendered(tokenizer, chat) for chat in chats) else None
    except (TemplateError, ValueError):
        return None


def _template(tokenizer: PreTrainedTokenizerBase) -> GoTemplate:
    """What the template puts around each turn, if it treats all turns alike.

    Raises:
        ValueError: this cannot be distinguished from a chat, or would be read as Go.
    """
    chat = [{"role": role, "content": _MARK} for role in ("system", "user", "assistant", "user")]
    text = _rendered(tokenizer, chat)
    if "{{" in text or '"""' in text:
        raise ValueError("the template has signs of Go's")
    before_system, before_user, before_assistant, between, _ = text.split(_MARK)
    start, end = _rendered(tokenizer, chat[1:2], opening=False).split(_MARK)
    opening = _rendered(tokenizer, chat[1:2]).removeprefix(start + _MARK + end)
    answer_end = _rendered(tokenizer, chat[1:3], opening=False).rpartition(_MARK)[2]
    user = between.removeprefix(answer_end)
    around = {
        "system": (before_system, before_user.removesuffix(user)),
        "user": (user, end),
        "assistant": (before_assistant.removeprefix(end), answer_end),
    }
    has_default = start != user and start.startswith(before_system) and start.endswith(before_user)
    system = start[len(before_system) : len(start) - len(before_user)] if has_default else None
    return GoTemplate(around, opening, system)


def _rendered(tokenizer: PreTrainedTokenizerBase, chat: Sequence[dict[str, str]], opening: bool = True) -> str:
    text = str(tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=opening))
    return text.removeprefix(str(tokenizer.bos_token)) if begins_with_bos(tokenizer) else text
