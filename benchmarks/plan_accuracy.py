"""Accuracy of plans: predicted against measured memory and time of real runs on this machine's CPU.

    python benchmarks/plan_accuracy.py            # hours; writes results/plan_accuracy.json, .md, .svg; can be resumed
    python benchmarks/plan_accuracy.py --only 3   # the first three of the runs
    python benchmarks/plan_accuracy.py --report   # only the table and the plot, from the stored results
    python benchmarks/plan_accuracy.py --out DIR  # on a GPU: DIR/plan_accuracy_gpu.json, .md and .svg

Each run is a separate process that plans, then trains some steps on real text with a model of random weights. Predicted
memory is from the plan before anything is loaded; measured memory is the process's peak resident set. Predicted seconds
per step are from operations timed one by one: the mean of a plan right before the run and one right after it, since the
speed of a shared machine drifts; both are stored. Measured seconds per step are the median time per token over the
steps after the first two, which build kernels and touch memory for the first time, times the tokens of a step.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HERE_RESULTS = HERE / "results" / "plan_accuracy.json"
TEXT = HERE.parent / "src" / "tunesmith"

BASES: dict[str, dict[str, Any]] = {
    "llama-5m": {"kind": "llama", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6,
                 "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 8192},
    "gpt2-30m": {"kind": "gpt2", "n_embd": 512, "n_layer": 8, "n_head": 8, "vocab_size": 8192, "n_positions": 8192},
    "llama-125m": {"kind": "llama", "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
                   "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 32000},
    "gemma3-170m": {"kind": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
                    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 65536,
                    "sliding_window": 512},
    "qwen3-360m": {"kind": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 20,
                   "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 50000,
                   "tie_word_embeddings": True},
    "llama-1b": {"kind": "llama", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
                 "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000},
}  # fmt: skip

TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


def runs() -> list[dict[str, Any]]:
    """The runs: families and sizes, methods, lengths, checkpointing, two optimizers; bases alternate, so that the first
    runs cover all of them."""
    tried = [("llama-5m", method, length, False, "adafactor") for method in ("lora", "full") for length in (256, 2048)]
    tried += [("llama-5m", "lora", length, twice, "adamw") for length in (4096, 8192) for twice in (False, True)]
    for base, method in product(("llama-5m", "gpt2-30m"), ("lora", "full", "ia3", "adapter", "prefix", "qlora")):
        for length in (128, 1024):
            tried.append((base, method, length, False, "adamw"))
        tried.append((base, method, 512, True, "adamw"))
    tried += [("llama-125m", method, 512, False, "adamw") for method in ("lora", "full", "ia3", "adapter", "prefix")]
    tried += [("llama-125m", method, 1024, True, "adamw") for method in ("lora", "full", "qlora")]
    tried += [(base, "full", 512, False, "adafactor") for base in ("gpt2-30m", "llama-125m")]
    tried += [("gemma3-170m", method, 512, False, "adamw") for method in ("lora", "qlora")]
    tried += [("qwen3-360m", method, 512, False, "adamw") for method in ("lora", "qlora")]
    tried += [("llama-1b", "qlora", 512, True, "adamw"), ("llama-1b", "lora", 512, True, "adamw")]
    by_base = ([each for each in tried if each[0] == base] for base in BASES)
    alternating = [each for turn in zip_longest(*by_base) for each in turn if each is not None]
    return [dict(zip(("base", "method", "length", "twice", "optimizer"), each, strict=True)) for each in alternating]


def make_base(name: str, directory: Path) -> Path:
    """The model with random weights, in bf16, with the embedded base's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    import tunesmith

    base_path = directory / name
    if not (base_path / "config.json").exists():
        shape = {"max_position_embeddings": 16384, **BASES[name]}
        config = AutoConfig.for_model(shape.pop("kind"), **shape)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(base_path)
        for file in tunesmith.embedded_base().glob("*token*"):
            shutil.copy(file, base_path)
    return base_path


def write_text(directory: Path) -> Path:
    """Rows of real text: this package's own source."""
    file = directory / "text.jsonl"
    source = "\n".join(each.read_text(encoding="utf-8") for each in sorted(TEXT.rglob("*.py")))[:800_000]
    pieces = (source[start : start + 4000] for start in range(0, len(source), 4000))
    file.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")
    return file


def recipe_of(run: dict[str, Any], base: Path, text: Path) -> dict[str, Any]:
    tokens = max(1024 if run["base"] in ("llama-5m", "gpt2-30m") else 512, run["length"])
    quantized = run["method"] == "qlora"
    steps = {"llama-5m": 10, "gpt2-30m": 6}.get(run["base"], 5)
    return {
        "base": {"path": str(base), "weights": "nf4" if quantized else "auto"},
        "data": {"train": str(text), "max_length": run["length"], "held_out": 0.02},
        "method": "lora" if quantized else run["method"],
        "objective": "text",
        "train": {"steps": steps, "tokens_per_step": tokens, "tokens_per_batch": tokens, "precision": "auto",
                  "gradient_checkpointing": run["twice"], "optimizer": run["optimizer"],
                  "evaluate_rows": 8 if tokens == 1024 else 2,
                  "evaluate_every": steps, "checkpoint_every": steps},
    }  # fmt: skip


