"""`tunesmith generate`, `chat`, `answer`, `classify`, `embed` and `combine`: use a model."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from tunesmith.cli.prompt import PromptFile, prompt_of
from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError
from tunesmith.report.colors import WARNING

if TYPE_CHECKING:
    from tunesmith.inference.model import Model

ModelName = Annotated[str, typer.Argument(help="A run, an adapter, a model directory, a hub name, or embedded.")]
System = Annotated[str | None, typer.Option(help="The system prompt.")]
MaxNewTokens = Annotated[int, typer.Option(help="The most tokens in an answer.", min=1)]
Temperature = Annotated[
    float, typer.Option(help="0: always the most likely token; 1: the model's probabilities.", min=0)
]
TopP = Annotated[
    float, typer.Option(help="Sample from the most likely tokens with this total probability.", min=0, max=1)
]
RepetitionPenalty = Annotated[float, typer.Option(help="1: none; 1.2 keeps small models out of loops.", min=1)]
Seed = Annotated[int, typer.Option(help="Random seed of sampling.")]
Cache = Annotated[str, typer.Option(help="How keys and values are stored: auto, or int8 for a quarter of the memory.")]
Draft = Annotated[
    str,
    typer.Option(
        help="What guesses the next tokens; answers stay the same and come faster: lookup (in the text so far), none, "
        "or a smaller model with the same tokenizer."
    ),
]


class Chats:
    """Chats as a model reads them, with the options `--system` and `--prompt`.

    Args:
        model: that answers.
        system: the system prompt; one of the prompt's file goes before it.
        prompt: the file.
        max_new_tokens: the most tokens of an answer.

    Raises:
        UserError: the file is no prompt, or the model writes no text.
    """

    def __init__(self, model: "Model", system: str | None, prompt: Path | None, max_new_tokens: int) -> None:
        self._model, self._answer_tokens = model, max_new_tokens
        self._system = [] if system is None else [{"role": "system", "content": system}]
        found = prompt_of(prompt)
        self._renderer = None if found is None else found.renderer(model)

    def text(self, messages: Sequence[dict[str, Any]]) -> str:
        """The text that the model reads.

        Args:
            messages: the user's last.
        """
        chat = [*self._system, *messages]
        return self._model.prompt(chat if self._renderer is None else self._renderer.chat(chat, self._answer_tokens))

    def say_note(self) -> None:
        """Print to standard error what of the prompt did not fit."""
        if self._renderer is not None and self._renderer.note is not None:
            Console(stderr=True, highlight=False).print(self._renderer.note, style=WARNING, soft_wrap=True)


def generate(
    model: ModelName,
    prompts: Annotated[list[str] | None, typer.Argument(help="Questions; default: one from stdin.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    system: System = None,
    prompt: PromptFile = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: Annotated[
        int, typer.Option(help="Sample from this many of the most likely tokens; 0: from all.", min=0)
    ] = 0,
    min_p: Annotated[
        float, typer.Option(help="Leave out tokens less likely than this share of the most likely.", min=0, max=1)
    ] = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends the answer; repeat for several.")] = None,
    schema: Annotated[Path | None, typer.Option(help="A file with the JSON schema that the answer follows.")] = None,
    draft: Draft = "lookup",
    cache: Cache = "auto",
) -> None:
    """Answer questions, with the same rendering as in training."""
    with quick_imports():
        from tunesmith.inference.model import load
        from tunesmith.inference.sampling import Sampling

    questions = prompts or [sys.stdin.read().strip()]
    if not any(questions):
        raise UserError("There is no question. Give a question as an argument, or on stdin.")
    if raw and prompt is not None:
        raise UserError("--raw continues a text as it is, without a chat, so it takes no --prompt.")
    loaded = load(model, cache=cache)
    chats = Chats(loaded, system, prompt, max_new_tokens)
    sampling = Sampling(
        max_new_tokens, temperature, top_p, repetition_penalty, seed, top_k, min_p, stop=tuple(stop or ()),
        schema=None if schema is None else _read(schema),
    )  # fmt: skip
    for question in questions:
        text = question if raw else chats.text([{"role": "user", "content": question}])
        loaded.stream(text, sampling, _write, draft=None if draft == "none" else draft)
        _write("\n")
    chats.say_note()


def chat(
    model: ModelName = "embedded",
    system: System = None,
    prompt: PromptFile = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = 0,
) -> None:
    """Chat with a model. An empty line or Ctrl-D ends it; /new starts a new conversation."""
    with quick_imports():
        from tunesmith.inference.model import load
        from tunesmith.inference.sampling import Sampling

    console = Console(highlight=False)
    loaded = load(model)
    loaded.require("generate")
    chats = Chats(loaded, system, prompt, max_new_tokens)
    messages: list[dict[str, Any]] = []
    sampling = Sampling(max_new_tokens, temperature, top_p, repetition_penalty, seed)
    console.print(
        f"Chatting with {model}. /new starts a new conversation, an empty line ends.", style="dim", markup=False
    )
    while question := _read_question(console):
        if question == "/new":
            messages = []
            continue
        text = chats.text([*messages, {"role": "user", "content": question}])
        answer = loaded.stream(text, sampling, _write).text.strip()
        _write("\n")
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer or "…"}]
    chats.say_note()


def answer(
    model: ModelName,
    source: Annotated[Path, typer.Argument(help="A file of questions; answers in it are replaced.")],
    output: Annotated[Path, typer.Option("--output", help="The JSONL file to write.")],
    prompt: PromptFile = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = 0,
    concurrent: Annotated[int, typer.Option(help="The most questions at the same time.", min=1)] = 64,
    draft: Draft = "lookup",
    cache: Cache = "auto",
) -> None:
    """Answer a file of questions, for example as training data of a smaller model. Resumes if it was killed."""
    with quick_imports():
        import tunesmith.evaluation.answering
        from tunesmith.inference.sampling import Sampling
        from tunesmith.report.progress import Progress

    console = Console(highlight=False)
    sampling = Sampling(max_new_tokens, temperature, top_p, repetition_penalty, seed)
    with Progress(console) as progress:
        done = tunesmith.evaluation.answering.answer(
            model, source, output, sampling, concurrent, [progress], None if draft == "none" else draft, cache,
            prompt_of(prompt),
        )  # fmt: skip
    left_out = f" {done.empty:,} had an empty answer and were left out." if done.empty else ""
    console.print(f"Wrote {done.rows:,} answers to {done.path}.{left_out}", soft_wrap=True)
    if done.note is not None:
        console.print(done.note, style=WARNING, soft_wrap=True)


def combine(
    adapters: Annotated[list[str], typer.Argument(help="Run or adapter directories with the same base.")],
    output: Annotated[Path, typer.Option("--output", help="The directory to write the adapter to.")],
    how: Annotated[
        str, typer.Option(help="linear, cat, svd, ties, dare_linear, dare_ties, ties_svd or magnitude_prune.")
    ] = "cat",
    weights: Annotated[str | None, typer.Option(help="One per adapter, as 0.7,0.3; default: equal.")] = None,
    density: Annotated[float, typer.Option(help="Share of entries that the pruning methods keep.")] = 0.5,
) -> None:
    """Combine adapters into one: a weighted sum (cat: exact), TIES, DARE or SVD, with PEFT."""
    with quick_imports():
        from tunesmith.exporting.combine import combine as combine_adapters

    try:
        shares = None if weights is None else [float(part) for part in weights.split(",")]
    except ValueError:
        raise UserError(f"--weights {weights} is not a list of numbers such as 0.7,0.3.") from None
    written = combine_adapters(adapters, output, how, shares, density)  # type: ignore[arg-type]
    Console(highlight=False).print(f"Wrote {written}.", soft_wrap=True)


def classify(
    model: Annotated[str, typer.Argument(help="A run or a model directory that classifies, scores or tags texts.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; default: one per line from stdin.")] = None,
) -> None:
    """Predict the class, the labels, the value or the entities of texts, with probabilities."""
    with quick_imports():
        from tunesmith.inference.model import load

    loaded = load(model)
    loaded.require("classify")
    lines = _texts(texts)
    for text, predictions in zip(lines, loaded.classify(lines), strict=True):
        labels = ", ".join(map(str, predictions)) or "-"
        probabilities = ", ".join(f"{prediction.value:.2f}" for prediction in predictions)
        _write("\t".join([labels, *([probabilities] if loaded.head.has_probabilities else []), text]) + "\n")


def reward(
    model: Annotated[str, typer.Argument(help="A run or a model directory that rates answers.")],
    prompt: Annotated[str, typer.Argument(help="The question.")],
    answers: Annotated[
        list[str] | None, typer.Argument(help="Answers to it; default: one per line from stdin.")
    ] = None,
) -> None:
    """Rate answers to a question with a reward model. Only differences between them have a meaning."""
    with quick_imports():
        from tunesmith.inference.model import load

    loaded = load(model)
    loaded.require("reward")
    lines = _texts(answers)
    for answer, value in zip(lines, loaded.reward([prompt] * len(lines), lines), strict=True):
        _write(f"{value:.4f}\t{answer}\n")


def embed(
    model: Annotated[str, typer.Argument(help="A run or a model directory that embeds texts.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; default: one per line from stdin.")] = None,
) -> None:
    """Embed each text as a vector, printed as a line of JSON."""
    import json

    with quick_imports():
        from tunesmith.inference.model import load

    loaded = load(model)
    loaded.require("embed")
    for text in _texts(texts):
        vector = loaded.embed(text)[0].tolist()
        _write(json.dumps({"text": text, "vector": [round(value, 7) for value in vector]}, ensure_ascii=False) + "\n")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def _texts(texts: list[str] | None) -> list[str]:
    lines = texts or [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not lines:
        raise UserError("There is no text. Give texts as arguments, or one per line on stdin.")
    return lines


def _read_question(console: Console) -> str:
    try:
        return console.input("[bold]> [/]").strip()
    except EOFError:
        return ""


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
