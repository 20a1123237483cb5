"""`tunesmith generate`, `tunesmith chat` and `tunesmith merge`: putting a model to use."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tunesmith.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ModelName = Annotated[str, typer.Argument(help="A run, an adapter, a model's directory, a hub name, or embedded.")]
System = Annotated[str | None, typer.Option(help="What the system's turn says.")]
MaxNewTokens = Annotated[int, typer.Option(help="Cut an answer after so many tokens.", min=1)]
Temperature = Annotated[float, typer.Option(help="0: always the likeliest token; 1: as the model has it.", min=0)]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this probability.", min=0, max=1)]
RepetitionPenalty = Annotated[float, typer.Option(help="1: none; 1.2 keeps small models out of loops.", min=1)]
Seed = Annotated[int, typer.Option(help="Of the draws.")]


def generate(
    model: ModelName,
    prompts: Annotated[list[str] | None, typer.Argument(help="Questions; without any, one is read from stdin.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Go on from the text as it is, without the chat template.")
    ] = False,
    system: System = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = 0,
) -> None:
    """Answer questions, with the rendering that the model was trained with."""
    from tunesmith.models.generate import Sampling, stream

    asked = prompts or [sys.stdin.read().strip()]
    if not any(asked):
        raise UserError("Nothing was asked. Give a question as an argument, or on stdin.")
    loaded, tokenizer = _load(model)
    sampling = Sampling(max_new_tokens, temperature, top_p, repetition_penalty, seed)
    for prompt in asked:
        text = prompt if raw else _prompt(tokenizer, _begun(system), prompt)
        stream(loaded, tokenizer, text, sampling, _write)
        _write("\n")


def chat(
    model: ModelName = "embedded",
    system: System = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = 0,
) -> None:
    """Talk with a model. An empty line, or Ctrl-D, ends it; /new begins again."""
    from tunesmith.models.generate import Sampling, stream

    console = Console(highlight=False)
    loaded, tokenizer = _load(model)
    messages = _begun(system)
    sampling = Sampling(max_new_tokens, temperature, top_p, repetition_penalty, seed)
    console.print(f"Talking with {model}. /new begins again, an empty line ends.", style="dim", markup=False)
    while asked := _asked(console):
        if asked == "/new":
            messages = _begun(system)
            continue
        text = _prompt(tokenizer, messages, asked)
        answer = stream(loaded, tokenizer, text, sampling, _write)
        _write("\n")
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer.strip() or "…"}]


def merge(
    run: Annotated[str, typer.Argument(help="A run's or an adapter's directory.")],
    output: Annotated[Path, typer.Option("--output", help="The directory to write the model to.")],
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: as the base is stored.")] = None,
) -> None:
    """Fold an adapter into its base: one model, in Hugging Face's format, that needs neither Tunesmith nor PEFT."""
    import tunesmith.evaluation.merging

    written = tunesmith.evaluation.merging.merge(run, output, precision)
    Console().print(f"Wrote {written}. Try it: tunesmith chat {written}", highlight=False, soft_wrap=True)


def _load(name: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    from tunesmith.engine.precision import device_of, dtype_of
    from tunesmith.models.usable import Usable

    usable = Usable.find(name)
    device = device_of("auto")
    return usable.model(dtype_of("auto", device), device), usable.tokenizer()


def _begun(system: str | None) -> list[dict[str, Any]]:
    return [] if system is None else [{"role": "system", "content": system}]


def _prompt(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], asked: str) -> str:
    from tunesmith.data.render import Renderer
    from tunesmith.data.template import UnusableError

    try:
        return Renderer(tokenizer).prompt([*messages, {"role": "user", "content": asked}])
    except UnusableError as error:
        raise UserError(f"This cannot be asked: {error}.") from None


def _asked(console: Console) -> str:
    try:
        return console.input("[bold]> [/]").strip()
    except EOFError:
        return ""


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
