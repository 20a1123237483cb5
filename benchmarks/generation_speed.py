"""Tokens per second of generation: Tunesmith, transformers' `generate`, its continuous batching, and llama.cpp.

    pip install xllamacpp                                       # llama.cpp, prebuilt for the CPU
    python benchmarks/generation_speed.py --chats FILE…         # about 25 minutes on two cores

Requests are the beginnings of real chats with 20 to 1,000 tokens, and answers of 5 to 300, short ones more often.
Every engine writes exactly as many tokens. `transformers` answers batches in their order of arrival, each until its
longest answer is complete. llama.cpp gets the same token ids through its own server, with as many slots as requests at
once; its files are made here from the numbers that Tunesmith reads too.

Each engine is measured in a process of its own, one engine after another, in several rounds: what changes on the
machine meanwhile concerns all alike. What is measured is written at once to results/generation_speed.json, and an
interrupted run continues there. --parts measures only some; without a name it only writes the report. Writes
results/generation_speed.{json,md,svg} and puts the tables into docs/generation.md.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from generation_engines import LLAMA_CPP_SETTINGS, WARM_UP
from generation_models import (
    LLAMA,
    LLAMA_SHAPE,
    MODELS,
    SMOLLM2,
    gguf_file,
    make_llama,
    matrix_weights,
    model_config,
    write_gguf,
)
from generation_report import plot, put_on_page, tables
from train_speed_report import machine

RESULTS = Path(__file__).parent / "results" / "generation_speed.json"
PAGE = Path(__file__).parents[1] / "docs" / "generation.md"
ROUNDS = 3
AT_ONCE = {1: 6, 16: 16, 64: 64}
"""How many requests are answered, by how many at once."""

PROMPT_TOKENS, ANSWER_TOKENS = (20, 1000), (5, 300)
EXPONENT = 2
"""Of the lengths' density, length ** -EXPONENT: how much more often short ones are drawn."""

ALONE = (512, 48)
"""Tokens of prompt and answer of the request whose distance to the machine's limits is measured."""

ENGINES = {
    SMOLLM2: (
        "tunesmith, fp32",
        "tunesmith, int8",
        "tunesmith, nf4",
        "transformers, fp32",
        "transformers continuous, fp32",
        "llama.cpp, BF16",
        "llama.cpp, Q8_0",
        "llama.cpp, Q4_0",
    ),
    LLAMA: ("tunesmith, fp32", "tunesmith, int8", "transformers, fp32", "llama.cpp, BF16", "llama.cpp, Q8_0"),
}
"""Tunesmith's fp32 reads weights that are exact in bf16 as such, so that it reads as many bytes as BF16."""

MOST_AT_ONCE = {"transformers": 16, "transformers continuous": 16}
"""A batch of 64 would take `generate` minutes, which it pads; continuous batching masks the caches of all requests."""

ADAPTERS = (0, 1, 4, 16, 64)
PARTS = (*MODELS, "adapters", "limits")

Job = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chats", type=Path, nargs="+", default=[], help="files of rows with chats")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if options.parts and versions()["xllamacpp"] == "not installed":
        raise SystemExit("llama.cpp is not installed. Install it: pip install xllamacpp")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        done = measure(options.chats, options.parts, options.rounds, Path(temporary), RESULTS)
    put_on_page(tables(done), RESULTS.with_suffix(".md"), PAGE)
    plot(done, RESULTS.with_suffix(".svg"))
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes")


