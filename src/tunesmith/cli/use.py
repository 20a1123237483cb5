"""`tunesmith generate`, `chat`, `answer`, `classify`, `embed`, `merge` and `combine`: putting a model to use."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunesmith.models.model_reference import ModelReference


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
    with quick_imports():
        from tunesmith.models.generate import Sampling, stream

    asked = prompts or [sys.stdin.read().strip()]
    if not any(asked):
        raise UserError("Nothing was asked. Give a question as an argument, or on stdin.")
    loaded, tokenizer = _load(model)
    sampling = Sampling(max_new_tokens, temperature, top_p, repetition_penalty, seed)
    for prompt in asked:
        text = prompt if raw else _prompt(loaded, tokenizer, _begun(system), prompt)
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
    with quick_imports():
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
        text = _prompt(loaded, tokenizer, messages, asked)
        answer = stream(loaded, tokenizer, text, sampling, _write)
        _write("\n")
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer.strip() or "…"}]


def answer(
    model: ModelName,
    source: Annotated[Path, typer.Argument(help="A file of questions, or of questions with answers to be replaced.")],
    output: Annotated[Path, typer.Option("--output", help="The JSONL file to write.")],
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Rows that are answered at once.", min=1)] = 32,
) -> None:
    """Answer a file of questions, for a smaller model to learn from. Killed, it goes on where it stood."""
    with quick_imports():
        import tunesmith.evaluation.answering
        from tunesmith.models.generate import Sampling
        from tunesmith.report.spinner import Spinner

    console = Console(highlight=False)
    sampling = Sampling(max_new_tokens, temperature, top_p, repetition_penalty, seed)
    with Spinner(console) as waiting:
        done = tunesmith.evaluation.answering.answer(model, source, output, sampling, batch_size, [waiting])
    left_out = f" {done.empty:,} had no answer and are left out." if done.empty else ""
    console.print(f"Wrote {done.rows:,} answers to {done.path}.{left_out}", soft_wrap=True)


def merge(
    run: Annotated[str, typer.Argument(help="A run's or an adapter's directory.")],
    output: Annotated[Path, typer.Option("--output", help="The directory to write the model to.")],
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: as the base is stored.")] = None,
) -> None:
    """Fold an adapter into its base: one model, in Hugging Face's format, that needs neither Tunesmith nor PEFT."""
    with quick_imports():
        import tunesmith.evaluation.merging
        from tunesmith.report.table import merge_table

    merged = tunesmith.evaluation.merging.merge(run, output, precision)
    console = Console(highlight=False)
    if merged.trained_loss is not None:
        console.print(merge_table(merged.trained_loss, merged.ways, merged.into))
    console.print(f"Wrote {merged.path}.", soft_wrap=True)


def combine(
    adapters: Annotated[list[str], typer.Argument(help="Runs' or adapters' directories, of one base.")],
    output: Annotated[Path, typer.Option("--output", help="The directory to write the adapter to.")],
    how: Annotated[
        str, typer.Option(help="linear, cat, svd, ties, dare_linear, dare_ties, ties_svd or magnitude_prune.")
    ] = "cat",
    weights: Annotated[str | None, typer.Option(help="One each, as 0.7,0.3; default: alike.")] = None,
    density: Annotated[float, typer.Option(help="Share of entries that the pruning ways keep.")] = 0.5,
) -> None:
    """Make one adapter of several: a weighted sum (cat: exact), TIES, DARE or SVD, through PEFT."""
    with quick_imports():
        import tunesmith.models.combine

    try:
        shares = None if weights is None else [float(part) for part in weights.split(",")]
    except ValueError:
        raise UserError(f"--weights {weights} is not a list of numbers such as 0.7,0.3.") from None
    written = tunesmith.models.combine.combine(adapters, output, how, shares, density)  # type: ignore[arg-type]
    Console(highlight=False).print(f"Wrote {written}.", soft_wrap=True)


def classify(
    model: Annotated[str, typer.Argument(help="A run or a directory of a model that tells something of texts.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, one a line from stdin.")] = None,
) -> None:
    """Tell the class, the labels, the value or the entities of texts, with probabilities."""
    with quick_imports():
        from tunesmith.models.predict import tell

    usable, loaded = _load_any(model)
    head = usable.head()
    if usable.ending.kind == "vocabulary" or (usable.ending.kind == "vectors" and head is None):
        does, verb = ("writes text", "generate") if usable.ending.kind == "vocabulary" else ("makes vectors", "embed")
        raise UserError(f"{model} {does} and tells no classes. tunesmith {verb} {model}")
    asked = _texts(texts)
    for text, found in zip(asked, tell(loaded, usable.tokenizer(), usable.ending, asked, head), strict=True):
        named = ", ".join(map(str, found)) or "-"
        sure = "" if usable.ending.problem == "regression" else ", ".join(f"{each.value:.2f}" for each in found) + "\t"
        _write(f"{named}\t{sure}{text}\n")


def embed(
    model: Annotated[str, typer.Argument(help="A run or a directory of a model that makes vectors.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, one a line from stdin.")] = None,
) -> None:
    """Make a vector of each text: a line of JSON each."""
    import json

    with quick_imports():
        from tunesmith.models.predict import vector_of

    usable, loaded = _load_any(model)
    if usable.ending.kind != "vectors":
        raise UserError(f"{model} makes no vectors. Train one with objective: {{kind: embedding}}.")
    tokenizer = usable.tokenizer()
    for text in _texts(texts):
        vector = vector_of(loaded, tokenizer, usable.ending, text).tolist()
        _write(json.dumps({"text": text, "vector": [round(each, 7) for each in vector]}, ensure_ascii=False) + "\n")


def _texts(texts: list[str] | None) -> list[str]:
    asked = texts or [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not asked:
        raise UserError("No text was given. Give texts as arguments, or one a line on stdin.")
    return asked


def _load(name: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    usable, model = _load_any(name)
    if usable.ending.kind != "vocabulary":
        verb = "embed" if usable.ending.kind == "vectors" and not usable.ending.labels else "classify"
        raise UserError(f"{name} reads and writes no text. tunesmith {verb} {name}")
    return model, usable.tokenizer()


def _load_any(name: str) -> "tuple[ModelReference, PreTrainedModel]":
    with quick_imports():
        from tunesmith.engine.precision import device_of, dtype_of
        from tunesmith.models.model_reference import ModelReference

    usable = ModelReference.find(name)
    device = device_of("auto")
    precision = "fp32" if usable.ending.problem == "regression" else "auto"
    return usable, usable.model(dtype_of(precision, device), device)


def _begun(system: str | None) -> list[dict[str, Any]]:
    return [] if system is None else [{"role": "system", "content": system}]


def _prompt(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], asked: str
) -> str:
    from tunesmith.data.render import Renderer
    from tunesmith.data.template import UnusableError
    from tunesmith.models.generate import prompt_of

    try:
        return prompt_of(model, Renderer(tokenizer), [*messages, {"role": "user", "content": asked}])
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
