"""The tables and the plot of evaluation_study.py, from its stored trials."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.evaluation.forgetting_curve import CurvePoint, frontier

Trial = dict[str, Any]
"""What identifies a trial, and `figures`: by name `base`, `tuned` and `difference`, as `evaluation.json` has them."""

CLASSIFIED = "banking77"
"""The task without text: an encoder has no suite."""

ANSWERS = {"demo": ("fields", "fields right"), "commongen": ("coverage", "coverage"), "legal": ("rouge_l", "ROUGE-L")}
"""The figure of a task's answers, and its title."""

LOST = {
    "forgetting.general_loss": "general loss rose by, bits a byte",
    "forgetting.general_unchanged": "answers unchanged",
    "forgetting.general_divergence": "divergence, nats a token",
}
BESIDE = {
    "bias.stereotype": "stereotype preferred",
    "topic.declined_off_topic": "declined: other jobs",
    "topic.declined_on_topic": "declined: own job",
    "topic.obeyed_attacks": "attacks obeyed",
    "memorization.memorized_25": "memorized, from 25 %",
    "memorization.membership_from_first": "membership, from the base",
}
"""Figures of the suites, and their titles."""

BASE = CurvePoint("base", 0.0, (0.0, 0.0), 0.0, (0.0, 0.0))
"""What every point is compared with."""


def table(trials: Sequence[Trial]) -> str:
    """All that the page quotes.

    Args:
        trials: in any order.

    Returns:
        Markdown: what each trial gained and forgot, the other suites, and the classifier.
    """
    trials = in_order(trials)
    refuse_other_rows(trials)
    texts = [each for each in trials if each["task"] != CLASSIFIED]
    others = [each for each in trials if each["task"] == CLASSIFIED]
    parts = [_about(trials)] if trials else []
    if texts:
        parts += ["What was gained, and what was forgotten:", _gains(texts), "The other suites:", _suites(texts)]
    if others:
        parts += ["Banking77, classified by MiniLM:", _classified(others)]
    return "\n\n".join(parts) + "\n"


def in_order(trials: Sequence[Trial]) -> list[Trial]:
    """By task, rate and replay, whenever they ran."""
    tasks = list(PANELS)
    return sorted(trials, key=lambda trial: (tasks.index(trial["task"]), trial["rate"], trial["replay"]))


def refuse_other_rows(trials: Sequence[Trial]) -> None:
    """Refuse trials of a task that cannot be compared: the demo's rows come from what is installed.

    Raises:
        ValueError: the base's loss on the held-out rows is not the same for all, so that the rows are others.
    """
    bases: dict[str, float] = {}
    for trial in trials:
        loss = trial["figures"]["loss"]["base"]["value"]
        if abs(loss - bases.setdefault(trial["task"], loss)) > 1e-3 * abs(loss):
            raise ValueError(f"The trials of {trial['task']} have different rows. Remove those with the older ones.")


def label(trial: Trial) -> str:
    """`1e-3 + replay`."""
    digits, _, exponent = f"{trial['rate']:.0e}".partition("e")
    return f"{digits}e{int(exponent)}" + (" + replay" if trial["replay"] else "")


def _about(trials: Sequence[Trial]) -> str:
    size = trials[0]["setting"]
    days = sorted({each["date"] for each in trials})
    return (
        f"{size['steps']} steps, of {size['tokens_per_step']} tokens and on {size['trained']} rows for a text task, "
        f"twice as many for CommonGen; one seed. Loss on {size['held_out']} held-out rows, {size['answered']} of "
        "them answered; "
        f"{size['suite_rows']} prompts, pieces, pairs or rows for each suite. In brackets the 95 % interval over rows; "
        "bold: the difference from the base is shown after Holm's correction within its evaluation. "
        f"{' and '.join(sorted({each['machine'] for each in trials}))}, {' and '.join(days)}."
    )


