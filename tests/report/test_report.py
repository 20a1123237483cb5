"""What a person sees of a run: nothing of it breaks on odd runs, and nothing of the user's data becomes markup."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import tunesmith
from tunesmith.report.charts import Line, bar_chart, line_chart, round_ticks
from tunesmith.report.html import write_report
from tunesmith.report.listing import list_runs
from tunesmith.report.progress import Progress
from tunesmith.report.words import count, duration, size

HOSTILE = '<script>alert("x")</script>'


@pytest.fixture
def run(tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path) -> Path:
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(write_rows()), "held_out": 0.2},
        "train": {"steps": 12, "tokens_per_step": 128, "precision": "fp32", "tensorboard": True},
    }
    return tunesmith.train(recipe, tmp_path / "runs" / "mine").folder


def charts_of(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(each) for each in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_the_page_holds_curves_counts_and_costs_and_asks_for_nothing_from_elsewhere(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    titles = [chart.findtext("title") for chart in charts_of(page)]
    assert titles == ["Loss", "Learning rate", "Gradient norm", "Speed", "Lengths of the examples"]
    assert "finished after 12 steps" in page
    assert "peak memory" in page
    assert not re.search(r"""(src|href)\s*=|@import|url\(""", page)


def test_what_a_row_says_never_becomes_markup(run: Path) -> None:
    metric = {"value": 0.5, "interval": [0.4, 0.6]}
    side = {"loss": 1.0, "loss_interval": [0.9, 1.1], "perplexity": 2.7, "metrics": {}}
    sample = dict.fromkeys(("source", "prompt", "expected", "base", "tuned"), HOSTILE)
    evaluation = {
        "rows": 1,
        "learnt_tokens": 2,
        "generated_rows": 1,
        "base": side,
        "tuned": side,
        "differences": {"loss": metric},
        "samples": [sample],
    }
    (run / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "skipped", "step": 3, "reason": "loss", "rows": [HOSTILE]}) + "\n")
        file.write(json.dumps({"event": "warning", "message": HOSTILE}) + "\n")
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 6


def test_runs_that_broke_off_or_never_began_have_a_page_too(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    for kept in (lines[:6], lines[:1], []):
        metrics.write_text("".join(kept) + ('{"event": "st' if kept else ""), encoding="utf-8")
        assert "</html>" in write_report(run).read_text(encoding="utf-8")
    metrics.unlink()
    assert "Nothing has happened" in write_report(run).read_text(encoding="utf-8")


def test_losses_that_are_not_finite_leave_a_gap_and_not_a_broken_page(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    text = re.sub(
        r'"loss": [\d.]+, "grad_norm"', '"loss": "nan", "grad_norm"', metrics.read_text(encoding="utf-8"), count=3
    )
    metrics.write_text(text, encoding="utf-8")
    assert "nan" not in write_report(run).read_text(encoding="utf-8").split("<details>")[0]


def test_tensorboard_reads_what_was_written(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    told = [event["loss"] for event in tunesmith.Run.open(run).events() if event["event"] == "step"]
    assert [scalar.value for scalar in events.Scalars("train/loss")] == pytest.approx(told, rel=1e-6)
    assert [scalar.step for scalar in events.Scalars("held_out/loss")][-1] == 12


def test_progress_in_a_file_has_plain_lines_of_at_most_a_terminals_width(run: Path) -> None:
    with (run / "out.txt").open("w", encoding="utf-8") as file, Progress(Console(file=file, width=80)) as progress:
        for event in tunesmith.Run.open(run).events():
            progress(event)
    lines = (run / "out.txt").read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if line.startswith("step ")]
    assert len(told) == 10
    assert told[-1].startswith("step 12/12  loss ")
    assert all(len(line) <= 80 or str(run) in line for line in lines)
    assert any(line.startswith("held out") for line in lines)


def test_runs_are_listed_with_how_far_they_are(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "runs" / "broken"
    broken.mkdir()
    (broken / "recipe.yaml").write_text("base: [", encoding="utf-8")
    (broken / "metrics.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "runs" / "own").mkdir()
    (tmp_path / "runs" / "own" / "recipe.yaml").write_text("data: {train: x.jsonl}", encoding="utf-8")
    listed = {each.name: each for each in list_runs(tmp_path / "runs")}
    assert set(listed) == {"mine", "broken"}, "a recipe without a run beside it is no run"
    assert (listed["mine"].state, listed["mine"].step, listed["mine"].total_steps) == ("done", 12, 12)
    assert listed["broken"].state == "unreadable"
    (run / "adapter").rename(run / "gone")
    assert {each.name: each.state for each in list_runs(tmp_path / "runs")}["mine"] == "interrupted"


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-6, 1e6))
def test_ticks_are_round_and_within_the_frame(low: float, width: float) -> None:
    ticks = round_ticks(low, low + width)
    assert 2 <= len(ticks) <= 11
    step = ticks[1] - ticks[0]
    assert float(f"{step:.6e}"[:1]) in (1, 2, 5) or f"{step:.6e}".startswith(("9.99", "4.99", "1.99"))
    assert all(low - step * 0.01 <= tick <= low + width + step * 0.01 for tick in ticks)


def test_charts_escape_their_names_and_are_empty_without_data() -> None:
    chart = line_chart(HOSTILE, "x", HOSTILE, [Line(HOSTILE, [(0, 1), (1, 2)], "raw")])
    assert "<script" not in chart
    assert line_chart("t", "x", "y", [Line("n", [(0, float("nan"))], "raw")]) == ""
    assert bar_chart("t", "x", "y", []) == ""


def test_quantities_are_said_as_people_say_them() -> None:
    assert [size(value) for value in (2_062_000_000, 340_000_000)] == ["2.06 GB", "340 MB"]
    assert [count(value) for value in (873, 12_400, 1_234_567)] == ["873", "12,400", "1.23 M"]
    assert [duration(value) for value in (4.25, 45, 200, 120, 7500)] == [
        "4.2 s",
        "45 s",
        "3 min 20 s",
        "2 min",
        "2 h 5 min",
    ]
