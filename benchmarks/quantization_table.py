"""What a tuned SmolLM2-135M loses in smaller forms, the memory that each takes, and its speed.

    python benchmarks/quantization_table.py     # about six minutes; writes results/quantization_table.json and .md

A short LoRA run on the demo's task (tool definitions of Python functions) is evaluated in each form on held-out rows,
as `tunesmith evaluate RUN --suite quantization` does it.
"""

import argparse
from datetime import date
from pathlib import Path
from typing import Any

from stored_result import described_machine, measure_and_store
from train_speed_report import machine

RESULTS = Path(__file__).parent / "results" / "quantization_table.json"
BASE = "smollm2-135m-instruct"
METHOD: Any = {"kind": "lora", "rank": 16, "alpha": 32, "last": 12}
"""The demo's: the last 12 of 30 blocks."""
KINDS = "fp32,bf16,int8,nf4,gguf:q8_0,gguf:q4_k_m"
STEPS, TOKENS_PER_STEP = 16, 256
ANSWERED, ANSWER = 8, 96
"""Held-out rows that are answered, and the most tokens of an answer."""
HELD_OUT = 32
"""Held-out rows whose loss is measured."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    measure_and_store(RESULTS, measured, table)


def measured(directory: Path) -> dict[str, Any]:
    """Train and evaluate.

    Args:
        directory: for rows and run.

    Returns:
        `date`, `setting`, and `evaluate`'s figures, differences and what was left out.
    """
    import tunesmith
    from tunesmith.demo.tools import TOOL_METRICS, write_rows

    write_rows(directory, most_held_out=HELD_OUT, most_train=STEPS * 4)
    recipe = {
        "base": BASE,
        "data": {"train": str(directory / "train.jsonl"), "held_out": [str(directory / "held_out.jsonl")]},
        "method": METHOD,
        "train": {"steps": STEPS, "tokens_per_step": TOKENS_PER_STEP, "learning_rate": 4e-3, "evaluate_rows": 4},
    }
    run = tunesmith.train(recipe, directory / "run")
    found = tunesmith.evaluate(
        run.directory, ANSWERED, ANSWER, metrics=TOOL_METRICS, suites=["quantization"],
        suite_options={"quantization": {"kinds": KINDS}},
    )  # fmt: skip
    models = {name.partition("@")[2]: figures for name, figures in found["models"].items()}
    differences = {name.partition("@")[2]: figures for name, figures in found["differences"].items()}
    setting = {"steps": STEPS, "tokens_per_step": TOKENS_PER_STEP, "rows": found["rows"], "answered": ANSWERED}
    return {
        "date": date.today().isoformat(), "setting": setting, "models": models, "differences": differences,
        "left_out": found["left_out"],
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """As Markdown.

    Args:
        found: of `measured`.

    Returns:
        The table, with what it was measured on.
    """
    setting, on = found["setting"], found.get("machine") or machine()
    lines = [
        "| form | held-out loss | rose by, nats a token | fields right | memory, MB | tokens a second |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, figures in found["models"].items():
        loss, fields = figures["loss"]["value"], figures["fields"]
        low, high = fields["interval"]
        rose = "" if name not in found["differences"] else _rose(found["differences"][name]["loss"])
        memory, speed = (
            figures.get(f"quantization.{each}", {}).get("value") for each in ("memory", "tokens_per_second")
        )
        shown = [f"{memory:.0f}", "" if speed is None else f"{speed:.0f}"]
        lines.append(
            f"| {name} | {loss:.3f} | {rose} | {fields['value']:.0%} ({low:.0%} to {high:.0%}) | {' | '.join(shown)} |"
        )
    about = (
        f"LoRA, {setting['steps']} steps of {setting['tokens_per_step']} tokens. Loss on {setting['rows']} held-out "
        f"rows, {setting['answered']} of them answered. In brackets the 95 % interval over rows; bold: the difference "
        f"from the first form is shown after Holm's correction. {described_machine(on)}, {found['date']}."
    )
    return "\n".join([about, "", *lines]) + "\n"


def _rose(difference: dict[str, Any]) -> str:
    low, high = difference["interval"]
    value = f"{difference['value']:+.4f}"
    bold = "**" if difference["verdict"] in ("better", "worse") else ""
    return f"{bold}{value}{bold} ({low:+.4f} to {high:+.4f})"


if __name__ == "__main__":
    main()
