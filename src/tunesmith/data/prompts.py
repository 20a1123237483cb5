"""The row format of prompts: chats that end before the answer, which the model writes itself."""

from typing import Any

from tunesmith.data.example import Message
from tunesmith.data.row_format import RowFormat, Values, required, text_of
from tunesmith.data.turns import MalformedRowError, in_words, tools_of, turns_of

GIVEN = "prompt"
"""The column for the prompt as the row has it: a text, or a list of turns."""

ANSWER = "answer"
"""The column for the answer of a chat that has one."""


def _prompt(values: Values) -> dict[str, Any]:
    """`prompt`: a text, or a list of turns, with `system` and `tools`. The other columns are kept. An answer at the end
    of the chat becomes the column `answer`."""
    prompt = required(values, "prompt")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise MalformedRowError("the prompt is empty")
        turns: list[Message] = [{"role": "user", "content": prompt}]
    elif isinstance(prompt, list):
        turns = turns_of(prompt, "prompt")
    else:
        raise MalformedRowError(f"prompt is {in_words(prompt)}, neither a text nor a list of turns")
    columns: dict[str, Any] = {GIVEN: prompt}
    if turns[-1]["role"] == "assistant":
        *turns, answer = turns
        columns = {GIVEN: turns, ANSWER: answer["content"]}
    if not turns or turns[-1]["role"] not in ("user", "tool"):
        raise MalformedRowError("the prompt does not end with a user turn, so there is nothing to answer")
    system = text_of(values, "system", "")
    if system and turns[0]["role"] in ("system", "developer"):
        raise MalformedRowError("it has both a system column and a system turn")
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    return {"messages": (*first, *turns), "tools": tools_of(values.get("tools")), "columns": columns}


PROMPTS = {
    "prompts": RowFormat(
        "prompts",
        (("prompt",), ("messages",), ("question",), ("problem",), ("query",), ("instruction",), ("conversations",)),
        ("tools", "system"),
        _prompt,
        detected=False,
        keeps_columns=True,
    )
}
"""What `data.format` accepts for prompts."""
