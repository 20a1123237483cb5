"""`tunesmith evaluate A [B …]`: models side by side on the same rows."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.prompt import PromptFile, prompt_of
from tunesmith.cli.quick import quick_imports
from tunesmith.cli.row_count import row_count

NOT_PASSED = 3
"""The exit code if a gate is not passed."""


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Runs, checkpoints, adapters, models, GGUF files, any of them @int8, @nf4, @gguf:q8_0 …, or "
            "http://HOST/v1#MODEL."
        ),
    ],
    rows: Annotated[
        str, typer.Option(help="How many rows to generate answers for, or all; the loss uses all. 0: only suites.")
    ] = "200",
    data: Annotated[
        list[str] | None, typer.Option(help="Files of rows; default: the held-out rows of the first run.")
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            help="Also these, separated by commas: latency, topic, bias, robustness, forgetting, memorization, "
            "quantization, multiple_choice, gsm8k, humaneval, lm-eval, or your own as module:Class."
        ),
    ] = "",
    suite_option: Annotated[
        list[str] | None, typer.Option(help="An option of a suite: suite.option=VALUE, such as topic.refusal=TEXT.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens in an answer.", min=1)] = 128,
    repetition_penalty: Annotated[
        float, typer.Option(help="1: none; 1.2 keeps small models out of loops.", min=1)
    ] = 1.0,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Also this metric: a name, one with a setting as regex:PATTERN, or your module:function."),
    ] = None,
    prompt: PromptFile = None,
    judge: Annotated[
        str | None, typer.Option(help="A model that scores the answers from 1 to 5; named like those it judges.")
    ] = None,
    rubric: Annotated[Path | None, typer.Option(help="A text file: what the judge takes for a good answer.")] = None,
    judge_pairs: Annotated[
        bool, typer.Option("--judge-pairs", help="The judge compares answers with the first model's, in both orders.")
    ] = False,
    labels: Annotated[
        Path | None, typer.Option(help="People's scores or preferences of some answers, to correct the judge by.")
    ] = None,
    leakage: Annotated[
        bool,
        typer.Option("--leakage", help="Also all figures without rows that the run trained on too, or nearly."),
    ] = False,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Of a run alone: also what each kept checkpoint gained and forgot.")
    ] = False,
    how_to_keep: Annotated[
        bool,
        typer.Option(
            "--how-to-keep",
            help="Of a run alone: also what short reruns gain and forget, at lower rates and with replay.",
        ),
    ] = False,
    rerun_steps: Annotated[
        int | None, typer.Option(help="The most steps of such a rerun. Default: 100, or what --budget allows.", min=1)
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="With these two: how much of its loss on general text the base may lose.")
    ] = 0.01,
    concurrent: Annotated[
        int, typer.Option(help="The most answers at the same time. Figures do not depend on it.", min=1)
    ] = 64,
    gate: Annotated[Path | None, typer.Option(help="A file of limits. Exit code 3 if one is not met.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write evaluation.json and report.html into this directory.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="A time, such as 10min: as many rows as it allows, up to --rows.")
    ] = None,
    cache: Annotated[bool, typer.Option(help="Keep answers and losses, so that nothing is computed twice.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the content of evaluation.json.")] = False,
) -> None:
    """Evaluate models side by side: loss, metrics, suites, samples, each with its uncertainty; a run alone beside its
    base."""
    most = row_count(rows)
    with quick_imports():
        import tunesmith.evaluation.compare as comparison
        from tunesmith.evaluation.opening import BASE, run_alone
        from tunesmith.evaluation.suite import parsed_options
        from tunesmith.metrics import METRICS, metric_named
        from tunesmith.report.forgetting import curves_of
        from tunesmith.report.html import write_evaluation_page, write_report
        from tunesmith.report.progress import Progress
        from tunesmith.report.table import (
            curve_table,
            evaluation_table,
            gate_table,
            judge_table,
            leakage_table,
            samples_table,
        )
        from tunesmith.run import jsonable

    console = Console(highlight=False)
    run = run_alone(models)
    before = prompt_of(prompt)
    metrics = {**METRICS, **{name: metric_named(name, Path.cwd()) for name in metric or []}}
    with Progress(Console(stderr=True, highlight=False) if as_json else console) as progress:
        result = comparison.evaluate(
            models, most, max_new_tokens, repetition_penalty, [progress], metrics,
            data=data, suites=[name.strip() for name in suite.split(",") if name.strip()],
            suite_options=parsed_options(suite_option or []),
            gate=gate, output=output, concurrent=concurrent, cache=cache, budget=budget,
            judge=judge, rubric=rubric, judge_pairs=judge_pairs, labels=labels,
            checkpoints=checkpoints, how_to_keep=how_to_keep, rerun_steps=rerun_steps, tolerance=tolerance,
            prompt=before, leakage=leakage,
        )  # fmt: skip
    if output is not None:
        written = [output / "evaluation.json", write_evaluation_page(output)]
    elif run is not None and result["reference"] == BASE:
        written = [run.directory / "evaluation.json", write_report(run.directory)]
    else:
        written = []
    if as_json:
        print(json.dumps(jsonable(result), indent=2, ensure_ascii=False))
    else:
        console.print(evaluation_table(result))
        if result["leakage"] is not None:
            console.print(leakage_table(result))
        if result["judge"] is not None:
            console.print(judge_table(result))
        for title, curve in curves_of(result):
            console.print()
            console.print(curve_table(title, curve))
        if result["samples"]:
            console.print()
            console.print(samples_table(result["samples"]))
        if result["gate"] is not None:
            console.print(gate_table(result["gate"]))
        if written:
            console.print(f"Written to {written[0]} and {written[1]}", soft_wrap=True)
    if result["gate"] is not None and not result["gate"]["passed"]:
        raise typer.Exit(NOT_PASSED)
