"""Progress bars for longer operations, from their `progress` events (what, done, total)."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tunesmith.run import Event


class Spinner:
    """A subscriber and a context manager: a bar with the time left for each `what`; removed at the end."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Spinner":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        if event["event"] != "progress":
            return
        what = event["what"]
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=event["total"])
        self._bars.update(self._tasks[what], completed=event["done"], total=event["total"])
