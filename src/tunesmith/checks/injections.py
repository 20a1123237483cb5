"""Texts that give a model orders it should not take from there: prompt injections (Greshake et al. 2023)."""

import re
from dataclasses import dataclass

from tunesmith.checks.check import RowCheck
from tunesmith.checks.record import Record
from tunesmith.checks.traits import Trait


@dataclass(frozen=True, slots=True)
class Wording:
    """A way to give orders.

    Attributes:
        pattern: searched for in the text in lower case.
        hints: one word of each set is in every match: the pattern is tried only around those of the first set.
    """

    pattern: re.Pattern[str]
    hints: tuple[frozenset[bytes], ...]


def _wording(pattern: str, *hints: str) -> Wording:
    return Wording(re.compile(pattern, re.MULTILINE), tuple(frozenset(each.encode().split()) for each in hints))


_FILLER = (
    r"(?:(?:all|any|every|each|the|these|those|your|my|of|previous|prior|above|preceding|earlier|other|safety|system|"
    r"and|original|initial)\s+)"
)
_EARLIER = r"(?:all|any|every|previous|prior|above|preceding|earlier|safety|system|your|original|initial)\s+"
_ORDERS = r"(?:instructions?|prompts?|directions?|directives?|commands?|rules|guidelines|guardrails|programming)\b"
_ORDER_WORDS = (
    "instruction instructions prompt prompts direction directions directive directives command commands rules "
    "guidelines guardrails programming"
)
_REVEAL = (
    r"\b(?:reveal|print|output|show|repeat|leak|display|return|tell me|what (?:is|are|was|were)|write (?:out|down))\b"
)

WORDINGS = (
    _wording(
        r"\b(?:ignore|disregard|forget|override|bypass|overlook|stop following|(?:do not|don't) follow)\s+"
        rf"{_FILLER}{{0,5}}{_EARLIER}{_FILLER}{{0,3}}{_ORDERS}",
        "ignore disregard forget override bypass overlook follow following",
        _ORDER_WORDS,
    ),
    _wording(
        r"\b(?:ignore|disregard|forget)\s+(?:everything|anything|all|what(?:ever)?)\b[^.\n]{0,30}\b"
        r"(?:above|told (?:you )?before|been told|were told|instructed|you (?:were|have been) (?:given|told))\b",
        "ignore disregard forget",
        "above told instructed given",
    ),
    _wording(
        rf"{_REVEAL}[^.\n]{{0,20}}\byour\s+(?:\w+\s+)?(?:system|initial|hidden|secret|original)\s+"
        r"(?:prompt|instructions?|message)\b",
        "system initial hidden secret original",
        "prompt instruction instructions message",
    ),
    _wording(
        r"\b(?:new|real|updated|actual|only)\s+(?:instructions?|task|orders?)\s+(?:are|is)(?:\s+now)?\s*(?::|to\b)",
        "instruction instructions task order orders",
        "new real updated actual only",
    ),
    _wording(
        r"^\W{0,4}(?:begin\s+)?(?:new|updated|admin|system|override)\s+(?:system\s+)?(?:instructions?|prompt|override)\s*:",
        "instructions instruction prompt override",
        "new updated admin system override",
    ),
    _wording(
        r"\byou are now (?:in )?(?:dan\b|developer mode|jailbroken|unrestricted|free (?:of|from) (?:all|any))",
        "dan developer jailbroken unrestricted free",
        "now",
    ),
    _wording(
        r"\b(?:as if|as though|like)\s+you\s+(?:have|had)\s+no\s+(?:\w+\s+)?"
        r"(?:restrictions|limitations|filters|guidelines|policies)\b",
        "restrictions limitations filters guidelines policies",
        "if though like",
    ),
    _wording(
        r"\bdo anything now\b|\bjailbreak (?:mode|prompt)\b|"
        r"\b(?:enable|enter|activate) (?:developer|jailbreak|dan) mode\b",
        "anything jailbreak developer dan",
        "now mode prompt",
    ),
    _wording(
        r"\b(?:dear|attention|note to|message to|to any|hey)\W+"
        r"(?:ai|llm|ai assistant|language model|chatbot|gpt)s?\b[^.\n]{0,80}\b"
        r"(?:ignore|instead|must|always|do not mention|recommend|rate|approve)\b",
        "ai ais llm llms model models chatbot chatbots gpt gpts",
        "dear attention note message any hey",
        "ignore instead must always mention recommend rate approve",
    ),
    _wording(
        r"\b(?:ignorier\w*|vergiss)\s+(?:\w+\s+){0,3}(?:vorherigen|bisherigen|obigen|vorigen)\s+(?:\w+\s+)?"
        r"(?:anweisung|befehl|instruktion|regel)\w*",
        "ignoriere ignorieren ignoriert vergiss",
    ),
    _wording(
        r"\b(?:ignor|oubli)\w*\s+(?:\w+\s+){0,3}(?:instructions?|consignes?|directives?)\s+(?:\w+\s+)?"
        r"(?:précédente|antérieure|ci-dessus)\w*",
        "instruction instructions consigne consignes directive directives",
    ),
    _wording(
        r"\b(?:ignor|olvid)\w*\s+(?:\w+\s+){0,3}(?:instrucciones|órdenes|indicaciones)\s+(?:\w+\s+)?(?:anteriores|previas)\b",
        "instrucciones órdenes indicaciones",
    ),
    _wording(r"\b(?:ignor|dimentic)\w*\s+(?:\w+\s+){0,3}istruzioni\s+(?:\w+\s+)?precedenti\b", "istruzioni"),
    _wording(r"\bignor\w*\s+(?:\w+\s+){0,3}instruções\s+(?:\w+\s+)?anteriores\b", "instruções"),
)

