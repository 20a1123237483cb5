"""Does `tunesmith compare` find by itself what each need wants? Four needs, made from real text, on SmolLM2 and MiniLM.

    python benchmarks/compare_study.py [--needs facts changed classification format style]

facts           which value a parameter of a function of this Python installation has by default; the documents are
                pages of the modules, training rows ask in other words. `changed`: the same questions to the same runs,
                after the defaults have changed in the documents
classification  Banking77 (Casanueva et al. 2020): which of 77 intents a customer has
format          the JSON tool definition of a Python function (the demo's task)
style           terms of service in plain English (Manor & Li 2019)

SmolLM2-135M-Instruct is prompted and fine-tuned (LoRA), all-minilm-l6-v2 embeds documents and examples. Rows and steps
are few, so that the study ends within two hours of one core; what it cannot tell it says. A finished need is not
repeated. Writes results/compare_study.{json,md,svg}. A need whose data is not in TUNESMITH_DATA is left out.
"""

import argparse
import ast
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from study_rows import banking77, legal, write_pairs
from train_speed_report import machine

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "compare_study.json"
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
BASE, ENCODER = "smollm2-135m-instruct", "all-minilm-l6-v2"
HELD_OUT = 80
METHOD = {"kind": "lora", "rank": 8}
KEPT = (
    "rows", "training_rows", "development_rows", "removed", "metric", "margin", "cost_unit", "requests", "figures",
    "ways", "reference", "differences", "comparisons", "needs", "break_even", "left_out", "recommendation",
)  # fmt: skip
"""Of a comparison's result: what names no file."""


@dataclass(frozen=True)
class Need:
    """A comparison.

    Attributes:
        write: writes train.jsonl, held_out.jsonl and, if facts are asked for, documents/ into a directory.
        prompts: hand-written system prompts.
        answer: the most tokens of an answer.
        steps: of a run.
        rate: of learning.
        data: a folder of DATA that it reads.
        metric: None: the default.
        shots: numbers of examples in a prompt that are tried.
    """

    write: Callable[[Path], None]
    prompts: Sequence[str]
    answer: int
    steps: int
    rate: float = 2e-3
    data: str | None = None
    metric: str | None = None
    shots: Sequence[int] = (3,)


def write_facts(directory: Path, is_changed: bool = False) -> None:
    """Defaults of parameters: numbers and words, not the most frequent ones. Each fact is trained on in two wordings
    and asked for in a third."""
    draw = random.Random(0)
    facts = _defaults()
    pages: dict[str, list[tuple[str, str, str, str, Any]]] = {}
    draw.shuffle(facts)
    asked = facts[:HELD_OUT]
    known = facts[: 2 * HELD_OUT]
    for module, signature, summary, name, parameter, value in facts:
        new = _other(value, draw) if is_changed else value
        shown = signature.replace(f"{parameter}={value!r}", f"{parameter}={new!r}") if is_changed else signature
        pages.setdefault(module, []).append((name, shown, summary, parameter, new))
    documents = directory / "documents"
    documents.mkdir(parents=True, exist_ok=True)
    values = {}
    for module, entries in pages.items():
        text = [f"# {module}\n"]
        for name, signature, summary, parameter, value in entries:
            values[name] = value
            text.append(f"## {name}\n\n{summary}\n\n`{signature}`\n\nThe default of `{parameter}` is {value!r}.\n")
        (documents / f"{module}.md").write_text("\n".join(text), encoding="utf-8")
    rows = []
    for _, _, _, name, parameter, value in known:
        rows.append((f"What is the default of `{parameter}` in `{name}`?", repr(value)))
        rows.append((f"Which value does `{name}` take for `{parameter}` by default?", repr(value)))
    draw.shuffle(rows)
    write_pairs(directory / "train.jsonl", rows)
    write_pairs(
        directory / "held_out.jsonl",
        [
            (f"I call `{name}` and leave out `{parameter}`. What is used?", repr(values[name]))
            for _, _, _, name, parameter, _ in asked
        ],
    )


def write_changed(directory: Path) -> None:
    """As `write_facts`, after all defaults have changed in the documents."""
    write_facts(directory, is_changed=True)


def _defaults() -> list[tuple[str, str, str, str, str, Any]]:
    """(module, signature, summary, function, parameter, default) of documented functions, one for each function."""
    from tunesmith.demo.functions import function, functions, packages

    found, seen = [], set()
    for package in packages():
        for module, name, node in functions(package):
            if name in seen:
                continue
            parsed = function(node)
            for parameter in parsed.parameters:
                value = parameter.default.value if isinstance(parameter.default, ast.Constant) else None
                is_number = isinstance(value, int | float) and not isinstance(value, bool) and value not in (-1, 0, 1)
                is_word = isinstance(value, str) and value.isalnum() and len(value) > 2
                if (is_number or is_word) and parsed.summary and len(parsed.signature) < 200:
                    seen.add(name)
                    found.append((module, parsed.signature, parsed.summary, name, parameter.name, value))
                    break
    return found


def _other(value: Any, draw: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, str):
        return draw.choice([word for word in ("auto", "strict", "fast", "exact", "plain", "wide") if word != value])
    return type(value)(value * draw.choice((2, 3, 5)) + draw.randint(1, 9))


