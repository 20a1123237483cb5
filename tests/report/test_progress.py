"""The terminal shows every event, in lines that fit, even if an event lacks fields."""

import io
import re
from collections.abc import Callable, Iterable, Iterator
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
    "evaluations": {"rows": 40, "every": 50},
}
PREDICTED = {
    "memory": {"peak_bytes": 2.06e9, "parts": {"weights": 16e6, "activations": 2e9}},
    "time": {
        "seconds_per_step": 1.8,
        "tokens_per_second": 1000.0,
        "total_seconds": 200.0,
        "parts": {"start": 5.0, "training": 180.0, "evaluation": 14.0, "checkpoints": 1.0},
    },
}
MEASURED = {
    "memory": {"peak_bytes": 2.1e9},
    "time": {
        "seconds_per_step": 1.9,
        "tokens_per_second": 980.0,
        "total_seconds": 210.0,
        "parts": {"start": 6.0, "training": 190.0, "evaluation": 14.0, "checkpoints": 0.04},
    },
}


def step(number: int, **more: Any) -> Event:
    taken = {"loss": 2.0, "tokens": 2048, "seconds": 2.0, "seconds_left": 2.0 * (100 - number) + 30}
    return {"event": "step", "step": number, "total_steps": 100, **taken, **more}


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


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def printed(events: Iterable[Event], terminal: bool = False, clock: Clock | None = None) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, color_system=None, legacy_windows=False)
    with Progress(console, clock or Clock()) as progress:
        for event in events:
            progress(event)
    return file.getvalue().splitlines()


def test_outside_a_terminal_there_is_a_line_with_the_time_left_each_tenth() -> None:
    lines = [line for line in printed(resolve_run()) if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == [f"{number}/100" for number in range(10, 101, 10)]
    assert lines[4] == "step 50/100 recent loss 2.000  1,024 tok/s  2 min 10 s left"


def test_the_loss_is_the_mean_per_loss_token_of_the_last_ten_steps() -> None:
    losses = [9.0, 9.0, *(1.0 + number for number in range(10))]
    weights = [1000, 1, *range(1, 11)]
    steps = [
        step(number, total_steps=12, loss=loss, loss_tokens=weight)
        for number, (loss, weight) in enumerate(zip(losses, weights, strict=True), 1)
    ]
    last = printed([{**START, "total_steps": 12}, *steps])[-1]
    by_hand = sum(number * number for number in range(1, 11)) / sum(range(1, 11))
    assert f"step 12/12 recent loss {by_hand:.3f}  " in last


def test_the_share_of_replayed_tokens_stands_beside_the_loss_that_has_them() -> None:
    replayed = [0, 0, *[30] * 10, *[0] * 10]
    steps = [
        step(number, total_steps=22, loss_tokens=100, loss_tokens_by_source={"train": 100 - tokens, "replay": tokens})
        for number, tokens in enumerate(replayed, 1)
    ]
    lines = [line for line in printed([{**START, "total_steps": 22}, *steps]) if line.startswith("step ")]
    assert "step 11/22 loss 2.000 (27% replay)  " in "\n".join(lines)
    assert "step 22/22 recent loss 2.000  " in lines[-1], "none of the last ten steps has replayed rows"


def test_the_speed_is_that_of_the_last_ten_steps_together() -> None:
    steps = [step(number, tokens=100, seconds=50.0 if number <= 3 else 1.0) for number in range(1, 100)]
    steps[-1] |= {"tokens": 1000, "seconds": 0.5}
    lines = printed([START, *steps, step(100, tokens=500, seconds=0.5)])
    speeds = [line.split("  ")[1] for line in lines if line.startswith("step ")]
    slow, fast, last = 1000 / (3 * 50 + 7), 1000 / 10, (8 * 100 + 1000 + 500) / (8 + 0.5 + 0.5)
    assert speeds[0] == f"{slow:.0f} tok/s"
    assert set(speeds[1:-1]) == {f"{fast:.0f} tok/s"}, "the slow start is over"
    assert speeds[-1] == f"{last:.0f} tok/s"


def step_lines(seconds: Callable[[int], float], total: int) -> list[int]:
    """The steps whose lines are printed outside a terminal.

    Args:
        seconds: at the end of each step.
        total: steps.
    """
    clock = Clock()

    def events() -> Iterator[Event]:
        start = {**START, "total_steps": total}
        yield from (start, {"event": "forecast", **PREDICTED})
        for number in range(1, total + 1):
            clock.seconds = seconds(number)
            yield step(number, total_steps=total)

    lines = [line for line in printed(events(), clock=clock) if line.startswith("step ")]
    return [int(line.split()[1].split("/")[0]) for line in lines]


def test_outside_a_terminal_a_slow_start_is_shown_within_seconds() -> None:
    # steps of 20 s, then of 1 s: a line for each slow step, then after fifteen seconds or a tenth of the steps
    assert step_lines(lambda number: 20 * min(number, 3) + max(0, number - 3), 400)[:7] == [1, 2, 3, 18, 33, 40, 55]
    assert step_lines(lambda number: 16, 20)[:2] == [1, 2], "a tenth of the steps"
    assert step_lines(lambda number: 0.0, 400) == list(range(40, 401, 40)), "fast steps"


def test_a_long_run_prints_few_lines() -> None:
    hours = step_lines(lambda number: 3.0 * number, 12_000)
    assert 50 < len(hours) < 120
    assert hours[:3] == [5, 10, 15]
    assert hours[-1] == 12_000


def test_the_longest_progress_line_fits_80_columns() -> None:
    total = 1_234_567
    slow = {"total_steps": total, "loss": 12.3456, "tokens": 12_345_678, "seconds": 3.0, "seconds_left": 3333333.0}
    lines = printed([{**START, "total_steps": total}, *(step(number, **slow) for number in (123_456, 123_457))])
    assert lines[-1] == "step 123457/1234567 recent loss 12.346  4.12 M tok/s  925 h 55 min left"
    shown = printed([{**START, "total_steps": total}, *(step(number, **slow) for number in (1, 2))], terminal=True)
    bars = [part for line in shown for part in re.split(r"\r|\x1b\[[0-9?]*[A-Za-z]", line) if "recent" in part]
    assert all(len(bar) <= 80 and bar.rstrip().endswith("left") for bar in bars)
    assert bars


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
        "40 held-out rows before the first step, every 50 steps, and at the end",
        "3 min 20 s for 100 steps, 1,000 tokens per second",
        "training 3 min, evaluation 14 s, start 5.0 s, checkpoints 1.0 s",
        "step 100: loss 2.346 (95 %: 2.300–2.400), perplexity 10.4, 500 rows",
        "step 9: the loss was not finite (a row 1, b row 2)",
        "the disk is nearly full",
        "2.10 GB; predicted 2.06 GB (+2%)",
        "3 min 30 s; predicted 3 min 20 s (+5%)",
        "training 3 min 10 s, evaluation 14 s, start 6.0 s, checkpoints 0.0 s",
        "100 steps in 3 min 30 s",
        "runs/x/adapter",
    ):
        assert expected in text


