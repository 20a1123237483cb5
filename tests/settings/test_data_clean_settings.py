"""`data.clean`: training reads a cleaned copy, which is kept with its ledger and used again."""

import json
from pathlib import Path
from typing import Any

import pytest
from curated import read, sentence, write
from settings_coverage import shows

from tunesmith.config.recipe import Recipe
from tunesmith.curation.in_recipe import cleaned_recipe
from tunesmith.errors import UserError
from tunesmith.planner.request import batch_plan_of
from tunesmith.training.stages import train


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.chdir(tmp_path)
    rows = [{"q": f"Where is the {sentence(n, 3)}?", "a": f"By the {sentence(n + 99)}."} for n in range(20)]
    write(tmp_path / "rows.jsonl", [*rows, rows[3], rows[5]])
    return rows


def recipe(tiny_model: Path, **data: Any) -> dict[str, Any]:
    columns = {"question": "q", "answer": "a"}
    return {"base": str(tiny_model), "data": {"train": "rows.jsonl", "columns": columns, "held_out": 0.2, **data},
            "method": "lora", "train": {"steps": 1}}  # fmt: skip


@shows("data.clean")
def test_a_run_trains_on_the_cleaned_rows(rows: list[dict[str, Any]], tiny_model: Path) -> None:
    events: list[dict[str, Any]] = []
    run = train(recipe(tiny_model, clean=True), "run", subscribers=[events.append])
    (data,) = (event for event in events if event["event"] == "data")
    assert data["rows"] == 20
    (path,) = Recipe.load(run.directory / "recipe.yaml").data.train
    assert read(Path(path)) == rows
    said = [event["message"] for event in events if event["event"] == "warning"]
    assert said == [f"data.clean: 20 kept, 2 dropped; see cleaned/{Path(path).name}.ledger.jsonl"]
    changed = Path(path).stat().st_mtime_ns
    again, _ = cleaned_recipe(Recipe.load(recipe(tiny_model, clean=True)))
    assert (Path(again.data.train[0]).absolute(), Path(path).stat().st_mtime_ns) == (Path(path), changed)
    kept = Recipe.load(recipe(tiny_model, clean={"exact_duplicates": "keep", "near_duplicates": "keep"}))
    assert len(read(Path(cleaned_recipe(kept)[0].data.train[0]))) == 22


def test_a_plan_counts_the_cleaned_rows(rows: list[dict[str, Any]], tiny_model: Path) -> None:
    dirty, clean = (Recipe.load(recipe(tiny_model, held_out=0.0, clean=clean)) for clean in (False, True))
    assert len(batch_plan_of(dirty).table) - len(batch_plan_of(clean).table) == 2


def test_rows_of_held_out_files_are_dropped(rows: list[dict[str, Any]], tiny_model: Path, tmp_path: Path) -> None:
    write(tmp_path / "held_out.jsonl", [rows[0]])
    found, _ = cleaned_recipe(Recipe.load(recipe(tiny_model, held_out="held_out.jsonl", clean=True)))
    assert read(Path(found.data.train[0])) == rows[1:]


def test_too_many_malformed_rows_are_refused(rows: list[dict[str, Any]], tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n{\n" for row in rows))
    asked = Recipe.load(recipe(tiny_model, clean=True))
    with pytest.raises(UserError, match=r"20 of 40 rows are malformed, more than data.max_malformed"):
        cleaned_recipe(asked)
    assert not list(Path("cleaned").glob("*.jsonl"))
    allowed = Recipe.load(recipe(tiny_model, clean=True, max_malformed=0.5))
    assert read(Path(cleaned_recipe(allowed)[0].data.train[0])) == rows
