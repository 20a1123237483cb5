"""Writes the tables of docs/methods.md and docs/precision.md, and the plots, from the results of the other scripts.

    python benchmarks/quality_report.py

A figure is a mean over seeds with its 95 % interval (Student's t). A method's best rate comes from `sweep`.
"""

import json
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % quantiles of Student's t, by number of values."""

Row = dict[str, Any]


def read(name: str) -> list[Row]:
    file = HERE / "results" / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def mean(values: Sequence[float], template: str = "{:.3f}") -> str:
    """`4.150 ± 0.012`; a single value has no interval."""
    middle = template.format(statistics.mean(values))
    if len(values) < 2:
        return middle
    half = STUDENT[min(len(values), 5)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{middle} ± {template.format(half)}"


def by_method(rows: list[Row], task: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["task"] == task:
            groups[row["method"]].append(row)
    return dict(groups)


def defaults(rows: list[Row]) -> list[Row]:
    """Trials at the shipped default: the rate with the most seeds of a method."""
    kept = []
    for name in {row["method"] for row in rows}:
        own = [row for row in rows if row["method"] == name]
        rates = defaultdict(set)
        for row in own:
            rates[row["rate"]].add(row["seed"])
        rate = max(rates, key=lambda each: len(rates[each]))
        kept += [row for row in own if row["rate"] == rate]
    return kept


def quality_table(rows: list[Row], task: str, untuned: dict[str, float]) -> str:
    shipped = by_method(defaults([row for row in rows if row["task"] == task]), task)
    every = by_method(rows, task)
    lines = [
        "| method | trainable parameters | rate | held-out loss | at its best rate (1 seed) | WikiText-2 loss |",
        "|---|---|---|---|---|---|",
        f"| (untuned) | 0 | | {untuned['before']:.3f} | | {untuned['general']:.3f} |",
    ]
    for name, own in sorted(shipped.items(), key=lambda pair: statistics.mean(row["after"] for row in pair[1])):
        seed_zero = [row for row in every[name] if row["seed"] == 0]
        best = min(seed_zero, key=lambda row: float(row["after"]))
        lines.append(
            f"| {name} | {own[0]['trained_parameters']:,} | {own[0]['rate']:.0e} | {mean([r['after'] for r in own])} | "
            f"{best['after']:.3f} at {best['rate']:.0e} | {mean([r['general'] for r in own])} |"
        )
    return "\n".join(lines)


def encoder_table(rows: list[Row]) -> str:
    shipped = [row for row in rows if row["asked_rate"] is None]
    seeds = Counter((row["task"], row["by"], row["method"]) for row in shipped)
    complete = [row for row in shipped if row["by"] == "tf-idf" or seeds[row["task"], row["by"], row["method"]] == 5]
    tasks = sorted({row["task"] for row in complete if row["by"] == "trainer"})  # tasks with results of the peers
    groups: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in (each for each in complete if each["task"] in tasks):
        groups[(row["method"] if row["by"] != "tf-idf" else "(no model)", row["by"])][row["task"]].append(row)
    lines = [
        "| method | by | " + " | ".join(f"{task}: accuracy | s" for task in tasks) + " |",
        "|---|---|" + "---|---|" * len(tasks),
    ]
    named = {"tunesmith": "Tunesmith", "trainer": "Trainer + PEFT", "tf-idf": "TF-IDF + logistic regression"}
    for (method, by), by_task in sorted(groups.items()):
        cells = []
        for task in tasks:
            own = by_task.get(task, [])
            cells += (
                [
                    f"{mean([row['accuracy'] for row in own])}",
                    f"{statistics.median(r['seconds'] for r in own):.0f}",
                ]
                if own
                else ["", ""]
            )
        lines.append(f"| {method} | {named[by]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def qlora_table(rows: list[Row], memory: Row) -> str:
    lines = ["| | LoRA on bf16 | LoRA on nf4 | difference |", "|---|---|---|---|"]
    for task in sorted({row["task"] for row in rows}):
        pairs: dict[int, dict[str, float]] = {}
        for row in defaults([each for each in rows if each["task"] == task]):
            if row["method"] in ("lora", "lora, nf4"):
                pairs.setdefault(row["seed"], {})[row["method"]] = row["after"]
        both = [pair for pair in pairs.values() if len(pair) == 2]
        if both:
            plain, quantized = ([pair[name] for pair in both] for name in ("lora", "lora, nf4"))
            gap = mean([b - a for a, b in zip(plain, quantized, strict=True)], "{:+.4f}").replace("± +", "± ")
            lines.append(f"| held-out loss, {task} | {mean(plain)} | {mean(quantized)} | {gap} |")
    training = memory.get("training", {})
    if {"nf4", "bf16"} <= set(training):
        plain, quantized = training["bf16"], training["nf4"]
        before, after = (each["peak"] + each["mapped_weights"] for each in (plain, quantized))
        lines.append(
            f"| peak memory, 1.1 B Mistral | {before / 1e9:.2f} GB | {after / 1e9:.2f} GB | × {after / before:.2f} |"
        )
        speeds = plain["tokens_per_second"], quantized["tokens_per_second"]
        lines.append(
            f"| tokens per second, the same | {speeds[0]:.0f} | {speeds[1]:.0f} | × {speeds[1] / speeds[0]:.2f} |"
        )
    return "\n".join(lines)


def memory_table(memory: Row) -> str:
    lines = [
        "| 1.1 B random Mistral, "
        f"{memory['stored_bytes'] / 1e9:.2f} GB stored in bf16 | peak | held after | arithmetic |",
        "|---|---|---|---|",
    ]
    for weights, groups in memory["loading"].items():
        lines.append(
            f"| loaded in {weights} | {groups['peak'] / 1e6:,.0f} MB | {groups['held'] / 1e6:,.0f} MB | "
            f"{groups['arithmetic'] / 1e6:,.0f} MB |"
        )
    limited = memory.get("limited")
    if limited:
        lines.append(
            f"| loaded in nf4 by a process limited to {limited['limit'] / 1e9:.2f} GB, all pages counted | "
            f"{limited['peak'] / 1e6:,.0f} MB | {limited['held'] / 1e6:,.0f} MB | "
            f"{limited['arithmetic'] / 1e6:,.0f} MB |"
        )
    for weights, groups in memory["training"].items():
        lines.append(
            f"| trained by LoRA on {weights}, {memory['width']:,} tokens, activation checkpointing | "
            f"{(groups['peak'] + groups['mapped_weights']) / 1e6:,.0f} MB | | |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in memory["versions"].items())
    return "\n".join(lines) + f"\n\n{memory['machine']}, {versions}, {memory['date']}."


def plots(rows: list[Row], untuned: dict[str, dict[str, float]]) -> None:
    """Held-out loss against trainable parameters, and against forgetting; a point per method, bars over seeds."""
    tasks = list(untuned)
    figure, axes = plt.subplots(len(tasks), 2, figsize=(11, 4.6 * len(tasks)), squeeze=False)
    for line, task in zip(axes, tasks, strict=True):
        for name, own in by_method(defaults([row for row in rows if row["task"] == task]), task).items():
            losses = [row["after"] for row in own]
            y, spread = statistics.mean(losses), max(losses) - min(losses)
            general = statistics.mean(row["general"] for row in own)
            for axis, x in zip(line, (own[0]["trained_parameters"], general), strict=True):
                axis.errorbar(x, y, yerr=spread / 2, fmt="o", color="#d1495b", markersize=5, elinewidth=1)
                axis.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
        line[0].set_xscale("log")
        line[0].set_xlabel("trainable parameters")
        line[1].set_xlabel("loss on WikiText-2 afterwards (left: less forgotten)")
        line[1].axvline(untuned[task]["general"], color="#888", linestyle=":", linewidth=1)
        for axis in line:
            axis.set_ylabel(f"held-out loss, {task} (nats per token)")
            axis.spines[["top", "right"]].set_visible(False)
            axis.margins(x=0.18)
    figure.suptitle("The embedded base after 40 steps, each method at its defaults; dotted: before; bars: range")
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = "tunesmith"
    figure.savefig(HERE / "results" / "method_quality.svg", metadata={"Date": None})


def put(page: str, name: str, text: str) -> None:
    """Write the text between the page's markers of that name."""
    file = DOCS / page
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    old = file.read_text(encoding="utf-8")
    assert marked.search(old), f"{page} has no markers for {name}"
    file.write_text(marked.sub(lambda groups: f"{groups[1]}{text}\n{groups[2]}", old), encoding="utf-8")


def main() -> None:
    rows, encoders = read("method_quality"), read("encoder_quality")
    file = HERE / "results" / "quantized_memory.json"
    memory = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    untuned = json.loads((HERE / "results" / "untuned.json").read_text(encoding="utf-8"))
    for task in sorted({row["task"] for row in rows}):
        if task in untuned:
            put("methods.md", f"quality {task}", quality_table(rows, task, untuned[task]))
    put("methods.md", "encoders", encoder_table(encoders))
    put("precision.md", "qlora", qlora_table(rows, memory))
    if memory:
        put("precision.md", "memory", memory_table(memory))
    plots(rows, untuned)


if __name__ == "__main__":
    main()
