"""The forms that rows come in: told by their columns, or named by the recipe, and each made into an `Example`.

A form is one function and one line in `FORMATS`. Column names are matched whatever their case. Texts are taken as they
stand: nothing is stripped.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.example import Example, Malformed, Message, Source
from tunesmith.data.labeled import LABELED
from tunesmith.data.read import Row
from tunesmith.data.row_format import RowFormat, Values, needed, text_of
from tunesmith.data.turns import NotUnderstoodError, chat, in_words, parsed, tools_of, turns_of
from tunesmith.errors import UserError


def _messages(values: Values) -> dict[str, Any]:
    """`messages`: [{role, content, ...}], with `tools`; a `system` column goes before them."""
    return _chat(values, turns_of(needed(values, "messages"), "messages"))


def _sharegpt(values: Values) -> dict[str, Any]:
    """`conversations`: [{from, value}], with `system` and `tools` (ShareGPT; calls as in LLaMA-Factory)."""
    return _chat(values, turns_of(needed(values, "conversations"), "conversations"))


def _alpaca(values: Values) -> dict[str, Any]:
    """`instruction`, `input`, `output`, `system`, `history`: [[question, answer], ...] (Taori et al. 2023).

    The input, where there is one, follows the instruction on a line of its own.
    """
    instruction, more = text_of(values, "instruction"), text_of(values, "input", "")
    earlier = [turn for pair in _history(values) for turn in _exchange(*pair)]
    asked = f"{instruction}\n{more}" if more else instruction
    return _chat(values, [*earlier, *_exchange(asked, text_of(values, "output"))])


def _prompt_completion(values: Values) -> dict[str, Any]:
    """`prompt` and `completion`: two texts, which become a question and an answer; or two lists of turns."""
    prompt, completion = needed(values, "prompt"), needed(values, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return _chat(values, _exchange(prompt, completion))
    if isinstance(prompt, str) or isinstance(completion, str):
        raise NotUnderstoodError(
            f"prompt is {in_words(prompt)} and completion is {in_words(completion)}; both must be texts, or both turns"
        )
    answer = turns_of(completion, "completion")
    if not any(turn["role"] == "assistant" for turn in answer):
        raise NotUnderstoodError("completion has no assistant turn, so there is no answer to learn from")
    return _chat(values, [*turns_of(prompt, "prompt"), *answer])


def _question_answer(values: Values) -> dict[str, Any]:
    """`question`, `answer`, with `context` (which goes before the question, a blank line between) and `system`."""
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
    **LABELED,
}
"""Every form by the name that `data.format` takes; where a row fits several, the first."""

_PREFERENCE = {"chosen", "rejected", "kto_tag"}
_ONE_TURN = ({"role", "content"}, {"from", "value"})


def detect(rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> str:
    """The form of the rows, from the columns that have a value in them.

    Args:
        rows: the first rows, a hundred say.
        columns: part → column, as `data.columns` names them.

    Raises:
        UserError: no form fits, several do, or the rows are of a kind that has no objective yet.
    """
    if not rows:
        raise UserError(
            "None of the first rows could be read, so their form cannot be told. Mend them, or set data.format."
        )
    named = _named_parts(columns or {}, rows)
    fits: dict[str, Source] = {}
    for row in rows:
        _refuse_other_kinds(row)
        format = named if named is not None else _format_of(row)
        if format is not None:
            fits.setdefault(format, row.source)
    if not fits:
        raise _unknown(rows)
    if len(fits) > 1:
        found = ", ".join(f"{FORMATS[name].described} ({source})" for name, source in fits.items())
        raise UserError(
            f"The rows are of several forms: {found}. Train on files of one form, or set data.format to one of "
            f"{', '.join(fits)}; rows of another are then malformed."
        )
    format = next(iter(fits))
    _refuse_unasked(FORMATS[format], rows)
    return format


def fitting(rows: Sequence[Row], formats: Sequence[str], named: Mapping[str, str]) -> str:
    """Of the forms that an objective takes, the first that has the parts that `data.columns` names, else the first
    whose columns the rows have; the first of all if none."""
    by_parts = [format for format in formats if named and set(named) <= set(FORMATS[format].parts)]
    formats = by_parts or formats
    columns = {column.lower() for column in _columns_of(rows)}
    return next((format for format in formats if _sets_in(columns, FORMATS[format])), formats[0])


def to_example(row: Row, format: str, columns: Mapping[str, str] | None = None) -> Example | Malformed:
    """The row as an example, or why it is none.

    Args:
        row: as read.
        form: a name in `FORMATS`.
        columns: part → column, as `data.columns` names them.

    Raises:
        UserError: the form, or a part that `columns` names, is not known.
    """
    kind = format_named(format)
    try:
        values = _parts(row, kind, format, columns or {})
        return Example(row.source, **kind.read(values))
    except NotUnderstoodError as error:
        return Malformed(row.source, str(error))


def format_named(format: str) -> RowFormat:
    """The form of that name.

    Raises:
        UserError: there is none.
    """
    if format not in FORMATS:
        near = difflib.get_close_matches(format, FORMATS, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(FORMATS)}."
        raise UserError(f"data.format: {format} is not known. {hint}")
    return FORMATS[format]


def _format_of(row: Row) -> str | None:
    if isinstance(row.values, str):
        return "text"
    present = {str(column).lower() for column, value in row.values.items() if value is not None}
    if any(present >= turn for turn in _ONE_TURN):
        raise UserError(
            f"{row.source} is a single turn ({', '.join(row.values)}). A row must hold a whole conversation: gather "
            "the turns in a column `messages`."
        )
    return next((name for name, format in FORMATS.items() if format.detected and _sets_in(present, format)), None)


def _sets_in(present: set[str], format: RowFormat) -> list[tuple[str, ...]]:
    return [names for names in format.columns if present.issuperset(names)]


def _parts(row: Row, format: RowFormat, name: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row's values by the parts they play: as `columns` names them, else by the form's usual column names."""
    if isinstance(row.values, str):
        if format.parts != ("text",):
            raise NotUnderstoodError(f"plain text, where the other rows have columns ({', '.join(format.columns[0])})")
        return {"text": row.values}
    _check_parts(columns, name)
    missing = [column for column in columns.values() if column not in row.values]
    if missing:
        raise NotUnderstoodError(f"no column {missing[0]!r}; it has {', '.join(map(str, row.values)) or 'none'}")
    own = {str(column).lower(): value for column, value in row.values.items()}
    usual = _usual_names({column for column, value in own.items() if value is not None}, format, columns)
    parts = {part: own[column] for part, column in usual.items() if column in own}
    parts.update({part: own[part] for part in format.optional if part in own})
    if "system" in format.optional and "system" not in parts and "system_prompt" in own:
        parts["system"] = own["system_prompt"]
    parts.update({part: row.values[column] for part, column in columns.items()})
    absent = [part for part in format.columns[0] if part not in parts]
    if absent:
        raise NotUnderstoodError(f"no column {absent[0]!r}; it has {', '.join(map(str, row.values)) or 'none'}")
    return parts


