"""`tunesmith plan`: memory, time and cost, before any weights are read."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports
from tunesmith.cli.use import Cache
from tunesmith.errors import UserError


def plan(
    base: Annotated[
        str | None,
        typer.Argument(help="A directory, a hub name, or an architecture that ships with Tunesmith: llama-3-8b."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Plan this run; default: all common methods.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Rows to use instead of the recipe's.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Set a field: --set data.max_length=4096.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="here, or a device from the list of --devices.")] = "here",
    fit: Annotated[str | None, typer.Option("--fit", help="Propose the best recipe within this memory: 16GB.")] = None,
    devices: Annotated[
        bool, typer.Option("--devices", help="Which devices can run it, how fast, at what cost.")
    ] = False,
    context: Annotated[int, typer.Option("--context", help="Tokens per request when serving.")] = 4096,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Concurrent requests when serving.")] = 1,
    cache: Cache = "auto",
    price: Annotated[float | None, typer.Option("--price", help="US dollars per hour; default: the device's.")] = None,
    chart: Annotated[Path | None, typer.Option("--chart", help="Write the bar chart to this HTML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Predict memory, time and cost of a run, and where it fits, from the base's config alone."""
    with quick_imports():
        from tunesmith.planner.after_training import merging_memory, serving_memory
        from tunesmith.planner.device import device_named
        from tunesmith.planner.generation import generation_of
        from tunesmith.planner.plan import Plan
        from tunesmith.planner.request import best_that_fits, on_devices, plan, recipe_of, usual_plans
        from tunesmith.planner.shapes import shown_name
        from tunesmith.report import plan_table as report
        from tunesmith.report.formatting import size
        from tunesmith.run import atomic_write, writing

    console = Console(highlight=False)
    planned = recipe_of(base, recipe, data, overrides or [])
    name = shown_name(planned.base.path)
    if fit is not None:
        if recipe is None and not any(override.startswith("method") for override in overrides or []):
            planned = recipe_of(base, recipe, data, [*(overrides or []), "method=full"])
        best = best_that_fits(planned, device_named(device), _bytes(fit))
        if as_json:
            result = best.plan.to_dict() | {"tradeoffs": best.tradeoffs, "set": best.overrides}
            typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
            return
        console.print(f"[bold]{name} within {fit}[/]")
        _lines(console, report.summary(best.plan))
        _lines(console, {"gives up": "; ".join(best.tradeoffs) or "nothing"})
        _lines(console, {"set": " ".join(f"--set {override}" for override in best.overrides) or "nothing"})
        console.print(report.parts_table("made of", best.plan.memory.parts))
        return
    if devices:
        table = on_devices(planned)
        if as_json:
            typer.echo(json.dumps([{**row.plan.to_dict(), "cards": row.cards} for row in table], indent=2))
            return
        console.print(f"[bold]{name}, {planned.method.kind}[/]: with data-sheet rates; see docs/planning.md")
        console.print(report.devices_table(table, price))
        return
    if recipe is None and not overrides:
        with Console(stderr=True).status("Planning"):
            plans = usual_plans(planned, device_named(device))
        done = {method: outcome for method, outcome in plans.items() if isinstance(outcome, Plan)}
        if not done:
            raise next(outcome for outcome in plans.values() if isinstance(outcome, UserError))
        if as_json:
            typer.echo(json.dumps({method: single.to_dict() for method, single in done.items()}, indent=2))
            return
        first = next(iter(done.values()))
        with Console(stderr=True).status("Timing operations"):
            methods = report.methods_plan_table(plans)
        console.print(f"[bold]{name}[/] on {first.device.name}, {size(first.available)} free")
        console.print(methods)
        console.print(report.legend(list(done.values())))
    else:
        done = {planned.method.kind: plan(base, recipe, data, overrides or [], device)}
        (single,) = done.values()
        generation = generation_of(single, cache)
        page = None if generation is None else generation.page
        merging, serving = merging_memory(single), serving_memory(single, context, concurrency, page)
        if as_json:
            generating = None if generation is None else generation.to_dict()
            after = {"merging": merging, "serving": serving, "generating": generating}
            typer.echo(json.dumps({**single.to_dict(), **after}, indent=2))
            return
        console.print(f"[bold]{name}[/]")
        _lines(console, report.summary(single))
        if cost := report.cost(single, price):
            _lines(console, {"cost": cost})
        console.print(report.parts_table("made of", single.memory.parts))
        _lines(console, {phase: size(peak) for phase, peak in single.memory.peaks.items()})
        requests = "one request" if concurrency == 1 else f"{concurrency:,} concurrent requests"
        if merging is not None:
            _lines(console, {"merging": f"{size(sum(merging.values()))} of host memory, in fp32"})
        _lines(console, {"serving": f"{size(sum(serving.values()))}, {requests} of {context:,} tokens"})
        if single.batch_plan.recipe.objective.head.generates_text:
            _lines(console, {"generating": report.cache_line(generation)})
    if chart is not None:
        with writing(chart), atomic_write(chart) as file:
            file.write(report.plan_page(done, f"{name}: memory by part"))
        console.print(f"chart: {chart}")


def _lines(console: Console, lines: dict[str, str]) -> None:
    for name, text in lines.items():
        console.print(f"{name:>10}  {text}", soft_wrap=True)


def _bytes(memory: str) -> int:
    """Parse the value of `--fit`, such as 16GB, to bytes."""
    from tunesmith.config.train import bytes_in

    size = bytes_in(memory)
    if size is None:
        raise UserError(f"--fit: {memory} is not an amount of memory. Write it as 16GB, 900MB or 24GiB.")
    return size
