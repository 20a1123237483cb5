"""Shows in the terminal what happens: a run's settings, predicted cost, progress and measured cost, and bars for other
long operations."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from tunesmith.report.colors import BAD, GOOD, WARNING
from tunesmith.report.figures import SHARE, template_of
from tunesmith.report.formatting import (
    count,
    describe_base,
    describe_method,
    duration,
    durations,
    figure,
    number,
    off_by,
    size,
    sizes,
)
from tunesmith.run import Event

COLUMN = 10
"""Characters of the column with the name of what a line is about."""

RECENT_STEPS = 10
"""The most recent steps whose loss and speed are shown, as means per loss token and per second. Since the start, the
loss would stay far above the held-out loss, and the speed would show a slow start for a long time."""

LINES = 10
"""Outside a terminal, a line is printed each time that another of this many equal parts of the way is done …"""

LINE_SECONDS, LINE_SHARE = 15.0, 0.1
"""… and when there was none for this many seconds, or for this share of the time so far if that is longer. So a slow
operation prints within seconds, and one of ten hours about a hundred lines."""


class LineTimes:
    """When to print a line outside a terminal.

    Args:
        first: how much was done at the start.
        clock: in seconds.
    """

    def __init__(self, first: int, clock: Callable[[], float]) -> None:
        self._first = self._done = first
        self._clock = clock
        self._began = self._printed = clock()

    def due(self, done: int, total: int) -> bool:
        """Whether to print a line now. If so, it counts as printed."""
        now, planned = self._clock(), max(1, total - self._first)
        parts, parts_before = ((at - self._first) * LINES // planned for at in (done, self._done))
        pause = max(LINE_SECONDS, LINE_SHARE * (now - self._began))
        due = parts > parts_before or done == total or now - self._printed >= pause
        if due:
            self._done, self._printed = done, now
        return due


@dataclass(slots=True)
class Operation:
    """An operation other than training.

    Attributes:
        task: its bar.
        began: when it began, in seconds of the clock.
        first: how much was done then.
        lines: when to print a line.
    """

    task: TaskID
    began: float
    first: int
    lines: LineTimes

    def time_left(self, now: float, done: int, total: int) -> float | None:
        """Seconds, at the speed since it began; None before the first part is done."""
        since = done - self.first
        return (now - self.began) / since * (total - done) if since > 0 else None


class Progress:
    """A subscriber that prints a run's events and a live progress bar; outside a terminal, lines (`LineTimes`). Other
    operations have a bar or such lines for each `what` of their `progress` events, until they are done.

    Args:
        console: to print on.
        clock: in seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[steps]}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True)),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )
        self._handlers = {
            "start": self._start,
            "data": self._data,
            "memory": self._memory,
            "forecast": self._forecast,
            "plan": self._plan,
            "step": self._step,
            "evaluation": self._evaluation,
            "skipped": self._skipped,
            "warning": self._warning,
            "end": self._end,
            "progress": self._operation,
            "figures": self._figures,
        }
        self._operations: dict[str, Operation] = {}
        self._task: TaskID | None = None
        self._reset()

    def _reset(self) -> None:
        """Start over, as each run of a pipeline does."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = None
        self._total = self._first = self._done = 0
        self._lines = LineTimes(0, self._clock)
        self._losses: deque[tuple[float, float]] = deque(maxlen=RECENT_STEPS)
        self._sources: deque[dict[str, float]] = deque(maxlen=RECENT_STEPS)
        self._rewards: deque[float] = deque(maxlen=RECENT_STEPS)
        self._speeds: deque[tuple[float, float]] = deque(maxlen=RECENT_STEPS)
        self._evaluations: dict[str, Any] = {}

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for operation in self._operations.values():
            self._bars.remove_task(operation.task)
        self._operations.clear()
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        handler = self._handlers.get(event["event"])
        if handler is not None:
            handler(event)

    def _start(self, event: Event) -> None:
        self._reset()
        self._total = event.get("total_steps") or 0
        self._first = self._done = event.get("step") or 0
        self._print("run", str(event.get("run", "?")))
        self._print("base", describe_base(event))
        rate = event.get("learning_rate")
        self._print("method", describe_method(event) + ("" if rate is None else f", learning rate {rate:.2g}"))
        self._print("objective", str(event.get("objective", "?")))
        for name, files in event.get("extensions", {}).items():
            self._print("code", f"{name}, {f'from {files[0]}, copied into the run' if files else 'installed'}")
        self._print("on", f"{event.get('device', '?')}, in {event.get('precision', '?')}")
        self._evaluations = event.get("evaluations", {})
        if self._first:
            self._print("resumed", f"after step {self._first:,} of {self._total:,}", style="bold")

    def _data(self, event: Event) -> None:
        rows = f"{count(event.get('rows'))} rows ({event.get('format', '?')})"
        split = f"{count(event.get('examples'))} for training, {count(event.get('held_out_rows'))} held out"
        self._print("data", f"{rows}: {split}{', from the cache' if event.get('cached') else ''}")
        if self._evaluations.get("rows"):
            every = number(self._evaluations.get("every"))
            between = f", every {every:,.0f} steps," if every < self._total else ""
            rows = count(self._evaluations["rows"])
            self._print("evaluates", f"{rows} held-out rows before the first step{between} and at the end")
        tokens, loss_tokens = event.get("tokens"), event.get("loss_tokens")
        share = figure(number(loss_tokens) / number(tokens), " ({:.0%})") if tokens else ""
        learned = f", of which {count(loss_tokens)}{share} are loss tokens" if loss_tokens else ""  # prompts have none
        self._print("tokens", f"{count(tokens)}{learned}")
        for source in event.get("sources", ()):
            self._print("", _contribution(source, number(tokens)))
        for name, label in COUNTED.items():
            if event.get(name):
                self._print("", f"{count(event[name])} {label}", style=WARNING)
        for row in (*event.get("malformed_rows", ()), *event.get("unusable_rows", ())):
            self._print("", str(row), style=WARNING)

    def _memory(self, event: Event) -> None:
        checkpointed, blocks = event.get("checkpointed") or 0, event.get("blocks") or 0
        how = f"{checkpointed} of {blocks} blocks checkpointed" if checkpointed else "no activation checkpointing"
        limit = size(event.get("limit_bytes") or 0)
        self._print("within", f"{limit}: {how}, {event.get('tokens_per_batch') or 0:,} tokens per batch")

    def _forecast(self, event: Event) -> None:
        memory, time = event.get("memory", {}), event.get("time", {})
        parts = sizes(memory.get("parts", {}))
        self._print("will need", f"{size(memory.get('peak_bytes'))} of memory{': ' + parts if parts else ''}")
        speed = f"{count(time.get('tokens_per_second'))} tokens per second"
        left = f"{self._total - self._first:,} steps"
        self._print("will take", f"{duration(time.get('total_seconds'))} for {left}, {speed}")
        self._parts(time)
        self._begin()

    def _plan(self, event: Event) -> None:
        """Predicted and measured cost since the start or the last resume."""
        self._bars.stop()
        predicted, measured = event.get("predicted", {}), event.get("measured", {})
        memory, planned_memory = (each.get("memory", {}).get("peak_bytes") for each in (measured, predicted))
        self._print("needed", _beside(memory, planned_memory, size))
        time, planned = (each.get("time", {}) for each in (measured, predicted))
        if self._done == self._total:
            took = _beside(time.get("total_seconds"), planned.get("total_seconds"), duration)
            self._print("took", took)
            self._parts(time)
        elif self._done > self._first:
            took = _beside(time.get("seconds_per_step"), planned.get("seconds_per_step"), duration)
            self._print("took", f"{took} per step")

    def _parts(self, time: dict[str, Any]) -> None:
        """A line with the time's parts, if they are known."""
        if time.get("parts"):
            self._print("", durations(time["parts"]))

    def _begin(self) -> None:
        if self._task is None:
            self._task = self._bars.add_task(
                "training", total=self._total, completed=self._first, status="", steps=f"{self._first}/{self._total}"
            )
            self._lines = LineTimes(self._first, self._clock)
            self._bars.start()

    def _step(self, event: Event) -> None:
        self._begin()
        assert self._task is not None
        self._done = event.get("step") or self._done + 1
        self._total = max(self._total, event.get("total_steps") or self._done)
        loss = number(event.get("loss"))
        if math.isfinite(loss):
            self._losses.append((loss, number(event.get("loss_tokens") or 1)))
            self._sources.append(event.get("loss_tokens_by_source") or {})
        if "reward" in event:
            self._rewards.append(number(event["reward"]))
        self._speeds.append((number(event.get("tokens") or 0), number(event.get("seconds") or 0)))
        left = duration(event.get("seconds_left"))
        steps = f"{self._done}/{self._total}"
        status = f"{self._recent_reward() or self._recent_loss()}  {count(self._recent_speed())} tok/s  {left} left"
        self._bars.update(self._task, completed=self._done, total=self._total, status=status, steps=steps)
        if not self._console.is_terminal and self._lines.due(self._done, self._total):
            self._print(f"step {steps}", f" {status}")

    def _recent_reward(self) -> str:
        """Of the last steps; empty without rewards. The loss of samples from the policy says little: it is near 0."""
        return f"recent reward {figure(fmean(self._rewards))}" if self._rewards else ""

    def _recent_loss(self) -> str:
        """Of the last steps together, per loss token; and which part of these tokens is of each further source of a
        mix: their losses differ, so that the loss moves with their parts."""
        tokens = sum(weight for _, weight in self._losses)
        loss = figure(sum(loss * weight for loss, weight in self._losses) / tokens if tokens else math.nan)
        names = list(dict.fromkeys(name for step in self._sources for name in step))[1:]
        parts = {name: sum(step.get(name, 0) for step in self._sources) / tokens for name in names} if tokens else {}
        shown = ", ".join(f"{part:.0%} {name}" for name, part in parts.items() if part)
        return f"loss {loss} ({shown})" if shown else f"recent loss {loss}"

    def _recent_speed(self) -> float:
        """Of the last steps together, in tokens per second."""
        tokens, seconds = (sum(values) for values in zip(*self._speeds, strict=True))
        return tokens / seconds if seconds else math.nan

    def _evaluation(self, event: Event) -> None:
        self._print("held out", f"step {count(event.get('step'))}: {_loss(event)}, {count(event.get('rows'))} rows")

        others = [name for name in event if f"{name}_interval" in event and name != "loss"]
        if others:
            within = _within(event[f"{others[0]}_interval"])
            shown = [f"{name.replace('_', ' ')} {figure(event[name])}" for name in others]
            self._print("", ", ".join([shown[0] + within, *shown[1:]]))

    def _figures(self, event: Event) -> None:
        """A line for each figure of a model."""
        model = str(event.get("model", "?"))
        within = "" if event.get("fold") is None else f"fold {event['fold']}: "
        column, prefix = (model, within) if len(model) < COLUMN else ("", f"{model}: {within}")
        for name, entry in event.get("figures", {}).items():
            self._print(column, prefix + _figure(name, entry))

    def _skipped(self, event: Event) -> None:
        rows = [str(row) for row in event.get("rows", ())]
        more = f" and {len(rows) - 3:,} more" if len(rows) > 3 else ""
        named = f" ({', '.join(rows[:3])}{more})" if rows else ""
        self._print("skipped", f"step {count(event.get('step'))}: {event.get('reason', '?')}{named}", style=BAD)

    def _warning(self, event: Event) -> None:
        self._print("warning", str(event.get("message", "?")), style=WARNING)

    def _end(self, event: Event) -> None:
        self._bars.stop()
        how = f"{count(event.get('step'))} steps in {duration(event.get('seconds'))}"
        if event.get("reason", "done") == "done":
            self._print("done", how, style=f"bold {GOOD}")
        else:
            self._print("ended", f"{event['reason']} after {how}", style=f"bold {WARNING}")
        if event.get("output"):
            self._print("written", str(event["output"]))

    def _operation(self, event: Event) -> None:
        what, done, total = event["what"], event["done"], event["total"]
        if not total:
            return
        if what not in self._operations:
            task = self._bars.add_task(what, total=total, status="", steps=f"{done:,}/{total:,}")
            self._operations[what] = Operation(task, self._clock(), done, LineTimes(done, self._clock))
            self._bars.start()
        operation = self._operations[what]
        left = operation.time_left(self._clock(), done, total)
        steps, status = f"{done:,}/{total:,}", "" if left is None else f"{duration(left)} left"
        self._bars.update(operation.task, completed=done, total=total, steps=steps, status=status)
        if done >= total:
            self._bars.remove_task(self._operations.pop(what).task)
        elif not self._console.is_terminal and operation.lines.due(done, total):
            self._print(f"{what} {steps}", f"  {status}")
        self._bars.refresh()

    def _print(self, name: str, text: str, style: str = "") -> None:
        """A name and a text; in a terminal long texts wrap within their column, elsewhere they stay on one line."""
        if not self._console.is_terminal:
            self._console.print(Text(f"{name:<{COLUMN}}{text}"), soft_wrap=True)
            return
        line = Table.grid(Column(width=COLUMN, style="dim"), Column(overflow="fold"))
        line.add_row(Text(name), Text(text, style=style))
        self._console.print(line)


