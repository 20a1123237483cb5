"""`tunesmith plan`: memory, time and cost before a weight is read."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError


def plan(
    base: Annotated[
        str | None, typer.Argument(help="A directory, a hub name, or a shape that ships with Tunesmith: llama-3-8b.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Plan this run; without it, every usual method.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Rows, in place of the recipe's.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a field: --set data.max_length=4096.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="here, or one that --devices lists.")] = "here",
    fit: Annotated[
        str | None, typer.Option("--fit", help="Propose the best recipe within so much memory: 16GB.")
    ] = None,
    devices: Annotated[
        bool, typer.Option("--devices", help="Which devices can do it, how fast, at what cost.")
    ] = False,
    context: Annotated[int, typer.Option("--context", help="Tokens of each answer when it serves.")] = 4096,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Answers at once when it serves.")] = 1,
    price: Annotated[float | None, typer.Option("--price", help="US dollars an hour; default: the device's.")] = None,
    chart: Annotated[Path | None, typer.Option("--chart", help="Write the bar chart to this HTML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object, for tools.")] = False,
) -> None:
    """Say what a run will take, and where it fits, from the base's config alone."""
    with quick_imports():
        from tunesmith.planner.afterwards import merging_memory, serving_memory
        from tunesmith.planner.ask import best_that_fits, on_devices, plan, recipe_of, usual_plans
        from tunesmith.planner.device import device_named
        from tunesmith.planner.plan import Plan
        from tunesmith.planner.shapes import shown_name
        from tunesmith.report import plan_table as report
        from tunesmith.report.formatting import size
        from tunesmith.run import atomic_write

    console = Console(highlight=False)
    asked = recipe_of(base, recipe, data, overrides or [])
    name = shown_name(asked.base.path)
    if fit is not None:
        if recipe is None and not any(each.startswith("method") for each in overrides or []):
            asked = recipe_of(base, recipe, data, [*(overrides or []), "method=full"])
        found = best_that_fits(asked, device_named(device), _bytes(fit))
        if as_json:
            told = found.plan.to_dict() | {"given_up": found.given_up, "set": found.overrides}
            typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
            return
        console.print(f"[bold]{name} within {fit}[/]")
        _lines(console, report.summary(found.plan))
        _lines(console, {"gives up": "; ".join(found.given_up) or "nothing"})
        _lines(console, {"set": " ".join(f"--set {each}" for each in found.overrides) or "nothing"})
        console.print(report.parts_table("made of", found.plan.memory.parts))
        return
    if devices:
        table = on_devices(asked)
        if as_json:
            typer.echo(json.dumps([{**each.plan.to_dict(), "cards": each.cards} for each in table], indent=2))
            return
        console.print(f"[bold]{name}, {asked.method.kind}[/]: on the rates of data sheets; see docs/planning.md")
        console.print(report.devices_table(table, price))
        return
    if recipe is None and not overrides:
        with Console(stderr=True).status("Planning"):
            plans = usual_plans(asked, device_named(device))
        done = {method: each for method, each in plans.items() if isinstance(each, Plan)}
        if not done:
            raise next(each for each in plans.values() if isinstance(each, UserError))
        if as_json:
            typer.echo(json.dumps({method: each.to_dict() for method, each in done.items()}, indent=2))
            return
        first = next(iter(done.values()))
        with Console(stderr=True).status("Timing operations"):
            methods = report.methods_plan_table(plans)
        console.print(f"[bold]{name}[/] on {first.device.name}, {size(first.available)} free")
        console.print(methods)
        console.print(report.legend(list(done.values())))
    else:
        done = {asked.method.kind: plan(base, recipe, data, overrides or [], device)}
        (single,) = done.values()
        merging, serving = merging_memory(single), serving_memory(single, context, concurrency)
        if as_json:
            typer.echo(json.dumps({**single.to_dict(), "merging": merging, "serving": serving}, indent=2))
            return
        console.print(f"[bold]{name}[/]")
        _lines(console, report.summary(single))
        if spent := report.cost(single, price):
            _lines(console, {"cost": spent})
        console.print(report.parts_table("made of", single.memory.parts))
        _lines(console, {phase: size(held) for phase, held in single.memory.peaks.items()})
        at_once = "an answer" if concurrency == 1 else f"{concurrency:,} answers at once"
        if merging is not None:
            _lines(console, {"merging": f"{size(sum(merging.values()))} of the host's memory, in fp32"})
        _lines(console, {"serving": f"{size(sum(serving.values()))}, {at_once} of {context:,} tokens"})
    if chart is not None:
        with atomic_write(chart) as file:
            file.write(report.plan_page(done, f"{name}: what the memory is made of"))
        console.print(f"chart: {chart}")


def _lines(console: Console, told: dict[str, str]) -> None:
    for name, said in told.items():
        console.print(f"{name:>10}  {said}", soft_wrap=True)


def _bytes(said: str) -> int:
    """Raises:
    UserError: it is no amount of memory.
    """
    from tunesmith.config.recipe import bytes_in

    found = bytes_in(said)
    if found is None:
        raise UserError(f"--fit: {said} is no amount of memory. Write it as 16GB, 900MB or 24GiB.")
    return found
