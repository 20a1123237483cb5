"""Where the rows are in a JSON file: the layouts that exporters write."""

from typing import Any

from tunesmith.errors import UserError

_TURN = ({"role", "content"}, {"from", "value"})


def rows_of(value: Any, name: str) -> list[Any]:
    """The rows of a parsed file.

    A list is the rows. An object may hold them in its only list of objects (`{"data": [...], "version": 1}`), may map
    ids to them (`{"a1": {...}, "a2": {...}}`), or may be a single row.

    Raises:
        UserError: the file holds columns rather than rows, or no rows at all.
    """
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise UserError(f"{name} holds a single {type(value).__name__}, not rows. Write a list of objects.")
    inner = list(value.values())
    lists = [each for each in inner if isinstance(each, list) and each and all(isinstance(row, dict) for row in each)]
    if len(lists) == 1 and not any(_is_turn(row) for row in lists[0]):
        return list(lists[0])
    if _holds_columns(inner):
        raise UserError(
            f"{name} holds columns ({', '.join(map(str, value))}), each with all its values, not rows. Write a list "
            'with one object a row; in pandas: df.to_json(path, orient="records").'
        )
    if len(inner) > 1 and all(isinstance(each, dict) for each in inner):
        return inner
    return [value] if value else []


def _is_turn(row: dict[str, Any]) -> bool:
    return any(names <= row.keys() for names in _TURN)


def _holds_columns(inner: list[Any]) -> bool:
    """`{"question": [...], "answer": [...]}`, or from pandas `{"question": {"0": ..., "1": ...}, ...}`."""
    scalars = [each for each in inner if isinstance(each, list) and each and not isinstance(each[0], dict)]
    if scalars and len(scalars) == len(inner) and len({len(each) for each in scalars}) == 1:
        return True
    return bool(inner) and all(isinstance(each, dict) and each and all(key.isdigit() for key in each) for each in inner)