def _loss(event: Event) -> str:
    """`loss 2.346 (95 %: 2.300–2.400), perplexity 10.4`, of an event with these fields."""
    perplexity = f", perplexity {figure(event['perplexity'], '{:,.1f}')}" if "perplexity" in event else ""
    return f"loss {figure(event.get('loss'))}{_within(event.get('loss_interval'))}{perplexity}"


def _figure(name: str, entry: dict[str, Any]) -> str:
    """`word overlap 34% (95 %: 31%–37%)`."""
    template = template_of(
        entry.get("unit", SHARE), [number(entry.get("value"))], fine=entry.get("unit", SHARE) != SHARE
    )
    return (
        f"{entry.get('title', name)} {figure(entry.get('value'), template)}{_within(entry.get('interval'), template)}"
    )


def _within(interval: Any, template: str = "{:.3f}") -> str:
    if not interval:
        return ""
    low, high = (figure(end, template) for end in interval)
    return f" (95 %: {low}–{high})"


def _beside(measured: Any, predicted: Any, formatted: Any) -> str:
    if predicted is None:
        return str(formatted(measured))
    off = off_by(predicted, measured)
    return f"{formatted(measured)}; predicted {formatted(predicted)}{f' ({off})' if off else ''}"


def _contribution(source: dict[str, Any], tokens: float) -> str:
    """`general: 1,204 of 9,000 examples, 51,000 tokens (10%)`, of a source of a mix."""
    drawn, available = number(source["drawn"]), number(source["available"])
    often = number(source.get("most_often"))
    times = f", each up to {often:,.0f} times" if often > 1 else ""
    of_all = count(available) if often > 1 or drawn == available else f"{count(drawn)} of {count(available)}"
    part = figure(number(source["tokens"]) / tokens, " ({:.0%})") if tokens else ""
    return f"{source['name']}: {of_all} examples{times}, {count(source['tokens'])} tokens{part}"


COUNTED = {
    "malformed": "malformed rows left out",
    "unusable": "unusable rows left out",
    "boilerplate": "characters of navigation, scripts and footers left out of web pages",
    "truncated": "examples truncated to data.max_length",
    "split": "examples split at data.max_length",
    "dropped": "examples over data.max_length left out",
    "unlearnable": "pieces of split examples without loss tokens left out",
    "joined": "rows cut from concatenated documents",
    "separate_turns": "earlier turns turned into separate examples, since the chat template rewrites them later",
}
"""Labels of the counts in a `data` event that the user should see if they are not zero."""