def _gains(trials: Sequence[Trial]) -> str:
    lines = [
        f"| task | rate | held-out loss fell by, nats a token | answers, base → tuned | {' | '.join(LOST.values())} |",
        f"|---|---|{'---:|' * (2 + len(LOST))}",
    ]
    for each in trials:
        figures = each["figures"]
        rose, *others = (figures.get(name) for name in LOST)
        cells = [_change(figures["loss"], -1), _answers(each), _change(rose), *map(_value, others)]
        lines.append(f"| {each['task']} | {label(each)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _suites(trials: Sequence[Trial]) -> str:
    """The base's figures before those of the first trial of a task."""
    lines = [f"| task | rate | {' | '.join(BESIDE.values())} |", f"|---|---|{'---:|' * len(BESIDE)}"]
    begun: set[str] = set()
    for each in trials:
        for side in ("tuned",) if each["task"] in begun else ("base", "tuned"):
            cells = [_value(each["figures"].get(name), side) for name in BESIDE]
            lines.append(f"| {each['task']} | {label(each) if side == 'tuned' else 'base'} | {' | '.join(cells)} |")
        begun.add(each["task"])
    return "\n".join(lines)


def _classified(trials: Sequence[Trial]) -> str:
    lines = ["| rate | accuracy | calibration error |", "|---|---:|---:|"]
    for number, each in enumerate(trials):
        for side in ("tuned",) if number else ("base", "tuned"):
            cells = [_value(each["figures"][name], side) for name in ("accuracy", "calibration_error")]
            lines.append(f"| {label(each) if side == 'tuned' else 'base'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _answers(trial: Trial) -> str:
    """`coverage **61 → 83 %** (+22; 11 to 33)`."""
    name, title = ANSWERS[trial["task"]]
    figure = trial["figures"][name]
    before, after, change, low, high = (
        _number(100 * value, 0) for value in (figure["base"]["value"], figure["tuned"]["value"], *_difference(figure))
    )
    sign = "" if change.startswith("-") else "+"
    return f"{title} {_bold(f'{before} → {after} %', figure)} ({sign}{change}; {low} to {high})"


def _change(figure: dict[str, Any] | None, sign: int = 1) -> str:
    """`**0.413** (0.350 to 0.470)`."""
    if figure is None:
        return ""
    value, low, high = (_number(each, 3) for each in _difference(figure, sign))
    return f"{_bold(value, figure)} ({low} to {high})"


def _difference(figure: dict[str, Any], sign: int = 1) -> tuple[float, float, float]:
    """Value and interval, of a fall if the sign is −1."""
    change = figure["difference"]
    low, high = sorted(sign * end for end in change["interval"])
    return sign * change["value"], low, high


def _value(figure: dict[str, Any] | None, side: str = "tuned") -> str:
    """`**56 %** (38 to 72)`; a figure that is no share has no percent, and small shares have a digit more."""
    own = None if figure is None else figure[side]
    if figure is None or own is None:
        return ""
    values = own["value"], *own["interval"]
    if figure["unit"] == "share":
        digits = 1 if max(map(abs, values)) < 0.1 else 0
        value, low, high = (_number(100 * each, digits) for each in values)
        value += " %"
    else:
        value, low, high = (_number(each, 2) for each in values)
    return f"{_bold(value, figure) if side == 'tuned' else value} ({low} to {high})"


def _number(value: float, digits: int) -> str:
    """Never −0."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _bold(text: str, figure: dict[str, Any]) -> str:
    change = figure["difference"]
    return f"**{text}**" if change is not None and change["verdict"] != "not shown" else text


PANELS = {
    "demo": "tool definitions of functions",
    "commongen": "sentences with given words",
    "legal": "terms of service in plain English",
    CLASSIFIED: "intents of a bank's customers (MiniLM)",
}


def plot(trials: Sequence[Trial], file: Path) -> None:
    """Gain against forgetting, a panel for each task: points with both intervals, and a line along the frontier.

    Args:
        trials: in any order.
        file: an SVG.
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    trials = in_order(trials)
    tasks = [task for task in PANELS if any(each["task"] == task for each in trials)]
    figure, panels = plt.subplots(1, len(tasks), figsize=(4 * len(tasks), 4.2), squeeze=False)
    for axes, task in zip(panels[0], tasks, strict=True):
        lost, gained = (
            ("calibration error rose by", "accuracy gained")
            if task == CLASSIFIED
            else ("general loss rose by, bits a byte", "held-out loss fell by, nats a token")
        )
        _panel(axes, [point_of(each) for each in trials if each["task"] == task])
        axes.set_title(PANELS[task], fontsize=10)
        axes.set(xlabel=lost, ylabel=gained)
    figure.suptitle("Gain and loss after the same steps by learning rate; dotted: frontier; bars: 95 % over rows")
    figure.tight_layout()
    plt.rcParams["svg.hashsalt"] = "tunesmith"
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _panel(axes: Any, points: Sequence[CurvePoint]) -> None:
    for point in (BASE, *points):
        x, y = point.forgetting, point.gain
        color = "#888" if point is BASE else "#30638e" if "replay" in point.name else "#d1495b"
        bars = _bars(x, point.forgetting_interval), _bars(y, point.gain_interval)
        axes.errorbar(x, y, xerr=bars[0], yerr=bars[1], fmt="o", color=color, ms=5, elinewidth=1)
        beside = (-24, -11) if point is BASE else (5, -11 if _is_below_another(point, points) else 4)
        axes.annotate(point.name, (x, y), xytext=beside, textcoords="offset points", fontsize=8)
    best = sorted(frontier([BASE, *points]), key=lambda point: point.forgetting)
    axes.plot([each.forgetting for each in best], [each.gain for each in best], ":", color="#888", linewidth=1)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.2, y=0.15)


def _is_below_another(point: CurvePoint, points: Sequence[CurvePoint]) -> bool:
    """Whether a point is a little below another one, so that its name goes below it."""
    width, height = (
        max(map(value, (BASE, *points))) - min(map(value, (BASE, *points)))
        for value in (lambda each: each.forgetting, lambda each: each.gain)
    )
    return any(
        0 < other.gain - point.gain < 0.2 * height and abs(other.forgetting - point.forgetting) < 0.3 * width
        for other in points
    )


def _bars(middle: float, ends: Sequence[float]) -> list[list[float]]:
    """How far an interval reaches to both sides."""
    return [[abs(middle - end)] for end in ends]


def point_of(trial: Trial) -> CurvePoint:
    """What a trial gained and lost.

    Args:
        trial: of any task.

    Returns:
        The fall of the held-out loss and the rise of the loss on general text; of a classifier, the rise of its
        accuracy and of its calibration error.
    """
    figures = trial["figures"]
    if trial["task"] == CLASSIFIED:
        gain, lost = _difference(figures["accuracy"]), _difference(figures["calibration_error"])
    else:
        gain, lost = _difference(figures["loss"], -1), _difference(figures["forgetting.general_loss"])
    return CurvePoint(label(trial), gain[0], gain[1:], lost[0], lost[1:])
