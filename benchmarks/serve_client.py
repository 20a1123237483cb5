"""The client of serve_load.py, in a process of its own that reads its job from stdin: one event loop, many streams.

Each stream sends its next request when its last answer is complete. All begin at once, and all end after the same time;
what has not come by then is known to have taken longer, and is counted so.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

SHARES = (50, 95, 99)
"""The percentiles that are reported."""

TOGETHER = 0.001
"""Texts that follow each other within so many seconds arrived together: no step of a model is so short."""

WARM_UP_SECONDS = 120
"""How long the requests before the measurement may take: those of the cell before may still be in the queue."""

Job = dict[str, Any]


@dataclass
class Answer:
    """What has come of an answer so far.

    Attributes:
        tokens: how many are asked for.
        prompt_tokens: how many the prompt has.
        sent: when the request was sent, in seconds.
        last: when something last came, or when it was sent.
        first: when the first text came.
        gaps: seconds between two arrivals of text.
        pieces: of text; most have one token.
        cached: how many of the prompt's tokens the server says were in its cache.
        wrong: why it is not what was asked for.
        is_complete: whether it has ended.
    """

    tokens: int
    prompt_tokens: int
    sent: float
    last: float = 0.0
    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    pieces: int = 0
    cached: int = 0
    wrong: str | None = None
    is_complete: bool = False

    def __post_init__(self) -> None:
        self.last = self.sent

    def arrived(self, pieces: int, now: float) -> None:
        """Take note of pieces of text that arrived together."""
        if self.first is None:
            self.first = now
        elif now - self.last > TOGETHER:
            self.gaps.append(now - self.last)
        self.last = now
        self.pieces += pieces


class Cell:
    """What some streams have seen, in the time that they have.

    Args:
        streams: how many there are.
    """

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._answers: list[Answer] = []
        self._refused: Counter[str] = Counter()
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def ask(self, request: Job) -> Answer:
        """A request is sent."""
        answer = Answer(request["tokens"], request["prompt_tokens"], time.perf_counter())
        self._answers.append(answer)
        return answer

    def refuse(self, answer: Answer, status: int) -> None:
        """The server did not take it on."""
        self._answers.remove(answer)
        self._refused[str(status)] += 1

    def result(self) -> Job:
        """The cell's figures up to now."""
        now = time.perf_counter()
        seconds = now - self._began
        good = [each for each in self._answers if each.wrong is None]
        begun = [each for each in good if each.first is not None]
        complete = [each for each in good if each.is_complete]
        per_piece = sum(each.tokens for each in complete) / max(1, sum(each.pieces for each in complete))
        pieces = sum(each.pieces for each in good if not each.is_complete)
        waits = [now - each.sent for each in good if each.first is None and not each.is_complete]
        open_gaps = [now - each.last for each in begun if not each.is_complete]
        return {
            "streams": self._streams,
            "seconds": seconds,
            "answers": len(complete),
            "tokens": sum(each.tokens for each in complete) + (per_piece or 1) * pieces,
            "prompt_tokens": sum(each.prompt_tokens for each in begun),
            "cached_tokens": sum(each.cached for each in complete),
            "complete_prompt_tokens": sum(each.prompt_tokens for each in complete),
            "first_token": percentiles([(each.first or 0.0) - each.sent for each in begun], waits),
            "between": percentiles([gap for each in good for gap in each.gaps], open_gaps),
            "refused": dict(self._refused),
            "wrong": dict(Counter(each.wrong for each in self._answers if each.wrong is not None)),
            "client_cpu": (time.process_time() - self._cpu) / seconds,
        }


def percentiles(seen: Sequence[float], open_ends: Sequence[float]) -> Job:
    """The percentiles of times of which some had not ended (Kaplan & Meier 1958).

    Args:
        seen: times that have ended, in seconds.
        open_ends: how long the others had lasted.

    Returns:
        {percentile: seconds}; a percentile that was not reached is {percentile: None}, and "longest" the time seen.
    """
    ends = sorted(
        [(each, 1) for each in seen] + [(each, 0) for each in open_ends], key=lambda each: (each[0], -each[1])
    )
    found: Job = dict.fromkeys(map(str, SHARES))
    survives = 1.0
    for number, (seconds, has_ended) in enumerate(ends):
        survives *= 1 - has_ended / (len(ends) - number)
        for share in SHARES:
            if has_ended and found[str(share)] is None and survives <= 1 - share / 100 + 1e-9:
                found[str(share)] = seconds
    return found | {"longest": ends[-1][0] if ends else 0.0}


