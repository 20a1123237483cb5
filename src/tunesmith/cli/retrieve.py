"""`tunesmith index`, `search` and `ask`: find chunks of documents, and answer questions that cite them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tunesmith.cli.quick import quick_imports
from tunesmith.errors import UserError

if TYPE_CHECKING:
    from tunesmith.retrieval.ask import AskSettings

IndexPath = Annotated[Path, typer.Argument(help="An index, from tunesmith index.")]
K = Annotated[int, typer.Option("-k", help="The most chunks.", min=1)]
Mode = Annotated[
    str,
    typer.Option(
        help="text (BM25), dense (cosine of vectors), rrf (fusion by rank), weighted (sum of both scores), or auto: as "
        "tuned, else weighted, or text without vectors."
    ),
]
Rerank = Annotated[
    str | None, typer.Option(help="A cross-encoder (a model directory or a hub name) that orders 50 chunks anew.")
]


def index(
    directory: Annotated[Path, typer.Argument(help="Documents: text, Markdown, HTML, PDF, source code.")],
    output: Annotated[Path, typer.Option("--output", help="The index to write or to bring up to date.")],
    encoder: Annotated[
        str,
        typer.Option(
            help="A run, a model directory or a name of a model that embeds texts; none: full text alone; auto: as the "
            "index has it, else all-minilm-l6-v2 if it is here."
        ),
    ] = "auto",
    size: Annotated[
        int | None, typer.Option(help="The most tokens (without an encoder: words) in a chunk; default: 200.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Index documents for search, or bring an index up to date: only what is new or changed is read."""
    with quick_imports():
        import tunesmith.retrieval.build
        from tunesmith.report.progress import Progress
        from tunesmith.report.retrieval import indexed_text

    console = Console(highlight=False)
    with Progress(Console(stderr=True, highlight=False) if as_json else console) as progress:
        done = tunesmith.retrieval.build.index(directory, output, encoder, size, [progress])
    values = {**asdict(done), "path": str(done.path)}
    if as_json:
        print(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        console.print(indexed_text(values), soft_wrap=True)


def search(
    index: IndexPath,
    question: Annotated[str | None, typer.Argument(help="What to search for.")] = None,
    k: K = 5,
    mode: Mode = "auto",
    rerank: Rerank = None,
    questions: Annotated[
        Path | None,
        typer.Option(help="A JSONL file of questions with their files and lines: measure all modes on them."),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose mode, weight and threshold on half of the --questions.")
    ] = False,
    make_questions: Annotated[
        int | None,
        typer.Option(help="Make at most so many questions from the documents, for those who have none.", min=1),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Writes the questions of --make-questions; default: from headings and definitions."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The JSONL file of --make-questions.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Search an index: chunks with file, lines and score. With --questions, measure how well that works; with
    --make-questions, make some."""
    if make_questions is not None:
        _make(index, make_questions, output, model, as_json)
        return
    if questions is not None:
        _measure(index, questions, k, tune, as_json)
        return
    with quick_imports():
        from tunesmith.report.retrieval import hits_text
        from tunesmith.retrieval.search import Index

    hits = [hit.described() for hit in Index(index).search(question or "", k, mode, rerank)]
    if as_json:
        print(json.dumps(hits, indent=2, ensure_ascii=False))
    else:
        Console(highlight=False).print(hits_text(hits), soft_wrap=True)


def _make(index: Path, count: int, output: Path | None, model: str | None, as_json: bool) -> None:
    with quick_imports():
        from tunesmith.report.progress import Progress
        from tunesmith.report.retrieval import made_text
        from tunesmith.retrieval.synthetic import make_questions

    if output is None:
        raise UserError("--make-questions needs --output, the JSONL file to write.")
    console = Console(highlight=False)
    with Progress(Console(stderr=True, highlight=False) if as_json else console) as progress:
        made = make_questions(index, count, output, model, subscribers=[progress])
    values = {**asdict(made), "path": str(made.path)}
    if as_json:
        print(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        console.print(made_text(values), soft_wrap=True)


def _measure(index: Path, questions: Path, k: int, is_tuning: bool, as_json: bool) -> None:
    with quick_imports():
        from tunesmith.report.retrieval import measured_table, tuned_text
        from tunesmith.retrieval.tuning import measure_questions, tune
        from tunesmith.run import jsonable

    result = (tune if is_tuning else measure_questions)(index, questions, k)
    if as_json:
        print(json.dumps(jsonable(result), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.print(measured_table(result))
    if is_tuning:
        console.print(tuned_text(result["tuned"]), soft_wrap=True)


def ask(
    index: IndexPath,
    model: Annotated[str, typer.Argument(help="A run, an adapter, a model directory, or a name; it writes text.")],
    question: Annotated[str | None, typer.Argument(help="What to answer from the documents.")] = None,
    k: K = 5,
    mode: Mode = "auto",
    rerank: Rerank = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="The least relevance of a chunk; below it, nothing is found. Default: as tuned.", min=0, max=1
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens in the answer.", min=1)] = 256,
    support: Annotated[
        str,
        typer.Option(
            help="How claims are checked: words that they share with a sentence, or an NLI model (a directory or a hub "
            "name; MODEL#LABEL if its label is not entailment)."
        ),
    ] = "words",
    questions: Annotated[
        Path | None,
        typer.Option(help="A JSONL file of questions: answer all, and measure the answers and their citations."),
    ] = None,
    attacks: Annotated[
        int | None,
        typer.Option(
            help="Put so many instructions into chunks of --questions, and count the answers that follow them.", min=1
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Answer a question from an index: each statement cites chunks, and what they do not support is marked. With
    --questions, answer all of a file and measure the answers."""
    if attacks is not None and questions is None:
        raise UserError("--attacks needs --questions, the JSONL file whose questions are asked.")
    with quick_imports():
        from tunesmith.report.retrieval import answer_text
        from tunesmith.retrieval.ask import Asker, AskSettings, Query

    settings = AskSettings(k, mode, threshold, max_new_tokens, rerank, support)
    if questions is not None:
        _ask_all(index, model, questions, attacks, settings, as_json)
        return
    answer = Asker(index, model, settings).answers([Query(question or "")])[0].described()
    if as_json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        Console(highlight=False).print(answer_text(answer), soft_wrap=True)


def _ask_all(
    index: Path, model: str, questions: Path, attacks: int | None, settings: "AskSettings", as_json: bool
) -> None:
    with quick_imports():
        from tunesmith.report.progress import Progress
        from tunesmith.report.retrieval import measured_table
        from tunesmith.retrieval.ask_questions import ask_questions
        from tunesmith.retrieval.injection import attack_questions
        from tunesmith.run import jsonable

    console = Console(highlight=False)
    with Progress(Console(stderr=True, highlight=False) if as_json else console) as progress:
        if attacks is None:
            result = ask_questions(index, model, questions, settings, [progress])
        else:
            result = attack_questions(index, model, questions, attacks, settings, [progress])
    if as_json:
        print(json.dumps(jsonable(result), indent=2, ensure_ascii=False))
    else:
        console.print(measured_table(result))
