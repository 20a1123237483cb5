"""The tables and the plot of generation_speed.py, from its stored results."""

from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from generation_models import LLAMA, MODELS, RANKS, SMOLLM2

Results = dict[str, Any]
Cell = dict[str, Any]

TITLES = {SMOLLM2: "SmolLM2-135M-Instruct", LLAMA: "A random Llama of 124 million weights"}


def tables(done: Results) -> str:
    """All that the page quotes."""
    parts = [_about(done)]
    for model in MODELS:
        if _engines(done, model):
            parts += [f"{TITLES[model]}, tokens of answers per second, with the time for all prompts included:"]
            parts += [_speeds(done, model), "How near that is to this machine's limits:", _shares(done, model)]
    if _cells(done, "adapters"):
        ranks, most = ", ".join(map(str, RANKS)), max(map(int, done["at_once"]))
        parts += [f"SmolLM2 with LoRA adapters of ranks {ranks} in turn on all linear layers, {most} at once:"]
        parts.append(_adapters(done))
    return "\n\n".join(parts + _failures(done)) + "\n"


def put_on_page(text: str, file: Path, page: Path) -> None:
    """Write a file of tables, and put them in place of the old ones on a page that quotes the file."""
    old = file.read_text(encoding="utf-8").strip() if file.exists() else ""
    content = page.read_text(encoding="utf-8")
    if old and old in content:
        page.write_text(content.replace(old, text.strip()), encoding="utf-8")
    else:
        print(f"{page} does not quote {file} as it was. Put the new tables there.")
    file.write_text(text, encoding="utf-8")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval by Student's t; not a number from a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return mean(values), float("nan")
    return mean(values), float(t.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))


def _engines(done: Results, model: str) -> list[str]:
    jobs = (run["job"].partition(", ") for run in done["runs"])
    return list(dict.fromkeys(engine for name, _, engine in sorted(jobs, key=_order) if name == model))


def _order(job: tuple[str, str, str]) -> int:
    """Engines in the order of the first round; Tunesmith, transformers, llama.cpp."""
    names = ("tunesmith", "transformers", "llama.cpp")
    return next((number for number, name in enumerate(names) if job[2].startswith(name)), len(names))


def _cells(done: Results, job: str, **wanted: Any) -> dict[int, Cell]:
    """The cells of a job with these values, by their round."""
    wanted = {"limits": False, **wanted}
    return {
        run["round"]: cell
        for run in done["runs"]
        if run["job"] == job
        for cell in run.get("cells", ())
        if wanted.items() <= {"limits": False, **cell}.items()
    }


def _rate(cell: Cell) -> float:
    return float(cell["tokens"] / cell["seconds"])


def written(values: Sequence[float], form: str = "{:.0f}") -> str:
    """The mean, and half of its 95 % interval if there are several values; empty without any."""
    if not values:
        return ""
    middle, half = interval(values)
    return form.format(middle) if half != half else f"{form} ± {form}".format(middle, half)


def _speeds(done: Results, model: str) -> str:
    counts = list(map(int, done["at_once"]))
    lines = [
        f"| engine | {' | '.join(f'{count} at once' for count in counts)} | first token of one, s | peak memory, GB |",
        f"|---|{'---:|' * (len(counts) + 2)}",
    ]
    for engine in _engines(done, model):
        job = f"{model}, {engine}"
        cells = {count: list(_cells(done, job, at_once=count).values()) for count in counts}
        firsts = [cell["first_token"] for cell in cells[counts[0]] if cell["first_token"] is not None]
        peaks = [max(cell["peak_bytes"] for cell in each) / 1e9 for each in _by_round(cells)]
        columns = [written([_rate(cell) for cell in own]) for own in cells.values()]
        lines.append(f"| {engine} | {' | '.join(columns)} | {written(firsts, '{:.2f}')} | {written(peaks, '{:.1f}')} |")
    return "\n".join(lines)


def _by_round(cells: dict[int, list[Cell]]) -> list[tuple[Cell, ...]]:
    return list(zip(*(own for own in cells.values() if own), strict=False))


