"""What `tunesmith demo` reaches on SmolLM2 and on the embedded base: five seeds each.

    python benchmarks/demo_quality.py [--seeds 5] [--held-out 32]

Each trial is the demo's own run: its rows, its recipe, as many steps as this machine does in the demo's time. It is
evaluated on more held-out functions than the demo has time for. Forty minutes on two cores with nothing else running.
Writes results/demo_quality.{jsonl,md}; finished trials are not repeated.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from train_speed_report import machine

RESULTS = Path(__file__).parent / "results" / "demo_quality.jsonl"
BASES = ("smollm2-135m-instruct", "embedded")
SEEDS, HELD_OUT = 5, 32
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""The 97.5 % point of Student's t, by number of seeds."""

COLUMNS = {
    "loss": "held-out loss",
    "exactly_right": "exactly right",
    "fields": "fields right",
    "valid_definition": "valid definition",
    "valid_json": "valid JSON",
    "general": "loss on general text",
}


def trial(base: str, seed: int, held_out: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train and evaluate once."""
    from tunesmith.cli.demo import LONGEST_ANSWER
    from tunesmith.demo.recipe import write_recipe
    from tunesmith.demo.side_by_side import SideBySide
    from tunesmith.demo.tools import TOOL_METRICS, write_rows
    from tunesmith.evaluation.compare import evaluate
    from tunesmith.training.stages import train

    directory = Path(tempfile.mkdtemp())
    write_rows(directory, most_held_out=held_out)
    recipe = write_recipe(directory, base, overrides, seed)
    run = train(recipe, directory / "run")
    result = evaluate(run.directory, None, LONGEST_ANSWER, metrics=TOOL_METRICS)
    general = [losses.loss for losses in SideBySide.of(run.directory).general_losses()]
    shutil.rmtree(directory)
    sides = {
        side: {
            **{name: entry["value"] for name, entry in result["models"][side].items() if name != "perplexity"},
            "general": loss,
        }
        for side, loss in zip(("base", "tuned"), general, strict=True)
    }
    return {"base_name": base, "seed": seed, "steps": recipe.train.steps, "rows": held_out, **sides}


def table(trials: Sequence[dict[str, Any]]) -> str:
    """Means over seeds with 95 % intervals, the base's figures first."""
    lines = [f"| model | {' | '.join(COLUMNS.values())} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for base in BASES:
        own = [each for each in trials if each["base_name"] == base]
        if own:
            lines.append(f"| {base} | {' | '.join(_cell(name, [own[0]['base'][name]]) for name in COLUMNS)} |")
            cells = (_cell(name, [each["tuned"][name] for each in own]) for name in COLUMNS)
            steps = sorted({each["steps"] for each in own})
            span = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]}–{steps[-1]}"
            lines.append(f"| tuned, {span} steps, {len(own)} seeds | {' | '.join(cells)} |")
    rows = trials[0]["rows"] if trials else 0
    about = f"{rows} held-out functions; mean and 95 % interval over seeds; losses in nats per token."
    here = machine()
    where = f"{here['processor']}, {', '.join(here['instructions'])}, {here['cores']} cores"
    return "\n".join([*lines, "", f"{about} {where}, {date.today()}."]) + "\n"


def _cell(name: str, values: Sequence[float]) -> str:
    scale, digits = (1, 3) if name in ("loss", "general") else (100, 0)
    unit = "" if scale == 1 else " %"
    text = f"{scale * mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {scale * STUDENT_T[len(values)] * stdev(values) / len(values) ** 0.5:.{digits}f}"
    return text + unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, choices=range(1, 1 + max(STUDENT_T)))
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    options = parser.parse_args()
    stored = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    trials = [json.loads(line) for line in stored]
    finished = {(each["base_name"], each["seed"]) for each in trials}
    for seed in range(options.seeds):
        for base in BASES:
            if (base, seed) not in finished:
                trials.append(trial(base, seed, options.held_out))
                with RESULTS.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(trials[-1]) + "\n")
                print(json.dumps(trials[-1]), flush=True)
    RESULTS.with_suffix(".md").write_text(table(trials), encoding="utf-8")


if __name__ == "__main__":
    main()
