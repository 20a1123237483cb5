"""Texts with variables: `{name}` stands for a value, and a doubled brace for the brace itself.

The syntax is that of `string.Formatter`, but with names alone: no attributes, indices, conversions or formats, which
could read what the text has no business with.
"""

from collections.abc import Mapping
from string import Formatter


def names_in(template: str) -> list[str]:
    """The variables of a text, in order, each once.

    Args:
        template: the text.

    Returns:
        Their names.

    Raises:
        ValueError: a brace is alone, or holds something else than a name.
    """
    return list(dict.fromkeys(name for _, name in _parts(template) if name is not None))


def fill(template: str, values: Mapping[str, str]) -> str:
    """A text with its variables' values. Braces in the values are left as they are.

    Args:
        template: the text.
        values: by name.

    Returns:
        The text.

    Raises:
        ValueError: as `names_in`; or a variable has no value.
    """
    missing = [name for name in names_in(template) if name not in values]
    if missing:
        given = f"Given: {', '.join(values)}" if values else "None is given"
        raise ValueError(f"the variable {{{missing[0]}}} has no value. {given}")
    return "".join(text + ("" if name is None else values[name]) for text, name in _parts(template))


def literal(text: str) -> str:
    """A template that is filled to this text.

    Args:
        text: any.

    Returns:
        The text with its braces doubled.
    """
    return text.replace("{", "{{").replace("}", "}}")


def _parts(template: str) -> list[tuple[str, str | None]]:
    """The texts of a template, each with the name of the variable that follows it."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError:
        raise ValueError("a brace is alone. Double it ({{ or }}) if the brace itself is meant") from None
    for _, name, form, conversion in parts:
        if name is not None and (not name.isidentifier() or form or conversion):
            shown = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise ValueError(f"{{{shown}}} is not {{name}}. Double the braces if they themselves are meant")
    return [(text, name) for text, name, *_ in parts]
