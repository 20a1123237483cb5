"""National identity numbers of persons, by form and check digits (python-stdnum)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any

from tunesmith.checks.finding import Finding


@dataclass(frozen=True)
class NationalId:
    """A kind of number.

    Attributes:
        form: as a regular expression.
        module: of `stdnum`, which checks its digits, and dates in it.
        named: whether other numbers look the same, so that it counts only behind a word for an identity number.
    """

    form: str
    module: str
    named: bool = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The form with nothing around it that it could be a part of."""
        return re.compile(_alone(self.form))


def _alone(form: str) -> str:
    return rf"(?<![\w.-])(?:{form})(?![\w-]|\.\d)"


NATIONAL_IDS = (
    NationalId(r"\d{3}-\d{2}-\d{4}", "us.ssn"),  # has no check digit; ranges only
    NationalId(r"[12] ?\d\d ?\d\d ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d", "fr.nir"),
    NationalId(r"\d{8}-?[A-Z]", "es.dni"),
    NationalId(r"[XYZ]-?\d{7}-?[A-Z]", "es.nie"),
    NationalId(r"[A-Z]{6}\d[\dA-Z][A-Z]\d[\dA-Z][A-Z][\dA-Z]{3}[A-Z]", "it.codicefiscale"),
    NationalId(r"[A-Z]{4}\d{6}[HM][A-Z]{5}[A-Z0-9]\d", "mx.curp"),
    NationalId(r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", "be.nn"),
    NationalId(r"756\.\d{4}\.\d{4}\.\d\d", "ch.ssn"),
    NationalId(r"\d{6}[-+]\d{4}", "se.personnummer"),
    NationalId(r"\d{6}[-+A]\d{3}[0-9A-FHJ-NPR-Y]", "fi.hetu"),
    NationalId(r"\d{6}/\d{4}", "cz.rc"),
    NationalId(r"\d{6} ?\d{5}", "no.fodselsnummer"),
    NationalId(r"\d{17}[\dX]", "cn.ric"),
    NationalId(r"\d{6}-\d{7}", "kr.rrn"),
    NationalId(r"[2-9]\d{3} \d{4} \d{4}", "in_.aadhaar"),
    NationalId(r"\d{3}\.\d{3}\.\d{3}-\d\d", "br.cpf"),
    NationalId(r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]", "cl.rut"),
    NationalId(r"\d\d-\d{8}-\d", "ar.cuit"),
    NationalId(r"\d{9}", "us.ssn", named=True),
    NationalId(r"\d{3}[ -]\d{3}[ -]\d{4}|\d{10}", "gb.nhs", named=True),
    NationalId(r"\d\d ?\d{3} ?\d{3} ?\d{3}", "de.idnr", named=True),
    NationalId(r"\d{9}", "nl.bsn", named=True),
    NationalId(r"\d{11}", "pl.pesel", named=True),
    NationalId(r"\d{11}", "tr.tckimlik", named=True),
    NationalId(r"\d{11}", "br.cpf", named=True),
    NationalId(r"\d{11}", "ee.ik", named=True),
    NationalId(r"\d{11}", "be.nn", named=True),
    NationalId(r"\d{12}", "in_.aadhaar", named=True),
    NationalId(r"\d{10}|\d{12}", "se.personnummer", named=True),
    NationalId(r"\d{6}-?\d{4}", "dk.cpr", named=True),
    NationalId(r"\d{10}", "bg.egn", named=True),
    NationalId(r"\d{13}", "ro.cnp", named=True),
    NationalId(r"\d{13}", "za.idnr", named=True),
    NationalId(r"\d{9}", "il.idnr", named=True),
    NationalId(r"\d{3}[ -]?\d{3}[ -]?\d{3}", "ca.sin", named=True),
    NationalId(r"\d{3} ?\d{3} ?\d{3}", "au.tfn", named=True),
    NationalId(r"\d{7}[A-W][A-IW]?", "ie.pps", named=True),
)

_ANY, _ANY_NAMED = (
    re.compile(_alone("|".join(kind.form for kind in NATIONAL_IDS if kind.named is named))) for named in (False, True)
)
"""Where they find nothing, none of the forms does: one search for many."""

_NAMED = re.compile(
    r"\b(?:ssn|sin|tfn|nhs|bsn|pps|cpr|cpf|cnp|egn|tckn|pesel|aadhaar|adhaar|personnummer|personal[ -]?id\w*|isikukood|"
    r"social (?:security|insurance)|national (?:id|identi\w+|insurance)|identi(?:ty|fication) (?:card|number|no)|"
    r"id (?:number|no|card)|tax (?:id|file|number)|burgerservicenummer|steuer-?(?:id|identifikation\w*)|idnr|"
    r"kimlik|rijksregister\w*|registre national|dowód|patient)\b|身份证|身份證",
    re.IGNORECASE,
)
_NAMED_WITHIN = 40
"""Characters between the word and the number."""


def national_ids(text: str, start: int, end: int) -> Iterator[Finding]:
    """Identity numbers in a part of a text.

    Args:
        text: any text.
        start, end: the part, in characters.
    """
    is_named = _NAMED.search(text, max(0, start - _NAMED_WITHIN), end) is not None
    is_tried = {
        False: _ANY.search(text, start, end) is not None,
        True: is_named and _ANY_NAMED.search(text, start, end) is not None,
    }
    for kind in NATIONAL_IDS:
        if not is_tried[kind.named]:
            continue
        for match in kind.pattern.finditer(text, start, end):
            if kind.named and not _NAMED.search(text, max(0, match.start() - _NAMED_WITHIN), match.start()):
                continue
            if _module(kind.module).is_valid(match[0]):
                yield Finding("national_id", match.start(), match.end(), match[0])


@cache
def _module(name: str) -> Any:
    return import_module(f"stdnum.{name}")
