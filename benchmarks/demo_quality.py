"""What `tunesmith demo` reaches on SmolLM2 and on the embedded base: five seeds each.

    python benchmarks/demo_quality.py [--seeds 5] [--held-out 32]

Each trial is the demo's own run: its rows and its recipe, with STEPS steps, so that the result does not depend on how
fast or how busy this machine is. It is evaluated on more held-out functions than the demo has time for. An hour on two
cores. Writes results/demo_quality.{jsonl,md} after each trial. Finished trials are not repeated, unless the recipe or
the rows have changed since.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from train_speed_report import machine

RESULTS = Path(__file__).parent / "results" / "demo_quality.jsonl"
STEPS = {"smollm2-135m-instruct": 90, "embedded": 120}
"""Of SmolLM2, what the demo's 80 seconds allow on two cores of an AMD EPYC with AVX2 and nothing else running; with
AVX-512 bf16, they allow about 160. Those of the embedded base take 100 seconds of processor time on an Intel Xeon."""
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


def trial(rows: Path, base: str, seed: int, steps: int) -> dict[str, Any]:
    """Train and evaluate once.

    Args:
        rows: the directory of the demo's rows.
        base: as in a recipe.
        seed: of the run.
        steps: of training.

    Returns:
        What identifies the trial, and the figures of COLUMNS of the base and of the tuned model.
    """
    from tunesmith.cli.demo import LONGEST_ANSWER
    from tunesmith.demo.recipe import write_recipe
    from tunesmith.demo.side_by_side import SideBySide
    from tunesmith.demo.tools import TOOL_METRICS
    from tunesmith.evaluation.compare import evaluate
    from tunesmith.training.stages import train

    directory = Path(tempfile.mkdtemp())
    try:
        copied = shutil.copytree(rows, directory / "demo")
        recipe = write_recipe(copied, base, [f"train.steps={steps}"], seed)
        run = train(recipe, directory / "run")
        result = evaluate(run.directory, None, LONGEST_ANSWER, metrics=TOOL_METRICS)
        general = [losses.loss for losses in SideBySide.of(run.directory).general_losses()]
    finally:
        shutil.rmtree(directory)
    sides = {
        side: {
            **{name: entry["value"] for name, entry in result["models"][side].items() if name != "perplexity"},
            "general": loss,
        }
        for side, loss in zip(("base", "tuned"), general, strict=True)
    }
    count = len((rows / "held_out.jsonl").read_text(encoding="utf-8").splitlines())
    return {"base_name": base, "seed": seed, "steps": steps, "rows": count, "setting": setting(rows, base), **sides}


def setting(rows: Path, base: str) -> str:
    """A hash of all that decides a trial's result, except its seed and its steps."""
    from tunesmith.demo.recipe import RECIPE, SETTINGS

    digest = hashlib.sha256(f"{RECIPE}\n{SETTINGS[base]}".encode())
    for file in sorted(rows.glob("*.jsonl")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def table(trials: Sequence[dict[str, Any]]) -> str:
    """Means over seeds with 95 % intervals, the base's figures first."""
    lines = [f"| model | {' | '.join(COLUMNS.values())} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for base in STEPS:
        own = [each for each in trials if each["base_name"] == base]
        if own:
            lines.append(f"| {base} | {' | '.join(_cell(name, [own[0]['base'][name]]) for name in COLUMNS)} |")
            cells = (_cell(name, [each["tuned"][name] for each in own]) for name in COLUMNS)
            lines.append(f"| tuned, {own[0]['steps']} steps, {len(own)} seeds | {' | '.join(cells)} |")
    about = f"{trials[0]['rows']} held-out functions; mean and 95 % interval over seeds; losses in nats per token."
    speed = "SmolLM2's steps are what the demo's time allows on two quiet cores of an AMD EPYC with AVX2."
    here = machine()
    where = f"{here['processor']}, {', '.join(here['instructions'])}, {here['cores']} cores"
    return "\n".join([*lines, "", f"{about} {speed} Measured on {where}, {date.today()}."]) + "\n"


def _cell(name: str, values: Sequence[float]) -> str:
    scale, digits = (1, 3) if name in ("loss", "general") else (100, 0)
    unit = "" if scale == 1 else " %"
    text = f"{scale * mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {scale * STUDENT_T[len(values)] * stdev(values) / len(values) ** 0.5:.{digits}f}"
    return text + unit


def finished(settings: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """The stored trials of these bases and settings, with STEPS steps."""
    stored = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    current = {(base, of_base, STEPS[base]) for base, of_base in settings}
    trials = map(json.loads, stored)
    return [each for each in trials if (each["base_name"], each.get("setting"), each["steps"]) in current]


def _store(trials: Sequence[dict[str, Any]]) -> None:
    from tunesmith.run import atomic_write

    with atomic_write(RESULTS) as out:
        out.writelines(json.dumps(each) + "\n" for each in trials)
    with atomic_write(RESULTS.with_suffix(".md")) as out:
        out.write(table(trials))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, choices=range(1, 1 + max(STUDENT_T)))
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    options = parser.parse_args()
    from tunesmith.cli.demo import MOST_ROWS
    from tunesmith.demo.prose import write_prose
    from tunesmith.demo.tools import write_rows

    with tempfile.TemporaryDirectory() as directory:
        rows = Path(directory)
        write_rows(rows, most_held_out=options.held_out, most_train=MOST_ROWS)
        write_prose(rows)
        trials = finished([(base, setting(rows, base)) for base in STEPS])
        done = {(each["base_name"], each["seed"]) for each in trials}
        for seed in range(options.seeds):
            for base in STEPS:
                if (base, seed) not in done:
                    trials.append(trial(rows, base, seed, STEPS[base]))
                    _store(trials)
                    print(json.dumps(trials[-1]), flush=True)


if __name__ == "__main__":
    main()
