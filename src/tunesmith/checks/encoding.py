"""Texts that were decoded wrongly, and characters that no text should have."""

import re

from tunesmith.checks.check import RowCheck
from tunesmith.checks.record import Record
from tunesmith.checks.traits import Trait

_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufffe\uffff\ud800-\udfff\u202d\u202e]|(?<!^)\ufeff")
"""Control characters but tab, line ends and form feed; lone surrogates; what reorders the text; a byte order mark."""

_LATIN_CONTROL = bytes(code for code in range(256) if _CONTROL.match(chr(code)))
_OTHER_CONTROL = "\ufffe\uffff\u202d\u202e\ufeff"

DECODED_TWICE = (
    (
        "\u00c2-\u00c6\u00c8-\u00cf\u00d0-\u00d1\u00d8-\u00d9\u00e0-\u00ef\u00f0",
        "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014\u2018-\u201e\u2020-\u2022\u2026\u2030\u2039"
        "\u203a\u20ac\u2122",
    ),
    ("\u0420\u0421\u0413\u0432", "\u0402-\u040f\u0452-\u045f\u00a0-\u00bf\u2013-\u2122"),
)
"""Where UTF-8 may have been read as Windows-1252 or Windows-1251: the characters of a lead byte and of the byte behind
it, as character classes."""

_DECODED_TWICE = re.compile("|".join(f"[{lead}][{following}]" for lead, following in DECODED_TWICE))

BAD = "[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd-\uffff\ud800-\udfff\u202d\u202e\ufeff]"
"""Every character that `encoding_problem` looks for alone."""

_AROUND = 60
"""Characters on each side that ftfy looks at."""


def _find(record: Record) -> str | None:
    for place, text in record.places():
        problem = encoding_problem(text)
        if problem is not None:
            return f"{problem} in {place}"
    return None


def encoding_problem(text: str) -> str | None:
    """What is wrong with a text's characters, as a clause that quotes it; None if nothing is.

    Args:
        text: any text.
    """
    if _may_have_control(text) and (control := _CONTROL.search(text)) is not None:
        return f"the character U+{ord(control[0]):04X} (after {_before(text, control.start())})"
    if text.isascii():
        return None
    if "\ufffd" in text:
        return f"the replacement character � (after {_before(text, text.index('�'))})"
    return _mojibake(text)


def _may_have_control(text: str) -> bool:
    """Whether it has a character that may be one of `_CONTROL`: much faster than to search for them."""
    latin = text.encode("latin-1", "replace")
    if len(latin) != len(latin.translate(None, _LATIN_CONTROL)):
        return True
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True  # half of a surrogate pair
    return any(character in text for character in _OTHER_CONTROL)


def _mojibake(text: str) -> str | None:
    """A word that ftfy (Speer 2019) can repair, if there is one."""
    from ftfy import fix_encoding
    from ftfy.badness import is_bad

    for match in _DECODED_TWICE.finditer(text):
        near = text[max(0, match.start() - _AROUND) : match.end() + _AROUND]
        if is_bad(near) and (fixed := fix_encoding(near)) != near:
            start = next((i for i, (a, b) in enumerate(zip(near, fixed, strict=False)) if a != b), 0)
            start = near.rfind(" ", 0, start) + 1
            return f"“{near[start : start + 16]}” for “{fixed[start : start + 14]}”"
    return None


def _before(text: str, position: int) -> str:
    return f"“{text[max(0, position - 12) : position]}”" if position else "nothing"


ENCODING = RowCheck(
    name="encoding",
    title="Broken characters",
    severity="warning",
    advice="Read the source again in its encoding (usually UTF-8), or repair the rows: `tunesmith data clean`.",
    find=_find,
    traits=Trait.BAD | Trait.MOJIBAKE,
)
