"""A run in the terminal: what it is, what it will take, how far it is, what it took."""

import math
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from tunesmith.report.words import count, duration, size
from tunesmith.run import Event

SMOOTHING = 0.9
"""Of the shown loss: the weight of what was before, a step."""

LINES = 10
"""So many progress lines where the output is no terminal."""


class Progress:
    """Subscribes to a run's events: lines for what happens, and a live bar; in a file, a line each tenth of the way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[told]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._total = self._first = 0
        self._loss: float | None = None
        self._tokens = self._seconds = 0.0
        self._predicted: dict[str, Any] = {}
        self._line_at = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        shown = getattr(self, f"_{event['event']}", None)
        if shown is not None:
            shown(event)

    def _start(self, event: Event) -> None:
        self._total, self._first = event["total_steps"], event.get("step", 0)
        trained, every = event["trained_parameters"], event["parameters"]
        self._say("run", event["run"])
        self._say("base", f"{event['base']}, {count(every)} weights")
        what = f"{event['method']}, objective {event['objective']}, {event['precision']} on {event['device']}"
        self._say("method", f"{what}; trains {count(trained)} ({trained / every:.1%})")
        if self._first:
            self._say("resumed", f"after step {self._first:,} of {self._total:,}")

    def _data(self, event: Event) -> None:
        kept = f"{event['examples']:,} examples, {event['held_out_rows']:,} held out"
        self._say("data", f"{event['rows']:,} rows ({event['form']}): {kept}{', from the cache' * event['cached']}")
        self._say("tokens", f"{count(event['tokens'])}, of which {count(event['learnt_tokens'])} are learnt")
        for what in ("malformed", "unusable", "truncated", "split", "dropped", "unlearnable", "separate_turns"):
            if event.get(what):
                self._say("", f"{event[what]:,} {_COUNTED[what]}", style="yellow")
        for row in (*event.get("malformed_rows", ()), *event.get("unusable_rows", ())):
            self._say("", row, style="yellow")

    def _plan(self, event: Event) -> None:
        if "predicted" in event:
            self._predicted = event["predicted"]
            memory, time_ = self._predicted["memory"], self._predicted["time"]
            largest = sorted(memory.get("parts", {}).items(), key=lambda part: -part[1])[:3]
            parts = ", ".join(f"{name} {size(held)}" for name, held in largest)
            self._say("memory", f"{size(memory['peak_bytes'])} ({parts})")
            self._say("time", f"{duration(time_['total_seconds'])}, {time_['tokens_per_second']:,.0f} tokens/s")
            self._begin()
        elif self._predicted:
            self._bars.stop()
            measured = event["measured"]
            foretold, held = (each["memory"]["peak_bytes"] for each in (self._predicted, measured))
            self._say("memory", f"{size(held)} (foretold: {size(foretold)})")

    def _begin(self) -> None:
        self._task = self._bars.add_task("training", total=self._total, completed=self._first, told="")
        self._line_at = self._first
        self._bars.start()

    def _step(self, event: Event) -> None:
        loss = event["loss"]
        if isinstance(loss, float) and math.isfinite(loss):
            self._loss = loss if self._loss is None else SMOOTHING * self._loss + (1 - SMOOTHING) * loss
        self._tokens = 0.95 * self._tokens + event["tokens"]
        self._seconds = 0.95 * self._seconds + event["seconds"]
        done = event["step"]
        share = (done - self._first) / max(1, self._total - self._first)
        left = self._seconds_left(event)
        rate = self._tokens / max(self._seconds, 1e-9)
        told = f"loss {self._loss or float('nan'):.3f}  {rate:,.0f} tok/s  {duration(left)} left"
        if self._task is not None:
            self._bars.update(self._task, completed=done, told=told)
        due = self._first + math.ceil((self._total - self._first) * (math.floor(share * LINES) / LINES))
        if not self._console.is_terminal and (due > self._line_at or done == self._total):
            self._line_at = done
            self._console.print(f"step {done:,}/{self._total:,}  {told}")

    def _seconds_left(self, event: Event) -> float:
        """What is left by the mean of the last steps, some twenty."""
        steps = (1 - 0.95 ** (event["step"] - self._first)) / 0.05
        return float(self._seconds / max(steps, 1) * (self._total - event["step"]))

    def _evaluation(self, event: Event) -> None:
        low, high = event["loss_interval"]
        self._say(
            "held out",
            f"step {event['step']:,}: loss {event['loss']:.3f} [{low:.3f}, {high:.3f}], "
            f"perplexity {event['perplexity']:,.1f}, {event['rows']:,} rows",
        )

    def _skipped(self, event: Event) -> None:
        rows = ", ".join(event.get("rows", [])[:3])
        self._say("skipped", f"step {event['step']:,}: {event['reason']} ({rows})", style="red")

    def _warning(self, event: Event) -> None:
        self._say("warning", event["message"], style="yellow")

    def _end(self, event: Event) -> None:
        self._bars.stop()
        self._say("done" if event["reason"] == "done" else "ended", f"{_how(event)} in {duration(event['seconds'])}")
        if event.get("output"):
            self._say("written", event["output"])

    def _say(self, name: str, what: str, style: str = "") -> None:
        line = Text(f"{name:<10}", style="dim") + Text(what, style=style)
        self._console.print(line, soft_wrap=not self._console.is_terminal)


_COUNTED = {
    "malformed": "malformed rows left out",
    "unusable": "rows left out that cannot be learnt from",
    "truncated": "examples cut to data.max_length",
    "split": "examples split at data.max_length",
    "dropped": "examples over data.max_length left out",
    "unlearnable": "pieces of split examples without anything to learn left out",
    "separate_turns": "earlier turns made examples of their own, since the chat template rewrites them later",
}


def _how(event: Event) -> str:
    reason = "" if event["reason"] == "done" else f"{event['reason']}, "
    return f"{reason}{event['step']:,} steps"
