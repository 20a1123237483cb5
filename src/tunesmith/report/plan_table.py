"""A plan in the terminal and as an HTML page: memory by part, time, and the devices that it fits."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tunesmith.errors import UserError
from tunesmith.inference.memory import GenerationMemory
from tunesmith.planner.plan import Plan
from tunesmith.planner.request import OnDevice
from tunesmith.report.colors import BAD, GOOD
from tunesmith.report.formatting import count, duration, durations, figure, size

COLORS = {
    "weights": "#4477aa",
    "stored weights": "#88aacc",
    "reference models": "#225588",
    "quantization constants": "#66ccee",
    "quantizing": "#aaddee",
    "adapters": "#228833",
    "gradients": "#ccbb44",
    "optimizer": "#ee8866",
    "activations": "#ee6677",
    "loss workspace": "#aa3377",
    "key–value cache": "#aa3377",
    "workspace": "#ee6677",
    "allocator slack": "#bbbbbb",
    "program": "#777777",
}
"""Colors of the parts of memory (Tol 2021, the bright scheme, which color-blind readers can distinguish)."""

LEAST_SHOWN = 500_000
"""Bytes above which a part has a row."""

BAR = 40
"""Characters of the longest bar."""


def cache_line(memory: GenerationMemory | None) -> str:
    """What the cache of the generation engine holds; None: the model cannot be paged."""
    if memory is None:
        return "with transformers' own caches, in padded batches: this family cannot be paged"
    longest = "" if memory.context is None else f", {memory.contexts:,} contexts of {memory.context:,}"
    per_token = figure(memory.token / 1e3, "{:.3g} kB")
    return f"{size(memory.cache)} for the cache: {memory.tokens:,} tokens{longest}; {per_token} per token"


def parts_table(title: str, parts: Mapping[str, int]) -> Table:
    """Bytes by part, the largest first, each with a bar."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(title)
    table.add_column("memory", justify="right")
    table.add_column("")
    most = max(parts.values())
    for name, held in sorted(parts.items(), key=lambda part: -part[1]):
        if held > LEAST_SHOWN:
            table.add_row(name, size(held), Text("█" * max(1, round(BAR * held / most)), COLORS.get(name, "#777777")))
    table.add_section()
    table.add_row("peak", Text(size(sum(parts.values())), "bold"), "")
    return table


def methods_plan_table(plans: Mapping[str, Plan | UserError]) -> Table:
    """Each method: trainable parameters, memory, whether it fits, speed; all bars have the same scale."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method")
    for title in ("trains", "memory", "fits", "tokens/s"):
        table.add_column(title, justify="right")
    table.add_column("memory by part")
    most = max((plan.memory.peak_bytes for plan in plans.values() if isinstance(plan, Plan)), default=1)
    for name, plan in plans.items():
        if isinstance(plan, UserError):
            table.add_row(name, "", "", "–", "", "not supported by this base")
            continue
        fits = Text("yes", GOOD) if plan.fits else Text("no", BAD)
        speed = count(plan.time.tokens_per_second)
        table.add_row(name, count(plan.step.trained), size(plan.memory.peak_bytes), fits, speed, _bar(plan, most))
    return table


def legend(plans: Sequence[Plan]) -> Text:
    """The meaning of the bars' colors."""
    text = Text()
    names = {part for plan in plans for part, held in plan.memory.parts.items() if held}
    for name in COLORS:
        if name in names:
            text.append("█ ", COLORS[name])
            text.append(f"{name}  ")
    return text


def _bar(plan: Plan, most: int, width: int = 18) -> Text:
    bar = Text()
    for name in COLORS:
        held = plan.memory.parts.get(name, 0)
        bar.append("█" * round(width * held / most), COLORS[name])
    return bar


