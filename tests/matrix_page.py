"""`make matrix`: every cell tried, and docs/matrix.md made of what came out."""

import argparse
import json
import re
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from families import DECODERS, ENCODERS, PADDED, kind_of
from matrix import (
    DEFAULTS,
    EVERY_FAMILY,
    FAMILIES,
    RECORD,
    SORTS,
    WEIGHTS,
    Cell,
    Outcome,
    cells,
    family_cells,
    make_bases,
    objective_cells,
    objectives_for,
    own_methods,
    try_all,
    write_data,
)

from tunesmith.config.registry import OBJECTIVES


def page(found: dict[Cell, Outcome]) -> str:
    """docs/matrix.md: a row a method, a column a precision and family, the reasons below."""
    import peft
    import transformers

    reasons: dict[str, int] = {}
    unmerged: dict[str, str] = {}
    lines = [
        "# Which methods work at which precision",
        "",
        "Made by `make matrix`, which tries every cell; not written by hand. Rows: Tunesmith's methods with their",
        "variants, then every other method that PEFT registers (`method: {kind: peft, peft_type: …}`). Columns: how",
        "the base's weights are held, each on a Llama (L) and a GPT-2 (G) that learn to answer and a BERT (B) that",
        "learns two classes, all of them tiny, with random weights, at the method's default learning rate (prompts and",
        "prefixes at a smaller one, since theirs is made for trained embeddings).",
        "",
        "A family's letter stands where, at that precision, the held-out loss falls; the run, with checkpointed",
        "activations, killed and resumed ends with the same bytes; the reloaded model, in its own unpacked forward",
        "pass, has the loss that packed training ended with; and what it generates follows that forward pass. With ᵐ",
        "it also merges into whole weights that say the same. A number is a reason, listed below.",
        "",
        f"PyTorch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}, PEFT {peft.__version__}, "
        f"{time.strftime('%Y-%m-%d')}; {len(found):,} cells, "
        f"{sum(outcome.refused is None for outcome in found.values()):,} of which work.",
        "",
        "| method | " + " | ".join(WEIGHTS) + " |",
        "|---|" + "---|" * len(WEIGHTS),
    ]
    names = list(dict.fromkeys(cell.name for cell in cells()))
    by_place = {(cell.name, cell.weights, cell.family, cell.asked): outcome for cell, outcome in found.items()}
    for name in names:
        columns = []
        for weights in WEIGHTS:
            shown = []
            for family in FAMILIES:
                outcome = by_place[(name, weights, family, None)]
                if outcome.unmerged:
                    unmerged.setdefault(name, _general(outcome.unmerged))
                shown.append(_said(outcome, family[0].upper(), reasons) + ("ᵐ" if outcome.merged else ""))
            columns.append(" ".join(shown))
        lines.append(f"| `{name}` | " + " | ".join(columns) + " |")
    lines += _families(by_place, reasons)
    lines += _objectives(by_place, reasons)
    lines += ["", "Refused, each before the first step and in one line:", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    lines += ["", "Adapters that do not merge (full and layers write a whole model, so there is nothing to merge):", ""]
    lines += [f"- `{name}`: {reason}" for name, reason in unmerged.items()]
    return "\n".join(lines) + "\n"


ByPlace = dict[tuple[str, str, str, str | None], Outcome]


def _families(found: ByPlace, reasons: dict[str, int]) -> list[str]:
    names = list(dict.fromkeys(cell.name for cell in family_cells()))
    lines = [
        "",
        "## Families",
        "",
        "Small models of each family from its real config class, with what makes it different switched on: windows,",
        "soft caps, sinks, experts, state spaces, learned positions, tied embeddings. Decoders learn to answer,",
        "encoders two classes, encoder–decoders to write what they are asked. A letter stands for a precision of the",
        "frozen weights at which all of the above holds: f fp32, b bf16, n NF4.",
        "",
        "| family | batches are | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for family in EVERY_FAMILY:
        columns = []
        for name in names:
            shown = []
            for weights in SORTS:
                shown.append(_said(found[(name, weights, family, None)], weights[0], reasons))
            columns.append(" ".join(shown))
        way = "padded" if family in PADDED or kind_of(family) == "encoder-decoder" else "packed"
        lines.append(f"| {family} | {way} | " + " | ".join(columns) + " |")
    return lines


def _objectives(found: ByPlace, reasons: dict[str, int]) -> list[str]:
    names = [cell.name for cell in family_cells()[:: len(SORTS)]][: len(own_methods())]
    lines = [
        "",
        "## Objectives",
        "",
        "Everything else that a base can learn, on a Llama and a BERT of the same size; letters as above. An",
        "encoder–decoder learns `seq2seq` alone. What is told of texts is held to the model's own forward in place of",
        "what is generated. Below, every family with LoRA in fp32.",
        "",
        "| objective | base | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for family in ("llama", "bert"):
        for asked in objectives_for(family):
            columns = [
                " ".join(_said(found[(name, weights, family, asked)], weights[0], reasons) for weights in SORTS)
                for name in names
            ]
            lines.append(f"| {asked} | {family} | " + " | ".join(columns) + " |")
    every = [name for name in OBJECTIVES if name not in ("instruction", "seq2seq")]
    lines += ["", "| family | " + " | ".join(every) + " |", "|---|" + "---|" * len(every)]
    for family in (*DECODERS, *ENCODERS):
        columns = []
        for objective in every:
            asked = None if objective == DEFAULTS[kind_of(family)] else objective
            outcome = found.get(("lora", "fp32", family, asked))
            columns.append("–" if outcome is None else _said(outcome, "f", reasons))
        lines.append(f"| {family} | " + " | ".join(columns) + " |")
    return lines


def _said(outcome: Outcome, letter: str, reasons: dict[str, int]) -> str:
    """A cell of a table: the letter if it works, with the number of the reason if it is refused."""
    if outcome.failed:
        return f"{letter}: fails"
    if outcome.refused:
        return f"{letter}:{reasons.setdefault(_general(outcome.refused), len(reasons) + 1)}"
    return letter


def _general(reason: str) -> str:
    """The reason without what differs from model to model."""
    reason = re.sub(r"\bbase\.weights: (int8|nf4|fp4)\b", "base.weights: …", reason)
    reason = re.sub(r"(Turned|Quantized)?Linear\([^)]*\)", r"\1Linear", reason)
    reason = re.sub(r"put on \w+", "put on this model", reason)
    reason = re.sub(r"whole texts for [\w-]+", "whole texts for this family", reason)
    reason = re.sub(
        r"\b[A-Z]\w+(For(CausalLM|SequenceClassification|TokenClassification|ConditionalGeneration)|Model)",
        "This model",
        reason,
    )
    reason = re.sub(r"\(\w+(Layer|Block)\)", "(its class)", reason)
    reason = re.sub(r"^method: \w+ (is for|needs)", r"This method \1", reason)
    return re.sub(r"/[^ ]*/adapter", "The adapter", reason)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="kinds to try again; the other cells are as they were recorded")
    parser.add_argument("--failed", action="store_true", help="try again what failed")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "matrix.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bases = Path(directory)
        make_bases(bases, EVERY_FAMILY)
        write_data(bases)
        recorded = json.loads(RECORD.read_text(encoding="utf-8")) if arguments.only or arguments.failed else {}
        only = arguments.only or []
        every = list(dict.fromkeys([*cells(), *family_cells(), *objective_cells()]))
        again = [
            cell
            for cell in every
            if cell.key not in recorded or cell.method["kind"] in only or recorded[cell.key]["failed"]
        ]
        tried = try_all(again, bases, arguments.workers)
    found = {cell: tried[cell] if cell in tried else Outcome(**recorded[cell.key]) for cell in every}
    arguments.output.write_text(page(found), encoding="utf-8")
    record = json.dumps({cell.key: asdict(outcome) for cell, outcome in found.items()}, indent=1)
    RECORD.write_text(record + "\n", encoding="utf-8")
    failed = [f"{cell.name} · {cell.weights} · {cell.family}: {o.failed}" for cell, o in found.items() if o.failed]
    print("\n".join(failed) or "every cell works or is refused")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
