"""The reasoning of an answer, as rows and chat templates write it: a key of the turn, or `<think>` in its content."""

import re

from tunesmith.data.example import Message

KEYS = ("reasoning_content", "reasoning", "thinking")
"""The keys of a turn that hold reasoning: Qwen's and DeepSeek's, OpenRouter's and vLLM's, gpt-oss's and Ollama's. In an
`Example` it is the first."""

TAGS = ("<think>", "</think>")
"""Around the reasoning in a content."""

_IN_CONTENT = re.compile(r"\s*<think>(.*?)</think>\n*", re.DOTALL)


def split_reasoning(content: str) -> tuple[str, str]:
    """The reasoning in `<think>…</think>` at the start of the content, and the rest; ("", content) if there is no such
    block, and ("", the rest) if it is empty.

    The line breaks around both are the template's (Qwen3's removes and writes them), so they belong to neither.
    """
    match = _IN_CONTENT.match(content)
    if match is None:
        return "", content
    return match[1].strip("\n") if match[1].strip() else "", content[match.end() :]


def final_answer(text: str) -> str:
    """What an answer says after its reasoning, which is what metrics score.

    Args:
        text: as a model wrote it, with or without `<think>…</think>` at its start.

    Returns:
        The rest; empty if the reasoning does not end.
    """
    reasoning, rest = split_reasoning(text)
    return "" if not reasoning and rest.lstrip().startswith(TAGS[0]) else rest.strip()


def with_reasoning(content: str, reasoning: str) -> str:
    """The content of an answer with its reasoning, as Qwen3 and DeepSeek-R1 write it."""
    return f"<think>\n{reasoning}\n</think>\n\n{content}"


def reasoning_of(message: Message) -> tuple[str, str]:
    """The turn's reasoning and its content without it, wherever the row has it; reasoning is "" if there is none."""
    content = message.get("content")
    text = content if isinstance(content, str) else ""
    if message["role"] != "assistant":
        return "", text
    explicit = message.get(KEYS[0])
    return (explicit, text) if explicit else split_reasoning(text)


def key_in(template: str) -> str | None:
    """The key of a turn that the source of a chat template reads reasoning from; None if it reads none.

    Only a key counts (`message.thinking`), not a variable of the template (`enable_thinking`).
    """
    return next((key for key in KEYS if re.search(rf"\.{key}\b|(['\"]){key}\1", template)), None)


def as_read(message: Message, key: str | None, from_content: bool) -> Message:
    """The turn with its reasoning where the template reads it.

    Args:
        message: a turn of an `Example`.
        key: the key that the template reads; None if it reads none: reasoning is then written into the content.
        from_content: whether `<think>` in the content is reasoning too; if not, such content is not changed.
    """
    reasoning, content = reasoning_of(message)
    if not reasoning or not (message.get(KEYS[0]) or from_content):
        return message
    rest = {name: value for name, value in message.items() if name != KEYS[0]}
    if key is None:
        return {**rest, "content": with_reasoning(content, reasoning)}
    return {**rest, "content": content, key: reasoning}