def _usual_names(present: set[str], format: RowFormat, columns: Mapping[str, str]) -> dict[str, str]:
    """Part → column in lower case, by the one set of usual names that the row has."""
    open_parts = [part for part in format.columns[0] if part not in columns]
    fitting = {tuple(zip(format.columns[0], names, strict=True)) for names in _sets_in(present, format)}
    if len(fitting) > 1 and open_parts:
        choices = " or ".join(", ".join(f"{part}: {name}" for part, name in each) for each in sorted(fitting))
        raise UserError(
            f"Several columns could be {' and '.join(open_parts)}. Say which in data.columns: {{{choices}}}."
        )
    return dict(next(iter(fitting))) if fitting else {part: part for part in format.columns[0]}


def _named_parts(columns: Mapping[str, str], rows: Sequence[Row]) -> str | None:
    """The form whose parts `data.columns` names; None where it names none that tells."""
    if not columns:
        return None
    seen = _columns_of(rows)
    for part, column in columns.items():
        if column not in seen:
            near = difflib.get_close_matches(column, seen, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"data.columns.{part}: the rows have no column {column!r} (they have {', '.join(seen)}).{hint}"
            )
    predictions = [name for name, format in FORMATS.items() if set(columns) & set(format.columns[0])]
    for name in predictions:
        if set(columns) <= set(FORMATS[name].parts):
            return name
    if predictions:
        _check_parts(columns, predictions[0])
    return None


