"""`tunesmith serve` and `tunesmith keys`: a model behind OpenAI's protocol."""

import logging
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tunesmith.cli.prompt import PromptFile, prompt_of
from tunesmith.cli.quick import quick_imports
from tunesmith.cli.use import Cache, Draft
from tunesmith.errors import UserError

keys = typer.Typer(help="API keys of a server: each has a name, and rights.", no_args_is_help=True)

WAITING = "20000"
"""How often an OpenMP thread looks for the next parallel loop before it sleeps; read when PyTorch is loaded.
That is half a millisecond, within which most loops of a step follow each other. With libgomp's 300,000, the event loop
and the clients wait for threads that wait if the machine is busy."""

KeyFile = Annotated[Path, typer.Argument(help="The file of keys; only their hashes are in it.")]


def serve(
    model: Annotated[str, typer.Argument(help="A run, an adapter, a model directory, a hub name, or embedded.")],
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME=RUN: an adapter to serve beside it; repeat for several.")
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option(help="A directory with an adapter in each subdirectory, served by its name.")
    ] = None,
    prompt: PromptFile = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model; default: its last part.")] = None,
    host: Annotated[str, typer.Option(help="The address; any but this machine's own needs keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0: a free one.", min=0, max=65535)] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="Keys, from: tunesmith keys add FILE NAME.")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="A PEM file: serve HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's private key, as PEM.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="How the base is stored in memory: int8, nf4, fp4; default: as in the run.")
    ] = None,
    concurrent: Annotated[int, typer.Option(help="The most answers at the same time; others wait.", min=1)] = 64,
    draft: Draft = "lookup",
    cache: Cache = "auto",
    queue: Annotated[int, typer.Option(help="The most answers that wait; more get status 429.", min=1)] = 512,
    max_tokens: Annotated[int, typer.Option(help="The most tokens of an answer.", min=1)] = 4096,
    timeout: Annotated[float, typer.Option(help="The most seconds of a request.", min=1)] = 600,
    temperature: Annotated[
        float | None, typer.Option(help="For requests without one; default: the model's own, else 1.", min=0)
    ] = None,
    feedback: Annotated[Path | None, typer.Option(help="A JSONL file that keeps feedback on responses.")] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Put prompts and answers in the log.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line per request.")] = False,
    engine: Annotated[str, typer.Option(help="tunesmith; or vllm: start vLLM with this model.")] = "tunesmith",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With vllm: print its command only.")] = False,
) -> None:
    """Serve a model with OpenAI's protocol, until Ctrl-C. Answers that have begun are completed."""
    pairs = dict(_pair(each) for each in adapter or [])
    if engine not in ("tunesmith", "vllm"):
        raise UserError(f"--engine {engine} is not one of tunesmith and vllm.")
    if engine == "vllm":
        ours = {
            "--adapters": adapters, "--api-key-file": api_key_file, "--tls-certificate": tls_certificate,
            "--weights": weights, "--prompt": prompt, "--temperature": temperature, "--feedback": feedback,
            "--draft": None if draft in ("lookup", "none") else draft, "--cache": None if cache == "auto" else cache,
        }  # fmt: skip
        given = [each for each, value in ours.items() if value is not None]
        if given:
            raise UserError(f"{', '.join(given)} cannot be used with --engine vllm.")
        _start_vllm(model, name, pairs, host, port, dry_run)
        return
    os.environ.setdefault("GOMP_SPINCOUNT", WAITING)
    with quick_imports():
        import tunesmith.serving.server
        from tunesmith.serving.service import Limits

    if quiet:
        logging.getLogger("tunesmith.serving").setLevel(logging.WARNING)
    tunesmith.serving.server.serve(
        model,
        adapters=pairs,
        adapter_directory=adapters,
        name=name,
        host=host,
        port=port,
        api_key_file=api_key_file,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        weights=weights,
        concurrent=concurrent,
        draft=None if draft == "none" else draft,
        cache=cache,
        temperature=temperature,
        limits=Limits(max_tokens=max_tokens, queue=queue, seconds=timeout),
        feedback=feedback,
        log_prompts=log_prompts,
        prompt=prompt_of(prompt),
        ready=lambda address: _say(f"Serving {model} at {address}/v1. Ctrl-C stops it."),
    )


def _start_vllm(model: str, name: str | None, pairs: dict[str, str], host: str, port: int, dry_run: bool) -> None:
    with quick_imports():
        from tunesmith.cache_directory import cache_directory
        from tunesmith.serving.guards import is_loopback
        from tunesmith.serving.load import name_of
        from tunesmith.serving.vllm import run_vllm, vllm_command

    called = name or name_of(model)
    template = cache_directory() / "vllm" / f"{called.replace('/', '--')}.jinja"
    template.parent.mkdir(parents=True, exist_ok=True)
    words = vllm_command(model, called, dict(pairs), host, port, template)
    if dry_run:
        typer.echo(shlex.join(words))
    else:
        run_vllm(words, is_loopback(host))


def _pair(text: str) -> tuple[str, str]:
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise UserError(f"--adapter {text} is not NAME=RUN.")
    return name, path


@keys.command()
def add(
    file: KeyFile,
    name: Annotated[str, typer.Argument(help="Of the key.")],
    model: Annotated[
        list[str] | None, typer.Option(help="A model or adapter that it may use; repeat for several; default: all.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, typer.Option(help="Of prompts and answers; default: no limit.", min=1)
    ] = None,
) -> None:
    """Make a key. It is printed once, and stored nowhere."""
    from tunesmith.serving.keys import add_key

    key = add_key(file, name, tuple(model) if model else None, tokens_per_minute)
    typer.echo(key)


@keys.command()
def remove(file: KeyFile, name: Annotated[str, typer.Argument(help="Of the key.")]) -> None:
    """Remove a key. A server reads the file when it starts."""
    from tunesmith.serving.keys import remove_key

    remove_key(file, name)
    _say(f"Removed {name} from {file}.")


@keys.command("list")
def list_keys(file: KeyFile) -> None:
    """The keys' names and rights."""
    from tunesmith.serving.keys import read_keys

    for key in read_keys(file):
        models = "all models" if key.models is None else ", ".join(key.models)
        limit = "no limit" if key.tokens_per_minute is None else f"{key.tokens_per_minute:,} tokens a minute"
        _say(f"{key.name}: {models}; {limit}")


def _say(text: str) -> None:
    Console(highlight=False).print(text, markup=False, soft_wrap=True)
