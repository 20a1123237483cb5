"""Runs are listed with their progress, and an unreadable run does not hide the others."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.report.listing import STILL_WRITING, Listed, list_runs


def listed(directory: Path) -> dict[str, Listed]:
    return {run.name: run for run in list_runs(directory)}


def age(run: Path) -> None:
    """Make its last event old."""
    metrics = run / "metrics.jsonl"
    before = metrics.stat().st_mtime - 2 * STILL_WRITING
    os.utime(metrics, (before, before))


def test_a_finished_run_is_listed_with_start_settings_and_final_losses(run: Path) -> None:
    row = listed(run.parent)["mine"]
    assert (row.state, row.step, row.total_steps) == ("done", 12, 12)
    assert (row.base, row.method) == ("llama", "lora")
    assert row.started == json.loads((run / "provenance.json").read_text(encoding="utf-8"))["created"]
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert row.loss == [event for event in events if event["event"] == "step"][-1]["loss"]
    assert row.held_out_loss == [event for event in events if event["event"] == "evaluation"][-1]["loss"]
    assert row.seconds == pytest.approx(events[-1]["seconds"])


def test_interrupted_running_and_new_runs_are_distinguished(run: Path) -> None:
    shutil.rmtree(run / "adapter")
    assert listed(run.parent)["mine"].state == "interrupted", "it has an end event"
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    metrics.write_text("".join(lines[:8]), encoding="utf-8")
    row = listed(run.parent)["mine"]
    assert row.state == "running"
    timed = [event for event in map(json.loads, lines[:8]) if event["event"] in ("step", "evaluation", "checkpoint")]
    assert {"step", "evaluation"} <= {event["event"] for event in timed}
    assert row.seconds == pytest.approx(sum(event["seconds"] for event in timed))
    age(run)
    assert listed(run.parent)["mine"].state == "interrupted"
    metrics.unlink()
    assert listed(run.parent)["mine"].state == "started"


def test_unreadable_runs_are_listed_as_such_and_a_recipe_alone_is_no_run(run: Path) -> None:
    for name, recipe, metrics in (
        ("broken", "base: [", ""),
        ("garbled", "base: x", '{"event"\n'),
        ("own", "base: x", None),
    ):
        directory = run.parent / name
        directory.mkdir()
        (directory / "recipe.yaml").write_text(recipe, encoding="utf-8")
        if metrics is not None:
            (directory / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    rows = listed(run.parent)
    assert {name: row.state for name, row in rows.items()} == {
        "broken": "unreadable",
        "garbled": "unreadable",
        "mine": "done",
    }


def test_runs_two_levels_down_are_found_by_their_path(run: Path) -> None:
    assert set(listed(run.parent.parent)) == {"runs/mine"}


def test_a_recipe_of_another_version_is_still_listed(run: Path) -> None:
    (run / "recipe.yaml").write_text("base: embedded\nmethod: {kind: from-the-future}\nnew: 1\n", encoding="utf-8")
    row = listed(run.parent)["mine"]
    assert (row.base, row.method, row.state) == ("embedded", "from-the-future", "done")


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a directory"):
        list_runs(tmp_path / "none")
