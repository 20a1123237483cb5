"""Personal data in a text, with exact places: e-mail addresses, phone numbers, accounts, cards, national ids, IPs."""

import ipaddress
import re
from collections.abc import Iterator

from tunesmith.checks.check import Detail, RowCheck
from tunesmith.checks.finding import Finding, described, without_overlaps
from tunesmith.checks.national_ids import national_ids
from tunesmith.checks.pseudonyms import without_pseudonyms
from tunesmith.checks.record import Record
from tunesmith.checks.shape import digits
from tunesmith.checks.traits import Trait

_EMAIL = re.compile(r"(?<![\w.%+-])\w[\w.%+'-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![\w@])")

_IN_A_URL, _URL = re.compile(r"[a-z]://\S*\Z", re.IGNORECASE), 80

_SIX_DIGITS = re.compile(r"[0-9](?:[ .\-/()A-Z]{0,2}[0-9]){5}")
"""What every number below has: the texts and the places without it are not looked at."""

_BEFORE, _AFTER = 12, 40
"""Characters around six digits that may belong to the number."""

_PLUS = re.compile(r"(?<![\w+])\+[1-9](?:[ .\-/]{0,2}[()]?[ ]?\d){7,14}(?![\w@])")
_GROUPED = re.compile(r"(?<![\w.+/-])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}([ .-]))\d{3}[.\- ]\d{4}(?![\w-]|[.]\d)")
_LEADING_ZERO = re.compile(
    r"(?<![\w.,+/-])(?!0\d[-/.]\d\d?[-/.]\d{4})\(?0[1-9]\d{0,3}\)?[ /-]\d{2,8}(?:[ /-]?\d{2,4}){1,3}(?![\w-]|[.,/ ]\d)"
)
_CALLED = re.compile(
    r"(?:\b(?:tel|phone|telephone|mobile|cell ?phone|fax|call|whatsapp|sms|telefon\w*|handy|mobil\w*|rufnummer|tél\w*|"
    r"portable|teléfono|telefono|móvil|celular|cellulare|telefoon\w*|puhelin\w*)\b|电话|手机|電話|전화)"
    r"[^\d\n+]{0,24}?(?!\d\d?[-/.]\d\d?[-/.]\d{2}|(?:19|20)\d\d\b)(\(?\d(?:[ .\-/()]{0,2}\d){6,13})(?![\w-]|[.,]\d)",
    re.IGNORECASE,
)
"""A number that no other rule takes, behind a word for a phone."""

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")

_CARD = re.compile(
    r"(?<![\w.-])(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|3\d{3}([ -]?)\d{6}\2\d{4,5}|\d{13}|\d{19})"
    r"(?![\w-]|\.\d)"
)
_ISSUER = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|"
    r"3(?:0[0-5]|[68]\d)\d{11}|35\d{14}|6(?:011|5\d\d|4[4-9]\d)\d{12,15}|62\d{14,17}"
)
"""The first digits and lengths of Visa, Mastercard, American Express, Diners, JCB, Discover and UnionPay (ISO 7812)."""

_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w-]|\.[0-9])")
_BEFORE_NO_IP = re.compile(r"(?:[\w.-]|\bv(?:ersion)?[ .:]{0,2})$", re.IGNORECASE)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{1,4}:|::)[0-9a-fA-F:]{2,37}[0-9a-fA-F](?![\w:])")


def personal_data(text: str) -> list[Finding]:
    """Personal data that its form shows. Names are not among it: see `names`.

    Accounts, cards and most national ids are found by their check digits too, so that few other numbers are taken for
    them. A national id in plain digits, or a phone number without a sign of one, is found only behind a word for it.

    Args:
        text: any text.

    Returns:
        Without overlaps, in the order of the text. Kinds: `email`, `phone`, `iban`, `card`, `national_id`, `ip`.
    """
    found = list(_emails(text)) if "@" in text else []
    count = digits(text)
    if count >= 6:
        for start, end in _number_windows(text):
            found += _ibans(text, start, end)
            found += _cards(text, start, end)
            found += national_ids(text, start, end)
            found += _phones(text, start, end)
    if count:
        found += _addresses(text, count)
    return without_overlaps(without_pseudonyms(text, found)) if found else found


def _emails(text: str) -> Iterator[Finding]:
    for match in _EMAIL.finditer(text):
        if _IN_A_URL.search(text, max(0, match.start() - _URL), match.start()):
            continue  # a user and a host
        yield _finding("email", match)


def _number_windows(text: str) -> Iterator[tuple[int, int]]:
    """Where numbers may be, without overlaps."""
    start, end = 0, -1
    for match in _SIX_DIGITS.finditer(text):
        if match.start() - _BEFORE > end:
            if end >= 0:
                yield start, end
            start = max(0, match.start() - _BEFORE)
        end = match.end() + _AFTER
    if end >= 0:
        yield start, min(end, len(text))


def _phones(text: str, start: int, end: int) -> Iterator[Finding]:
    for match in _PLUS.finditer(text, start, end):
        yield _finding("phone", match)
    for pattern in (_GROUPED, _LEADING_ZERO):
        for match in pattern.finditer(text, start, end):
            if 9 <= digits(match[0]) <= 12:
                yield _finding("phone", match)
    for match in _CALLED.finditer(text, max(0, start - 32), end):
        yield Finding("phone", match.start(1), match.end(1), match[1])


def _ibans(text: str, start: int, end: int) -> Iterator[Finding]:
    from stdnum import iban

    for match in _IBAN.finditer(text, start, end):
        value = match[0]
        while len(value) > 14:  # a word in capitals may follow
            if iban.is_valid(value, check_country=False):
                yield Finding("iban", match.start(), match.start() + len(value), value)
                break
            value = value.rpartition(" ")[0]


def _cards(text: str, start: int, end: int) -> Iterator[Finding]:
    from stdnum import luhn

    for match in _CARD.finditer(text, start, end):
        digits = re.sub(r"\D", "", match[0])
        if _ISSUER.fullmatch(digits) and luhn.is_valid(digits):
            yield _finding("card", match)


def _addresses(text: str, count: int) -> Iterator[Finding]:
    """IP addresses that a machine of someone may have: no loopback, no mask, nothing that looks like a version."""
    if count >= 4 and text.count(".") >= 3:
        for match in _IPV4.finditer(text):
            is_long = any(len(part) > 1 for part in match[0].split("."))
            before = text[max(0, match.start() - 10) : match.start()]
            if is_long and not _BEFORE_NO_IP.search(before) and _is_host(match[0]):
                yield _finding("ip", match)
    if "::" in text or text.count(":") >= 7:
        for match in _IPV6.finditer(text):
            if match[0].count(":") >= 2 and digits(match[0]) and _is_host(match[0]):
                yield _finding("ip", match)


def _is_host(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    first = parsed.packed[0]
    if parsed.version == 4:
        return 0 < first < 224 and first != 127
    return len(address) > 6 and not parsed.is_loopback and not parsed.is_multicast


def _finding(kind: str, match: re.Match[str]) -> Finding:
    return Finding(kind, match.start(), match.end(), match[0])


def _find(record: Record) -> Detail | None:
    return described({place: personal_data(text) for place, text in record.places()})


PERSONAL_DATA = RowCheck(
    name="personal_data",
    title="Personal data",
    severity="warning",
    advice="Replace it with pseudonyms, as `tunesmith data clean` does, or remove the rows: a model can repeat it.",
    find=_find,
    traits=Trait.AT | Trait.NUMBER | Trait.ADDRESS,
)
