"""Which row format rows have, from their columns."""

import difflib
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from tunesmith.data.example import Source
from tunesmith.data.read import Row, read
from tunesmith.data.row_format import RowFormat
from tunesmith.data.row_formats import FORMATS, check_fields, sets_in
from tunesmith.data.suggested_columns import suggested
from tunesmith.errors import UserError

_ONE_TURN = ({"role", "content"}, {"from", "value"})


def detect(rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> str:
    """As `format_of_rows`, of rows that need no objective of their own.

    Raises:
        UserError: also if they need one; the message names it.
    """
    format = format_of_rows(rows, columns)
    _refuse_without_objective(FORMATS[format], rows)
    return format


def format_of_rows(rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> str:
    """The name of the row format, from the columns that have a value.

    Args:
        rows: the first rows, for example a hundred.
        columns: field → column, from `data.columns`.

    Raises:
        UserError: no format matches, or several do.
    """
    if not rows:
        raise UserError(
            "None of the first rows could be read, so their format cannot be detected. Fix them, or set data.format."
        )
    from_columns = _format_of_columns(columns or {}, rows)
    matches: dict[str, Source] = {}
    for row in rows:
        format = from_columns if from_columns is not None else _format_of(row)
        if format is not None:
            matches.setdefault(format, row.source)
    if not matches:
        raise _unknown(rows)
    if len(matches) > 1:
        formats = ", ".join(f"{FORMATS[name].noun} ({source})" for name, source in matches.items())
        raise UserError(
            f"The rows have several formats: {formats}. Train on files of one format, or set data.format to one of "
            f"{', '.join(matches)}; rows in another format are then malformed."
        )
    return next(iter(matches))


def objective_of_rows(
    rows: Sequence[Row], columns: Mapping[str, str] | None = None, format: str = "auto"
) -> tuple[str, str]:
    """The row format, and the objective that such rows are usually trained with.

    Args:
        rows: the first rows.
        columns: field → column, from `data.columns`.
        format: `data.format`.

    Raises:
        UserError: as `format_of_rows` raises.
    """
    found = format_of_rows(rows, columns) if format == "auto" else format
    objective = FORMATS[found].objective if found in FORMATS else None
    return found, objective or ("text" if found == "text" else "instruction")


def objective_of_file(paths: Sequence[str], columns: Mapping[str, str] | None = None, format: str = "auto") -> str:
    """The objective that files are usually trained with: `text` for raw text, `dpo` or `kto` for human feedback,
    `classification` for texts with classes, `instruction` for everything else.

    Args:
        paths: as `data.train` takes them.
        columns: field → column, from `data.columns`.
        format: `data.format`.

    Raises:
        UserError: as `read` and `objective_of_rows` raise.
    """
    first = [row for row in islice(read(paths, Path.cwd()), 100) if isinstance(row, Row)]
    return objective_of_rows(first, columns, format)[1]


def format_for(rows: Sequence[Row], formats: Sequence[str], columns: Mapping[str, str]) -> str:
    """The row format to use, among the formats that the objective accepts.

    Args:
        rows: the first rows.
        formats: the names that the objective accepts, in order of preference.
        columns: field → column, from `data.columns`.

    Returns:
        The first format that has all fields of `columns` and whose columns the rows have; else the first that has the
        fields; else the first whose columns the rows have; else the first.
    """
    with_fields = [format for format in formats if columns and set(columns) <= set(FORMATS[format].fields)]
    formats = with_fields or formats
    present = {column.lower() for column in _columns_of(rows)}
    return next((format for format in formats if sets_in(present, FORMATS[format])), formats[0])


def chosen_format(rows: Sequence[Row], format: str, accepted: Sequence[str], columns: Mapping[str, str]) -> str:
    """The row format to use: the recipe's, else one that the objective accepts, else the one that the rows have.

    Args:
        rows: the first rows.
        format: `data.format`.
        accepted: the formats with targets that the objective accepts; empty for chats and raw text.
        columns: field → column, from `data.columns`.

    Raises:
        UserError: as `detect` raises.
    """
    if format != "auto":
        return format
    return format_for(rows, accepted, columns) if accepted else detect(rows, columns)


def _format_of(row: Row) -> str | None:
    if isinstance(row.values, str):
        return "text"
    present = {str(column).lower() for column, value in row.values.items() if value is not None}
    if any(present >= turn for turn in _ONE_TURN):
        raise UserError(
            f"{row.source} is a single turn ({', '.join(row.values)}). A row must hold a full conversation: put "
            "the turns in a column `messages`."
        )
    feedback = _feedback_format(row, present)
    if feedback is not None:
        return feedback
    return next((name for name, format in FORMATS.items() if format.detected and sets_in(present, format)), None)


def _format_of_columns(columns: Mapping[str, str], rows: Sequence[Row]) -> str | None:
    """The format whose fields `data.columns` names; None if the fields do not identify one."""
    if not columns:
        return None
    present = _columns_of(rows)
    for field, column in columns.items():
        if column not in present:
            near = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"data.columns.{field}: the rows have no column {column!r} (they have {', '.join(present)}).{hint}"
            )
    candidates = [name for name, format in FORMATS.items() if set(columns) & set(format.columns[0])]
    for name in candidates:
        if set(columns) <= set(FORMATS[name].fields):
            return name
    if candidates:
        check_fields(columns, candidates[0])
    return None


def _feedback_format(row: Row, present: set[str]) -> str | None:
    """The format of human feedback, which a chat's columns alone do not show."""
    if not isinstance(row.values, dict):
        return None
    by_name = {str(column).lower(): value for column, value in row.values.items()}
    if present >= {"chosen", "rejected"}:
        return "preference"
    answers = present & {"messages", "conversations", "completion", "output", "answer", "response"}
    if (
        "kto_tag" in present
        or present >= {"thumb", "messages", "answers"}
        or (isinstance(by_name.get("label"), bool) and answers)
    ):
        return "rating"
    answers_of = next((by_name[name] for name in ("completions", "responses") if name in present), None)
    if isinstance(by_name.get("completions"), list) and isinstance(by_name.get("labels"), list):
        return "steps"
    return "ranking" if isinstance(answers_of, list) and len(answers_of) > 1 else None


def _refuse_without_objective(format: RowFormat, rows: Sequence[Row]) -> None:
    """Refuse labeled texts and human feedback: they need an objective that the recipe must name."""
    if format.objective is None:
        return
    present = {column.lower(): column for column in _columns_of(rows)}
    sets = [[present[name] for name in names] for names in sets_in(set(present), format)]
    as_answers = as_text = ""
    if sets and format.objective == "classification":
        as_answers = (
            f"; to generate the class as an answer, set data.columns: {{question: {sets[0][0]}, answer: {sets[0][1]}}}"
        )
        as_text = "; to train on the texts only, set data.format: text"
    raise UserError(
        f"{rows[0].source}: these are {format.noun} (columns: {', '.join(present.values())}). To train on them, "
        f"set objective: {{kind: {format.objective}}}{as_answers}{as_text}."
    )


def _unknown(rows: Sequence[Row]) -> UserError:
    columns = ", ".join(map(_quoted, _columns_of(rows))) or "(none)"
    start = f"{rows[0].source.file}: no known format has the columns {columns}. "
    found = suggested(rows)
    if not found:
        known = "; ".join(f"{name}: {' + '.join(format.columns[0])}" for name, format in FORMATS.items())
        return UserError(
            f"{start}Name the columns to read in a recipe, for example data.columns: {{question: ..., answer: ...}}, "
            f"or give them usual names ({known})."
        )
    listed = "\n  ".join(map(str, found))
    return UserError(f"{start}Name the columns to read in a recipe. They could be\n  {listed}")


def _quoted(column: str) -> str:
    """A name, in quotes if it could not be seen."""
    return column if column.strip() == column and column else repr(column)


def _columns_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(column) for row in rows if isinstance(row.values, dict) for column in row.values))