def measure(chats: Sequence[Path], parts: Sequence[str], rounds: int, work: Path, results: Path) -> Job:
    """Measure what is not measured yet. Returns all results, which are in the file too."""
    about: Job = {
        "machine": machine(),
        "versions": versions(),
        "at_once": {str(key): count for key, count in AT_ONCE.items()},
        "lengths": {"prompt": list(PROMPT_TOKENS), "answer": list(ANSWER_TOKENS), "exponent": EXPONENT},
    }
    stored: Job = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    if not parts:
        return stored
    done: Job = stored if about.items() <= stored.items() else {**about, "date": str(date.today()), "runs": []}
    requests = requests_of(chats)
    models = {name: directory_of(name, work) for name in MODELS if name in parts or name == SMOLLM2}
    configs = {name: model_config(directory) for name, directory in models.items()}
    done["weights"] = done.get("weights", {}) | {
        name: {"prompt": matrix_weights(config, with_output=False), "answer": matrix_weights(config)}
        for name, config in configs.items()
    }
    jobs = list(jobs_of(parts, models, requests, work))
    for number in range(rounds):
        for name, job in jobs if number % 2 == 0 else reversed(jobs):
            same = [run for run in done["runs"] if (run["round"], run["job"]) == (number, name)]
            if any("cells" in run for run in same):
                continue
            if job.get("engine", "").startswith("llama.cpp"):
                if "llama.cpp" not in done:
                    done["llama.cpp"] = fastest_settings(job, requests)
                job["settings"] = done["llama.cpp"]["fastest"]
            run = {"round": number, "job": name, **in_own_process(job)}
            print(json.dumps(run), flush=True)
            done["runs"] = [run for run in done["runs"] if run not in same] + [run]
            results.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    return done


def versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "xllamacpp", "tunesmith"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def directory_of(model: str, work: Path) -> Path:
    """The directory of a model; what is random is made."""
    if model == LLAMA:
        make_llama(work / LLAMA, LLAMA_SHAPE)
        return work / LLAMA
    from tunesmith.models.bases import get_base

    return Path(get_base(model, None))


def jobs_of(
    parts: Sequence[str], models: dict[str, Path], requests: dict[int, list[Job]], work: Path
) -> Iterator[tuple[str, Job]]:
    """The processes of a round, by name."""
    if "limits" in parts:
        yield "limits", {}
    for model in [model for model in MODELS if model in parts]:
        for engine in ENGINES[model]:
            most = MOST_AT_ONCE.get(engine.split(", ")[0], max(AT_ONCE))
            size = model_config(models[model])["vocab_size"]
            cells = [
                {"at_once": count, "adapters": 0, "requests": in_vocabulary(requests[count], size)}
                for count in AT_ONCE
                if count <= most
            ]
            cells.append({"at_once": 1, "adapters": 0, "requests": [alone(models[model])], "limits": True})
            yield f"{model}, {engine}", job_of(models[model], engine, cells, work)
    if "adapters" in parts:
        most = max(AT_ONCE)
        cells = [{"at_once": most, "adapters": count, "requests": requests[most]} for count in ADAPTERS]
        yield "adapters", job_of(models[SMOLLM2], "tunesmith, fp32", cells, work)


def job_of(model: Path, engine: str, cells: list[Job], work: Path) -> Job:
    name, precision = engine.split(", ")
    if name == "llama.cpp" and not gguf_file(work, model, precision).exists():
        write_gguf(model, gguf_file(work, model, precision), precision)
    requests = [WARM_UP, *(each for cell in cells for each in cell["requests"])]
    most = max(len(each["ids"]) + each["tokens"] for each in requests)
    return {
        "engine": engine,
        "model": str(model),
        "directory": str(work),
        "most_tokens": most,
        "settings": {},
        "cells": cells,
    }


def in_vocabulary(requests: Sequence[Job], size: int) -> list[Job]:
    return [each | {"ids": [token % size for token in each["ids"]]} for each in requests]


def alone(model: Path) -> Job:
    """A request of random tokens."""
    draw = random.Random(0)
    size = model_config(model)["vocab_size"]
    return {"ids": [draw.randrange(259, size) for _ in range(ALONE[0])], "tokens": ALONE[1]}