def write_classification(directory: Path) -> None:
    """Ten rows of each of 77 intents."""
    parts = {part: [(row["text"], row["label"]) for row in banking77(DATA, part)] for part in ("train", "test")}
    for rows in parts.values():
        random.Random(0).shuffle(rows)
    by_label: dict[str, list[tuple[str, str]]] = {}
    for row in parts["train"]:
        by_label.setdefault(row[1], []).append(row)
    train = [row for own in by_label.values() for row in own[:10]]
    random.Random(1).shuffle(train)
    write_pairs(directory / "train.jsonl", train)
    write_pairs(directory / "held_out.jsonl", parts["test"][:HELD_OUT])


def write_format(directory: Path) -> None:
    from tunesmith.demo.tools import write_rows

    write_rows(directory, most_held_out=HELD_OUT, most_train=240)


def write_style(directory: Path) -> None:
    train, held_out = legal(DATA)
    write_pairs(directory / "held_out.jsonl", held_out[:HELD_OUT])
    write_pairs(directory / "train.jsonl", train)


ONLY_VALUE = "Answer with the value alone, as Python writes it. Write nothing else."

NEEDS = {
    "facts": Need(write_facts, [ONLY_VALUE], 16, 60),
    "changed": Need(write_changed, [ONLY_VALUE], 16, 60),
    "classification": Need(
        write_classification,
        ["Name the intent of the customer's message in snake_case, such as card_arrival. Write nothing else."],
        12,
        80,
        data="banking77",
        shots=(5,),
    ),
    "format": Need(
        write_format,
        ["Write only JSON: an object with name, description and parameters (a JSON Schema with type, properties and "
         "required). Write no explanation."],
        128,
        60,
        shots=(2,),
    ),
    "style": Need(
        write_style,
        ["Say it in one short plain sentence, in lower case, as one friend tells another."],
        48,
        60,
        data="legal_summarization",
    ),
}  # fmt: skip


def compared(name: str, directory: Path) -> dict[str, Any]:
    """Compare the ways to one need.

    Args:
        name: of the need.
        directory: of its rows, runs and index; an interrupted comparison continues there.

    Returns:
        The content of `compare.json`.
    """
    from tunesmith.comparing.compare import compare
    from tunesmith.comparing.spec import Comparison

    need = NEEDS[name]
    runs = runs_of_facts(directory.with_name("facts")) if name == "changed" else {}
    directory.mkdir(parents=True, exist_ok=True)
    need.write(directory)
    prompts = []
    for number, text in enumerate(need.prompts):
        prompts.append(directory / f"prompt-{number}.txt")
        prompts[-1].write_text(text, encoding="utf-8")
    comparison = Comparison.model_validate(
        {
            "base": BASE,
            "data": {"train": str(directory / "train.jsonl"), "held_out": [str(directory / "held_out.jsonl")]},
            "documents": str(directory / "documents") if (directory / "documents").exists() else None,
            "encoder": ENCODER,
            "prompts": [str(prompt) for prompt in prompts],
            "shots": list(need.shots),
            "development": 24,
            "max_new_tokens": need.answer,
            "metric": need.metric,
            **runs,
            "tune": {
                "method": METHOD,
                "train": {
                    "steps": need.steps,
                    "tokens_per_step": 512,
                    "learning_rate": need.rate,
                    "evaluate_every": 100_000,
                    "evaluate_rows": 4,
                },
            },
        }
    )
    result = compare(comparison, directory / "comparison", [report])
    for way in result["ways"].values():
        del way["about"]  # which names files
    return result


def runs_of_facts(directory: Path) -> dict[str, str]:
    """The runs that learned the facts as they were; they are trained again if they are gone.

    Args:
        directory: of that comparison.

    Returns:
        The fields of a comparison that name them.
    """
    names = ("tuned", "retrieval_tuned")
    found = {name: sorted((directory / "comparison" / "runs").glob(f"{name}-*")) for name in names}
    if not all(found.values()):
        compared("facts", directory)
        return runs_of_facts(directory)
    return {name: str(paths[0]) for name, paths in found.items()}


def report(event: dict[str, Any]) -> None:
    """Say how far it is."""
    if event["event"] == "progress" and event["done"] == event["total"]:
        print(f"{event['what']}: {event['total']}", flush=True)
    elif event["event"] == "step" and event["step"] % 20 == 0:
        print(f"step {event['step']}/{event['total_steps']}, loss {event['loss']:.3f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the needs that are missing, and write the tables after each."""
    from compare_study_report import plot, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--needs", nargs="+", choices=NEEDS, default=list(NEEDS))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "compare_study")
    options = parser.parse_args(arguments)
    done = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in options.needs:
        folder = NEEDS[name].data
        if name in done:
            continue
        if folder is not None and not (DATA / folder).exists():
            print(f"{name} is left out: {DATA / folder} is not there.")
            continue
        print(f"{name} …", flush=True)
        result = compared(name, options.work / name)
        done[name] = {key: result[key] for key in KEPT} | {"machine": machine(), "date": date.today().isoformat()}
        RESULTS.write_text(json.dumps(done, indent=1, ensure_ascii=False), encoding="utf-8")
        RESULTS.with_suffix(".md").write_text(table(done), encoding="utf-8")
        plot(done, RESULTS.with_suffix(".svg"))
    shutil.rmtree(options.work, ignore_errors=True)


if __name__ == "__main__":
    main()
