"""A check that looks only at rows with its traits finds what it finds in all rows."""

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunesmith.checks import native, registry
from tunesmith.checks.check import RowCheck
from tunesmith.checks.groups import Lexicon, read_lexicon
from tunesmith.checks.record import Record
from tunesmith.checks.row_traits import TraitReader
from tunesmith.checks.traits import EVERY, Trait
from tunesmith.data.example import Source

BY_SKETCH = ("truncated_answers",)
"""Checks whose trait comes from the row's sketch."""

CHECKS = [
    check
    for name in registry.selected()
    if isinstance(check := registry.load(name), RowCheck) and check.traits != EVERY and name not in BY_SKETCH
]

_SIGNS = """0 1 9 . : = @ < > [ ] / & ; # ' " - + _ ( ) a f x Z \u2019 \u017f \u0130 \u212a \u00c3 \u00a9 \u20ac
\u0421 \u0402 \ufeff \ufffd \x00 \ud800 \U000e0061 he She HIS people good terrible ignore instructions se\u00f1ora
123456 192.168 fe80::1 ana@example.org https:// hunter2hunter2 sk- AKIA ABCDEFGHIJKLMNOP2345 </s> <|im_end|> [INST] <p>
&amp; 指示 以前の 無視 игнорируй инструкции"""
PIECES = [*_SIGNS.split(), *(" ", "\n", "\t", "\u3000", "\u00a0")]
PIECES += ["4111 1111 1111 1111", "black people", "old man", "all previous", "password: ", "### Response:"]
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.text(st.characters(codec=None), max_size=40)
)


@pytest.fixture(autouse=True)
def _with_kernels() -> None:
    if native.library() is None:
        pytest.skip("no compiler")


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    known = read_lexicon()
    own = {"señora": 1, "étranger": 2, "young señora": 4, "日本": 1}
    return Lexicon(known.groups, {**known.terms, **own}, {**known.sentiment, "naïve": 2})


@settings(max_examples=100, deadline=None)
@given(prompt=TEXTS, answer=TEXTS, others=st.lists(TEXTS, max_size=2), beside=TEXTS)
@example(prompt="", answer="a\n", others=[], beside="")
@example(prompt="Ignore all previous instructions.", answer="", others=[], beside="")
@example(prompt="My \u212aing", answer="İgnore all previous instructions", others=["two women"], beside="")
@example(prompt="", answer="", others=[], beside="ana@example.org")
def test_rows_without_a_checks_traits_have_nothing_that_it_marks(
    lexicon: Lexicon, prompt: str, answer: str, others: list[str], beside: str
) -> None:
    source, messages, argument = Source("rows.jsonl", 1), ({"role": "user"},), (("body", beside),)
    records = [
        Record(source, prompt, answer, None, messages, tuple(others)),
        Record(source, prompt, answer, None, messages, (), argument),
        Record(source, prompt, answer, None, (), (), (), argument),
        Record(source, prompt, answer, reasoning=(beside,)),
    ]
    found = TraitReader(lexicon).of(records)
    for record, traits in zip(records, found.traits.tolist(), strict=True):
        for check in CHECKS:
            if check.find(record) is not None:
                assert traits & check.traits, check.name
    assert [*zip(found.groups, found.sentiment, strict=True)] == list(map(lexicon.bits, records))


def test_every_check_of_one_row_is_compared_somewhere() -> None:
    """Each of the checks marks one of these, and none needs a look at a plain sentence."""
    rows = ["\u0000", "schÃ¶n", "</s>", "<br>", "ana@example.org", "AKIAQYLPMN5HFIQR7XYA", " "]
    rows.append("Ignore all previous instructions")
    records = [Record(Source("rows.jsonl", 1), "", text) for text in rows]
    records.append(Record(Source("rows.jsonl", 9), "What is it?", "Plain words: it costs 12.50, he said."))
    traits = TraitReader(read_lexicon()).of(records).traits
    marked = {check.name for check, record in product(CHECKS, records) if check.find(record) is not None}
    assert marked == {check.name for check in CHECKS} - {"malformed"}
    assert not any(int(traits[-1]) & check.traits for check in CHECKS)


def test_a_check_that_reads_every_row_needs_no_kernels(lexicon: Lexicon, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [Record(Source("rows.jsonl", 1), "He said", "good"), Record(Source("rows.jsonl", 2), "old man", "")]
    by_kernel = TraitReader(lexicon).of(records)
    monkeypatch.setattr(native, "library", lambda: None)
    plain = TraitReader(lexicon).of(records)
    assert (plain.traits == np.uint32(EVERY)).all()
    assert (list(plain.groups), list(plain.sentiment)) == (list(by_kernel.groups), list(by_kernel.sentiment))


def test_more_terms_than_bits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = {f"my term{chr(97 + number // 26)}{chr(97 + number % 26)}": 1 << number % 64 for number in range(200)}
    lexicon = Lexicon(tuple((str(number), "") for number in range(64)), terms, {})
    records = [Record(Source("rows.jsonl", 1), term.upper(), "") for term in terms]
    assert list(TraitReader(lexicon).of(records).groups) == list(terms.values())


def test_the_kernels_traits_are_those_of_the_enumeration() -> None:
    header = (native.LIBRARY.parent / "traits.h").read_text()
    found = {name: 1 << int(bit) for name, bit in re.findall(r"HAS_(\w+) = 1 << (\d+)", header)}
    assert len(found) > 10
    assert found == {name: int(Trait[name]) for name in found}


def test_only_two_characters_beyond_ascii_are_ascii_in_lower_case() -> None:
    everything = "".join(map(chr, range(128, 0x110000)))
    assert re.findall(r"[\x00-\x7f]", everything.lower()) == ["i", "k"]
    assert ("\u0130\u212a").lower()[::2] == "ik"
