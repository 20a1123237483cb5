"""`tunesmith serve` under load, beside llama.cpp's server and `transformers serve`.

    pip install xllamacpp                                       # llama.cpp, prebuilt for the CPU
    python benchmarks/serve_load.py --chats FILE…               # about 13 minutes on two cores

A client in a process of its own keeps 1 to 256 streams busy by OpenAI's protocol: each sends its next chat when its
answer is complete. All streams of a cell begin at once and end after its time, finished or not; waits that had not
ended by then count as longer than they lasted. Chats are those of the files, up to a message of the user's; without
files, they are made up. Every server writes exactly as many tokens, short answers more often, each the most likely.

All servers have the same weights and compute in fp32. llama.cpp's files are written here from them; before the first
round it is tried in a few settings, of which the fastest stays. transformers has an environment of its own, made at the
first run. With adapters, stream n asks for adapter n, counted around.

Each server runs in several rounds, one after another. What is measured is written at once to results/serve_load.json,
and an interrupted run continues there. Writes results/serve_load.{json,md,svg} and puts the tables into
docs/serving.md; `--rounds 0` measures nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from generation_models import SMOLLM2, matrix_weights, model_config, write_adapter
from generation_report import put_on_page
from generation_speed import in_own_process, versions
from peer_environments import make_environment
from serve_report import ALONE, OWN, WEIGHT_BYTES, plot, tables
from serve_requests import ANSWER_TOKENS, EXPONENT, chats_of, request_of, requests_of
from serve_servers import ENVIRONMENT, LLAMA_CPP_SETTINGS, Material, running
from train_speed_report import machine

RESULTS = Path(__file__).parent / "results" / "serve_load.json"
PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
ROUNDS = 2
SECONDS = {1: 6.0, 16: 10.0, 64: 22.0, 256: 26.0}
"""How long a cell lasts, by its streams."""

ADAPTERS, ADAPTED_STREAMS = (8, 32, 64), 64
SERVERS = tuple(WEIGHT_BYTES)
MOST_STREAMS = {"llama.cpp, BF16": 64, "transformers": 64, ALONE: 64}
"""Of others than these. More only wait longer for the same tokens, as llama.cpp in F32 shows."""

MOST_PER_SECOND = 20
"""More requests than any server answers."""

TRIAL_SECONDS = 8.0
"""How long a setting of llama.cpp's is tried."""

Job = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chats", type=Path, nargs="+", default=[], help="files of rows with chats")
    parser.add_argument("--model", default=SMOLLM2, help="a base's short name, or a directory")
    parser.add_argument("--servers", nargs="+", default=list(SERVERS), choices=SERVERS)
    parser.add_argument("--levels", type=int, nargs="+", default=list(SECONDS), help="numbers of streams")
    parser.add_argument("--adapters", type=int, nargs="*", default=list(ADAPTERS), help="numbers of different adapters")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, help="of each cell; default: by its streams, 6 to 26")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if versions()["xllamacpp"] == "not installed":
        raise SystemExit("llama.cpp is not installed. Install it: pip install xllamacpp")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        done = measure(options, Path(temporary))
    put_on_page(tables(done), options.results.with_suffix(".md"), PAGE)
    plot(done, options.results.with_suffix(".svg"))
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes")


def measure(options: argparse.Namespace, work: Path) -> Job:
    """Measure what is not measured yet. Returns all results, which are in the file too."""
    about = {
        "machine": machine(),
        "versions": versions(),
        "model": options.model,
        "answers": {"tokens": list(ANSWER_TOKENS), "exponent": EXPONENT},
        "chats": [file.name for file in options.chats],
    }
    results: Path = options.results
    stored: Job = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    if not options.rounds:
        return stored
    done: Job = stored if about.items() <= stored.items() else {**about, "date": str(date.today()), "runs": []}
    if "transformers" in options.servers:
        make_environment(ENVIRONMENT)
    material, requests = prepared(options, work)
    done["weights"] = {
        part: matrix_weights(model_config(material.model), with_output=part == "answer")
        for part in ("prompt", "answer")
    }
    for number in range(options.rounds):
        if not known(done, number, "limits"):
            store(done, {"round": number, "server": "limits", **in_own_process({})["cells"][0]}, results)
        for server in options.servers if number % 2 == 0 else reversed(options.servers):
            if server.startswith("llama.cpp"):
                if "llama.cpp" not in done:
                    done["llama.cpp"] = fastest_settings(server, material, requests)
                material = replace(material, settings=done["llama.cpp"]["fastest"])
            old = known(done, number, server)
            cells = [cell for cell in cells_of(server, options) if old.get(cell) != seconds_of(cell[0], options)]
            for cell, result in zip(cells, measured(server, cells, options, material, requests), strict=True):
                streams, adapters = cell
                run = {"round": number, "server": server, "streams": streams, "adapters": adapters}
                store(done, {**run, "planned": seconds_of(streams, options), **result}, results)
    return done


def known(done: Job, number: int, server: str) -> dict[tuple[int, int], float]:
    """The seconds of a server's cells that were measured in that round, by their streams and adapters."""
    runs = [run for run in done["runs"] if (run["round"], run["server"]) == (number, server) and "failed" not in run]
    return {(run.get("streams", 0), run.get("adapters", 0)): run.get("planned", 0.0) for run in runs}


def store(done: Job, run: Job, results: Path) -> None:
    """Add a cell, in place of one that failed or had another time, and write the file."""
    print(json.dumps(run), flush=True)
    key = ("round", "server", "streams", "adapters")
    done["runs"] = [each for each in done["runs"] if any(each.get(name) != run.get(name) for name in key)] + [run]
    results.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")


