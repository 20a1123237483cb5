"""Benefit of a teacher's probabilities and of a teacher's answers for the embedded base, on GSM8K; three seeds.

    python benchmarks/distillation_quality.py

No larger pretrained model with the base's vocabulary is available, so one is grown from the base: every block is
duplicated, with the copy's outputs initialized to zero (which changes nothing), then all weights are trained on the
rows that the student does not get. The student has 500 rows, optionally with the teacher's probabilities on them, or
the teacher's answers to 2,000 other questions. Evaluated by the loss on GSM8K's own answers to its test questions.
Writes results/distillation_quality.{jsonl,md}; finished trials are not repeated.
"""

import argparse
import json
import os
import shutil
import tempfile
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from stored_result import stored_trials

HERE = Path(__file__).parent
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "distillation_quality.jsonl"
WORK = Path(tempfile.gettempdir()) / "distillation_quality"
SEEDS = 3
STUDENT_T = 4.303
"""The 97.5 % point of Student's t for three seeds."""
ROWS, QUESTIONS, TESTED = 500, 2000, 400
STEPS, TEACHER_STEPS = 120, 600

WAYS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "500 rows": (["rows"], {"kind": "instruction"}),
    "500 rows, the teacher's probabilities": (["rows"], {"kind": "distillation"}),
    "500 rows and the teacher's answers to 2,000 questions": (["rows", "answered"], {"kind": "instruction"}),
    "the same, the teacher's probabilities too": (["rows", "answered"], {"kind": "distillation"}),
    "2,500 rows, answered as in the data": (["rows", "more"], {"kind": "instruction"}),
}


def write_data() -> None:
    WORK.mkdir(exist_ok=True)
    train = (DATA / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    test = (DATA / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    parts = {
        "rows": train[:ROWS],
        "more": train[ROWS : ROWS + QUESTIONS],
        "teacher": train[ROWS:],
        "test": test[:TESTED],
    }
    for name, lines in parts.items():
        (WORK / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def grown() -> Path:
    """The embedded base with every block duplicated; the copies do not change the output yet."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import tunesmith

    directory = WORK / "grown"
    if directory.exists():
        return directory
    model = AutoModelForCausalLM.from_pretrained(tunesmith.embedded_base(), dtype=torch.float32)
    blocks = []
    for block in model.model.layers:
        twin = copy.deepcopy(block)
        torch.nn.init.zeros_(twin.self_attn.o_proj.weight)
        torch.nn.init.zeros_(twin.mlp.down_proj.weight)
        blocks += [block, twin]
    for index, block in enumerate(blocks):
        block.self_attn.layer_idx = index
    model.model.layers = torch.nn.ModuleList(blocks)
    model.config.num_hidden_layers = len(blocks)
    model.config.layer_types = None
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tunesmith.embedded_base()).save_pretrained(directory)
    return directory


def recipe_of(base: str, files: list[str], objective: dict[str, Any], steps: int, seed: int) -> dict[str, Any]:
    return {
        "base": base,
        "data": {
            "train": [str(WORK / f"{name}.jsonl") for name in files],
            "held_out": [str(WORK / "test.jsonl")],
            "max_length": 512,
            "overflow": "drop",
        },
        "method": "full",
        "objective": objective,
        "train": {"steps": steps, "seed": seed, "evaluate_every": steps, "evaluate_rows": TESTED},
    }


def teacher() -> Path:
    """Train on all rows but the student's, and write its answers to some of those questions."""
    import tunesmith
    from tunesmith.inference.sampling import Sampling

    directory = WORK / "teacher"
    if (directory / "recipe.yaml").exists() and not tunesmith.Run.open(directory).finished:
        tunesmith.resume(directory)
    elif not directory.exists():
        tunesmith.train(recipe_of(str(grown()), ["teacher"], {"kind": "instruction"}, TEACHER_STEPS, 0), directory)
    if not (WORK / "answered.jsonl").exists():
        sampling = Sampling(max_new_tokens=160, temperature=0.7, top_p=0.95)
        tunesmith.answer(str(directory), WORK / "more.jsonl", WORK / "answered.jsonl", sampling)
    return directory


def loss_of(run: Any) -> float:
    return float([event["loss"] for event in run.events() if event["event"] == "evaluation"][-1])


def trial(way: str, seed: int) -> dict[str, Any]:
    import tunesmith

    files, objective = WAYS[way]
    if objective["kind"] == "distillation":
        objective = {**objective, "teacher": str(WORK / "teacher")}
    directory = Path(tempfile.mkdtemp(dir=WORK))
    run = tunesmith.train(recipe_of("embedded", files, objective, STEPS, seed), directory / "run")
    loss = loss_of(run)
    shutil.rmtree(directory)
    return {"way": way, "seed": seed, "loss": loss}


def done() -> list[dict[str, Any]]:
    return stored_trials(RESULTS)


def table(trials: list[dict[str, Any]]) -> str:
    import torch

    lines = ["| the student learns from | loss on GSM8K's test answers |", "|---|---|"]
    for way in ("the teacher itself", *WAYS):
        losses = [each["loss"] for each in trials if each["way"] == way]
        if losses:
            half = f" ± {STUDENT_T * stdev(losses) / len(losses) ** 0.5:.3f}" if len(losses) == SEEDS else ""
            lines.append(f"| {'(' + way + ')' if way not in WAYS else way} | {mean(losses):.3f}{half} |")
    about = f"Nats per token, three seeds, mean and 95 % interval; {STEPS} steps of 2,048 tokens, all weights. "
    return "\n".join([*lines, "", about + f"PyTorch {torch.__version__.split('+')[0]}, {date.today()}."]) + "\n"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    import tunesmith

    write_data()
    directory = teacher()
    finished = {(each["way"], each["seed"]) for each in done()}
    with RESULTS.open("a", encoding="utf-8") as out:
        if ("the teacher itself", 0) not in finished:
            own = {"way": "the teacher itself", "seed": 0, "loss": loss_of(tunesmith.Run.open(directory))}
            out.write(json.dumps(own) + "\n")
        for seed in range(SEEDS):
            for way in WAYS:
                if (way, seed) not in finished:
                    out.write(json.dumps(result := trial(way, seed)) + "\n")
                    out.flush()
                    print(result, flush=True)
    (HERE / "results" / "distillation_quality.md").write_text(table(done()), encoding="utf-8")


if __name__ == "__main__":
    main()
