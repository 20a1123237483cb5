"""The generation engine on a thread of its own, for a server whose requests come and go in an event loop."""

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tunesmith.inference.generate import Generator
from tunesmith.inference.padded_engine import PaddedEngine
from tunesmith.inference.request import Alternatives
from tunesmith.inference.writing import Generation, Writing

R = TypeVar("R")

log = logging.getLogger("tunesmith.serving")


@dataclass(frozen=True, slots=True)
class Piece:
    """What one or more steps added to an answer.

    Attributes:
        text: the new text, which may be empty.
        tokens: the new tokens' ids.
        logprobs: their log p, in nats.
        top_logprobs: if asked for, the most likely tokens in place of each, with log p.
        end: with the last piece, the complete answer, or why there is none.
    """

    text: str
    tokens: Sequence[int]
    logprobs: Sequence[float]
    top_logprobs: Sequence[Alternatives]
    end: Generation | Exception | None = None


class Answers:
    """Answers to one client while they are written, for the event loop that made them.

    Args:
        thread: that writes them.
        begin: makes the request of each, on that thread.
        deadline: the event loop's time by which all have to be complete.
    """

    def __init__(self, thread: "EngineThread", begin: Sequence[Callable[[], Writing]], deadline: float) -> None:
        self._thread, self._deadline = thread, deadline
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._answers = [Answer(number, each, self._put) for number, each in enumerate(begin)]

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """The pieces of all answers as they come, each with its answer's number. Leaving early cancels the answers.

        Raises:
            TimeoutError: the time is over.
            Exception: why there is no answer.
        """
        open_answers = len(self._answers)
        try:
            self._thread.call_later(lambda: self._thread.begin(self._answers))
            while open_answers:
                async with asyncio.timeout_at(self._deadline):
                    number, piece = await self._pieces.get()
                if isinstance(piece.end, Exception):
                    raise piece.end
                open_answers -= piece.end is not None
                yield number, piece
        finally:
            if open_answers:
                self._thread.call_later(self._cancel)

    def _put(self, number: int, piece: Piece) -> None:
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, (number, piece))

    def _cancel(self) -> None:
        for answer in self._answers:
            answer.cancel()


class Answer:
    """One answer, on the engine's thread.

    Args:
        number: among the client's.
        begin: makes the request.
        put: takes the pieces.
    """

    def __init__(self, number: int, begin: Callable[[], Writing], put: Callable[[int, Piece], None]) -> None:
        self._number, self._begin, self._put = number, begin, put
        self._writing: Writing | None = None
        self._sent = 0
        self._characters = 0

    def submit(self, generator: Generator) -> bool:
        """Begin, and submit the request. Returns whether that was possible."""
        try:
            self._writing = self._begin()
            generator.engine.submit(self._writing.request)
        except Exception as error:
            self._put(self._number, Piece("", (), (), (), error))
            return False
        return True

    def cancel(self) -> None:
        """End it; its room is free after the next step."""
        if self._writing is not None:
            self._writing.request.cancel()

    def deliver(self) -> bool:
        """Hand over what is new. Returns whether the answer has ended."""
        writing = self._writing
        assert writing is not None
        request = writing.request
        end: Generation | Exception | None = None
        if request.finish is not None:
            try:
                end = writing.finish()
            except Exception as error:
                end = error
        count, text = len(request.tokens), writing.text[self._characters :]
        if end is not None or count > self._sent:
            new = slice(self._sent, count)
            tops = request.alternatives[new] if request.sampling.top_logprobs else ()
            piece = Piece(text, request.tokens[new], request.log_probabilities[new], tops, end)
            self._sent, self._characters = count, len(writing.text)
            self._put(self._number, piece)
        return end is not None


class EngineThread:
    """Runs a generator's engine, and all else that touches the model, on one thread.

    Args:
        generator: writes texts; None: the model does something else.
    """

    def __init__(self, generator: Generator | None) -> None:
        self._generator = generator
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._live: list[Answer] = []
        self._stopping = False
        if generator is not None and isinstance(generator.engine, PaddedEngine):
            generator.engine.on_tokens = self._between_tokens
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def call_later(self, work: Callable[[], None]) -> None:
        """Run something between two steps."""
        self._work.put(work)

    async def call(self, work: Callable[[], R]) -> R:
        """Run something between two steps, and wait for its result.

        Raises:
            Exception: that of `work`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                loop.call_soon_threadsafe(_fail, future, error)
            else:
                loop.call_soon_threadsafe(_succeed, future, result)

        self.call_later(run)
        return await future

    def begin(self, answers: Sequence[Answer]) -> None:
        """Begin answers. To be called between two steps."""
        assert self._generator is not None
        self._live += [answer for answer in answers if answer.submit(self._generator)]

    def stop(self) -> None:
        """End the thread once nothing is left to do."""
        self._work.put(None)
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Requests that are not being computed yet."""
        return self._work.qsize() + (0 if self._generator is None else self._generator.engine.waiting)

    @property
    def running(self) -> int:
        """Requests that are being computed."""
        return 0 if self._generator is None else self._generator.engine.running

    def _run(self) -> None:
        while not (self._stopping and self._is_idle):
            self._do_work(wait=self._is_idle)
            if self._generator is not None and not self._is_idle:
                try:
                    self._generator.engine.step()
                except Exception as error:  # out of memory, say: the requests in it fail, later ones do not
                    log.exception("A step of the engine failed.")
                    self._generator.engine.abandon(error)
            self._deliver()

    @property
    def _is_idle(self) -> bool:
        return self._generator is None or self._generator.engine.is_idle

    def _between_tokens(self) -> None:
        self._do_work(wait=False)
        self._deliver()

    def _deliver(self) -> None:
        self._live = [answer for answer in self._live if not answer.deliver()]

    def _do_work(self, wait: bool) -> None:
        """Do what waits to be done."""
        try:
            while (work := self._work.get(block=wait)) is not None:
                work()
                wait = False
            self._stopping = True
        except queue.Empty:
            pass


def _succeed(future: asyncio.Future[R], result: R) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[R], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
