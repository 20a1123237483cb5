"""On Ctrl-C or SIGTERM the loop finishes its step and saves; a second Ctrl-C stops immediately."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Whether an interrupt was requested."""

    asked = False


@contextmanager
def listen_for_interrupts() -> Iterator[Interruption]:
    """Within the context, the first SIGINT or SIGTERM only sets `asked`. Does nothing outside the main thread."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        if interruption.asked:
            raise KeyboardInterrupt
        interruption.asked = True

    for number in before:
        signal.signal(number, ask)
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
