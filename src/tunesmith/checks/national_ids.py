"""National identity numbers of persons, by form and check digits (python-stdnum)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from tunesmith.checks.finding import Finding


@dataclass(frozen=True, slots=True)
class NationalId:
    """A kind of number.

    Attributes:
        pattern: its form.
        module: of `stdnum`, which checks its digits, and dates in it.
        named: whether other numbers look the same, so that it counts only behind a word for an identity number.
    """

    pattern: re.Pattern[str]
    module: str
    named: bool = False


def _id(form: str, module: str, named: bool = False) -> NationalId:
    return NationalId(re.compile(rf"(?<![\w.-])(?:{form})(?![\w-]|\.\d)"), module, named)


NATIONAL_IDS = (
    _id(r"\d{3}-\d{2}-\d{4}", "us.ssn"),  # has no check digit; ranges only
    _id(r"[12] ?\d\d ?\d\d ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d", "fr.nir"),
    _id(r"\d{8}-?[A-Z]", "es.dni"),
    _id(r"[XYZ]-?\d{7}-?[A-Z]", "es.nie"),
    _id(r"[A-Z]{6}\d[\dA-Z][A-Z]\d[\dA-Z][A-Z][\dA-Z]{3}[A-Z]", "it.codicefiscale"),
    _id(r"[A-Z]{4}\d{6}[HM][A-Z]{5}[A-Z0-9]\d", "mx.curp"),
    _id(r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", "be.nn"),
    _id(r"756\.\d{4}\.\d{4}\.\d\d", "ch.ssn"),
    _id(r"\d{6}[-+]\d{4}", "se.personnummer"),
    _id(r"\d{6}[-+A]\d{3}[0-9A-FHJ-NPR-Y]", "fi.hetu"),
    _id(r"\d{6}/\d{4}", "cz.rc"),
    _id(r"\d{6} ?\d{5}", "no.fodselsnummer"),
    _id(r"\d{17}[\dX]", "cn.ric"),
    _id(r"\d{6}-\d{7}", "kr.rrn"),
    _id(r"[2-9]\d{3} \d{4} \d{4}", "in_.aadhaar"),
    _id(r"\d{3}\.\d{3}\.\d{3}-\d\d", "br.cpf"),
    _id(r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]", "cl.rut"),
    _id(r"\d\d-\d{8}-\d", "ar.cuit"),
    _id(r"\d{9}", "us.ssn", named=True),
    _id(r"\d{3}[ -]\d{3}[ -]\d{4}|\d{10}", "gb.nhs", named=True),
    _id(r"\d\d ?\d{3} ?\d{3} ?\d{3}", "de.idnr", named=True),
    _id(r"\d{9}", "nl.bsn", named=True),
    _id(r"\d{11}", "pl.pesel", named=True),
    _id(r"\d{11}", "tr.tckimlik", named=True),
    _id(r"\d{11}", "br.cpf", named=True),
    _id(r"\d{11}", "ee.ik", named=True),
    _id(r"\d{11}", "be.nn", named=True),
    _id(r"\d{12}", "in_.aadhaar", named=True),
    _id(r"\d{10}|\d{12}", "se.personnummer", named=True),
    _id(r"\d{6}-?\d{4}", "dk.cpr", named=True),
    _id(r"\d{10}", "bg.egn", named=True),
    _id(r"\d{13}", "ro.cnp", named=True),
    _id(r"\d{13}", "za.idnr", named=True),
    _id(r"\d{9}", "il.idnr", named=True),
    _id(r"\d{3}[ -]?\d{3}[ -]?\d{3}", "ca.sin", named=True),
    _id(r"\d{3} ?\d{3} ?\d{3}", "au.tfn", named=True),
    _id(r"\d{7}[A-W][A-IW]?", "ie.pps", named=True),
)

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
    for kind in NATIONAL_IDS:
        if kind.named and not is_named:
            continue
        for match in kind.pattern.finditer(text, start, end):
            if kind.named and not _NAMED.search(text, max(0, match.start() - _NAMED_WITHIN), match.start()):
                continue
            if _module(kind.module).is_valid(match[0]):
                yield Finding("national_id", match.start(), match.end(), match[0])


@cache
def _module(name: str) -> Any:
    return import_module(f"stdnum.{name}")