def one_run(run: dict[str, Any], directory: Path) -> None:
    """In a separate process: plan, train, print both."""
    import tunesmith

    recipe = recipe_of(run, directory / run["base"], directory / "text.jsonl")
    finished = tunesmith.train(recipe, directory / "run")
    plan = next(event for event in finished.events() if event["event"] == "plan")
    steps = [(event["seconds"], event["tokens"]) for event in finished.events() if event["event"] == "step"]
    per_token = statistics.median(seconds / tokens for seconds, tokens in steps[2:])
    result = {
        "memory": [plan["predicted"]["memory"]["peak_bytes"], plan["measured"]["memory"]["peak_bytes"]],
        "measured": per_token * statistics.mean(tokens for _, tokens in steps),
        "after": predicted_seconds(run, directory),
        "steps": [seconds for seconds, _ in steps],
        "parts": plan["predicted"]["memory"]["parts"],
    }
    print("RESULT " + json.dumps(result))


def predicted_seconds(run: dict[str, Any], directory: Path) -> float:
    import tunesmith

    return tunesmith.plan(
        recipe=recipe_of(run, directory / run["base"], directory / "text.jsonl")
    ).time.seconds_per_step


def predicted_by(run: dict[str, Any], directory: Path, *options: str, **environment: str) -> Any:
    """The result of a separate process; None if it fails, which is printed."""
    command = [sys.executable, __file__, "--run", json.dumps(run), "--directory", str(directory), *options]
    out = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    line = next((each for each in out.stdout.splitlines() if each.startswith("RESULT ")), None)
    if line is None:
        print(run, "failed:", out.stderr[-300:])
        return None
    return json.loads(line.removeprefix("RESULT "))


def measure(only: int | None, results: Path) -> None:
    done = json.loads(results.read_text(encoding="utf-8"))["runs"] if results.exists() else []
    seen = [{name: each[name] for name in ("base", "method", "length", "twice", "optimizer")} for each in done]
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        write_text(directory)
        for run in [each for each in runs() if each not in seen][:only]:
            make_base(run["base"], directory)
            shutil.rmtree(directory / "run", ignore_errors=True)
            before, result = predicted_by(run, directory, "--plan"), predicted_by(run, directory)
            if before is None or result is None:
                continue
            after, measured = result.pop("after"), result.pop("measured")
            done.append(run | result | {"seconds": [(before + after) / 2, measured], "predicted": [before, after]})
            memory, seconds = (off(done[-1][name]) for name in ("memory", "seconds"))
            print(
                *run.values(),
                f"memory {memory:+.1%} of {done[-1]['memory'][1] / 1e6:.0f} MB, time {seconds:+.1%}",
                flush=True,
            )
            save(done, results)


def off(pair: list[float]) -> float:
    """Relative error of the prediction."""
    return pair[0] / pair[1] - 1


def save(done: list[dict[str, Any]], results: Path) -> None:
    from importlib.metadata import version

    import torch

    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.libc_ver()[0]} {platform.libc_ver()[1]}"
    if torch.cuda.is_available():
        machine = torch.cuda.get_device_name()
    head = {
        "machine": machine,
        "date": str(date.today()),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(head | {"runs": done}, indent=1) + "\n", encoding="utf-8")


def report(results: Path) -> None:
    """The table by base, and the scatter plots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    result = json.loads(results.read_text(encoding="utf-8"))
    done = result["runs"]
    lines = ["| runs | | memory: median, worst | time: median, worst |", "|---|---|---|---|"]
    for name in (*BASES, "all"):
        chosen = [each for each in done if name in ("all", each["base"])]
        if chosen:
            cells = []
            for kind in ("memory", "seconds"):
                errors = sorted(abs(off(each[kind])) for each in chosen)
                cells.append(f"{statistics.median(errors):.1%}, {errors[-1]:.1%}")
            lines.append(f"| {name} | {len(chosen)} | {cells[0]} | {cells[1]} |")
    lines.append(
        f"\n{result['machine']}; PyTorch {result['torch']}, transformers {result['transformers']}; {result['date']}."
    )
    results.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.3))
    for axis, kind, unit, scale in zip(
        axes, ("memory", "seconds"), ("GB", "seconds per step"), (1e9, 1.0), strict=True
    ):
        for name in BASES:
            pairs = [[value / scale for value in each[kind]] for each in done if each["base"] == name]
            if not pairs:
                continue
            axis.scatter([pair[1] for pair in pairs], [pair[0] for pair in pairs], s=16, label=name)
        ends = [min(axis.get_xlim()[0], axis.get_ylim()[0]), max(axis.get_xlim()[1], axis.get_ylim()[1])]
        low = min(value / scale for each in done for value in each[kind])
        axis.plot([low, ends[1]], [low, ends[1]], color="#888888", linewidth=1)
        ticks = [each for each in TICKS if low / 1.3 < each < ends[1] * 1.3]
        axis.set(xscale="log", yscale="log", xlabel=f"measured ({unit})", ylabel=f"predicted ({unit})")
        for line in (axis.xaxis, axis.yaxis):
            line.set_ticks(ticks, [f"{each:g}" for each in ticks])
            line.set_ticks([], minor=True)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(results.with_suffix(".svg"))
    print(results.with_suffix(".md").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=int)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", type=json.loads)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--plan", action="store_true")
    options = parser.parse_args()
    if options.run is not None:
        if options.plan:
            print(f"RESULT {predicted_seconds(options.run, options.directory)}")
        else:
            one_run(options.run, options.directory)
        return
    results = HERE_RESULTS if options.out is None else options.out / "plan_accuracy_gpu.json"
    if not options.report:
        measure(options.only, results)
    report(results)


if __name__ == "__main__":
    main()