# The cells


def all_cells(options: argparse.Namespace) -> list[tuple[int, int]]:
    """Streams and adapters of each cell."""
    return [*((level, 0) for level in options.levels), *((ADAPTED_STREAMS, count) for count in options.adapters)]


def cells_of(server: str, options: argparse.Namespace) -> list[tuple[int, int]]:
    """Those of a server."""
    most = MOST_STREAMS.get(server, max(options.levels))
    own = [(streams, adapters) for streams, adapters in all_cells(options) if adapters or streams <= most]
    return own if server == OWN else [cell for cell in own if not cell[1]]


def seconds_of(streams: int, options: argparse.Namespace) -> float:
    """How long a cell lasts."""
    return options.seconds or max(seconds for level, seconds in SECONDS.items() if level <= streams)


def requests_in(streams: int, options: argparse.Namespace) -> int:
    """How many requests a cell has to itself."""
    return streams + round(MOST_PER_SECOND * seconds_of(streams, options))


def job_of(cell: tuple[int, int], options: argparse.Namespace, requests: Sequence[Job]) -> Job:
    """What a cell is to do: its own part of the requests, so that no prompt is in a cache."""
    cells = all_cells(options)
    first = sum(requests_in(streams, options) for streams, _ in cells[: cells.index(cell)])
    streams = cell[0]
    return {
        "streams": streams,
        "seconds": seconds_of(streams, options),
        "requests": requests[first : first + requests_in(streams, options)],
        "warm_up": request_of([{"role": "user", "content": "Hello!"}], 0, 4),
    }


def measured(
    server: str,
    cells: Sequence[tuple[int, int]],
    options: argparse.Namespace,
    material: Material,
    requests: Sequence[Job],
) -> Iterator[Job]:
    """The result of each cell, one after another; {"failed": the reason} for one that is not possible."""
    jobs = [job_of(cell, options, requests) for cell in cells]
    if server == ALONE:
        what: Job = {"model": str(material.model), "ends": material.ends}
        yield from (result_of("serve_servers.py", job | what) for job in jobs)
    elif jobs:
        try:
            with running(server, material) as (address, command):
                for (_, adapters), job in zip(cells, jobs, strict=True):
                    models = [f"adapter{number}" for number in range(adapters)] or [command.model]
                    own: Job = {"address": address, "body": BODY | command.body, "models": models}
                    yield result_of("serve_client.py", job | own)
        except RuntimeError as error:
            yield from ({"failed": str(error)} for _ in jobs)


def result_of(script: str, job: Job) -> Job:
    """What a script prints for a job, or {"failed": the last line of its errors}."""
    command = [sys.executable, str(Path(__file__).with_name(script))]
    out = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
    lines = [line for line in out.stdout.splitlines() if line.startswith("RESULT ")]
    if lines:
        result: Job = json.loads(lines[0].removeprefix("RESULT "))
        return result
    return {"failed": (out.stderr.strip().splitlines() or [f"exit status {out.returncode}"])[-1][:200]}


def fastest_settings(server: str, material: Material, requests: Sequence[Job]) -> Job:
    """Try llama.cpp's settings on some streams.

    Returns:
        {"tried": each setting with its tokens per second, "fastest": one of them, "system": what it is compiled for}.
    """
    from xllamacpp import get_system_info

    options = argparse.Namespace(levels=[ADAPTED_STREAMS], adapters=[], seconds=TRIAL_SECONDS)
    tried: list[Job] = []
    for settings in LLAMA_CPP_SETTINGS:
        own = replace(material, settings=settings)
        (result,) = measured(server, [(ADAPTED_STREAMS, 0)], options, own, requests)
        tried.append(
            {**settings, "rate": result["tokens"] / result["seconds"] if "tokens" in result else 0.0, **result}
        )
    best = max(range(len(tried)), key=lambda each: tried[each]["rate"])
    return {"tried": tried, "fastest": LLAMA_CPP_SETTINGS[best], "system": get_system_info()}


# The servers' files

BODY = {"temperature": 0.0, "stream": True, "stream_options": {"include_usage": True}}


def prepared(options: argparse.Namespace, work: Path) -> tuple[Material, list[Job]]:
    """The servers' files, and all requests."""
    from tunesmith.exporting.gguf_model import write_model
    from tunesmith.exporting.subject import Subject
    from tunesmith.models.load import locate
    from tunesmith.run import Events

    subject = Subject.find(options.model)
    model = Path(locate(subject.reference.base))
    chats = chats_of(subject.tokenizer, options.chats)
    requests = requests_of(chats, sum(requests_in(streams, options) for streams, _ in all_cells(options)))
    most = max(each["prompt_tokens"] + each["tokens"] for each in requests)
    material = Material(model, work, most, subject.ends)
    make_adapters(work / "adapters", model, max(options.adapters, default=0))
    for server in options.servers:
        name, _, precision = server.partition(", ")
        if name == "llama.cpp":
            write_model(material.gguf(precision), subject, precision.lower(), None, Events())
    return material, requests


def make_adapters(directory: Path, model: Path, count: int) -> None:
    """So many LoRA adapters of the model, with random numbers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    sizes = {
        name: (layer.in_features, layer.out_features)
        for name, layer in base.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    directory.mkdir()
    for number in range(count):
        write_adapter(directory / f"adapter{number}", sizes, str(model))


if __name__ == "__main__":
    main()
