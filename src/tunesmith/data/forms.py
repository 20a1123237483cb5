"""The forms that rows come in: told by their columns, or named by the recipe, and each made into an `Example`.

A form is one function and one line in `FORMS`. Column names are matched whatever their case. Texts are taken as they
stand: nothing is stripped.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.example import Example, Malformed, Message, Source
from tunesmith.data.read import Row
from tunesmith.data.turns import NotUnderstoodError, chat, in_words, parsed, tools_of, turns_of
from tunesmith.errors import UserError

Values = Mapping[str, Any]
"""A row by the parts that its columns play (`question`), not by the columns' own names (`Frage`)."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form of rows.

    Attributes:
        described: in words, for messages.
        columns: sets of columns, in order of preference; a row that has all of one of them is of this form. The first
            set is what the form's parts are called.
        optional: columns that it takes too.
        read: from the row's parts to messages (or a text) and tools.
    """

    described: str
    columns: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]
    read: Callable[[Values], dict[str, Any]]

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.columns[0], *self.optional)


def _messages(values: Values) -> dict[str, Any]:
    """`messages`: [{role, content, ...}], with `tools`; a `system` column goes before them."""
    return _chat(values, turns_of(_needed(values, "messages"), "messages"))


def _sharegpt(values: Values) -> dict[str, Any]:
    """`conversations`: [{from, value}], with `system` and `tools` (ShareGPT; calls as in LLaMA-Factory)."""
    return _chat(values, turns_of(_needed(values, "conversations"), "conversations"))


def _alpaca(values: Values) -> dict[str, Any]:
    """`instruction`, `input`, `output`, `system`, `history`: [[question, answer], ...] (Taori et al. 2023).

    The input, where there is one, follows the instruction on a line of its own.
    """
    instruction, more = _text(values, "instruction"), _text(values, "input", "")
    earlier = [turn for pair in _history(values) for turn in _exchange(*pair)]
    asked = f"{instruction}\n{more}" if more else instruction
    return _chat(values, [*earlier, *_exchange(asked, _text(values, "output"))])


def _prompt_completion(values: Values) -> dict[str, Any]:
    """`prompt` and `completion`: two texts, which become a question and an answer; or two lists of turns."""
    prompt, completion = _needed(values, "prompt"), _needed(values, "completion")
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
    context = _text(values, "context", "")
    question = _text(values, "question")
    return _chat(values, _exchange(f"{context}\n\n{question}" if context else question, _text(values, "answer")))


def _raw_text(values: Values) -> dict[str, Any]:
    """`text`, or a row or file that is nothing but text."""
    text = _text(values, "text")
    if not text.strip():
        raise NotUnderstoodError("the text is empty")
    return {"text": text}


def _classification(values: Values) -> dict[str, Any]:
    """`text` and `label`: a name or a number."""
    text, label = _raw_text(values)["text"], _needed(values, "label")
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if not isinstance(label, str | int) or not str(label).strip():
        raise NotUnderstoodError(f"label is {in_words(label)}, not a class's name or number")
    return {"text": text, "label": str(label).strip()}


_TEXTS = ("text", "content", "sentence")
_CLASS = ("labels", "category", "class", "intent", "sentiment", "topic")

FORMS: dict[str, Form] = {
    "messages": Form("chat messages", (("messages",),), ("tools", "system"), _messages),
    "sharegpt": Form("ShareGPT conversations", (("conversations",),), ("tools", "system"), _sharegpt),
    "alpaca": Form("Alpaca instructions", (("instruction", "output"),), ("input", "system", "history"), _alpaca),
    "prompt_completion": Form(
        "prompts and completions", (("prompt", "completion"),), ("tools", "system"), _prompt_completion
    ),
    "question_answer": Form(
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
    "classification": Form(
        "texts with classes",
        tuple((text, label) for text in _TEXTS for label in ("label", *_CLASS)),
        (),
        _classification,
    ),
    "text": Form("raw text", (("text",), ("content",)), (), _raw_text),
}
"""Every form by the name that `data.form` takes; where a row fits several, the first."""

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
            "None of the first rows could be read, so their form cannot be told. Mend them, or set data.form."
        )
    named = _named_parts(columns or {}, rows)
    fits: dict[str, Source] = {}
    for row in rows:
        _refuse_other_kinds(row)
        form = named if named is not None else _form_of(row)
        if form is not None:
            fits.setdefault(form, row.source)
    if not fits:
        raise _unknown(rows)
    if len(fits) > 1:
        found = ", ".join(f"{FORMS[name].described} ({source})" for name, source in fits.items())
        raise UserError(
            f"The rows are of several forms: {found}. Train on files of one form, or set data.form to one of "
            f"{', '.join(fits)}; rows of another are then malformed."
        )
    form = next(iter(fits))
    if form == "classification":
        _refuse_classes(rows)
    return form


def to_example(row: Row, form: str, columns: Mapping[str, str] | None = None) -> Example | Malformed:
    """The row as an example, or why it is none.

    Args:
        row: as read.
        form: a name in `FORMS`.
        columns: part → column, as `data.columns` names them.

    Raises:
        UserError: the form, or a part that `columns` names, is not known.
    """
    kind = form_named(form)
    try:
        values = _parts(row, kind, form, columns or {})
        return Example(row.source, **kind.read(values))
    except NotUnderstoodError as error:
        return Malformed(row.source, str(error))


def form_named(form: str) -> Form:
    """The form of that name.

    Raises:
        UserError: there is none.
    """
    if form not in FORMS:
        near = difflib.get_close_matches(form, FORMS, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(FORMS)}."
        raise UserError(f"data.form: {form} is not known. {hint}")
    return FORMS[form]


def _form_of(row: Row) -> str | None:
    if isinstance(row.values, str):
        return "text"
    present = {str(column).lower() for column, value in row.values.items() if value is not None}
    if any(present >= turn for turn in _ONE_TURN):
        raise UserError(
            f"{row.source} is a single turn ({', '.join(row.values)}). A row must hold a whole conversation: gather "
            "the turns in a column `messages`."
        )
    return next((name for name, form in FORMS.items() if _sets_in(present, form)), None)


def _sets_in(present: set[str], form: Form) -> list[tuple[str, ...]]:
    return [names for names in form.columns if present.issuperset(names)]


def _parts(row: Row, form: Form, name: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row's values by the parts they play: as `columns` names them, else by the form's usual column names."""
    if isinstance(row.values, str):
        if form.parts != ("text",):
            raise NotUnderstoodError(f"plain text, where the other rows have columns ({', '.join(form.columns[0])})")
        return {"text": row.values}
    _check_parts(columns, name)
    missing = [column for column in columns.values() if column not in row.values]
    if missing:
        raise NotUnderstoodError(f"no column {missing[0]!r}; it has {', '.join(map(str, row.values)) or 'none'}")
    own = {str(column).lower(): value for column, value in row.values.items()}
    usual = _usual_names({column for column, value in own.items() if value is not None}, form, columns)
    parts = {part: own[column] for part, column in usual.items() if column in own}
    parts.update({part: own[part] for part in form.optional if part in own})
    if "system" in form.optional and "system" not in parts and "system_prompt" in own:
        parts["system"] = own["system_prompt"]
    parts.update({part: row.values[column] for part, column in columns.items()})
    absent = [part for part in form.columns[0] if part not in parts]
    if absent:
        raise NotUnderstoodError(f"no column {absent[0]!r}; it has {', '.join(map(str, row.values)) or 'none'}")
    return parts


