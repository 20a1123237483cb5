"""The engines that generation_speed.py measures, each in a process of its own that reads its job from stdin."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from generation_models import add_adapters, gguf_file, matrix_weights, model_config, token_cache_bytes

WARM_UP = {"ids": list(range(300, 364)), "tokens": 4}
CORES = os.cpu_count() or 1


@dataclass(frozen=True)
class Work:
    """What an engine is measured on.

    Attributes:
        model: the directory of the model.
        precision: of the weights, by the engine's own name.
        directory: for files that are needed again.
        most_tokens: of a prompt and its answer.
        settings: of llama.cpp, see `LLAMA_CPP_SETTINGS`.
    """

    model: Path
    precision: str
    directory: Path
    most_tokens: int
    settings: dict[str, bool]


class Engine(Protocol):
    """Answers requests: {"ids": the prompt, "tokens": how many to write, "adapter": a name, if there is one}.

    Attributes:
        weight_bytes: of the matrices that every step reads.
        cached_tokens: how many tokens of the last requests' prompts were in the cache.
    """

    weight_bytes: int
    cached_tokens: int

    def begin(self, at_once: int) -> None:
        """Forget earlier requests, and get ready for that many at once."""

    def answer(self, requests: Sequence[dict[str, Any]]) -> list[float]:
        """Write every answer, as many at once as `begin` got. Returns seconds to each first token, if known."""

    def end(self) -> None:
        """End what runs in the background."""


class Tunesmith:
    """The engine of `tunesmith.inference`. It computes in fp32 and reads the weights as they are stored."""

    def __init__(self, work: Work) -> None:
        import torch

        from tunesmith.config.base import Base
        from tunesmith.heads.stored import stored_head
        from tunesmith.inference.engine import Engine as PagedEngine
        from tunesmith.inference.model_reference import ModelReference
        from tunesmith.inference.paged_model import paged_model
        from tunesmith.modules.served_linear import ServedLinear

        weights = "auto" if work.precision == "fp32" else work.precision
        base = Base.model_validate({"path": str(work.model), "weights": weights})
        paged = paged_model(ModelReference(base, stored_head(base)).model(torch.float32, torch.device("cpu")))
        if paged is None:
            raise SystemExit(f"{work.model} cannot be paged")
        served = {module for module in paged.model.modules() if isinstance(module, ServedLinear)}
        self.weight_bytes = sum(layer.packed.bytes for layer in served if layer.packed is not None)
        self.engine = PagedEngine(paged)
        self.cached_tokens = 0
        self._directory = work.directory

    def begin(self, at_once: int) -> None:
        self.engine.pages.forget_all()
        self.engine.concurrent = at_once

    def add_adapters(self, names: Sequence[str]) -> None:
        shape = self.engine.model.shape
        sizes = {name: shape.sizes[number] for name, number in shape.linears.items()}
        add_adapters(self.engine.adapters, sizes, self._directory, names)

    def answer(self, requests: Sequence[dict[str, Any]]) -> list[float]:
        from tunesmith.inference.request import Request
        from tunesmith.inference.sampling import Sampling

        own = [
            Request(each["ids"], Sampling(max_new_tokens=each["tokens"]), adapter=each.get("adapter"))
            for each in requests
        ]
        for group in [[request] for request in own] if self.engine.concurrent == 1 else [own]:
            for request in group:
                request.submitted = time.perf_counter()
            self.engine.run(group)
        self.cached_tokens = sum(request.cached_tokens for request in own)
        for request, each in zip(own, requests, strict=True):
            refuse_wrong_count(len(request.tokens), each)
        return [request.first_token_seconds or 0.0 for request in own]

    def end(self) -> None:
        pass


class Transformers:
    """`generate`, in padded batches in order of arrival."""

    def __init__(self, work: Work) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32).eval()
        self.weight_bytes = 4 * matrix_weights(model_config(work.model))
        self.cached_tokens, self.at_once = 0, 1

    def begin(self, at_once: int) -> None:
        self.at_once = at_once

    def answer(self, requests: Sequence[dict[str, Any]]) -> list[float]:
        import torch

        firsts: list[float] = []
        for start in range(0, len(requests), self.at_once):
            batch = requests[start : start + self.at_once]
            longest = max(len(each["ids"]) for each in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, each in enumerate(batch):
                ids[row, longest - len(each["ids"]) :] = torch.tensor(each["ids"])
                mask[row, longest - len(each["ids"]) :] = 1
            count = max(each["tokens"] for each in batch)
            times = Times()
            self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False,
                streamer=times,
            )  # fmt: skip
            firsts += [times.first_token] * len(batch)
        return firsts

    def end(self) -> None:
        pass


class Times:
    """A streamer for `generate` that takes the time of the first token."""

    def __init__(self) -> None:
        self._before, self._calls, self.first_token = time.perf_counter(), 0, 0.0

    def put(self, tokens: Any) -> None:
        self._calls += 1
        if self._calls == 2:  # the first call has the prompts
            self.first_token = time.perf_counter() - self._before

    def end(self) -> None:
        pass


class TransformersContinuous(Transformers):
    """transformers' continuous batching, which runs on a CPU with `sdpa` and attention masks.

    A step takes at most 256 tokens, as Tunesmith's does: masks are as large as a step's tokens times the cache. There
    are as many pages of 64 tokens as the requests can use; by default they would take 60 % of the memory.
    """

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._most_tokens = work.most_tokens
        self._manager: Any = None

    def begin(self, at_once: int) -> None:
        from transformers import GenerationConfig
        from transformers.generation import ContinuousBatchingConfig

        super().begin(at_once)
        self.end()
        page = 64
        self._manager = self.model.init_continuous_batching(
            GenerationConfig(max_new_tokens=self._most_tokens, eos_token_id=-1, do_sample=False),
            ContinuousBatchingConfig(
                page_size=page,
                num_blocks=(at_once + 1) * -(-self._most_tokens // page),  # some stay free
                max_batch_tokens=256,
                max_requests_per_batch=at_once,
            ),
        )
        self._manager.start()

    def answer(self, requests: Sequence[dict[str, Any]]) -> list[float]:
        groups = [[request] for request in requests] if self.at_once == 1 else [requests]
        return [first for group in groups for first in self._answer(group)]

    def end(self) -> None:
        if self._manager is not None:
            self._manager.stop(block=True)

    def _answer(self, requests: Sequence[dict[str, Any]]) -> list[float]:
        manager, waiting = self._manager, dict[str, dict[str, Any]]()
        for each in requests:
            name = manager.add_request(
                each["ids"], max_new_tokens=each["tokens"], eos_token_id=-1, record_timestamps=True
            )
            waiting[name] = each
        firsts: list[float] = []
        while waiting:
            result = manager.get_result(timeout=1)
            if result is None:
                if not manager.is_running():
                    raise SystemExit(f"it stopped: {manager.background_thread_status.fatal_error}")
                continue
            if result.error is not None:
                raise SystemExit(result.error)
            if result.is_finished():
                refuse_wrong_count(len(result.generated_tokens), waiting.pop(result.request_id))
                firsts.append(result.timestamps[0] - result.created_time)
        return firsts


LLAMA_CPP_SETTINGS = [
    {"flash_attention": flash, "unified": unified} for flash in (True, False) for unified in (False, True)
]
"""Attention in one operation or in several; each slot with a cache of its own or all in one."""


class LlamaCpp:
    """llama.cpp's own server, in this process, with as many slots as requests at once. Its cache is in fp32, as the
    others' are."""

    def __init__(self, work: Work) -> None:
        import xllamacpp

        self._library, self._work = xllamacpp, work
        self._file = gguf_file(work.directory, work.model, work.precision)
        self.weight_bytes = self._file.stat().st_size
        self.cached_tokens, self.at_once = 0, 1
        self._server: Any = None

    def begin(self, at_once: int) -> None:
        library, settings = self._library, self._work.settings
        self.end()
        params = library.CommonParams()
        params.model.path = str(self._file)
        params.n_parallel = self.at_once = at_once
        params.n_ctx = at_once * (self._work.most_tokens + 8)
        params.kv_unified = settings["unified"]
        kinds = library.llama_flash_attn_type
        params.flash_attn_type = (
            kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if settings["flash_attention"] else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.cache_type_k = params.cache_type_v = library.ggml_type.GGML_TYPE_F32
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = CORES
        params.verbosity = -1
        self._server = library.Server(params)

    def end(self) -> None:
        self._server = None

    def answer(self, requests: Sequence[dict[str, Any]]) -> list[float]:
        with ThreadPoolExecutor(self.at_once) as pool:
            answers = list(pool.map(self._stream if self.at_once == 1 else self._whole, requests))
        for (_, usage), each in zip(answers, requests, strict=True):
            refuse_wrong_count(usage["completion_tokens"], each)
        self.cached_tokens = sum(usage["prompt_tokens_details"]["cached_tokens"] for _, usage in answers)
        return [first for first, _ in answers if first is not None]

    def _body(self, each: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": each["ids"], "max_tokens": each["tokens"], "ignore_eos": True, "temperature": 0.0}

    def _whole(self, each: dict[str, Any]) -> tuple[float | None, dict[str, Any]]:
        """No time of the first token, and what was used."""
        return None, self._server.handle_completions(self._body(each))["usage"]

    def _stream(self, each: dict[str, Any]) -> tuple[float | None, dict[str, Any]]:
        """The seconds to the first token, and what was used, which the last part says."""
        before, parts = time.perf_counter(), list[tuple[float, dict[str, Any]]]()
        self._server.handle_completions(
            self._body(each) | {"stream": True}, lambda part: parts.append((time.perf_counter() - before, part))
        )
        return parts[0][0], parts[-1][1]["usage"]


ENGINES: dict[str, Any] = {
    "tunesmith": Tunesmith,
    "transformers": Transformers,
    "transformers continuous": TransformersContinuous,
    "llama.cpp": LlamaCpp,
}


def refuse_wrong_count(written: int, request: dict[str, Any]) -> None:
    if written != request["tokens"]:
        raise SystemExit(f"{written} tokens were written instead of {request['tokens']}")


def measured(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Answer the requests of each cell, one cell after another.

    Args:
        job: {"engine": name and precision, "model", "directory", "settings", "most_tokens": as in `Work`, "cells"}. A
            cell has "at_once", "adapters": how many different ones, and "requests"; with "limits", it is one request,
            and the time to read as many bytes as one of its steps reads is taken too.
    """
    name, precision = job["engine"].split(", ")
    work = Work(Path(job["model"]), precision, Path(job["directory"]), job["most_tokens"], job["settings"])
    engine: Engine = ENGINES[name](work)
    try:
        return [_measured(engine, work, cell) for cell in job["cells"]]
    finally:
        engine.end()


def _measured(engine: Engine, work: Work, cell: dict[str, Any]) -> dict[str, Any]:
    requests, names = cell["requests"], [f"adapter{number}" for number in range(cell["adapters"])]
    if isinstance(engine, Tunesmith):
        engine.add_adapters(names)
    if names:
        requests = [each | {"adapter": names[number % len(names)]} for number, each in enumerate(requests)]
    engine.begin(cell["at_once"])
    engine.answer([WARM_UP])
    before = time.perf_counter()
    firsts = engine.answer(requests)
    seconds = time.perf_counter() - before
    result = {
        "at_once": cell["at_once"],
        "adapters": cell["adapters"],
        "requests": len(requests),
        "seconds": seconds,
        "tokens": sum(each["tokens"] for each in requests),
        "prompt_tokens": sum(len(each["ids"]) for each in requests),
        "cached_tokens": engine.cached_tokens,
        "first_token": sum(firsts) / len(firsts) if firsts else None,
        "peak_bytes": peak_bytes(),
    }
    if not cell.get("limits"):
        return result
    length = len(requests[0]["ids"]) + requests[0]["tokens"] // 2
    step_bytes = engine.weight_bytes + length * token_cache_bytes(model_config(work.model))
    return result | {"limits": True, "step_bytes": step_bytes, "read_seconds": read_seconds(step_bytes)}


def peak_bytes() -> int:
    """The most memory that this process has had, from its own start."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory at the fork
        return 1024 * int(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_seconds(count: int) -> float:
    """The least time in which all cores read that many bytes again and again, by three of PyTorch's operations."""
    import torch

    width = 1024
    numbers = torch.ones(max(1, count // 4 // width), width)
    vector, flat = torch.ones(width), numbers.view(-1)
    reads: tuple[Callable[[], Any], ...] = (lambda: numbers @ vector, lambda: flat.sum(), lambda: torch.dot(flat, flat))
    best = float("inf")
    for read in reads * 10:
        before = time.perf_counter()
        read()
        best = min(best, time.perf_counter() - before)
    return best * count / (4 * numbers.numel())


def limits() -> dict[str, float]:
    """What the machine allows: reads from memory and products of matrices per second."""
    import torch
    from matrix_rate import rate

    size = 2**30  # no cache holds it
    shape = (1024, 1024, 1024)
    return {
        "bytes_per_second": size / read_seconds(size),
        "fp32": rate(shape, torch.float32, "cpu"),
        "bf16": rate(shape, torch.bfloat16, "cpu"),
    }


if __name__ == "__main__":
    job = json.load(sys.stdin)
    print("RESULT " + json.dumps(measured(job) if job else [limits()]))
