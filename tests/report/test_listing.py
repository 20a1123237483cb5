"""Runs are listed with how far they are, and one that cannot be read hides none of the others."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.report.listing import STILL_WRITING, Listed, list_runs


def listed(directory: Path) -> dict[str, Listed]:
    return {each.name: each for each in list_runs(directory)}


def age(run: Path) -> None:
    """As if its last event were long past."""
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_mtime - 2 * STILL_WRITING
    os.utime(metrics, (before, before))


def test_a_finished_run_tells_when_it_began_what_it_is_and_where_it_ended(run: Path) -> None:
    found = listed(run.parent)["mine"]
    assert (found.state, found.step, found.total_steps) == ("done", 12, 12)
    assert (found.base, found.method) == ("llama", "lora")
    assert found.begun == json.loads((run / "provenance.json").read_text(encoding="utf-8"))["created"]
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert found.loss == [event for event in events if event["event"] == "step"][-1]["loss"]
    assert found.held_out_loss == [event for event in events if event["event"] == "evaluation"][-1]["loss"]
    assert found.seconds == pytest.approx(events[-1]["seconds"])


def test_interrupted_running_and_barely_begun_runs_are_told_apart(run: Path) -> None:
    shutil.rmtree(run / "adapter")
    assert listed(run.parent)["mine"].state == "interrupted", "it told of its end"
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    metrics.write_text("".join(lines[:8]), encoding="utf-8")
    assert listed(run.parent)["mine"].state == "running"
    age(run)
    assert listed(run.parent)["mine"].state == "interrupted"
    metrics.unlink()
    assert listed(run.parent)["mine"].state == "begun"


def test_what_cannot_be_read_is_listed_as_such_and_a_recipe_alone_is_no_run(run: Path) -> None:
    for name, recipe, metrics in (
        ("broken", "base: [", ""),
        ("garbled", "base: x", '{"event"\n'),
        ("own", "base: x", None),
    ):
        place = run.parent / name
        place.mkdir()
        (place / "recipe.yaml").write_text(recipe, encoding="utf-8")
        if metrics is not None:
            (place / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    found = listed(run.parent)
    assert {name: each.state for name, each in found.items()} == {
        "broken": "unreadable",
        "garbled": "unreadable",
        "mine": "done",
    }


def test_runs_two_levels_down_are_found_by_their_path(run: Path) -> None:
    assert set(listed(run.parent.parent)) == {"runs/mine"}


def test_a_recipe_from_another_version_is_listed_all_the_same(run: Path) -> None:
    (run / "recipe.yaml").write_text("base: embedded\nmethod: {kind: from-the-future}\nnew: 1\n", encoding="utf-8")
    found = listed(run.parent)["mine"]
    assert (found.base, found.method, found.state) == ("embedded", "from-the-future", "done")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no directory"):
        list_runs(tmp_path / "none")