def devices_table(rows: Sequence[OnDevice], price: float | None) -> Table:
    """The run on each device.

    Args:
        rows: the run's plan on each device.
        price: US dollars per hour, instead of the devices' own.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("device", no_wrap=True)
    known = all(row.plan.batch_plan.known for row in rows)
    for title in ("has", "needs", "cards", "tokens/s", *(("in all", "cost") if known else ("$/M tokens",))):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        plan, device = row.plan, row.device
        cards = "–" if row.cards == 0 else f"{row.cards:,}"
        time = plan.time
        total = time.total_seconds
        cells = [count(time.tokens_per_second), *([duration(total)] if known else []), cost(plan, price)]
        table.add_row(
            device.name,
            size(device.memory_bytes),
            size(plan.memory.peak_bytes),
            Text(cards, "" if row.cards == 1 else BAD),
            *(cells if row.cards == 1 else [""] * len(cells)),
        )
    return table


def cost(plan: Plan, price: float | None) -> str:
    """US dollars for all steps; per million tokens if the number of steps is unknown. Empty without a price.

    Args:
        plan: of the run.
        price: US dollars per hour, instead of the device's own.
    """
    hourly = plan.device.price if price is None else price
    if hourly is None:
        return ""
    total = plan.time.total_seconds
    if total is None:
        return f"${1e6 / plan.time.tokens_per_second / 3600 * hourly:,.2f}"
    return f"${total / 3600 * hourly:,.2f}"


def plan_page(plans: Mapping[str, Plan], title: str) -> str:
    """An HTML page with one bar chart: the memory of each plan by part."""
    most = max(plan.memory.peak_bytes for plan in plans.values())
    width, left, height = 720, 150, 34 * len(plans) + 60
    bars = []
    for row, (name, plan) in enumerate(plans.items()):
        at, y = float(left), 10 + 34 * row
        bars.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        for part in COLORS:
            held = plan.memory.parts.get(part, 0)
            length = (width - left - 90) * held / most
            if held > 0:
                tip = f"<title>{escape(name)}: {escape(part)} {size(held)}</title>"
                bars.append(
                    f'<rect x="{at:.1f}" y="{y}" width="{length:.1f}" height="22" fill="{COLORS[part]}">{tip}</rect>'
                )
                at += length
        bars.append(f'<text x="{at + 6:.1f}" y="{y + 15}">{size(plan.memory.peak_bytes)}</text>')
    names = [part for part in COLORS if any(plan.memory.parts.get(part, 0) for plan in plans.values())]
    keys = "".join(f'<span><i style="background:{COLORS[part]}"></i>{escape(part)}</span>' for part in names)
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{escape(title)}</title><style>body{{font:14px system-ui,sans-serif;max-width:760px;margin:2em auto;"
        "padding:0 1em;color:#222;background:#fff}svg{width:100%;height:auto}text{font-size:12px;fill:currentColor}"
        "span{margin-right:1.2em;white-space:nowrap}i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}"
        "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}}</style>"
        f"<h1>{escape(title)}</h1><svg viewBox='0 0 {width} {height - 40}' role='img' aria-label='{escape(title)}'>"
        f"{''.join(bars)}</svg><p>{keys}</p>"
    )


def summary(plan: Plan) -> dict[str, Any]:
    """The lines above the table of a plan's parts, by name."""
    recipe = plan.batch_plan.recipe
    weights = recipe.base.weights if recipe.base.quantized else str(plan.dtype).removeprefix("torch.")
    checkpointed = f", {plan.checkpointed} of {plan.step.blocks} blocks checkpointed" if plan.checkpointed else ""
    time = plan.time
    lines = {
        "method": f"{recipe.method.kind} on {count(plan.step.parameters)} parameters in {weights}, training "
        f"{count(plan.step.trained)}",
        "batch": f"{plan.batch_plan.tokens_per_batch:,} tokens, the longest row {plan.batch_plan.longest:,}"
        f"{checkpointed}",
        "on": f"{plan.device.name}: {size(plan.available)}, so it {'fits' if plan.fits else 'does not fit'}",
        "speed": f"{count(time.tokens_per_second)} tokens per second, {time.seconds_per_step:.3g} s per step",
    }
    if time.total_seconds is not None:
        steps = plan.batch_plan.layout(plan.step.packed).steps
        lines["in all"] = f"{duration(time.total_seconds)} for {steps:,} steps: {durations(time.parts)}"
    return lines
