"""The tables and the plot of serve_load.py, from its stored results."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from generation_report import line, written

OWN, ALONE = "tunesmith", "tunesmith, engine alone"
"""`tunesmith serve`, and its engine without a server."""

WEIGHT_BYTES = {OWN: 2, "llama.cpp, F32": 4, "llama.cpp, BF16": 2, "transformers": 4, ALONE: 2}
"""Bytes that a server reads for a weight. Tunesmith keeps weights that are exact in bf16 as such."""

SHARES = ("50", "95", "99")

Results = dict[str, Any]
Cell = dict[str, Any]


def tables(done: Results) -> str:
    """All that the page quotes."""
    parts = [_about(done), _servers(done), "How near that is to this machine's limits:", _limits(done)]
    if _levels(done, ALONE):
        parts += ["What the server adds to its engine:", _overhead(done)]
    for streams in sorted({run["streams"] for run in done["runs"] if run.get("adapters")}):
        parts += [f"{streams} streams, which ask for LoRA adapters in turn:", _adapters(done, streams)]
    return "\n\n".join(parts + _failures(done)) + "\n"


# The cells


def _cells(done: Results, server: str, streams: int | None = None, adapters: int = 0) -> dict[int, Cell]:
    """The cells of a server by their round; without a number of streams, the machine's limits."""
    wanted = {"server": server} if streams is None else {"server": server, "streams": streams, "adapters": adapters}
    return {run["round"]: run for run in done["runs"] if "failed" not in run and wanted.items() <= run.items()}


def _levels(done: Results, server: str) -> list[int]:
    """The numbers of streams that a server was measured with."""
    runs = [run for run in done["runs"] if run["server"] == server and "failed" not in run]
    return sorted({run["streams"] for run in runs if not run["adapters"]})


def _rates(cells: dict[int, Cell]) -> list[float]:
    """Tokens of answers per second."""
    return [cell["tokens"] / cell["seconds"] for cell in cells.values()]


def _times(cells: dict[int, Cell], of: str, share: str) -> list[float] | float:
    """Seconds in each round; or, if there is a round in which the time was longer than was measured, that time."""
    found = [cell[of][share] for cell in cells.values()]
    longest = [cell[of]["longest"] for cell in cells.values() if cell[of][share] is None]
    return min(longest) if longest else found


def _time(cells: dict[int, Cell], of: str, share: str, scale: float, form: str) -> str:
    times = _times(cells, of, share)
    if isinstance(times, float):
        return "> " + form.format(scale * times)
    return written([scale * each for each in times], form)


def _time_columns(cells: dict[int, Cell]) -> list[str]:
    """The percentiles of the time to the first token, in seconds, and between two tokens, in milliseconds."""
    firsts = [_time(cells, "first_token", share, 1.0, "{:.2f}") for share in SHARES]
    return firsts + [_time(cells, "between", share, 1000.0, "{:.0f}") for share in SHARES]


