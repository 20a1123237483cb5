"""The table and the plot of data_quality.py, from its stored trials."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Trial = dict[str, Any]
"""What identifies a trial, its held-out loss and accuracy, and what cleaning dropped."""

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}
"""The 97.5 % quantile of Student's t, by number of seeds."""

TITLES = {"intents": "intents, MiniLM", "problems": "word problems, embedded base"}


def table(trials: Sequence[Trial]) -> str:
    """What faults cost, and what cleaning wins back.

    Args:
        trials: in any order.

    Returns:
        Markdown.
    """
    if not trials:
        return ""
    lines = [
        "| task | planted, 20 % | loss, clean set | what faults add | what is left of it after cleaning | won back | "
        "accuracy, clean → dirty → cleaned | faults dropped | good rows dropped |",
        "|---|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for task, fault in _faults(trials):
        clean, dirty, cleaned = (_by_seed(trials, task, *arm) for arm in
                                 (("", "clean"), (fault, "dirty"), (fault, "cleaned")))  # fmt: skip
        seeds = sorted(clean.keys() & dirty.keys() & cleaned.keys())
        if not seeds:
            continue
        added = [dirty[seed]["loss"] - clean[seed]["loss"] for seed in seeds]
        left = [cleaned[seed]["loss"] - clean[seed]["loss"] for seed in seeds]
        cells = [
            f"{mean(clean[seed]['loss'] for seed in seeds):.3f}", _with_interval(added), _with_interval(left),
            _won_back(added, left), _accuracies([clean, dirty, cleaned], seeds), *_dropped(cleaned, seeds),
        ]  # fmt: skip
        lines.append(f"| {TITLES[task]} | {fault} | {' | '.join(cells)} |")
    return f"{_about(trials)}\n\n" + "\n".join(lines) + "\n"


def _about(trials: Sequence[Trial]) -> str:
    seeds = len({each["seed"] for each in trials})
    days = sorted({each["date"] for each in trials})
    setting = trials[0]["setting"]
    return (
        f"Held-out loss in nats (of a message, of a token) after the same steps; means over {seeds} seeds, each with "
        "other rows and faults, with the 95 % interval (Student's t) of the differences by seed. Won back: the part of "
        "what faults add that cleaning takes away; not given where it is not shown that they add anything. "
        f"{setting['classes'] * setting['per_class']} messages and {setting['problems']} word problems. "
        f"{' and '.join(sorted({each['machine'] for each in trials}))}, {' to '.join({days[0]: 0, days[-1]: 0})}."
    )


def _faults(trials: Sequence[Trial]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((each["task"], each["fault"]) for each in trials if each["fault"]))


def _by_seed(trials: Sequence[Trial], task: str, fault: str, arm: str) -> dict[int, Trial]:
    return {each["seed"]: each for each in trials if (each["task"], each["fault"], each["arm"]) == (task, fault, arm)}


def half_of_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean; None of one value.

    Args:
        values: by seed.
    """
    if len(values) < 2:
        return None
    return float(STUDENT[max(n for n in STUDENT if n <= len(values))] * stdev(values) / len(values) ** 0.5)


def _with_interval(values: Sequence[float]) -> str:
    half = half_of_interval(values)
    return f"{mean(values):+.3f}" + ("" if half is None else f" ± {half:.3f}")


def _won_back(added: Sequence[float], left: Sequence[float]) -> str:
    half = half_of_interval(added)
    if half is None or mean(added) <= half:
        return "–"
    return f"{1 - mean(left) / mean(added):.0%}"


def _accuracies(arms: Sequence[dict[int, Trial]], seeds: Sequence[int]) -> str:
    if arms[0][seeds[0]]["accuracy"] is None:
        return ""
    return " → ".join(f"{mean(arm[seed]['accuracy'] for seed in seeds):.1%}" for arm in arms)


def _dropped(cleaned: dict[int, Trial], seeds: Sequence[int]) -> tuple[str, str]:
    """Shares of the faulty and of the good rows."""
    found, faulty, wrongly, rows = (
        sum(cleaned[seed][name] for seed in seeds) for name in ("found", "planted", "wrongly_dropped", "rows")
    )
    good = rows + found + wrongly - faulty
    return f"{found / faulty:.0%}", f"{wrongly / good:.1%}"


def plot(trials: Sequence[Trial], file: Path) -> None:
    """Loss above the clean set's, dirty and cleaned, a group for each fault and a point for each seed.

    Args:
        trials: in any order.
        file: an SVG.
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    tasks = [task for task in TITLES if any(each["task"] == task and each["fault"] for each in trials)]
    if not tasks:
        return
    figure, panels = plt.subplots(1, len(tasks), figsize=(4.4 * len(tasks), 3.8), squeeze=False)
    for axes, task in zip(panels[0], tasks, strict=True):
        faults = [fault for name, fault in _faults(trials) if name == task]
        clean = _by_seed(trials, task, "", "clean")
        for number, fault in enumerate(faults):
            for shift, arm, color in ((-0.12, "dirty", "#d1495b"), (0.12, "cleaned", "#30638e")):
                found = _by_seed(trials, task, fault, arm)
                values = [found[seed]["loss"] - clean[seed]["loss"] for seed in sorted(found.keys() & clean.keys())]
                if values:
                    axes.plot([number + shift] * len(values), values, "o", color=color, ms=3.5, alpha=0.45)
                    bar, label = half_of_interval(values) or 0, arm if not number else None
                    axes.errorbar(number + shift, mean(values), yerr=bar, fmt="_", color=color, ms=16, mew=2,
                                  elinewidth=1, label=label)  # fmt: skip
        axes.axhline(0, color="#888", linewidth=1, linestyle=":")
        axes.set_xticks(range(len(faults)), faults)
        axes.set_xlim(-0.6, len(faults) - 0.4)
        axes.set_title(TITLES[task], fontsize=10)
        axes.set_ylabel("held-out loss above the clean set's, nats")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    figure.suptitle("20 % of the rows are faulty; bars: 95 % over seeds")
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = "tunesmith"
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