_HINTS = frozenset[bytes]().union(*(wording.hints[0] for wording in WORDINGS))
"""Of most texts no word is among these."""

_OTHER_SCRIPTS = re.compile(
    r"(?:忽略|无视|無視|忘记)[^。\n]{0,8}(?:之前|以上|前面|先前|上述)[^。\n]{0,6}(?:指令|指示|提示)|"
    r"(?:以前|上記|これまで)の[^。\n]{0,6}指示[^。\n]{0,6}(?:無視|忘れ)|"
    r"(?:игнорируй|забудь|не следуй)\w*\s+(?:\w+\s+){0,3}(?:предыдущ|прежн)\w*\s+(?:\w+\s+)?(?:инструкци|указани)\w*",
    re.IGNORECASE,
)
_OTHER_HINTS = ("指令", "指示", "提示", "инструкци", "указани")

HIDES = "[\U000e0020-\U000e007e" + "".join(hint[0] for hint in _OTHER_HINTS) + "]"
"""What a text beyond ASCII has if an order is in it."""

_BEFORE, _AFTER = 80, 160
"""Characters around a hint of the first set in which a match is."""

_TAGS = re.compile("(?<!🏴)(?<![\U000e0020-\U000e007e])[\U000e0020-\U000e007e]{4,}")
"""Unicode tags, which show nothing and spell letters to a model. Behind 🏴 they name the flag of a region."""


def injection(text: str, words: frozenset[bytes]) -> str | None:
    """The part of a text that gives a model orders; None if there is none.

    Patterns find the usual wordings in nine languages. Who words an order in another way is not found.

    Args:
        text: any text.
        words: those of the text, and maybe of others, as `Record.words` has them.
    """
    low = ""
    for wording in () if _HINTS.isdisjoint(words) else WORDINGS:
        if not any(hints.isdisjoint(words) for hints in wording.hints):
            low = low or text.lower()
            for hint in wording.hints[0] & words:
                if (found := _near(hint.decode(), wording.pattern, low)) is not None:
                    return found
    return None if text.isascii() else _beyond_ascii(text)


def _near(hint: str, pattern: re.Pattern[str], low: str) -> str | None:
    """A match around a place where the hint stands."""
    position = low.find(hint)
    while position >= 0:
        if (found := pattern.search(low, max(0, position - _BEFORE), position + _AFTER)) is not None:
            return found[0]
        position = low.find(hint, position + len(hint))
    return None


def _beyond_ascii(text: str) -> str | None:
    if (hidden := _TAGS.search(text)) is not None:
        return "".join(chr(ord(letter) - 0xE0000) for letter in hidden[0])
    found = _OTHER_SCRIPTS.search(text) if any(hint in text for hint in _OTHER_HINTS) else None
    return found[0] if found else None


def _find(record: Record) -> str | None:
    for place, text in record.places():
        if (found := injection(text, record.words)) is not None:
            return f"“{' '.join(found.split())[:60]}” in {place}"
    return None


PROMPT_INJECTIONS = RowCheck(
    name="prompt_injections",
    title="Prompt injections",
    severity="warning",
    advice="Remove the rows, unless they teach to refuse: a model learns to follow orders that come in a document.",
    find=_find,
    traits=Trait.ORDERS | Trait.HIDDEN | Trait.WORDS,
)
