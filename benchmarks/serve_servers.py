"""The servers that serve_load.py measures, each in a process of its own on a free port of this machine.

Run as a script, it is llama.cpp's server, or Tunesmith's engine without a server, which read their job from stdin.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer_environments import python_of
from serve_client import Answer, Cell

NAME = "served"
"""What clients call the model, where they can choose."""

ENVIRONMENT = "transformers"
"""Of transformers' server, see requirements-transformers.txt."""

START_SECONDS = 180

TRANSFORMERS_AT_ONCE, PAGE = 16, 64
"""transformers has room for so many requests, in pages of so many tokens. More only make it slower: its attention is
computed between the tokens of a step and the caches of all requests, with a mask."""

Job = dict[str, Any]


@dataclass(frozen=True)
class Material:
    """What servers need.

    Attributes:
        model: the directory of the model.
        directory: of files made for this: adapters under `adapters`, GGUF files.
        most_tokens: of a prompt and its answer.
        ends: the tokens that end an answer.
        settings: of llama.cpp, see `LLAMA_CPP_SETTINGS`.
    """

    model: Path
    directory: Path
    most_tokens: int
    ends: Sequence[int]
    settings: Job = field(default_factory=dict)

    def gguf(self, precision: str) -> Path:
        """The file of the model for llama.cpp."""
        return self.directory / f"{self.model.name}-{precision}.gguf"


@dataclass(frozen=True)
class Command:
    """How a server is started, and what its requests need beside OpenAI's fields.

    Attributes:
        words: of the command line.
        body: fields of each request.
        model: its name for clients.
        job: that it reads from stdin.
    """

    words: Sequence[str]
    body: Job
    model: str = NAME
    job: Job | None = None


LLAMA_CPP_SETTINGS: Sequence[Job] = [
    {"slots": slots, "flash_attention": flash} for slots in (16, 64) for flash in (True, False)
]
"""How many answers at once, and attention in one operation or in several."""


def command_of(server: str, material: Material, port: int) -> Command:
    """The command of a server.

    Args:
        server: its name, and a precision after a comma.
        material: what it serves.
        port: that it listens on.
    """
    name, _, precision = server.partition(", ")
    return _COMMANDS[name](material, precision, port)


def _tunesmith(material: Material, precision: str, port: int) -> Command:
    """As `tunesmith serve MODEL` is without options, and adapters beside it."""
    words = [sys.executable, "-m", "tunesmith", "serve", str(material.model), "--name", NAME, "--port", str(port)]
    words += ["--adapters", str(material.directory / "adapters"), "--quiet"]
    return Command(words, {"logit_bias": {str(token): -100 for token in material.ends}})


def _llama_cpp(material: Material, precision: str, port: int) -> Command:
    words = [sys.executable, str(Path(__file__)), "llama.cpp"]
    job = {
        "file": str(material.gguf(precision)),
        "port": port,
        "most_tokens": material.most_tokens,
        **material.settings,
    }
    return Command(words, {"ignore_eos": True}, job=job)


def _transformers(material: Material, precision: str, port: int) -> Command:
    """Continuous batching, with as much room as is of use."""
    words = [str(python_of(ENVIRONMENT).with_name("transformers")), "serve", str(material.model)]
    words += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    blocks = (TRANSFORMERS_AT_ONCE + 1) * -(-material.most_tokens // PAGE)  # some stay free
    words += ["--continuous-batching", "--cb-block-size", str(PAGE), "--cb-num-blocks", str(blocks)]
    words += ["--cb-max-batch-tokens", "256", "--log-level", "error"]
    endless = json.dumps({"eos_token_id": -1, "do_sample": False})
    return Command(words, {"generation_config": endless}, str(material.model))


_COMMANDS = {"tunesmith": _tunesmith, "llama.cpp": _llama_cpp, "transformers": _transformers}


@contextmanager
def running(server: str, material: Material) -> Iterator[tuple[str, Command]]:
    """Run a server. Its address up to `/v1`, and its command; it is killed at the end.

    Raises:
        RuntimeError: it does not start.
    """
    port = free_port()
    command = command_of(server, material, port)
    log = material.directory / "server.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command.words, stdin=subprocess.PIPE, stdout=errors, stderr=errors, start_new_session=True
        )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(command.job).encode())
        process.stdin.close()
        _wait_until_healthy(process, port, log)
        yield f"http://127.0.0.1:{port}/v1", command
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # llama.cpp's may not end otherwise
        process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = lines[-1][:200] if lines else f"exit status {process.returncode}"
    raise RuntimeError(f"the server does not start: {reason}")


def llama_cpp(job: Job) -> None:
    """Serve a GGUF file with llama.cpp until the process is killed. Its cache is in fp32, as the others' are.

    Args:
        job: {"file", "port", "most_tokens": of a request, "slots", "flash_attention"}.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["file"]
    params.hostnames, params.port = ["127.0.0.1"], job["port"]
    params.n_parallel = job["slots"]
    params.n_ctx = job["slots"] * (job["most_tokens"] + 8)
    params.kv_unified = False
    kinds = xllamacpp.llama_flash_attn_type
    flash, several = kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED, kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.flash_attn_type = flash if job["flash_attention"] else several
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
    params.verbosity = -1
    server = xllamacpp.Server(params)
    assert server.listening_address.endswith(f":{job['port']}"), server.listening_address
    threading.Event().wait()


def engine_alone(job: Job) -> Job:
    """What serve_client's `measured` gives, from Tunesmith's engine in this process: no HTTP, JSON or event loop.

    Args:
        job: {"model": its directory, "streams", "seconds", "requests" and "warm_up": as the client's, "ends": banned
            tokens}.
    """
    from tunesmith.inference.model import Model
    from tunesmith.inference.sampling import Sampling

    generator = Model(job["model"]).generator
    engine, requests, streams = generator.paged, job["requests"], job["streams"]
    bias = dict.fromkeys(job["ends"], -100.0)

    def begin(index: int, cell: Cell, request: Job) -> "_Stream":
        answer = cell.ask(request)
        ids = generator.ids(generator.prompt_of(request["body"]["messages"]))
        sampling = Sampling(max_new_tokens=request["tokens"], logit_bias=bias)
        writing = generator.begin(ids, sampling)
        engine.submit(writing.request)
        return _Stream(index, answer, writing)

    begin(0, Cell(0), job["warm_up"])
    while not engine.is_idle:
        engine.step()
    cell = Cell(streams)
    live = [begin(number, cell, requests[number % len(requests)]) for number in range(streams)]
    end = time.perf_counter() + job["seconds"]
    while time.perf_counter() < end:
        engine.step()
        for number, each in enumerate(live):
            if not each.is_answering():
                index = each.index + streams
                live[number] = begin(index, cell, requests[index % len(requests)])
    return cell.result()


@dataclass
class _Stream:
    """A stream of `engine_alone`: the number of its request, what it has seen of the answer, and the answer's text."""

    index: int
    answer: Answer
    writing: Any
    characters: int = 0

    def is_answering(self) -> bool:
        """Take note of new text. Whether the answer has not ended."""
        request, text = self.writing.request, self.writing.text
        if request.finish is not None:
            text = self.writing.finish().text
            self.answer.is_complete, self.answer.cached = True, request.cached_tokens
        if len(text) > self.characters:
            self.answer.arrived(1, time.perf_counter())
            self.characters = len(text)
        return request.finish is None


if __name__ == "__main__":
    given = json.load(sys.stdin)
    if sys.argv[1:] == ["llama.cpp"]:
        llama_cpp(given)
    else:
        print("RESULT " + json.dumps(engine_alone(given)))