def _shares(done: Results, model: str) -> str:
    """Prompts: of the matrix rate. Answers: of the rate at which the same cores read as many bytes."""
    most = max(map(int, done["at_once"]))
    body, whole = done["weights"][model]["prompt"], done["weights"][model]["answer"]
    limits = _cells(done, "limits")

    def of_products(cells: dict[int, Cell], products: Callable[[Cell], float], seconds: str) -> list[float]:
        return [
            100 * 2 * products(cell) / cell[seconds] / limits[number]["fp32"]
            for number, cell in cells.items()
            if number in limits
        ]

    lines = [
        "| engine | a prompt: of the matrix rate, % | its answer: of the reading rate, % | ms per token | MB per token "
        f"| {most} at once: of the matrix rate, % |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for engine in _engines(done, model):
        alone = _cells(done, f"{model}, {engine}", limits=True)
        together = _cells(done, f"{model}, {engine}", at_once=most)
        prompt = of_products(alone, lambda cell: cell["prompt_tokens"] * body + whole - body, "first_token")
        batch = of_products(together, lambda cell: cell["tokens"] * whole + cell["prompt_tokens"] * body, "seconds")
        steps = [(cell["seconds"] - cell["first_token"]) / (cell["tokens"] - 1) for cell in alone.values()]
        reads = [100 * cell["read_seconds"] / step for cell, step in zip(alone.values(), steps, strict=True)]
        size = [cell["step_bytes"] / 1e6 for cell in alone.values()][:1]
        milliseconds = [1000 * step for step in steps]
        lines.append(
            f"| {engine} | {written(prompt)} | {written(reads)} | {written(milliseconds, '{:.1f}')} | "
            f"{written(size)} | {written(batch)} |"
        )
    return "\n".join(lines)


def _adapters(done: Results) -> str:
    lines = ["| different adapters | tokens per second | of none, % | peak memory, GB |", "|---:|---:|---:|---:|"]
    none = _cells(done, "adapters", adapters=0)
    for count in _adapter_counts(done):
        cells = _cells(done, "adapters", adapters=count)
        against = [100 * _rate(cell) / _rate(none[number]) for number, cell in cells.items() if number in none]
        peaks = [cell["peak_bytes"] / 1e9 for cell in cells.values()]
        rates = [_rate(cell) for cell in cells.values()]
        lines.append(f"| {count} | {written(rates)} | {written(against)} | {written(peaks, '{:.1f}')} |")
    return "\n".join(lines)


def _adapter_counts(done: Results) -> list[int]:
    runs = [run for run in done["runs"] if run["job"] == "adapters"]
    return sorted({cell["adapters"] for run in runs for cell in run.get("cells", ())})


def _about(done: Results) -> str:
    """Where and how it was measured."""
    machine, versions = done["machine"], done["versions"]
    limits = list(_cells(done, "limits").values())
    rounds = len({run["round"] for run in done["runs"]})
    text = (
        f"{machine['cores']} cores ({machine['processor']}, {', '.join(machine['instructions'])}), "
        f"PyTorch {versions['torch']}, transformers {versions['transformers']}, xllamacpp {versions['xllamacpp']}, "
        f"{done['date']}. Each figure is the mean of {rounds} rounds ± half of its 95 % interval (Student's t)."
    )
    if limits:
        read, fp32, bf16 = (
            written([cell[name] / 1e9 for cell in limits]) for name in ("bytes_per_second", "fp32", "bf16")
        )
        text += (
            f" The cores read {read} GB/s from memory and multiply matrices at {fp32} GFLOP/s in fp32, {bf16} in bf16 "
            "(PyTorch's own operations)."
        )
    for count, requests in done["at_once"].items():
        cell = next(iter(_cells(done, f"{SMOLLM2}, tunesmith, fp32", at_once=int(count)).values()), None)
        if cell is not None:
            text += (
                f" {count} at once: {requests} requests, {cell['prompt_tokens'] / requests:.0f} tokens of prompt on "
                f"average ({cell['cached_tokens'] / requests:.0f} from the prefix cache), "
                f"{cell['tokens'] / requests:.0f} of answer."
            )
    tried = done.get("llama.cpp")
    if tried:
        compiled = [name for name in ("AVX512", "AVX2", "AVX", "NEON") if f"{name} = 1" in tried["system"]]
        text += (
            f" llama.cpp is compiled for {' and '.join(compiled[:1]) or 'any processor'}, and runs with "
            + " and ".join(
                f"{name.replace('_', ' ')} {'on' if value else 'off'}" for name, value in tried["fastest"].items()
            )
        )
        text += ", the fastest of four combinations."
    return text


def _failures(done: Results) -> list[str]:
    failed = {run["job"]: run["failed"] for run in done["runs"] if "failed" in run}
    return [f"{job} does not run: {reason}" for job, reason in failed.items()]


def plot(done: Results, file: Path) -> None:
    """Tokens per second by requests at once, for each model, and by adapters; lines through means, with intervals."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4.5), gridspec_kw={"width_ratios": [1, 1, 0.7]})
    counts = list(map(int, done["at_once"]))
    for axes, model in zip(panels, MODELS, strict=False):
        for engine in _engines(done, model):
            points = {count: list(_cells(done, f"{model}, {engine}", at_once=count).values()) for count in counts}
            style = "-" if engine.startswith("tunesmith") else "--" if engine.startswith("llama") else ":"
            line(axes, {count: [_rate(cell) for cell in cells] for count, cells in points.items()}, style, engine)
        axes.set_title(TITLES[model], fontsize=9)
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xlabel("requests at once")
        axes.legend(fontsize=6)
    rates = {
        count: [_rate(cell) for cell in _cells(done, "adapters", adapters=count).values()]
        for count in _adapter_counts(done)
    }
    line(panels[2], rates, "-", "tunesmith, fp32")
    panels[2].set_title(f"SmolLM2, {max(counts)} at once", fontsize=9)
    panels[2].set_xscale("symlog", base=2, linthresh=1)
    panels[2].set_xticks(list(rates), [str(count) for count in rates])
    panels[2].set_xlabel("different adapters")
    panels[0].set_ylabel("tokens per second")
    for axes in panels:
        axes.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


def line(axes: Any, points: dict[int, list[float]], style: str, label: str) -> None:
    """A line through the means of the values at each x, with their intervals."""
    drawn = {x: interval(values) for x, values in points.items() if values}
    if drawn:
        halves = [0.0 if half != half else half for _, half in drawn.values()]
        axes.errorbar(
            list(drawn), [middle for middle, _ in drawn.values()], halves, ls=style, marker="o", ms=3, label=label
        )
