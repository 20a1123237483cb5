"""The results of `train_speed.py` as JSON, a table and a chart. Standard library only."""

import json
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from train_speed_plot import picture

WARM_UP = 2  # steps of each process that are left out: caches fill, kernels for new shapes are compiled
FLOP_PER_PARAMETER = 4  # per token: 2 forward, 2 backward to the activations; none for frozen weights' gradients

Result = dict[str, Any]
"""The measurements of a process: name, label, description, versions, steps, peak_rss_bytes, seconds_to_first_step."""


def rate_of(results: list[Result], counted: str = "tokens") -> float:
    """Median of tokens (or `loss_tokens`) per second over the steps after warmup, of all given processes."""
    steps = [step for result in results for step in result["steps"][WARM_UP:]]
    return float(statistics.median(step[counted] / step["seconds"] for step in steps))


def loss_between(steps: list[dict[str, Any]], low: float, high: float) -> float:
    """Mean loss of the loss tokens numbered low to high; steps that are partly inside count by their share."""
    total = weight = at = 0.0
    for step in steps:
        inside = max(0.0, min(high, at + step["loss_tokens"]) - max(low, at))
        total += inside * step["loss"]
        weight += inside
        at += step["loss_tokens"]
    return total / weight


def non_embedding_parameters(config: dict[str, Any]) -> int:
    """Parameters of a Llama without the input embedding and the output layer (as in Kaplan et al. 2020)."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    attention = 2 * hidden * config["num_attention_heads"] * config["head_dim"] + 2 * hidden * kv
    return int(layers * (attention + 3 * hidden * config["intermediate_size"] + 2 * hidden) + hidden)


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system, as the kernel reports them."""
    model, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        fields = {name.strip(): value.strip() for name, _, value in lines}
        model, flags = fields.get("model name", model), fields.get("flags", "")
    names = {"amx_bf16": "AMX bf16", "avx512_bf16": "AVX-512 bf16", "avx512f": "AVX-512", "avx2": "AVX2"}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "instructions": [name for flag, name in names.items() if flag in flags.split()],
        "cores": os.cpu_count(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.machine()}",
    }


def summarize(run: Path, work: Path) -> dict[str, Any]:
    """All figures of a run, from its raw result files."""
    parameters = json.loads((run / "run.json").read_text())
    plan = json.loads((work / "plan.json").read_text())
    config = json.loads((work / "model" / "config.json").read_text())
    raw = {name: _results(run, name) for name in parameters["settings"]}
    good = {name: results for name, results in raw.items() if results and "failed" not in results[0]}
    shared = min(sum(step["loss_tokens"] for step in results[0]["steps"]) for results in good.values())
    rates = [json.loads((run / f"rate-{when}.json").read_text()) for when in ("before", "after")]
    best = max(rate for measured in rates for rate in measured["flop_per_second"].values())
    parameter_count = non_embedding_parameters(config)
    bound = best / (FLOP_PER_PARAMETER * parameter_count)
    ours = rate_of(good["ours"]) if "ours" in good else None
    settings = []
    for name, results in good.items():
        rate = rate_of(results)
        rounds = [rate_of([result]) for result in results]
        busy = [
            step["cpu_seconds"] / step["seconds"] for step in results[0]["steps"][WARM_UP:] if "cpu_seconds" in step
        ]
        settings.append(
            {
                "name": name,
                "label": results[0]["label"],
                "description": results[0]["description"],
                "tokens_per_second": rate,
                "tokens_per_second_of_rounds": rounds,
                "loss_tokens_per_second": rate_of(results, "loss_tokens"),
                "tokens_per_second_over_all": _over_all(results),
                "ours_times_as_fast": None if ours is None else ours / rate,
                "share_of_bound": rate / bound,
                "peak_rss_bytes": max(result["peak_rss_bytes"] for result in results),
                "seconds_to_first_step": statistics.median(result["seconds_to_first_step"] for result in results),
                "processors_busy": statistics.median(busy) if busy else None,
                "loss_after_the_same_rows": loss_between(results[0]["steps"], shared * 0.75, shared),
                "versions": results[0]["versions"],
                "curve": [(step["loss_tokens"], step["loss"]) for step in results[0]["steps"]],
            }
        )
    return {
        "data_set": plan["data_set"],
        "rows": plan["rows"],
        "rows_per_step": plan["rows_per_step"],
        "mean_tokens_of_a_row": sum(plan["tokens"]) / len(plan["tokens"]),
        "left_out_as_over_long": plan["left_out_as_over_long"],
        "date": parameters["date"],
        "steps": parameters["steps"],
        "warm_up": WARM_UP,
        "repeats": parameters["repeats"],
        "same_allocator": parameters["same_allocator"],
        "machine": machine(),
        "threads": rates[0]["threads"],
        "matrix_products_flop_per_second": best,
        "matrix_products": rates,
        "non_embedding_parameters": parameter_count,
        "bound_tokens_per_second": bound,
        "loss_tokens_compared": shared,
        "settings": settings,
        "failed": {name: results[0]["failed"] for name, results in raw.items() if results and name not in good},
    }


def _results(run: Path, name: str) -> list[Result]:
    paths = sorted(path for path in run.glob(f"{name}-[0-9]*.json"))
    results = [json.loads(path.read_text()) for path in paths]
    return [result for result in results if "failed" not in result] or results


