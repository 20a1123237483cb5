"""Personal data and secrets replaced by pseudonyms, the same value by the same one, in every row and every file."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tunesmith.checks.finding import Finding, without_overlaps
from tunesmith.checks.personal_data import personal_data
from tunesmith.checks.pseudonyms import pseudonym
from tunesmith.checks.secrets import secrets

PASSES = 5
"""What a pseudonym's neighbors form with it may look like personal data again."""


@dataclass(slots=True)
class Masked:
    """A masked value.

    Attributes:
        value: with pseudonyms.
        kinds: how many of each kind were replaced.
    """

    value: Any
    kinds: Counter[str] = field(default_factory=Counter)


def find_sensitive(text: str) -> list[Finding]:
    """Secrets and personal data in a text, without overlaps, in its order.

    Args:
        text: any text.
    """
    found = [*secrets(text), *personal_data(text)]
    return without_overlaps(found) if len(found) > 1 else found


def mask(value: Any, *, seed: int | str = 0, find: Callable[[str], list[Finding]] = find_sensitive) -> Masked:
    """Replace personal data and secrets in a text, or in all texts of a row.

    A pseudonym depends on the seed, the kind and the value alone: an address gets the same one in every row, file and
    process, however it is capitalized; a number, however it is grouped. It keeps the form of its kind and can be
    nobody's: `person402817735519@example.com` (RFC 2606), a phone with the spare calling code 999, an IBAN with check
    digits that no account has, a card of no issuer, an IP in 0.0.0.0/8 (RFC 1122) or 100::/64 (RFC 6666). Masking a
    masked text changes nothing.

    Pseudonyms are HMACs: who knows the seed can test whether a value is behind one. Choose a long one, as a text, and
    keep it secret if the set leaves the house.

    Args:
        value: a text, or a row: lists and objects, whose texts (not the keys) are masked.
        seed: any number or text.
        find: what to replace; `personal_data` or `secrets` for one of both.

    Returns:
        A value of the same shape, and how many of each kind were replaced.
    """
    masked = Masked(None)
    masked.value = _masked(value, str(seed).encode(), find, masked.kinds)
    return masked


def _masked(value: Any, seed: bytes, find: Callable[[str], list[Finding]], kinds: Counter[str]) -> Any:
    if isinstance(value, str):
        return _masked_text(value, seed, find, kinds)
    if isinstance(value, list):
        return [_masked(item, seed, find, kinds) for item in value]
    if isinstance(value, dict):
        return {key: _masked(item, seed, find, kinds) for key, item in value.items()}
    return value


def _masked_text(text: str, seed: bytes, find: Callable[[str], list[Finding]], kinds: Counter[str]) -> str:
    for _ in range(PASSES):
        found = find(text)
        if not found:
            break
        kinds.update(finding.kind for finding in found)
        for finding in reversed(found):
            text = text[: finding.start] + pseudonym(finding, seed) + text[finding.end :]
    return text
