"""API keys: a file with the hash of each, and what it may do.

A key has 256 random bits, so its SHA-256 is as hard to invert as a slow hash of a password would be.
"""

import hashlib
import hmac
import json
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tunesmith.errors import UserError
from tunesmith.run import atomic_write, writing

PREFIX = "ts-"
"""What our keys begin with, so that scanners for secrets in files can find them."""


class StoredKey(BaseModel):
    """A key as the file has it.

    Attributes:
        name: for people.
        sha256: of the key, in hexadecimal.
        models: the names of the models and adapters that it may use; None: all.
        tokens_per_minute: of prompts and answers; None: no limit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    models: tuple[str, ...] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None


_FILE = TypeAdapter(tuple[StoredKey, ...])


def read_keys(file: Path) -> tuple[StoredKey, ...]:
    """The keys of a file that `add_key` wrote.

    Raises:
        UserError: it cannot be read, or has no key.
    """
    try:
        keys = _FILE.validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error.errors()[0]["msg"])
        raise UserError(f"{file} cannot be read: {reason}. Make it with: tunesmith keys add {file} NAME") from None
    if not keys:
        raise UserError(f"{file} has no key. Add one with: tunesmith keys add {file} NAME")
    return keys


def add_key(
    file: str | Path, name: str, models: tuple[str, ...] | None = None, tokens_per_minute: int | None = None
) -> str:
    """Make a key, and add its hash to the file, which only its owner can read.

    Args:
        file: of keys; it is made if it does not exist.
        name: of the key, for people.
        models: the names of the models and adapters that it may use; None: all.
        tokens_per_minute: of prompts and answers; None: no limit.

    Returns:
        The key. It is stored nowhere.

    Raises:
        UserError: there is a key of that name, or the file cannot be read.
    """
    path = Path(file)
    keys = read_keys(path) if path.exists() else ()
    if any(each.name == name for each in keys):
        raise UserError(f"{path} has a key named {name} already. Remove it first, or choose another name.")
    key = PREFIX + secrets.token_urlsafe(32)
    _write(path, (*keys, StoredKey(name=name, sha256=_hash(key), models=models, tokens_per_minute=tokens_per_minute)))
    return key


def remove_key(file: str | Path, name: str) -> None:
    """Remove a key from the file.

    Args:
        file: of keys.
        name: of the key.

    Raises:
        UserError: there is no key of that name.
    """
    path = Path(file)
    keys = read_keys(path)
    if all(each.name != name for each in keys):
        raise UserError(f"{path} has no key named {name}. It has: {', '.join(each.name for each in keys)}.")
    _write(path, tuple(each for each in keys if each.name != name))


def _write(path: Path, keys: tuple[StoredKey, ...]) -> None:
    text = json.dumps([key.model_dump(exclude_none=True) for key in keys], indent=2)
    with writing(path), atomic_write(path, permissions=0o600) as out:
        out.write(text + "\n")


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(eq=False)
class Client:
    """Who asks, and how many tokens are left.

    Args:
        name: of the key; "" without keys.
        models: that it may use; None: all.
        tokens_per_minute: None: no limit.
        now: the time in seconds.
    """

    name: str = ""
    models: tuple[str, ...] | None = None
    tokens_per_minute: int | None = None
    now: Callable[[], float] = time.monotonic
    _left: float = field(init=False, default=0.0)
    _at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._left, self._at = float(self.tokens_per_minute or 0), self.now()

    def may_use(self, model: str) -> bool:
        """Whether the key has the right to that model."""
        return self.models is None or model in self.models

    def reserve(self, tokens: int) -> int | None:
        """Take that many tokens from the minute's (a token bucket). More than the whole minute's are counted as that.

        Returns:
            None, or the seconds after which there are enough.
        """
        if self.tokens_per_minute is None:
            return None
        per_second = self.tokens_per_minute / 60
        now = self.now()
        self._left = min(float(self.tokens_per_minute), self._left + (now - self._at) * per_second)
        self._at = now
        needed = min(tokens, self.tokens_per_minute)
        if needed > self._left:
            return max(1, math.ceil((needed - self._left) / per_second))
        self._left -= tokens
        return None

    def give_back(self, tokens: int) -> None:
        """Give back what was reserved and not used."""
        self._left += tokens


class Keys:
    """Who is who.

    Args:
        stored: the keys; none: everybody may do everything.
    """

    def __init__(self, stored: tuple[StoredKey, ...] = ()) -> None:
        self._clients = [(each.sha256, Client(each.name, each.models, each.tokens_per_minute)) for each in stored]
        self._anyone = Client()

    @property
    def are_none(self) -> bool:
        """Whether everybody may do everything."""
        return not self._clients

    def client(self, authorization: str | None) -> Client | None:
        """Who sent this `Authorization` header; None if its key is not known.

        Every stored hash is compared, in constant time, so that the time reveals nothing about them.
        """
        if not self._clients:
            return self._anyone
        scheme, _, key = (authorization or "").partition(" ")
        given = _hash(key.strip()) if scheme.lower() == "bearer" else ""
        found = [client for sha256, client in self._clients if hmac.compare_digest(sha256, given)]
        return found[0] if found else None
