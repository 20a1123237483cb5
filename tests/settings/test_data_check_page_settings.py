"""The options of `tunesmith data check` for words of the user's own and for a page."""

import json
from pathlib import Path

import pytest
from command import output_of
from settings_coverage import shows


@shows("tunesmith data check --groups")
def test_own_words_for_groups_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("groups: {trade: {nurse: [nurse], smith: [smith]}}")
    rows = [{"text": f"The {'nurse' if n % 2 else 'smith'} {n}", "label": "a" if n % 2 else "b"} for n in range(60)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["data", "check", "rows.jsonl", "--only", "group_associations", "--json"]
    counts = [json.loads(output_of(*options, *more))["checks"][0]["count"] for more in ([], ["--groups", "own.yaml"])]
    assert counts == [0, 60]


@shows("tunesmith data check --report")
def test_the_command_writes_the_page_beside_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(json.dumps({"question": "Is it?", "answer": "It is."}) + "\n")
    printed = output_of("data", "check", "rows.jsonl", "--report", "out.html", "--json")
    assert json.loads(printed)["rows"] == 1
    assert "Data checks of rows.jsonl" in Path("out.html").read_text(encoding="utf-8")
