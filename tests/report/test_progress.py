"""The terminal shows every event, in lines that fit, even if an event lacks fields."""

import io
import re
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tunesmith.report.progress import Progress
from tunesmith.run import Event, Run

START = {
    "event": "start",
    "run": "runs/x",
    "base": "embedded",
    "method": "lora",
    "objective": "instruction",
    "device": "cpu",
    "precision": "bfloat16",
    "parameters": 8_200_000,
    "trained_parameters": 983_040,
    "total_steps": 100,
    "step": 0,
}
PREDICTED = {
    "memory": {"peak_bytes": 2.06e9, "parts": {"weights": 16e6, "activations": 2e9}},
    "time": {"seconds_per_step": 2.0, "tokens_per_second": 1000.0, "total_seconds": 200.0},
}
MEASURED = {
    "memory": {"peak_bytes": 2.1e9},
    "time": {"seconds_per_step": 2.1, "tokens_per_second": 980.0, "total_seconds": 210.0},
}


def step(number: int, **more: Any) -> Event:
    return {"event": "step", "step": number, "total_steps": 100, "loss": 2.0, "tokens": 2048, "seconds": 2.0, **more}


def evaluated(number: int) -> Event:
    measured = {"loss": 2.346, "loss_interval": [2.3, 2.4], "perplexity": 10.4, "rows": 500, "seconds": 1.0}
    return {"event": "evaluation", "step": number, **measured}


def resolve_run(first: int = 0) -> list[Event]:
    steps = [step(number) for number in range(first + 1, 101)]
    data = {"event": "data", "format": "messages", "rows": 1200, "examples": 1100, "held_out_rows": 60, "malformed": 40}
    return [
        {**START, "step": first},
        {**data, "tokens": 52_000, "loss_tokens": 13_000, "malformed_rows": ["faq.jsonl row 7: not JSON"]},
        {"event": "forecast", **PREDICTED},
        evaluated(first),
        *steps,
        evaluated(100),
        {"event": "checkpoint", "step": 100, "path": "p"},
        {"event": "skipped", "step": 9, "reason": "the loss was not finite", "rows": ["a row 1", "b row 2"]},
        {"event": "warning", "message": "the disk is nearly full"},
        {"event": "plan", "predicted": PREDICTED, "measured": MEASURED},
        {"event": "end", "reason": "done", "step": 100, "seconds": 210.0, "output": "runs/x/adapter"},
    ]


def printed(events: list[Event], terminal: bool = False) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, color_system=None, legacy_windows=False)
    with Progress(console) as progress:
        for event in events:
            progress(event)
    return file.getvalue().splitlines()


def test_outside_a_terminal_there_is_a_line_with_the_time_left_each_tenth() -> None:
    lines = [line for line in printed(resolve_run()) if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == [f"{number}/100" for number in range(10, 101, 10)]
    assert lines[4].endswith("loss 2.000  1,024 tok/s  1 min 40 s left")


def test_every_kind_of_event_is_printed_within_80_columns() -> None:
    lines = printed(resolve_run())
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    for expected in (
        "base      embedded, 8.2 M parameters",
        "lora, which trains 983,040 parameters (12%)",
        "1,200 rows (messages): 1,100 for training, 60 held out",
        "52,000, of which 13,000 (25%) are loss tokens",
        "40 malformed rows left out",
        "faq.jsonl row 7: not JSON",
        "2.06 GB of memory: activations 2.00 GB, weights 16 MB",
        "3 min 20 s for 100 steps, 1,000 tokens per second",
        "step 100: loss 2.346 (95 %: 2.300–2.400), perplexity 10.4, 500 rows",
        "step 9: the loss was not finite (a row 1, b row 2)",
        "the disk is nearly full",
        "2.10 GB; predicted 2.06 GB (+2%)",
        "3 min 20 s; predicted 3 min 20 s (+0%)",
        "100 steps in 3 min 30 s",
        "runs/x/adapter",
    ):
        assert expected in text


def test_a_terminal_has_a_live_bar_that_stays_within_its_width() -> None:
    lines = printed(resolve_run(), terminal=True)
    assert any("━" in line and "100/100" in line and "loss 2.000" in line for line in lines)
    assert not any(line.startswith("step ") for line in lines)
    shown = [part for line in lines for part in re.split(r"\r|\x1b\[[0-9?]*[A-Za-z]", line)]
    assert all(len(part) <= 80 for part in shown)


def test_a_resumed_run_continues_at_its_step_and_compares_only_its_own_time() -> None:
    predicted = {**PREDICTED, "time": {**PREDICTED["time"], "total_seconds": 100.0}}
    events = [{**event, "predicted": predicted} if "predicted" in event else event for event in resolve_run(first=50)]
    lines = printed(events)
    assert "resumed   after step 50 of 100" in lines
    assert next(line.split()[1] for line in lines if line.startswith("step ")) == "55/100"
    assert "took      1 min 40 s; predicted 1 min 40 s (+0%)" in lines, "not the 210 s of both parts"


def test_a_resumed_runs_bar_starts_at_its_step() -> None:
    bar = next(line for line in printed(resolve_run(first=50)[:3], terminal=True) if "50/100" in line)
    assert 10 < bar.count("━") < 40


def test_an_interrupted_run_is_compared_by_time_per_step() -> None:
    events = resolve_run()
    stopped = [*events[:14], events[-2], {**events[-1], "reason": "interrupted", "step": 10, "output": None}]
    lines = printed(stopped)
    assert "took      2.0 s; predicted 2.0 s (+0%) per step" in lines
    assert any(line.startswith("ended     interrupted after 10 steps") for line in lines)


def test_a_loss_that_is_not_finite_does_not_change_the_smoothed_loss() -> None:
    lines = printed([START, *(step(n, loss=float("nan") if n == 10 else 2.0) for n in range(1, 11))])
    assert lines[-1].startswith("step 10/100")
    assert "loss 2.000" in lines[-1]


@given(data=st.data())
def test_a_missing_field_never_stops_a_run(data: st.DataObject) -> None:
    kept = [
        {key: value for key, value in event.items() if key == "event" or data.draw(st.booleans())}
        for event in [*resolve_run()[:7], *resolve_run()[-7:], {"event": "unheard of"}]
    ]
    printed(kept, terminal=data.draw(st.booleans()))


def test_a_real_runs_events_are_printed(run: Path) -> None:
    lines = printed(Run.open(run).events())
    assert len([line for line in lines if line.startswith("step ")]) == 10
    assert lines[-1].startswith("written ")


def test_text_that_looks_like_markup_is_printed_unchanged() -> None:
    text = "[bold]faq[/bold].jsonl [/] row 3"
    assert any(text in line for line in printed([{"event": "warning", "message": text}], terminal=True))


def test_each_run_of_a_pipeline_is_compared_with_its_own_plan() -> None:
    def took(events: list[Event]) -> list[str]:
        return [line for line in printed(events) if line.startswith("took")]

    assert took([*resolve_run(), *resolve_run()]) == 2 * took(resolve_run())