def fastest_settings(job: Job, requests: dict[int, list[Job]]) -> Job:
    """Try llama.cpp's settings on some short requests, with its weights in the job's precision.

    Returns:
        {"tried": each setting with its seconds, "fastest": one of them, "system": what llama.cpp was compiled for}.
    """
    from xllamacpp import get_system_info

    count = sorted(AT_ONCE)[len(AT_ONCE) // 2]
    short = [{"ids": each["ids"][:128], "tokens": min(each["tokens"], 24)} for each in requests[count]]
    cells = [{"at_once": count, "adapters": 0, "requests": short}]
    seconds: list[float] = []
    tried: list[Job] = []
    for settings in LLAMA_CPP_SETTINGS:
        run = in_own_process(job | {"cells": cells, "settings": settings})
        seconds.append(run["cells"][0]["seconds"] if "cells" in run else float("inf"))
        tried.append({"settings": settings, **run})
    best = LLAMA_CPP_SETTINGS[seconds.index(min(seconds))]
    return {"tried": tried, "fastest": best, "engine": job["engine"], "system": get_system_info()}


def in_own_process(job: Job) -> Job:
    """{"cells": what it measured}, or {"failed": the last line of its errors}."""
    command = [sys.executable, str(Path(__file__).with_name("generation_engines.py"))]
    out = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True)
    lines = [line for line in out.stdout.splitlines() if line.startswith("RESULT ")]
    if lines:
        return {"cells": json.loads(lines[0].removeprefix("RESULT "))}
    return {"failed": (out.stderr.strip().splitlines() or [f"exit status {out.returncode}"])[-1][:200]}


# The requests


def requests_of(chats: Sequence[Path]) -> dict[int, list[Job]]:
    """The requests by how many are at once. Their lengths are a systematic sample: one from each of as many equal parts
    of the distribution, so that 6, 16 and 64 requests have about the same."""
    draw = random.Random(0)
    prompts = sorted(prompts_of(chats), key=len)
    draw_prompt = drawn_by([len(ids) ** -EXPONENT for ids in prompts])
    lengths = range(ANSWER_TOKENS[0], ANSWER_TOKENS[1] + 1)
    draw_answer = drawn_by([length**-EXPONENT for length in lengths])
    found = {}
    for at_once, count in AT_ONCE.items():
        answers = [lengths[draw_answer((number + draw.random()) / count)] for number in range(count)]
        draw.shuffle(answers)
        taken: list[int] = []
        for number in range(count):
            index = draw_prompt((number + draw.random()) / count)
            while index in taken:
                index = (index + 1) % len(prompts)
            taken.append(index)
        ids = [prompts[index] for index in taken]
        found[at_once] = [{"ids": own, "tokens": tokens} for own, tokens in zip(ids, answers, strict=True)]
        draw.shuffle(found[at_once])
    return found


def drawn_by(weights: Sequence[float]) -> Callable[[float], int]:
    """The index at a fraction, from 0 to 1, of the sum of the weights."""
    total = sum(weights)

    def index_at(fraction: float) -> int:
        left = fraction * total
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        return len(weights) - 1

    return index_at


def prompts_of(chats: Sequence[Path]) -> list[list[int]]:
    """The different chats without their last message, in SmolLM2's tokens and of the right length."""
    import tunesmith
    from tunesmith.config.base import Base
    from tunesmith.data.example import Malformed
    from tunesmith.data.format_detection import detect
    from tunesmith.data.read import read
    from tunesmith.data.render import Renderer
    from tunesmith.data.row_formats import to_example
    from tunesmith.models.load import load_tokenizer

    renderer = Renderer(load_tokenizer(Base(path=SMOLLM2)))
    found: dict[tuple[int, ...], None] = {}
    for file in chats:
        for row in read([str(file)], Path.cwd()):
            example = None if isinstance(row, Malformed) else to_example(row, detect([row]))
            if example is None or isinstance(example, Malformed) or not example.messages:
                continue
            try:
                ids = renderer.tokenizer(renderer.prompt(example.messages[:-1]), add_special_tokens=False)["input_ids"]
            except (tunesmith.UserError, ValueError):
                continue
            if PROMPT_TOKENS[0] <= len(ids) <= PROMPT_TOKENS[1]:
                found[tuple(ids)] = None
    if len(found) < max(AT_ONCE.values()):
        raise SystemExit(f"--chats: {len(found)} chats have as many tokens as a prompt should, fewer than are needed.")
    return [list(ids) for ids in found]


if __name__ == "__main__":
    main()
