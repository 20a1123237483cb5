"""Benefit of stages and replay, and their effect on forgetting: the embedded base, five seeds.

    python benchmarks/stage_quality.py

Domain: terms of service and licenses with plain-English summaries (Manor & Li 2019); the task alone, compared with a
first stage on the documents' own text, with and without replayed general text. Slices: GSM8K's rows arrive in five
slices, and an adapter continues from one to the next with and without replay of the earlier ones, compared with all
rows together, in as many steps. General text is WikiText-2: its validation part is replayed, its test part measured.
Writes results/stage_quality.{jsonl,md}; finished trials are not repeated.
"""

import argparse
import json
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from stored_result import stored_trials

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "stage_quality.jsonl"
WORK = Path(tempfile.gettempdir()) / "stage_quality"
SEEDS = 5
STEPS = 40
SLICES = 5
TRIALS = {
    "domain": ("task alone", "domain text, then task", "domain text with replay, then task"),
    "slices": ("all rows at once", "five slices in turn", "five slices in turn, with replay"),
}


def write_data() -> None:
    """The rows of both experiments; every fifth legal document is held out."""
    WORK.mkdir(exist_ok=True)
    pairs = []
    for file in sorted((DATA / "legal_summarization").glob("*.json")):
        for row in json.loads(file.read_text(encoding="utf-8")).values():
            if row.get("original_text") and row.get("reference_summary"):
                pairs.append({"question": row["original_text"], "answer": row["reference_summary"]})
    held_out, train = pairs[::5], [pair for index, pair in enumerate(pairs) if index % 5]
    gsm8k = (DATA / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:2500]
    files = {
        "legal.jsonl": [json.dumps(pair) for pair in train],
        "legal_held_out.jsonl": [json.dumps(pair) for pair in held_out],
        "legal_text.jsonl": [json.dumps({"text": pair["question"]}) for pair in train],
        "all.jsonl": gsm8k,
        **{f"slice{number}.jsonl": gsm8k[number::SLICES] for number in range(SLICES)},
    }
    for name, lines in files.items():
        (WORK / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def recipe_of(experiment: str, name: str, seed: int) -> dict[str, Any]:
    common: dict[str, Any] = {
        "base": "embedded",
        "train": {"steps": STEPS, "seed": seed, "evaluate_every": STEPS, "evaluate_rows": 200},
    }
    rows = {"max_length": 512, "overflow": "drop"}
    general = str(DATA / "wikitext2" / "valid.txt")
    if experiment == "domain":
        task = {"train": str(WORK / "legal.jsonl"), "held_out": [str(WORK / "legal_held_out.jsonl")], **rows}
        stage = {"name": "task", "data": task, "method": "lora"}
        if name == "task alone":
            return {**common, "stages": [stage]}
        text = {"train": str(WORK / "legal_text.jsonl"), "held_out": 0.0, "max_length": 512}
        replay = {"replay": general, "replay_share": 0.25} if "replay" in name else {}
        first = {"name": "text", "data": {**text, **replay}, "objective": "text", "method": "full"}
        return {**common, "stages": [first, stage]}
    test = {"held_out": [str(DATA / "gsm8k" / "test.jsonl")], **rows}
    if name == "all rows at once":
        return {**common, "stages": [{"name": "all", "data": {"train": str(WORK / "all.jsonl"), **test}}]}
    stages = []
    for number in range(SLICES):
        data: dict[str, Any] = {"train": str(WORK / f"slice{number}.jsonl"), **test}
        if "replay" in name and number:
            data |= {"replay": [str(WORK / f"slice{each}.jsonl") for each in range(number)], "replay_share": 0.4}
        stages.append({"name": f"slice{number}", "data": data})
    common["train"] |= {"steps": STEPS // SLICES, "evaluate_every": STEPS // SLICES}
    return {**common, "stages": stages}


def trial(experiment: str, name: str, seed: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    from method_quality import general_loss

    import tunesmith

    directory = Path(tempfile.mkdtemp(dir=WORK))
    run = tunesmith.train(recipe_of(experiment, name, seed), directory / "pipeline")
    losses = [event["loss"] for event in run.events() if event["event"] == "evaluation"]
    result = {
        "experiment": experiment,
        "name": name,
        "seed": seed,
        "task": losses[-1],
        "general": general_loss(str(run.directory), "test.txt"),
    }
    shutil.rmtree(directory)
    return result


def done() -> list[dict[str, Any]]:
    return stored_trials(RESULTS)


def table(trials: list[dict[str, Any]]) -> str:
    lines = ["| | | held-out loss of the task | loss on WikiText-2 |", "|---|---|---|---|"]
    for experiment, names in TRIALS.items():
        for name in names:
            own = [each for each in trials if (each["experiment"], each["name"]) == (experiment, name)]
            if own:
                figures = " | ".join(_with_interval([each[key] for each in own]) for key in ("task", "general"))
                lines.append(f"| {experiment} | {name} | {figures} |")
    return "\n".join(lines) + "\n"


def _with_interval(values: list[float]) -> str:
    """The mean and its 95 % interval by Student's t over five seeds."""
    half = 2.776 * stdev(values) / len(values) ** 0.5 if len(values) == SEEDS else float("nan")
    return f"{mean(values):.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    write_data()
    finished = {(each["experiment"], each["name"], each["seed"]) for each in done()}
    requested = [(e, name, seed) for seed in range(SEEDS) for e, names in TRIALS.items() for name in names]
    with ProcessPoolExecutor(options.workers) as pool, RESULTS.open("a", encoding="utf-8") as out:
        for result in pool.map(trial, *zip(*(each for each in requested if each not in finished), strict=True)):
            out.write(json.dumps(result) + "\n")
            out.flush()
            print(result, flush=True)
    (HERE / "results" / "stage_quality.md").write_text(table(done()), encoding="utf-8")


if __name__ == "__main__":
    main()