TIME_HEADS = [f"{what} p{share}" for what in ("first token, s:", "between, ms:") for share in SHARES]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 0) -> str:
    """A table, whose first `texts` columns are text and whose others are numbers."""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * texts}{'---:|' * (len(heads) - texts)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


# The tables


def _servers(done: Results) -> str:
    rows = []
    for server in WEIGHT_BYTES:
        for streams in _levels(done, server) if server != ALONE else ():
            cells = _cells(done, server, streams)
            answers = str(sum(cell["answers"] for cell in cells.values()))
            rows.append([server, str(streams), written(_rates(cells)), *_time_columns(cells), answers, _refused(cells)])
    return _table(["server", "streams", "tokens/s", *TIME_HEADS, "answers", "refused or wrong"], rows, 1)


def _refused(cells: dict[int, Cell]) -> str:
    """How many requests the server did not answer as asked, and why."""
    counts: Counter[str] = Counter()
    for cell in cells.values():
        counts.update({f"status {status}": count for status, count in cell["refused"].items()})
        counts.update(cell["wrong"])
    return ", ".join(f"{count} × {reason}" for reason, count in counts.items()) or "0"


def _limits(done: Results) -> str:
    """Products: of the matrix rate, with all streams of a level. One stream: of the rate at which weights are read."""
    limits, weights = _cells(done, "limits"), done["weights"]

    def of_products(cell: Cell) -> float:
        prompts = cell["prompt_tokens"] - cell["cached_tokens"]
        return float(2 * (prompts * weights["prompt"] + cell["tokens"] * weights["answer"]) / cell["seconds"])

    def of_reads(server: str) -> Callable[[Cell], float]:
        return lambda cell: float(WEIGHT_BYTES[server] * weights["answer"] * cell["tokens"] / cell["seconds"])

    def share(cells: dict[int, Cell], work: Callable[[Cell], float], limit: str) -> str:
        return written([100 * work(cell) / limits[number][limit] for number, cell in cells.items() if number in limits])

    levels = _levels(done, OWN)
    rows = [
        [
            server,
            share(_cells(done, server, 1), of_reads(server), "bytes_per_second"),
            *(share(_cells(done, server, streams), of_products, "fp32") for streams in levels),
        ]
        for server in WEIGHT_BYTES
        if _levels(done, server)
    ]
    products = [f"{streams}: of the matrix rate, %" for streams in levels]
    return _table(["server", "1 stream: of the reading rate, %", *products], rows, 1)


def _overhead(done: Results) -> str:
    rows = []
    for streams in sorted(set(_levels(done, ALONE)) & set(_levels(done, OWN))):
        served, alone = _cells(done, OWN, streams), _cells(done, ALONE, streams)
        both = sorted(served.keys() & alone.keys())
        shares = [
            100 * each / other
            for each, other in zip(
                _rates({number: served[number] for number in both}),
                _rates({number: alone[number] for number in both}),
                strict=True,
            )
        ]
        gaps = [_time(cells, "between", "50", 1000.0, "{:.1f}") for cells in (alone, served)]
        rows.append([str(streams), written(_rates(alone)), written(_rates(served)), written(shares), *gaps])
    heads = ["streams", "engine alone, tokens/s", "server, tokens/s", "of the engine's, %"]
    return _table([*heads, "engine alone, between, ms: p50", "server, between, ms: p50"], rows)


def _adapters(done: Results, streams: int) -> str:
    counts = sorted({run["adapters"] for run in done["runs"] if run.get("streams") == streams and "failed" not in run})
    none, rows = _cells(done, OWN, streams), []
    for count in counts:
        cells = _cells(done, OWN, streams, count)
        pairs = [(cell, none[number]) for number, cell in cells.items() if number in none]
        against = [100 * _rates({0: cell})[0] / _rates({0: other})[0] for cell, other in pairs]
        rows.append([str(count), written(_rates(cells)), written(against), *_time_columns(cells), _refused(cells)])
    return _table(["different adapters", "tokens/s", "of none, %", *TIME_HEADS, "refused or wrong"], rows)


def _failures(done: Results) -> list[str]:
    failed = {(run["server"], run["streams"]): run["failed"] for run in done["runs"] if "failed" in run}
    return [
        f"{server} with {streams} streams was not possible: {reason}" for (server, streams), reason in failed.items()
    ]


def _about(done: Results) -> str:
    """Where and how it was measured."""
    machine, versions = done["machine"], done["versions"]
    limits = list(_cells(done, "limits").values())
    read, fp32 = (written([cell[name] / 1e9 for cell in limits]) for name in ("bytes_per_second", "fp32"))
    means = f"Each figure is the mean of {len(limits)} rounds ± half of its 95 % interval (Student's t)."
    return " ".join(
        [
            f"{machine['cores']} cores ({machine['processor']}, {', '.join(machine['instructions'])}), "
            f"PyTorch {versions['torch']}, transformers {versions['transformers']}, xllamacpp {versions['xllamacpp']}, "
            f"{done['date']}.",
            means if len(limits) > 1 else "One round.",
            "A time after > had not ended when the measurement did.",
            f"The cores read {read} GB/s from memory and multiply matrices at {fp32} GFLOP/s in fp32.",
            *_about_load(done),
            *_about_llama_cpp(done),
        ]
    )


def _about_load(done: Results) -> list[str]:
    """What was asked for, for how long, and what the client took."""
    cells = [run for run in done["runs"] if "client_cpu" in run and run["server"] != ALONE]
    complete = [cell for cell in cells if cell["answers"]]
    if not complete:
        return []
    prompts = sum(cell["complete_prompt_tokens"] for cell in complete) / sum(cell["answers"] for cell in complete)
    low, high = done["answers"]["tokens"]
    seconds = sorted({(cell["streams"], cell["planned"]) for cell in cells})
    return [
        f"Chats: {', '.join(done['chats']) or 'made up'}, {prompts:.0f} tokens on average; answers of {low} to {high} "
        f"tokens, with density length^-{done['answers']['exponent']}.",
        f"Measured for {', '.join(f'{each:.0f} s with {count}' for count, each in seconds)} streams.",
        f"The client took at most {100 * max(cell['client_cpu'] for cell in cells):.0f} % of one core.",
    ]


def _about_llama_cpp(done: Results) -> list[str]:
    """What llama.cpp is compiled for, and its settings."""
    if "llama.cpp" not in done:
        return []
    tried, fastest = done["llama.cpp"]["tried"], done["llama.cpp"]["fastest"]
    compiled = [name for name in ("AVX512", "AVX2", "AVX", "NEON") if f"{name} = 1" in done["llama.cpp"]["system"]]
    return [
        f"llama.cpp is compiled for {''.join(compiled[:1]) or 'any processor'}, and answers {fastest['slots']} "
        f"requests at once, with flash attention {'on' if fastest['flash_attention'] else 'off'}: the fastest of "
        f"{len(tried)} settings."
    ]


# The plot


def plot(done: Results, file: Path) -> None:
    """Tokens per second, the time to the first token and between tokens by streams, and the rate by adapters; lines
    through means, with intervals. Percentiles that were not reached are left out."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 4, figsize=(16, 4.5))
    levels = sorted({streams for server in WEIGHT_BYTES for streams in _levels(done, server)})
    for server in WEIGHT_BYTES:
        own = {streams: _cells(done, server, streams) for streams in _levels(done, server)}
        style = "-" if server == OWN else "--" if server.startswith("llama") else ":"
        line(panels[0], {streams: _rates(cells) for streams, cells in own.items()}, style, server)
        for axes, of, share in ((panels[1], "first_token", "95"), (panels[2], "between", "95")):
            times = {streams: _times(cells, of, share) for streams, cells in own.items()}
            line(axes, {streams: each for streams, each in times.items() if isinstance(each, list)}, style, server)
    titles = ("tokens per second", "first token, s (95th percentile)", "between two tokens, s (95th percentile)")
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(title, fontsize=9)
        axes.set_xscale("log", base=2)
        axes.set_xticks(levels, [str(level) for level in levels])
        axes.set_xlabel("streams")
        axes.legend(fontsize=6)
    for axes in panels[1:3]:
        axes.set_yscale("log")
    panels[0].set_ylim(bottom=0)
    _plot_adapters(done, panels[3])
    figure.tight_layout()
    figure.savefig(file)
    plt.close(figure)


def _plot_adapters(done: Results, axes: Any) -> None:
    for streams in sorted({run["streams"] for run in done["runs"] if run.get("adapters")}):
        runs = [run for run in done["runs"] if (run["server"], run.get("streams")) == (OWN, streams)]
        counts = sorted({run["adapters"] for run in runs})
        line(axes, {count: _rates(_cells(done, OWN, streams, count)) for count in counts}, "-", f"{streams} streams")
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.legend(fontsize=6)
    axes.set_title("tokens per second", fontsize=9)
    axes.set_xlabel("different adapters")
    axes.set_ylim(bottom=0)