def test_a_run_that_evaluates_only_at_both_ends_says_so() -> None:
    start = {**START, "evaluations": {"rows": 40, "every": 100}}
    lines = printed([start, *resolve_run()[1:]])
    assert "evaluates 40 held-out rows before the first step and at the end" in lines


def test_a_terminal_has_a_live_bar_that_stays_within_its_width() -> None:
    lines = printed(resolve_run(), terminal=True)
    assert any("━" in line and "100/100" in line and "loss 2.000" in line for line in lines)
    assert not any(line.startswith("step ") for line in lines)
    shown = [part for line in lines for part in re.split(r"\r|\x1b\[[0-9?]*[A-Za-z]", line)]
    assert all(len(part) <= 80 for part in shown)


def test_a_resumed_run_continues_at_its_step_and_compares_only_its_own_time() -> None:
    lines = printed(resolve_run(first=50))
    assert "resumed   after step 50 of 100" in lines
    assert next(line.split()[1] for line in lines if line.startswith("step ")) == "55/100"
    assert "took      3 min 30 s; predicted 3 min 20 s (+5%)" in lines, "as the event says"


def test_a_resumed_runs_bar_starts_at_its_step() -> None:
    bar = next(line for line in printed(resolve_run(first=50)[:3], terminal=True) if "50/100" in line)
    assert 10 < bar.count("━") < 40


