"""Personal data and secrets replaced by pseudonyms, the same value by the same one, in every row and every file."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tunesmith.checks.finding import Finding, without_overlaps
from tunesmith.checks.nested import with_changed_texts
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
        value: a text, or a row: lists and objects, whose texts (not the keys) are masked, also those in JSON that is
            written in a text. An argument of a tool call is looked at behind its name (`password: …`), and its long
            numbers too.
        seed: any number or text.
        find: what to replace; `personal_data` or `secrets` for one of both.

    Returns:
        A value of the same shape, and how many of each kind were replaced.
    """
    masked = Masked(None)
    key = str(seed).encode()
    masked.value = with_changed_texts(value, lambda text, name: _masked_text(text, name, key, find, masked.kinds))
    return masked


def _masked_text(text: str, name: str, seed: bytes, find: Callable[[str], list[Finding]], kinds: Counter[str]) -> str:
    """The text masked; `name` is that of the argument that it is, or empty."""
    before = f"{name}: " if name else ""
    for _ in range(PASSES):
        found = [finding for finding in find(before + text) if finding.start >= len(before)]
        if not found:
            break
        kinds.update(finding.kind for finding in found)
        for finding in reversed(found):
            start, end = finding.start - len(before), finding.end - len(before)
            text = text[:start] + pseudonym(finding, seed) + text[end:]
    return text
