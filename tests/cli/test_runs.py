"""`tunesmith runs`: a table that fits the terminal, or JSON."""

import json
from pathlib import Path

import pytest
from command import output_of


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    directory = tmp_path / "runs" / "20261121-020704-llama-lora"
    directory.mkdir(parents=True)
    (directory / "recipe.yaml").write_text("base: {path: /models/llama}\nmethod: {kind: lora}\n", encoding="utf-8")
    (directory / "provenance.json").write_text('{"created": "2026-11-21T02:07:04+0000"}', encoding="utf-8")
    events = [
        {"event": "start", "total_steps": 2400},
        {"event": "evaluation", "step": 0, "loss": 2.5},
        {"event": "step", "step": 1234, "total_steps": 2400, "loss": "nan", "seconds": 4000.0},
        {"event": "end", "reason": "interrupted", "step": 1234, "seconds": 4000.0},
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return tmp_path / "runs"


def test_the_table_fits_eighty_columns_and_shows_how_to_resume(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = output_of("runs", runs).splitlines()
    assert all(len(line) <= 80 for line in lines)
    text = " ".join(" ".join(lines).split())
    for cell in ("2026-11-21", "lora on", "llama", "interrupted", "1,234/2,400", "nan", "2.500", "1 h 7 min"):
        assert cell in text
    assert "tunesmith train --resume RUN" in text


def test_a_wide_terminal_shows_one_line_per_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "130")
    output = output_of("runs", runs)
    line = next(line for line in output.splitlines() if line.startswith("20261121-020704-llama-lora"))
    assert "2026-11-21 02:07" in line
    assert "interrupted 1,234/2,400" in line


def test_json_lists_name_state_step_and_losses(runs: Path) -> None:
    listed = json.loads(output_of("runs", runs, "--json"))
    assert len(listed) == 1
    assert listed[0]["name"] == "20261121-020704-llama-lora"
    assert (listed[0]["state"], listed[0]["step"], listed[0]["total_steps"]) == ("interrupted", 1234, 2400)
    assert (listed[0]["loss"], listed[0]["held_out_loss"]) == ("nan", 2.5)


def test_a_directory_without_runs_is_not_an_error(tmp_path: Path) -> None:
    assert "No runs in" in output_of("runs", tmp_path)
