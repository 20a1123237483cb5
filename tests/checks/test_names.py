"""Names are looked for only if asked, and without presidio the answer is one line."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from tunesmith.checks import names, registry
from tunesmith.checks.record import Record
from tunesmith.data.example import Source
from tunesmith.errors import UserError

ROW = Record(Source("rows.jsonl", 1), "Who is Ada?", "Ada Lovelace wrote the first program.")


@pytest.fixture(autouse=True)
def not_loaded() -> None:
    names._analyzer.cache_clear()


def test_names_are_not_among_the_default_checks() -> None:
    assert "names" not in registry.selected()
    assert registry.selected(only=["names"]) == ["names"]


def test_without_presidio_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(UserError, match=r"pip install \"tunesmith\[presidio\]\""):
        names.NAMES.find(ROW)


def test_what_presidio_finds_is_shown_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        """As presidio's, for one name."""

        def analyze(self, text: str, **options: object) -> list[SimpleNamespace]:
            assert options == {"language": "en", "entities": ["PERSON"], "score_threshold": names.SURE}
            start = text.find("Ada Lovelace")
            return [SimpleNamespace(start=start, end=start + 12)] if start >= 0 else []

    module = ModuleType("presidio_analyzer")
    module.AnalyzerEngine = Engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "presidio_analyzer", module)
    assert names.NAMES.find(ROW) == ("name Ada … in the answer", 1)
