"""Shows in the terminal what happens: a run's settings, predicted cost, progress and measured cost, and bars for other
long operations."""

import math
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from tunesmith.report.formatting import (
    count,
    describe_base,
    describe_method,
    duration,
    figure,
    number,
    off_by,
    size,
    sizes,
)
from tunesmith.run import Event

SMOOTHING = 0.9
"""Smoothing factor of the shown loss, per step."""

RECENT = 0.95
"""Decay per step of the tokens and seconds behind speed and time left: about the last twenty steps count."""

LINES = 10
"""Number of progress lines if the output is not a terminal."""


class Progress:
    """A subscriber that prints a run's events and a live progress bar; outside a terminal, a line each tenth of the
    way. Other operations have a bar for each `what` of their `progress` events, only in a terminal, and removed at the
    end."""

    def __init__(self, console: Console) -> None:
        self._console = console
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
        }
        self._operations: dict[str, TaskID] = {}
        self._task: TaskID | None = None
        self._reset()

    def _reset(self) -> None:
        """Start over, as each run of a pipeline does."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = None
        self._total = self._first = self._done = self._line_at = 0
        self._loss = math.nan
        self._tokens = self._seconds = self._weight = self._spent = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._operations.values():
            self._bars.remove_task(task)
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        handler = self._handlers.get(event["event"])
        if handler is not None:
            handler(event)

    def _start(self, event: Event) -> None:
        self._reset()
        self._total = event.get("total_steps") or 0
        self._first = self._done = self._line_at = event.get("step") or 0
        self._print("run", str(event.get("run", "?")))
        self._print("base", describe_base(event))
        rate = event.get("learning_rate")
        self._print("method", describe_method(event) + ("" if rate is None else f", learning rate {rate:.2g}"))
        self._print("objective", str(event.get("objective", "?")))
        self._print("on", f"{event.get('device', '?')}, in {event.get('precision', '?')}")
        if self._first:
            self._print("resumed", f"after step {self._first:,} of {self._total:,}", style="bold")

    def _data(self, event: Event) -> None:
        rows = f"{count(event.get('rows'))} rows ({event.get('format', '?')})"
        split = f"{count(event.get('examples'))} for training, {count(event.get('held_out_rows'))} held out"
        self._print("data", f"{rows}: {split}{', from the cache' if event.get('cached') else ''}")
        tokens, loss_tokens = event.get("tokens"), event.get("loss_tokens")
        share = figure(number(loss_tokens) / number(tokens), " ({:.0%})") if tokens else ""
        self._print("tokens", f"{count(tokens)}, of which {count(loss_tokens)}{share} are loss tokens")
        for name, label in COUNTED.items():
            if event.get(name):
                self._print("", f"{count(event[name])} {label}", style="yellow")
        for row in (*event.get("malformed_rows", ()), *event.get("unusable_rows", ())):
            self._print("", str(row), style="yellow")

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
        self._begin()

    def _plan(self, event: Event) -> None:
        """Predicted and measured cost, over the steps since the start or the last resume."""
        self._bars.stop()
        predicted, measured = event.get("predicted", {}), event.get("measured", {})
        memory, planned_memory = (each.get("memory", {}).get("peak_bytes") for each in (measured, predicted))
        self._print("needed", _beside(memory, planned_memory, size))
        steps = self._done - self._first
        planned = predicted.get("time", {})
        if self._done == self._total:
            self._print("took", _beside(self._spent, planned.get("total_seconds"), duration))
        elif steps:
            self._print("took", _beside(self._spent / steps, planned.get("seconds_per_step"), duration) + " per step")

    def _begin(self) -> None:
        if self._task is None:
            self._task = self._bars.add_task(
                "training", total=self._total, completed=self._first, status="", steps=f"{self._first}/{self._total}"
            )
            self._bars.start()

    def _step(self, event: Event) -> None:
        self._begin()
        assert self._task is not None
        self._done = event.get("step") or self._done + 1
        self._total = max(self._total, event.get("total_steps") or self._done)
        loss = number(event.get("loss"))
        if math.isfinite(loss):
            self._loss = loss if math.isnan(self._loss) else SMOOTHING * self._loss + (1 - SMOOTHING) * loss
        seconds = number(event.get("seconds") or 0)
        self._spent += seconds
        self._tokens = RECENT * self._tokens + number(event.get("tokens") or 0)
        self._seconds = RECENT * self._seconds + seconds
        self._weight = RECENT * self._weight + 1
        speed = self._tokens / self._seconds if self._seconds else math.nan
        left = duration(self._seconds / self._weight * (self._total - self._done))
        steps = f"{self._done}/{self._total}"
        status = f"loss {figure(self._loss)}  {count(speed)} tok/s  {left} left"
        self._bars.update(self._task, completed=self._done, total=self._total, status=status, steps=steps)
        if not self._console.is_terminal and self._line_is_due():
            self._line_at = self._done
            self._print(f"step {steps}", f" {status}")

    def _line_is_due(self) -> bool:
        """At each tenth of the steps since the start or the last resume, and at the end."""
        planned = max(1, self._total - self._first)
        tenths = (self._done - self._first) * LINES // planned
        return tenths > (self._line_at - self._first) * LINES // planned or self._done == self._total

    def _evaluation(self, event: Event) -> None:
        low, high = event.get("loss_interval") or (None, None)
        within = "" if low is None else f" (95 %: {figure(low)}–{figure(high)})"
        perplexity = f"perplexity {figure(event['perplexity'], '{:,.1f}')}, " if "perplexity" in event else ""
        self._print(
            "held out",
            f"step {count(event.get('step'))}: loss {figure(event.get('loss'))}{within}, {perplexity}"
            f"{count(event.get('rows'))} rows",
        )

    def _skipped(self, event: Event) -> None:
        rows = [str(row) for row in event.get("rows", ())]
        more = f" and {len(rows) - 3:,} more" if len(rows) > 3 else ""
        named = f" ({', '.join(rows[:3])}{more})" if rows else ""
        self._print("skipped", f"step {count(event.get('step'))}: {event.get('reason', '?')}{named}", style="red")

    def _warning(self, event: Event) -> None:
        self._print("warning", str(event.get("message", "?")), style="yellow")

    def _end(self, event: Event) -> None:
        self._bars.stop()
        how = f"{count(event.get('step'))} steps in {duration(event.get('seconds'))}"
        if event.get("reason", "done") == "done":
            self._print("done", how, style="bold green")
        else:
            self._print("ended", f"{event['reason']} after {how}", style="bold yellow")
        if event.get("output"):
            self._print("written", str(event["output"]))

    def _operation(self, event: Event) -> None:
        what, done, total = event["what"], event["done"], event["total"]
        if what not in self._operations:
            self._operations[what] = self._bars.add_task(what, total=total, status="", steps="")
            self._bars.start()
        task = self._operations[what]
        self._bars.update(task, completed=done, total=total, steps=f"{done:,}/{total:,}")
        left = next(each.time_remaining for each in self._bars.tasks if each.id == task)
        self._bars.update(task, status="" if left is None or done == total else f"{duration(left)} left")

    def _print(self, name: str, text: str, style: str = "") -> None:
        """A name and a text; in a terminal long texts wrap within their column, elsewhere they stay on one line."""
        if not self._console.is_terminal:
            self._console.print(Text(f"{name:<10}{text}"), soft_wrap=True)
            return
        line = Table.grid(Column(width=10, style="dim"), Column(overflow="fold"))
        line.add_row(Text(name), Text(text, style=style))
        self._console.print(line)


def _beside(measured: Any, predicted: Any, formatted: Any) -> str:
    if predicted is None:
        return str(formatted(measured))
    off = off_by(predicted, measured)
    return f"{formatted(measured)}; predicted {formatted(predicted)}{f' ({off})' if off else ''}"


COUNTED = {
    "malformed": "malformed rows left out",
    "unusable": "unusable rows left out",
    "truncated": "examples truncated to data.max_length",
    "split": "examples split at data.max_length",
    "dropped": "examples over data.max_length left out",
    "unlearnable": "pieces of split examples without loss tokens left out",
    "joined": "rows cut from concatenated documents",
    "replayed": "rows of data.replay among the examples",
    "separate_turns": "earlier turns turned into separate examples, since the chat template rewrites them later",
}
"""Labels of the counts in a `data` event that the user should see if they are not zero."""