def test_an_interrupted_run_is_compared_by_time_per_step() -> None:
    events = resolve_run()
    stopped = [*events[:14], events[-2], {**events[-1], "reason": "interrupted", "step": 10, "output": None}]
    lines = printed(stopped)
    assert "took      1.9 s; predicted 1.8 s (+6%) per step" in lines
    assert any(line.startswith("ended     interrupted after 10 steps") for line in lines)


def test_a_loss_that_is_not_finite_does_not_change_the_recent_loss() -> None:
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


# Other operations


def operation(done: int, total: int = 200, what: str = "base: answers") -> Event:
    return {"event": "progress", "what": what, "done": done, "total": total}


def test_outside_a_terminal_an_operation_prints_a_line_with_the_time_left_each_tenth() -> None:
    clock = Clock()

    def events() -> Iterator[Event]:
        for done in range(201):
            clock.seconds = 100 + 0.1 * done
            yield operation(done)

    left = ("18 s", "16 s", "14 s", "12 s", "10 s", "8.0 s", "6.0 s", "4.0 s", "2.0 s")
    by_hand = [f"base: answers {20 * tenth}/200  {text} left" for tenth, text in enumerate(left, 1)]
    assert printed(events(), clock=clock) == by_hand


def test_the_time_left_leaves_out_what_was_done_before() -> None:
    clock = Clock()

    def events() -> Iterator[Event]:
        yield operation(100)
        clock.seconds = 60
        yield operation(150)

    assert printed(events(), clock=clock) == ["base: answers 150/200  1 min left"]


def test_an_operation_with_nothing_to_do_shows_nothing() -> None:
    assert not printed([operation(0, 0)], terminal=True)


def test_an_operation_that_is_repeated_starts_over() -> None:
    fold = [operation(0), operation(100), operation(200)]
    assert [line.split("  ")[0] for line in printed([*fold, *fold])] == 2 * ["base: answers 100/200"]


def test_in_a_terminal_an_operation_has_a_bar_with_the_time_left_until_it_is_done() -> None:
    clock = Clock()

    def events() -> Iterator[Event]:
        yield operation(0)
        clock.seconds = 10
        yield operation(50)
        yield operation(200)
        yield {"event": "warning", "message": "last"}

    text = "\n".join(printed(events(), terminal=True, clock=clock))
    assert re.search(r"base: answers .*━.* 50/200 30 s left", text)
    assert all("━" in line for line in text.splitlines() if "50/200" in line), "no line beside the bar"
    assert "base: answers" not in text[text.index("last") :]


def figures(model: str, fold: int | None = None) -> list[Event]:
    loss = {"value": 2.346, "interval": (2.3, 2.4), "title": "loss", "unit": "nats per loss token", "better": "lower"}
    share = {"value": 0.342, "interval": (0.31, 0.371), "title": "word overlap", "unit": "share", "better": "higher"}
    other = {"value": 0.5, "interval": (0.4, 0.61), "title": "correlation", "unit": "", "better": "higher"}
    common = {"event": "figures", "model": model, "fold": fold}
    return [
        {**common, "figures": {"loss": loss}},
        {**common, "figures": {"rouge_l": share, "correlation": other}},
    ]


def test_each_figure_of_an_evaluation_is_printed_as_soon_as_it_is_known() -> None:
    expected = [
        "base      loss 2.346 (95 %: 2.300–2.400)",
        "base      word overlap 34% (95 %: 31%–37%)",
        "base      correlation 0.500 (95 %: 0.400–0.610)",
    ]
    assert printed(figures("base")) == expected
    assert [line.rstrip() for line in printed(figures("base"), terminal=True)] == expected
    assert printed(figures("tuned", 3))[0] == "tuned     fold 3: loss 2.346 (95 %: 2.300–2.400)"
    assert printed(figures("run/step-000050"))[0] == "          run/step-000050: loss 2.346 (95 %: 2.300–2.400)"


def test_a_step_with_rewards_shows_their_recent_mean_and_an_evaluation_its_other_figures() -> None:
    held = {**evaluated(1), "accuracy": 0.75, "accuracy_interval": [0.5, 1.0], "margin": 0.5, "margin_interval": [0, 1]}
    lines = printed([START, *(step(number, reward=0.1 * number) for number in range(1, 21)), held])
    assert "recent reward 1.550  " in next(line for line in lines if line.startswith("step 20/100"))
    assert not any("recent loss" in line for line in lines)
    assert any(line.strip() == "accuracy 0.750 (95 %: 0.500–1.000), margin 0.500" for line in lines)