def _check_parts(columns: Mapping[str, str], format: str) -> None:
    parts = FORMATS[format].parts
    for part in columns:
        if part not in parts:
            near = difflib.get_close_matches(part, parts, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"data.columns.{part}: the form {format} has no such part; it has {', '.join(parts)}.{hint}"
            )


def _refuse_other_kinds(row: Row) -> None:
    """Preference data, told by their columns."""
    present = {str(column).lower() for column in row.values} if isinstance(row.values, dict) else set()
    judged = isinstance(row.values, dict) and isinstance(row.values.get("label"), bool)
    answers = present & {"messages", "conversations", "completion", "output", "answer", "response"}
    if present >= {"chosen", "rejected"} or "kto_tag" in present or (judged and answers):
        seen = ", ".join(sorted(present & _PREFERENCE) or ["label"])
        raise UserError(
            f"{row.source}: this is preference data (columns: {seen}); an objective that learns from preferences is "
            "not available yet. To learn from the better answers, write them as chat messages."
        )


def _refuse_unasked(format: RowFormat, rows: Sequence[Row]) -> None:
    """Texts of which something is told: what is to be learnt of them must be asked for by name."""
    if format.objective is None:
        return
    seen = {column.lower(): column for column in _columns_of(rows)}
    sets = [[seen[name] for name in names] for names in _sets_in(set(seen), format)]
    as_answers = alone = ""
    if sets and format.objective == "classification":
        as_answers = f"; to learn to answer with it, data.columns: {{question: {sets[0][0]}, answer: {sets[0][1]}}}"
        alone = "; to learn the texts alone, data.format: text"
    raise UserError(
        f"{rows[0].source}: these are {format.described} (columns: {', '.join(seen.values())}). To learn that, set "
        f"objective: {{kind: {format.objective}}}{as_answers}{alone}."
    )


def _unknown(rows: Sequence[Row]) -> UserError:
    known = "; ".join(f"{name}: {' + '.join(format.columns[0])}" for name, format in FORMATS.items())
    return UserError(
        f"{rows[0].source.file}: no known form has the columns {', '.join(_columns_of(rows)) or '(none)'}. Name those "
        f"that play a part, for example data.columns: {{question: ..., answer: ...}}, or give them "
        f"usual names ({known})."
    )


def _columns_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(column) for row in rows if isinstance(row.values, dict) for column in row.values))


def _chat(values: Values, messages: list[Message]) -> dict[str, Any]:
    system = text_of(values, "system", "")
    first: list[Message] = [{"role": "system", "content": system}] if system else []
    if first and messages[0]["role"] in ("system", "developer"):
        raise NotUnderstoodError("a system column, and a system turn too")
    return {"messages": chat([*first, *messages]), "tools": tools_of(values.get("tools"))}


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _history(values: Values) -> list[tuple[str, str]]:
    history = parsed(values.get("history") or [], "history")
    pairs = history if isinstance(history, list) else [history]
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise NotUnderstoodError("history is not a list of [question, answer] pairs")
    return [(question, answer) for question, answer in pairs]