def _usual_names(present: set[str], form: Form, columns: Mapping[str, str]) -> dict[str, str]:
    """Part → column in lower case, by the one set of usual names that the row has."""
    open_parts = [part for part in form.columns[0] if part not in columns]
    fitting = {tuple(zip(form.columns[0], names, strict=True)) for names in _sets_in(present, form)}
    if len(fitting) > 1 and open_parts:
        choices = " or ".join(", ".join(f"{part}: {name}" for part, name in each) for each in sorted(fitting))
        raise UserError(
            f"Several columns could be {' and '.join(open_parts)}. Say which in data.columns: {{{choices}}}."
        )
    return dict(next(iter(fitting))) if fitting else {part: part for part in form.columns[0]}


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
    telling = [name for name, form in FORMS.items() if set(columns) & set(form.columns[0])]
    for name in telling:
        if set(columns) <= set(FORMS[name].parts):
            return name
    if telling:
        _check_parts(columns, telling[0])
    return None


def _check_parts(columns: Mapping[str, str], form: str) -> None:
    parts = FORMS[form].parts
    for part in columns:
        if part not in parts:
            near = difflib.get_close_matches(part, parts, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"data.columns.{part}: the form {form} has no such part; it has {', '.join(parts)}.{hint}")


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


def _refuse_classes(rows: Sequence[Row]) -> None:
    """Texts beside classes: what is to be learnt of them must be asked for by name."""
    seen = _columns_of(rows)
    label = next(column for column in seen if column.lower() in ("label", *_CLASS))
    text = next(column for column in seen if column.lower() in _TEXTS)
    raise UserError(
        f"{rows[0].source}: this is classification data (columns: {', '.join(seen)}). To learn the class, set "
        f"objective: {{kind: classification}}; to learn to answer with the class, data.columns: {{question: {text}, "
        f"answer: {label}}}; to learn the texts alone, data.form: text."
    )


def _unknown(rows: Sequence[Row]) -> UserError:
    known = "; ".join(f"{name}: {' + '.join(form.columns[0])}" for name, form in FORMS.items())
    return UserError(
        f"{rows[0].source.file}: no known form has the columns {', '.join(_columns_of(rows)) or '(none)'}. Name those "
        f"that play a part, for example data.columns: {{question: ..., answer: ...}}, or give them "
        f"usual names ({known})."
    )


def _columns_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(column) for row in rows if isinstance(row.values, dict) for column in row.values))


def _chat(values: Values, messages: list[Message]) -> dict[str, Any]:
    system = _text(values, "system", "")
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


def _needed(values: Values, part: str) -> Any:
    value = values.get(part)
    if value is None:
        raise NotUnderstoodError(f"{part} is missing")
    return value


def _text(values: Values, part: str, default: str | None = None) -> str:
    value = values.get(part)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise NotUnderstoodError(f"{part} is {in_words(value)}" + ("" if value is None else ", not a text"))
    return value
