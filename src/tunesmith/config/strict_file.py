"""A YAML file that is read into a `Strict` model, such as a gate or a prompt: errors in one line each."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tunesmith.config.registry import Strict
from tunesmith.config.yaml_text import parse_yaml
from tunesmith.errors import UserError

Kind = TypeVar("Kind", bound=Strict)


def mapping_in(file: Path, what: str, fields: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        file: in YAML.
        what: it should be, with its article, such as `a gate`.
        fields: that it has, for errors.

    Returns:
        Its values.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        values = parse_yaml(file.read_text(encoding="utf-8"), file.name)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as {what}: {getattr(error, 'strerror', None) or error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{file.name}: {what} is a mapping with {fields}; this is {type(values).__name__}.")
    return values


def checked_values(model: type[Kind], values: Mapping[str, Any], where: str, context: Any = None) -> Kind:
    """A model of values from a file.

    Args:
        model: to validate.
        values: by field.
        where: the file's name, for errors.
        context: for the model's validators.

    Returns:
        The model.

    Raises:
        UserError: a value is wrong; the message names the file and the field, a line each.
    """
    try:
        return model.model_validate(values, context=context)
    except ValidationError as error:
        lines = (f"{where}: {_explained(details, model)}" for details in error.errors())
        raise UserError("\n".join(dict.fromkeys(lines))) from None


def _explained(details: ErrorDetails, model: type[BaseModel]) -> str:
    """One of pydantic's errors as a line."""
    location = details["loc"]
    name = ".".join(str(part) for part in location)
    if details["type"] == "extra_forbidden":
        known = list(_model_at(model, location[:-1]).model_fields)
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
        return f"{name} is not a field. {hint}"
    if details["type"] == "missing":
        return f"{name} is missing. Add it."
    message = details["msg"].removeprefix("Value error, ").rstrip(".")
    plain = f"{message[:1].lower()}{message[1:]}."
    return f"{name}: {plain}" if name else plain


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """The model of the section at a location, in which numbers are of lists."""
    for part in location:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            model = next(_models_in(field.annotation), model)
    return model


def _models_in(annotation: Any) -> Any:
    """The models that a type is made of: `list[Limit]`, `Examples | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
