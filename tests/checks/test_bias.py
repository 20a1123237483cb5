"""Groups of people: who is named, with which label or tone, and that chance alone is not reported."""

import json
import random
from pathlib import Path

import pytest

from tunesmith.checks.driver import check_data
from tunesmith.checks.groups import NEGATIVE, POSITIVE, read_lexicon
from tunesmith.checks.record import Record
from tunesmith.data.example import Source
from tunesmith.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def named(text: str, *files: str) -> tuple[set[str], int]:
    lexicon = read_lexicon(files)
    bits, sentiment = lexicon.bits(Record(Source("rows.jsonl", 1), text, ""))
    return {group for bit, (_, group) in enumerate(lexicon.groups) if bits >> bit & 1}, sentiment


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("She asked her sister.", {"female"}),
        ("The Muslims and the Jews", {"muslim", "jewish"}),
        ("Two black women met", {"black", "female"}),
        ("a black car and a white house", set()),
        ("Native Americans", {"indigenous", "american"}),
        ("They shelter the Theorem", set()),
    ],
)
def test_groups_are_named_by_whole_terms(text: str, groups: set[str]) -> None:
    assert named(text)[0] == groups


def test_praise_and_blame_are_told_apart() -> None:
    assert named("a brilliant idea")[1] == POSITIVE
    assert named("lazy and wonderful")[1] == POSITIVE | NEGATIVE


def test_own_terms_are_added() -> None:
    Path("own.yaml").write_text("groups: {profession: {nurse: [nurse, nurses]}, gender: {female: [madam]}}")
    assert named("Madam, the nurses are here", "own.yaml")[0] == {"female", "nurse"}


def test_a_file_in_another_form_is_refused() -> None:
    Path("own.yaml").write_text("groups: [nurse]")
    with pytest.raises(UserError, match=r"own\.yaml is not a list of groups"):
        read_lexicon(["own.yaml"])


def write_rows(share: float) -> None:
    """Rows about her and him; those about her have the label `nurse` with this probability, those about him with ½."""
    draw = random.Random(0)
    rows = []
    for number in range(600):
        she = draw.random() < 0.5
        nurse = draw.random() < (share if she else 0.5)
        text = f"Today {'she' if she else 'he'} works at place {number}."
        rows.append({"text": text, "label": "nurse" if nurse else "doctor"})
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_group_that_goes_with_a_label_is_reported_with_its_rows() -> None:
    write_rows(0.8)
    found = check_data("rows.jsonl", only=["group_associations"])
    (first, *_) = found.summary["associations"]
    assert {(each["group"], each["other"]) for each in found.summary["associations"]} == {
        ("female", "nurse"),
        ("male", "doctor"),
    }
    assert first["association"]["interval"][0] > 0.05
    assert any("female (gender) with the label “nurse”" in mark.detail for mark in found["group_associations"].marks)
    assert sum(found.summary["groups"]["gender"].values()) == 600


def test_chance_is_not_reported() -> None:
    write_rows(0.5)
    found = check_data("rows.jsonl", only=["group_associations"])
    assert found["group_associations"].count == 0
    assert found.summary["associations"] == []
