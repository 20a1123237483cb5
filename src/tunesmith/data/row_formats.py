"""The row formats: each turns a row into an `Example`. `data.format_detection` finds which one rows have.

A format is one function and one entry in `FORMATS`. Column names match regardless of case. Texts are not changed:
nothing is stripped.
"""

import difflib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tunesmith.config import registry
from tunesmith.config.extensions import UsersCodeError, failures_named, is_path
from tunesmith.data.example import Example, Malformed, Message, Source
from tunesmith.data.labeled import LABELED
from tunesmith.data.media import FEW, UNUSABLE, media_key, placeholder
from tunesmith.data.preferences import PREFERENCES
from tunesmith.data.prompts import PROMPTS
from tunesmith.data.read import Row
from tunesmith.data.row_format import RowFormat, Values, required, text_of
from tunesmith.data.turns import MalformedRowError, chat, in_words, parsed, tools_of, turns_of
from tunesmith.errors import UserError


def _messages(values: Values) -> dict[str, Any]:
    """`messages`: [{role, content, ...}], with `tools`; a `system` column becomes the first message."""
    return _chat(values, turns_of(required(values, "messages"), "messages"))


def _sharegpt(values: Values) -> dict[str, Any]:
    """`conversations`: [{from, value}], with `system` and `tools` (ShareGPT; calls as in LLaMA-Factory)."""
    turns = turns_of(required(values, "conversations"), "conversations")
    _refuse_placeholders(turns)
    return _chat(values, turns)


def _alpaca(values: Values) -> dict[str, Any]:
    """`instruction`, `input`, `output`, `system`, `history`: [[question, answer], ...] (Taori et al. 2023).

    The input, if there is one, follows the instruction on its own line.
    """
    instruction, more_input = text_of(values, "instruction"), text_of(values, "input", "")
    earlier = [turn for pair in _history(values) for turn in _exchange(*pair)]
    question = f"{instruction}\n{more_input}" if more_input else instruction
    return _chat(values, [*earlier, *_exchange(question, text_of(values, "output"))])