async def measured(job: Job) -> Job:
    """Send the job's requests from all of its streams, for its time.

    Args:
        job: {"address": of the server, up to `/v1`, "body": fields of each request, "models": stream n asks for the
            model n of these, counted around, "streams", "seconds", "requests": each with "body", its own fields,
            "tokens" of the answer and "prompt_tokens"; stream n sends requests n, n + streams, …, counted around,
            "warm_up": a request}.
    """
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(limits=limits, timeout=None, base_url=job["address"]) as client:
        await _warm_up(client, job)
        cell = Cell(job["streams"])
        streams = [asyncio.create_task(_stream(client, job, number, cell)) for number in range(job["streams"])]
        ended, _ = await asyncio.wait(streams, timeout=job["seconds"], return_when=asyncio.FIRST_EXCEPTION)
        result = cell.result()
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        for stream in ended:
            stream.result()
        return result


async def _warm_up(client: httpx2.AsyncClient, job: Job) -> None:
    """One short answer of each model."""
    warm, cell = job["warm_up"], Cell(0)
    asked = [cell.ask(warm) for _ in job["models"]]
    async with asyncio.timeout(WARM_UP_SECONDS):
        answers = (
            _answer(client, job["body"] | warm["body"] | {"model": model}, answer, cell)
            for model, answer in zip(job["models"], asked, strict=True)
        )
        await asyncio.gather(*answers)
    wrong = {**cell.result()["refused"], **cell.result()["wrong"]}
    if wrong:
        raise SystemExit(f"a request before the measurement failed: {wrong}")


async def _stream(client: httpx2.AsyncClient, job: Job, number: int, cell: Cell) -> None:
    """Send one request after the other."""
    model = job["models"][number % len(job["models"])]
    index = number
    while True:
        request = job["requests"][index % len(job["requests"])]
        answer = cell.ask(request)
        await asyncio.sleep(await _answer(client, job["body"] | request["body"] | {"model": model}, answer, cell))
        index += job["streams"]


async def _answer(client: httpx2.AsyncClient, body: Job, answer: Answer, cell: Cell) -> float:
    """Read an answer to its end. Returns for how many seconds the server asks to wait before the next request."""
    usage: Job = {}
    try:
        async with client.stream("POST", "chat/completions", json=body) as response:
            if response.status_code != 200:
                cell.refuse(answer, response.status_code)
                return float(response.headers.get("retry-after", 1))
            rest = b""
            async for data in response.aiter_bytes():
                now = time.perf_counter()
                *lines, rest = (rest + data).split(b"\n")
                events = list(_events(lines))
                pieces = sum(map(_has_text, events))
                if pieces:
                    answer.arrived(pieces, now)
                for event in events:
                    usage = event.get("usage") or usage
                    if "error" in event:
                        answer.wrong = str(event["error"])[:200]
    except httpx2.HTTPError as error:
        answer.wrong = type(error).__name__
    answer.wrong = answer.wrong or _mismatch(usage, answer)
    answer.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    answer.is_complete = True
    return 0.0 if answer.wrong is None else 1.0


def _events(lines: Iterable[bytes]) -> Iterable[Job]:
    """Server-sent events, but the last."""
    for line in lines:
        data = line.removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data != b"[DONE]":
            yield json.loads(data)


def _has_text(event: Job) -> bool:
    return any((choice.get("delta") or {}).get("content") for choice in event.get("choices") or ())


def _mismatch(usage: Job, answer: Answer) -> str | None:
    """Why the answer cannot be compared with others."""
    if usage.get("completion_tokens") != answer.tokens:
        return f"{usage.get('completion_tokens')} tokens in place of {answer.tokens}"
    if answer.prompt_tokens and usage.get("prompt_tokens") != answer.prompt_tokens:
        return f"a prompt of {usage.get('prompt_tokens')} tokens in place of {answer.prompt_tokens}"
    return None


if __name__ == "__main__":
    print("RESULT " + json.dumps(asyncio.run(measured(json.load(sys.stdin)))))
