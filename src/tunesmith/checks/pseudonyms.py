"""What stands for a masked value: of the value's form, and nobody's."""

import hashlib
import hmac
import re
from collections.abc import Callable

from tunesmith.checks.finding import Finding

_PSEUDONYMS = re.compile(
    r"(?:(?<=\\)[bfnrt])?person\d{12}@example\.com|\+999 \d{3} \d{3} \d{3}|\b[A-Z]{2}00(?: ?\d{1,4}){2,9}|"
    r"\[[a-z_]+-\d{12}\]|\b0\d{3}([ -]?)\d{4}\1\d{4}\1\d{1,7}|\b0\d{3}([ -]?)\d{6}\2\d{4,5}|"
    r"\b0(?:\.\d{1,3}){3}\b|\b100::[0-9a-f:]+"
)
"""Each form below. In JSON, a letter that a backslash escapes may stand before an address."""


def without_pseudonyms(text: str, findings: list[Finding]) -> list[Finding]:
    """The findings that are no pseudonyms, nor a part of one.

    What is more than a pseudonym stays, because an IBAN may end as one.

    Args:
        text: where they are.
        findings: in any order.
    """
    spans = [match.span() for match in _PSEUDONYMS.finditer(text)]
    if not spans:
        return findings
    return [each for each in findings if not any(_takes(each, start, end) for start, end in spans)]


def _takes(finding: Finding, start: int, end: int) -> bool:
    """Whether a pseudonym overlaps a finding and is no mere part of it."""
    overlaps = finding.start < end and start < finding.end
    is_part = finding.start <= start and end <= finding.end and (finding.start, finding.end) != (start, end)
    return overlaps and not is_part


def pseudonym(finding: Finding, seed: bytes) -> str:
    """What to write for a finding.

    Args:
        finding: of any kind.
        seed: the key of the pseudonyms.
    """
    value = _normalized(finding)
    digest = hmac.new(seed, f"{finding.kind}:{value}".encode("utf-8", "surrogatepass"), hashlib.sha256)
    number = f"{int.from_bytes(digest.digest()[:16], 'big') % 10**36:036d}"
    write = _FORMS.get(finding.kind)
    return write(finding.value, number) if write else f"[{finding.kind}-{number[:12]}]"


def _normalized(finding: Finding) -> str:
    if finding.kind == "email":
        return finding.value.casefold()
    if finding.kind in ("phone", "card", "iban", "national_id"):
        return re.sub(r"[^0-9A-Z]", "", finding.value.upper())
    return finding.value


def _email(value: str, number: str) -> str:
    return f"person{number[:12]}@example.com"


def _phone(value: str, number: str) -> str:
    return f"+999 {number[:3]} {number[3:6]} {number[6:9]}"


def _iban(value: str, number: str) -> str:
    """Grouped as the value is, with check digits 00, which no IBAN has."""
    return value[:2] + "00" + _with_digits(value[4:], number)


def _card(value: str, number: str) -> str:
    """Grouped as the value is, with a first digit that no issuer has."""
    return "0" + _with_digits(value[1:], number)


def _ip(value: str, number: str) -> str:
    if ":" in value:
        return f"100::{int(number[:4]):x}:{int(number[4:8]):x}:{int(number[8:12]):x}"
    return f"0.{int(number[:6]) % 256}.{int(number[6:12]) % 256}.{int(number[12:18]) % 256}"


def _with_digits(value: str, number: str) -> str:
    """The value with other digits and each letter as a digit, its separators kept."""
    digits = iter(number)
    return re.sub(r"[0-9A-Za-z]", lambda _: next(digits), value)


_FORMS: dict[str, Callable[[str, str], str]] = {
    "email": _email,
    "phone": _phone,
    "iban": _iban,
    "card": _card,
    "ip": _ip,
}