def _prompt_completion(values: Values) -> dict[str, Any]:
    """`prompt` and `completion`: two texts, which become a question and an answer; or two lists of turns."""
    prompt, completion = required(values, "prompt"), required(values, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return _chat(values, _exchange(prompt, completion))
    if isinstance(prompt, str) or isinstance(completion, str):
        raise MalformedRowError(
            f"prompt is {in_words(prompt)} and completion is {in_words(completion)}; "
            "both must be texts, or both lists of turns"
        )
    answer = turns_of(completion, "completion")
    if not any(turn["role"] == "assistant" for turn in answer):
        raise MalformedRowError("completion has no assistant turn, so there is no answer to learn from")
    return _chat(values, [*turns_of(prompt, "prompt"), *answer])


def _question_answer(values: Values) -> dict[str, Any]:
    """`question`, `answer`, with `context` (placed before the question, with a blank line between) and `system`."""
    context = text_of(values, "context", "")
    question = text_of(values, "question")
    return _chat(values, _exchange(f"{context}\n\n{question}" if context else question, text_of(values, "answer")))


FORMATS: dict[str, RowFormat] = {
    "messages": RowFormat("chat messages", (("messages",),), ("tools", "system"), _messages),
    "sharegpt": RowFormat("ShareGPT conversations", (("conversations",),), ("tools", "system"), _sharegpt),
    "alpaca": RowFormat("Alpaca instructions", (("instruction", "output"),), ("input", "system", "history"), _alpaca),
    "prompt_completion": RowFormat(
        "prompts and completions", (("prompt", "completion"),), ("tools", "system"), _prompt_completion
    ),
    "question_answer": RowFormat(
        "questions and answers",
        (
            ("question", "answer"),
            ("question", "response"),
            ("query", "response"),
            ("query", "answer"),
            ("q", "a"),
            ("problem", "solution"),
            ("problem", "answer"),
            ("prompt", "response"),
            ("instruction", "response"),
            ("input", "output"),
            ("title", "answer"),
        ),
        ("context", "system"),
        _question_answer,
    ),
    **PREFERENCES,
    **LABELED,
    **PROMPTS,
}
"""Every row format by the value of `data.format`; if a row matches several, the first is used."""


def to_example(row: Row, format: str, columns: Mapping[str, str] | None = None) -> Example | Malformed:
    """The row as an example, or the reason why it is malformed.

    Args:
        row: as read.
        format: a name in `FORMATS`.
        columns: field → column, from `data.columns`.

    Raises:
        UserError: the format, or a field in `columns`, is not known.
    """
    kind = format_named(format)
    try:
        refuse_media(row, columns)
        values = _fields(row, kind, format, columns or {})
        found = _read(values, kind, format, row.source)
        if kind.keeps_columns and not isinstance(row.values, str):
            found["columns"] = {**found.get("columns", {}), **_others(row.values, kind, columns or {})}
        return Example(row.source, **found)
    except MalformedRowError as error:
        return Malformed(row.source, str(error))


def _read(values: Values, kind: RowFormat, format: str, source: Source) -> dict[str, Any]:
    """The fields of the example, by a format of ours or of users.

    Raises:
        MalformedRowError: the row is not in the format.
        UserError: users' code failed.
    """
    if not registry.FORMATS.is_users(format):
        return kind.read(values)
    try:
        with failures_named({format: registry.FORMATS.path(format)}, MalformedRowError):
            return kind.read(values)
    except UsersCodeError as error:
        raise UsersCodeError(f"{source}: data.format: {error}") from error.__cause__


def refuse_media(row: Row, columns: Mapping[str, str] | None = None) -> None:
    """Refuse a row with images, audio or video.

    Args:
        row: as read.
        columns: field → column, from `data.columns`; such columns are texts, whatever their names.

    Raises:
        MalformedRowError: a column holds some; the message names it.
    """
    if isinstance(row.values, str):
        return
    if (media := media_key(row.values, set((columns or {}).values()))) is not None:
        raise MalformedRowError(f"column {media[0]} holds {media[1]}, {UNUSABLE}. Remove the column, or such rows")


def format_named(format: str) -> RowFormat:
    """The row format of that name: one of ours, one that an installed package registers, or `module:name`.

    Raises:
        UserError: the name is not known, or stands for something else.
    """
    if format in FORMATS:
        return FORMATS[format]
    if format not in registry.FORMATS and not is_path(format):
        known = [*FORMATS, *registry.FORMATS]
        near = difflib.get_close_matches(format, known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
        raise UserError(f"data.format: {format} is not known. {hint}")
    found = registry.FORMATS.load(format)
    if not isinstance(found, RowFormat):
        raise UserError(f"data.format: {format} is not a {RowFormat.__module__}.RowFormat.")
    return found


def sets_in(present: set[str], format: RowFormat) -> list[tuple[str, ...]]:
    """The format's sets of column names that are all among these, in lower case."""
    return [names for names in format.columns if present.issuperset(names)]


def _fields(row: Row, format: RowFormat, name: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row's values by field: from `columns`, else from the format's usual column names."""
    if isinstance(row.values, str):
        if format.fields != ("text",):
            raise MalformedRowError(f"plain text, but the other rows have columns ({', '.join(format.columns[0])})")
        return {"text": row.values}
    present = tuple([value is not None for value in row.values.values()])
    find = _columns_of_fields if len(present) <= FEW else _columns_of_fields.__wrapped__
    found = find(tuple(row.values), present, format, name, tuple(columns.items()))
    return {field: row.values[column] for field, column in found}


@lru_cache(4096)
def _columns_of_fields(
    names: tuple[Any, ...],
    present: tuple[bool, ...],
    format: RowFormat,
    format_name: str,
    named: tuple[tuple[str, str], ...],
) -> tuple[tuple[str, Any], ...]:
    """The column of each field, of a row with these columns; most rows of a set have the same.

    Args:
        names: of the row's columns.
        present: whether each has a value.
        format: of the row.
        format_name: its name.
        named: field and column, from `data.columns`.

    Raises:
        MalformedRowError: a field has no column.
    """
    columns = dict(named)
    check_fields(columns, format_name)
    shown = ", ".join(map(str, names)) or "none"
    missing = [column for column in columns.values() if column not in names]
    if missing:
        raise MalformedRowError(f"no column {missing[0]!r}; it has {shown}")
    by_name = {str(column).lower(): (column, is_given) for column, is_given in zip(names, present, strict=True)}
    usual = _usual_names({name for name, (_, is_given) in by_name.items() if is_given}, format, columns)
    fields = {field: by_name[name][0] for field, name in usual.items() if name in by_name}
    fields.update({field: by_name[field][0] for field in format.optional if field in by_name})
    if "system" in format.optional and "system" not in fields and "system_prompt" in by_name:
        fields["system"] = by_name["system_prompt"][0]
    fields.update(columns)
    absent = [field for field in format.columns[0] if field not in fields]
    if absent:
        raise MalformedRowError(f"no column {absent[0]!r}; it has {shown}")
    return tuple(fields.items())


def _others(values: Mapping[str, Any], format: RowFormat, columns: Mapping[str, str]) -> dict[str, Any]:
    """The columns of a row that are no fields of its format."""
    present = {str(column).lower() for column, value in values.items() if value is not None}
    usual = {name for field, name in _usual_names(present, format, columns).items() if field not in columns}
    read = {*usual, *format.optional, "system_prompt", *(column.lower() for column in columns.values())}
    return {str(column): value for column, value in values.items() if str(column).lower() not in read}


def _usual_names(present: set[str], format: RowFormat, columns: Mapping[str, str]) -> dict[str, str]:
    """Field → column in lower case, from the only set of usual names that the row has."""
    unnamed = [field for field in format.columns[0] if field not in columns]
    matches = {tuple(zip(format.columns[0], names, strict=True)) for names in sets_in(present, format)}
    if len(matches) > 1 and unnamed:
        choices = " or ".join(", ".join(f"{field}: {name}" for field, name in match) for match in sorted(matches))
        raise UserError(f"Several columns could be {' and '.join(unnamed)}. Name one in data.columns: {{{choices}}}.")
    return dict(next(iter(matches))) if matches else {field: field for field in format.columns[0]}


def check_fields(columns: Mapping[str, str], format: str) -> None:
    """Refuse a field in `data.columns` that the format does not have.

    Raises:
        UserError: there is one.
    """
    fields = format_named(format).fields
    for field in columns:
        if field not in fields:
            near = difflib.get_close_matches(field, fields, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"data.columns.{field}: the format {format} has no such field; it has {', '.join(fields)}.{hint}"
            )


def _chat(values: Values, messages: list[Message]) -> dict[str, Any]:
    system = text_of(values, "system", "")
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    if first and messages[0]["role"] in ("system", "developer"):
        raise MalformedRowError("it has both a system column and a system turn")
    return {"messages": chat([*first, *messages]), "tools": tools_of(values.get("tools"))}


def _refuse_placeholders(turns: Sequence[Message]) -> None:
    """Refuse LLaVA's `<image>` in a question: its row has lost the column with the image."""
    for number, turn in enumerate(turns, 1):
        if turn["role"] == "user" and (found := placeholder(turn["content"])) is not None:
            raise MalformedRowError(
                f"turn {number} of conversations has the placeholder {found[0]} on a line of its own, for {found[1]}, "
                f"{UNUSABLE}. Remove the placeholder, or such rows"
            )


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _history(values: Values) -> list[tuple[str, str]]:
    history = parsed(values.get("history") or [], "history")
    pairs = history if isinstance(history, list) else [history]
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise MalformedRowError("history is not a list of [question, answer] pairs")
    return [(question, answer) for question, answer in pairs]
