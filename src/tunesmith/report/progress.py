"""A run in the terminal: what it is, what it will take, how far it is, what it took."""

import math
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from tunesmith.report.formatting import base_said, count, duration, figure, method_said, number, off_by, size, sizes
from tunesmith.run import Event

SMOOTHING = 0.9
"""Of the shown loss: the weight of what was before, a step."""

RECENT = 0.95
"""Of tokens and seconds, from which speed and time left are told: some twenty steps count."""

LINES = 10
"""So many progress lines where the output is no terminal."""


class Progress:
    """Subscribes to a run's events: lines for what happens, and a live bar; in a file, a line each tenth of the way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            TextColumn("training"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[steps]}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[told]}", table_column=Column(no_wrap=True)),
            console=console,
            disable=not console.is_terminal,
            expand=True,
        )
        self._shown = {
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
        }
        self._task: TaskID | None = None
        self._forget()

    def _forget(self) -> None:
        """Begin anew, as each run of a chain does."""
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
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        shown = self._shown.get(event["event"])
        if shown is not None:
            shown(event)

    def _start(self, event: Event) -> None:
        self._forget()
        self._total = event.get("total_steps") or 0
        self._first = self._done = self._line_at = event.get("step") or 0
        self._say("run", str(event.get("run", "?")))
        self._say("base", base_said(event))
        rate = event.get("learning_rate")
        self._say("method", method_said(event) + ("" if rate is None else f", at a rate of {rate:.2g}"))
        self._say("objective", str(event.get("objective", "?")))
        self._say("on", f"{event.get('device', '?')}, in {event.get('precision', '?')}")
        if self._first:
            self._say("resumed", f"after step {self._first:,} of {self._total:,}", style="bold")

    def _data(self, event: Event) -> None:
        rows = f"{count(event.get('rows'))} rows ({event.get('format', '?')})"
        kept = f"{count(event.get('examples'))} to learn from, {count(event.get('held_out_rows'))} held out"
        self._say("data", f"{rows}: {kept}{', from the cache' if event.get('cached') else ''}")
        tokens, loss_tokens = event.get("tokens"), event.get("loss_tokens")
        share = figure(number(loss_tokens) / number(tokens), " ({:.0%})") if tokens else ""
        self._say("tokens", f"{count(tokens)}, of which {count(loss_tokens)}{share} are learnt")
        for what, said in COUNTED.items():
            if event.get(what):
                self._say("", f"{count(event[what])} {said}", style="yellow")
        for row in (*event.get("malformed_rows", ()), *event.get("unusable_rows", ())):
            self._say("", str(row), style="yellow")

    def _memory(self, event: Event) -> None:
        twice, blocks = event.get("checkpointed") or 0, event.get("blocks") or 0
        told = f"{twice} of {blocks} blocks computed twice" if twice else "nothing computed twice"
        limit = size(event.get("limit_bytes") or 0)
        self._say("within", f"{limit}: {told}, {event.get('tokens_per_batch') or 0:,} tokens at once")

    def _forecast(self, event: Event) -> None:
        memory, time = event.get("memory", {}), event.get("time", {})
        listed = sizes(memory.get("parts", {}))
        self._say("will need", f"{size(memory.get('peak_bytes'))} of memory{': ' + listed if listed else ''}")
        speed = f"{count(time.get('tokens_per_second'))} tokens a second"
        left = f"{self._total - self._first:,} steps"
        self._say("will take", f"{duration(time.get('total_seconds'))} for {left}, {speed}")
        self._begin()

    def _plan(self, event: Event) -> None:
        """What was foretold beside what was measured, over the steps of this sitting alone."""
        self._bars.stop()
        predicted, measured = event.get("predicted", {}), event.get("measured", {})
        memory, planned_memory = (each.get("memory", {}).get("peak_bytes") for each in (measured, predicted))
        self._say("needed", _beside(memory, planned_memory, size))
        steps = self._done - self._first
        planned = predicted.get("time", {})
        if self._done == self._total:
            self._say("took", _beside(self._spent, planned.get("total_seconds"), duration))
        elif steps:
            self._say("took", _beside(self._spent / steps, planned.get("seconds_per_step"), duration) + " a step")

    def _begin(self) -> None:
        if self._task is None:
            self._task = self._bars.add_task(
                "training", total=self._total, completed=self._first, told="", steps=f"{self._first}/{self._total}"
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
        told = f"loss {figure(self._loss)}  {count(speed)} tok/s  {left} left"
        self._bars.update(self._task, completed=self._done, total=self._total, told=told, steps=steps)
        if not self._console.is_terminal and self._line_is_due():
            self._line_at = self._done
            self._say(f"step {steps}", f" {told}")

    def _line_is_due(self) -> bool:
        """At each whole tenth of what this sitting has to do, and at the end."""
        planned = max(1, self._total - self._first)
        tenths = (self._done - self._first) * LINES // planned
        return tenths > (self._line_at - self._first) * LINES // planned or self._done == self._total

    def _evaluation(self, event: Event) -> None:
        low, high = event.get("loss_interval") or (None, None)
        within = "" if low is None else f" (95 %: {figure(low)}–{figure(high)})"
        perplexity = f"perplexity {figure(event['perplexity'], '{:,.1f}')}, " if "perplexity" in event else ""
        self._say(
            "held out",
            f"step {count(event.get('step'))}: loss {figure(event.get('loss'))}{within}, {perplexity}"
            f"{count(event.get('rows'))} rows",
        )

    def _skipped(self, event: Event) -> None:
        rows = [str(row) for row in event.get("rows", ())]
        more = f" and {len(rows) - 3:,} more" if len(rows) > 3 else ""
        named = f" ({', '.join(rows[:3])}{more})" if rows else ""
        self._say("skipped", f"step {count(event.get('step'))}: {event.get('reason', '?')}{named}", style="red")

    def _warning(self, event: Event) -> None:
        self._say("warning", str(event.get("message", "?")), style="yellow")

    def _end(self, event: Event) -> None:
        self._bars.stop()
        how = f"{count(event.get('step'))} steps in {duration(event.get('seconds'))}"
        if event.get("reason", "done") == "done":
            self._say("done", how, style="bold green")
        else:
            self._say("ended", f"{event['reason']} after {how}", style="bold yellow")
        if event.get("output"):
            self._say("written", str(event["output"]))

    def _say(self, name: str, what: str, style: str = "") -> None:
        """A name and what it is; in a terminal the second column keeps its own margin, elsewhere a line stays one."""
        if not self._console.is_terminal:
            self._console.print(Text(f"{name:<10}{what}"), soft_wrap=True)
            return
        line = Table.grid(Column(width=10, style="dim"), Column(overflow="fold"))
        line.add_row(Text(name), Text(what, style=style))
        self._console.print(line)


def _beside(measured: Any, predicted: Any, said: Any) -> str:
    if predicted is None:
        return str(said(measured))
    off = off_by(predicted, measured)
    return f"{said(measured)}; foretold {said(predicted)}{f' ({off})' if off else ''}"


COUNTED = {
    "malformed": "malformed rows left out",
    "unusable": "rows left out that cannot be learnt from",
    "truncated": "examples cut to data.max_length",
    "split": "examples split at data.max_length",
    "dropped": "examples over data.max_length left out",
    "unlearnable": "pieces of split examples without anything to learn left out",
    "joined": "rows that documents laid end to end were cut into",
    "replayed": "rows of data.replay among the examples",
    "separate_turns": "earlier turns made examples of their own, since the chat template rewrites them later",
}
"""What is said of the counts in a `data` event that a person should see when they are not zero."""
