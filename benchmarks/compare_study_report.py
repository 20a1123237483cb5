"""The table and the plot of compare_study.py, from its stored comparisons."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

TITLES = {
    "facts": "facts in documents",
    "changed": "facts that have changed since",
    "classification": "classification (Banking77)",
    "format": "format (tool definitions)",
    "style": "style (terms in plain English)",
}


def table(done: Mapping[str, Any]) -> str:
    """All that the page quotes.

    Args:
        done: the content of `compare.json` by need, with `machine` and `date`.

    Returns:
        Markdown: a table of all ways by need, and each verdict in its own words.
    """
    needs = [name for name in TITLES if name in done]
    ways = list(dict.fromkeys(way for name in needs for way in done[name]["ways"]))
    first = done[needs[0]]
    machine = first["machine"]
    dates = " and ".join(sorted({done[name]["date"] for name in needs}))
    lines = [
        f"SmolLM2-135M-Instruct, 2 cores of {machine['processor']} ({', '.join(machine['instructions'])}), {dates}. "
        "In brackets: 95 % intervals over rows; s: the median time of an answer on one thread, others at work.",
        "",
        f"| way | {' | '.join(f'{TITLES[name]}: {_metric(done[name])}' for name in needs)} |",
        f"|---|{'---:|' * len(needs)}",
    ]
    for way in ways:
        cells = [_cell(done[name], way) for name in needs]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    rows = [
        f"{done[name]['training_rows']} / {done[name]['development_rows']} / {done[name]['rows']}" for name in needs
    ]
    lines.append(f"| rows: training / development / held-out | {' | '.join(rows)} |")
    verdicts = [f"**{_verdict(done[name])}**" for name in needs]
    lines.append(f"| verdict | {' | '.join(verdicts)} |")
    lines += ["", "The verdicts in the tool's words:", ""]
    for name in needs:
        lines.append(f"- {TITLES[name]}: {' '.join(done[name]['recommendation']['because'])}")
    return "\n".join(lines) + "\n"


def _metric(result: Mapping[str, Any]) -> str:
    return str(result["figures"][result["metric"]]["title"])


def _cell(result: Mapping[str, Any], way: str) -> str:
    values = result["ways"].get(way)
    if values is None:
        return "–"
    figure = values[result["metric"]]
    low, high = figure["interval"]
    text = f"{100 * figure['value']:.0f} % [{100 * low:.0f}, {100 * high:.0f}], {values['latency']['p50']:.1f} s"
    return f"**{text}**" if way == result["recommendation"]["way"] else text


def _verdict(result: Mapping[str, Any]) -> str:
    found = result["recommendation"]
    return str(found["way"]) if found["certain"] else f"cannot tell (simplest: {found['way']})"


def plot(done: Mapping[str, Any], path: Path) -> None:
    """Quality against the seconds of an answer, a panel for each need.

    Args:
        done: as `table` takes it.
        path: of the SVG.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "compare_study"
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    needs = [name for name in TITLES if name in done]
    figure, panels = pyplot.subplots(1, len(needs), figsize=(3.4 * len(needs), 3.6), squeeze=False)
    for panel, name in zip(panels[0], needs, strict=True):
        result = done[name]
        recommended, heights = result["recommendation"]["way"], list[float]()
        for way, values in result["ways"].items():
            entry, seconds = values[result["metric"]], values["cost"]["seconds"]
            low, high = entry["interval"]
            color = "#1f6feb" if way == recommended else "#8a94a3"
            panel.plot([seconds, seconds], [100 * low, 100 * high], color=color, linewidth=2, alpha=0.6)
            panel.plot([seconds], [100 * entry["value"]], "o", color=color)
            taken = sum(abs(100 * entry["value"] - height) < 4 for height in heights)  # above labels at this height
            heights.append(100 * entry["value"])
            panel.annotate(
                way, (seconds, 100 * entry["value"]), (5, 3 + 8 * taken), textcoords="offset points", fontsize=7
            )
        panel.set(xscale="log", title=TITLES[name], xlabel="seconds of an answer", ylabel=f"{_metric(result)}, %")
        panel.title.set_fontsize(9)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        panel.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
