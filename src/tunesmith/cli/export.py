"""`tunesmith export RUN`: a model for another engine."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports


def export(
    run: Annotated[str, typer.Argument(help="A run, an adapter, a model directory, a hub name, or embedded.")],
    to: Annotated[
        str,
        typer.Option(
            help="hf, int8, nf4, gguf:q8_0, gguf:q4_k_m, gguf:f16 …, ollama:q8_0 …, mlx:q4; docs/exporting.md."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The GGUF file or the directory to write.")],
    precision: Annotated[
        str | None, typer.Option(help="hf: fp32, bf16 or fp16; default: the stored precision of the base.")
    ] = None,
    importance_rows: Annotated[
        int, typer.Option(help="GGUF: measure on this many of the run's rows which inputs matter.", min=0)
    ] = 0,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="GGUF: the LoRA adapter without its base.")
    ] = False,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Keep it if it differs by more than the limits; its card says so.")
    ] = False,
    rows: Annotated[int, typer.Option(help="How many rows it is compared with the model on.", min=1)] = 32,
    data: Annotated[
        Path | None, typer.Option(help="A file of these rows; default: the run's held-out rows, else a few questions.")
    ] = None,
) -> None:
    """Write a model for llama.cpp, Ollama or transformers, and keep it if it is still the same model there."""
    with quick_imports():
        from tunesmith.proving.export import export as write
        from tunesmith.report.parity import parity_table
        from tunesmith.report.progress import Progress
        from tunesmith.report.table import merge_table

    console = Console(highlight=False)
    with Progress(console) as progress:
        done = write(
            run, output, to, precision=precision, importance_rows=importance_rows, adapter_only=adapter_only,
            accept_loss=accept_loss, rows=rows, data=data, subscribers=[progress],
        )  # fmt: skip
    if done.merging.trained_loss is not None:
        console.print(merge_table(done.merging.trained_loss, done.merging.ways, done.merging.into))
    if done.parity is None:
        console.print(f"Not compared with the model: {done.unproven}.", soft_wrap=True)
    else:
        console.print(parity_table(done.parity))
    console.print(f"Wrote {done.path} ({done.to}), and its model card {done.card}.", soft_wrap=True)