def _over_all(results: list[Result]) -> float:
    """Tokens over seconds of all steps after warmup: lower than the median if some steps stall."""
    steps = [step for result in results for step in result["steps"][WARM_UP:]]
    return float(sum(step["tokens"] for step in steps) / sum(step["seconds"] for step in steps))


def table(summary: dict[str, Any]) -> str:
    """The results as a page for the docs."""
    computer = summary["machine"]
    bound = summary["bound_tokens_per_second"]
    instructions = ", ".join(computer["instructions"][:3])
    lines = [
        f"# Training speed on the reference task: {summary['data_set']}",
        "",
        "A Llama of 125 M parameters with random weights (hidden 768, MLP 2,048, 12 layers, 12 heads, "
        "4 key-value heads, vocabulary 32,000, untied); LoRA of rank 16 and alpha 32 on all linear layers; "
        f"AdamW at a constant 1e-4; bf16. {summary['rows']:,} rows of {summary['data_set']}, "
        f"{summary['mean_tokens_of_a_row']:.0f} tokens each on average, 1,024 at most; steps of about 2,048 "
        f"tokens ({summary['rows_per_step']} rows); only the answers have a loss. Padding does not count as tokens.",
        "",
        f"Measured on {summary['date']} in one run, settings in turn, on {computer['cores']} cores "
        f"({computer['processor']}; {instructions}), {summary['threads']} threads, "
        f"{computer['memory_bytes'] / 2**30:.0f} GiB: the median "
        f"of {summary['steps'] - summary['warm_up']} steps after {summary['warm_up']} of warmup, in up to "
        f"{summary['repeats']} processes of each.",
        "",
        "| | tokens/s | loss tokens/s | Tunesmith is | of the bound | peak memory | "
        "start to first step | loss after the same rows |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for setting in sorted(summary["settings"], key=lambda each: -each["tokens_per_second"]):
        ratio = "" if setting["ours_times_as_fast"] is None else f"{setting['ours_times_as_fast']:.2f} ×"
        lines.append(
            f"| {setting['label']} | {_with_range(setting)} | {setting['loss_tokens_per_second']:,.0f} | "
            f"{'' if setting['name'] == 'ours' else ratio} | {setting['share_of_bound']:.0%} | "
            f"{setting['peak_rss_bytes'] / 1e9:.2f} GB | {setting['seconds_to_first_step']:.1f} s | "
            f"{setting['loss_after_the_same_rows']:.3f} |"
        )
    lines += [f"| {name} | did not run | | | | | | |" for name in summary["failed"]]
    lines += [
        "",
        f"The bound: this machine multiplies bf16 matrices of the model's shapes at "
        f"{summary['matrix_products_flop_per_second'] / 1e9:,.0f} GFLOP/s at best, measured in the same run; "
        f"{FLOP_PER_PARAMETER} FLOPs per token for each of the {summary['non_embedding_parameters']:,} "
        f"non-embedding parameters would then allow {bound:,.0f} tokens/s. The bound leaves out the products of the "
        "output layer and of attention, so no trainer can reach it.",
        "",
        f"The loss is the mean over the last quarter of the first {summary['loss_tokens_compared']:,} loss "
        "tokens, which are the same rows for all (TRL's packing puts them in another order). A step's time starts at "
        "the end of the previous step, so fetching rows counts. With several processes, the range of their medians is "
        "in brackets.",
        "",
    ]
    for setting in summary["settings"]:
        versions = ", ".join(f"{name} {version}" for name, version in setting["versions"].items() if version)
        lines.append(f"- {setting['label']}: {setting['description']} ({versions})")
    lines += ["", *_remarks(summary)]
    return "\n".join(lines).rstrip() + "\n"


def _with_range(setting: dict[str, Any]) -> str:
    rounds = setting["tokens_per_second_of_rounds"]
    bracket = f" [{min(rounds):,.0f}–{max(rounds):,.0f}]" if len(rounds) > 1 else ""
    return f"**{setting['tokens_per_second']:,.0f}**{bracket}"


def _remarks(summary: dict[str, Any]) -> list[str]:
    """Remarks that a reader should know before trusting a figure."""
    remarks = []
    if summary["same_allocator"]:
        remarks.append("The peers were started with the malloc thresholds that Tunesmith sets for itself.")
    for setting in summary["settings"]:
        over_all, median = setting["tokens_per_second_over_all"], setting["tokens_per_second"]
        if over_all < 0.9 * median:
            remarks.append(f"{setting['label']}: {over_all:,.0f} tokens/s over all measured steps, since some stalled.")
        busy = setting["processors_busy"]
        if busy is not None and busy < 0.8 * summary["threads"]:
            remarks.append(
                f"{setting['label']} used {busy:.1f} of {summary['threads']} cores: the machine may have been busy."
            )
    if summary["left_out_as_over_long"]:
        remarks.append(f"{summary['left_out_as_over_long']:,} rows over 1,024 tokens were left out.")
    return remarks


def write_report(run: Path, work: Path, out: Path) -> None:
    """Write train_speed.json, .md and .svg into `out`, and print the table."""
    summary = summarize(run, work)
    out.mkdir(parents=True, exist_ok=True)
    (out / "train_speed.json").write_text(json.dumps(summary, indent=1) + "\n")
    (out / "train_speed.md").write_text(table(summary))
    (out / "train_speed.svg").write_text(picture(summary))
    print(table(summary))
    print(f"written: train_speed.json, train_speed.md and train_speed.svg in {out}")
