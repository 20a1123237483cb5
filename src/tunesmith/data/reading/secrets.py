"""URLs with secrets: `${NAME}` stands for an environment variable, and what is shown holds none."""

import os
import re
from urllib.parse import urlsplit

from tunesmith.errors import UserError

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_PASSWORD = re.compile(r"(?<=:)[^:/@?#]*(?=@)")
_QUERY = re.compile(r"(?<=[=])[^&#]*")


def expanded(url: str) -> str:
    """The URL with the values of the environment variables that it names.

    Args:
        url: as in the recipe.

    Raises:
        UserError: a variable is not set.
    """
    for name in _VARIABLE.findall(url):
        if name not in os.environ:
            raise UserError(
                f"{shown(url)} names the environment variable {name}, which is not set. Set it: export {name}=…"
            )
    return _VARIABLE.sub(lambda match: os.environ[match[1]], url)


def shown(url: str) -> str:
    """The URL without secrets: passwords and the values after `?` are left out, names of variables are not.

    Args:
        url: as in the recipe.
    """
    head, mark, tail = url.partition("?")
    scheme, slashes, rest = head.partition("://")
    host, slash, path = rest.partition("/")
    host = _PASSWORD.sub(_unless_variable, host)
    return f"{scheme}{slashes}{host}{slash}{path}" + (f"?{_QUERY.sub(_unless_variable, tail)}" if mark else "")


def _unless_variable(match: re.Match[str]) -> str:
    return match[0] if not match[0] or _VARIABLE.fullmatch(match[0]) else "***"


def refuse_password(url: str) -> None:
    """Refuse a URL with a password in clear: a recipe is stored with each run.

    Args:
        url: as in the recipe.

    Raises:
        UserError: it has one.
    """
    try:
        password = urlsplit(url).password
    except ValueError:
        password = None
    if password and not _VARIABLE.search(password):
        raise UserError(
            f"{shown(url)} has a password in clear, which would be stored with each run. Write ${{PASSWORD}} in its "
            "place, and set that environment variable."
        )
