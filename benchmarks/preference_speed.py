"""How fast, and in how much memory, does Tunesmith train preferences, beside TRL in the same run on one machine?

    python benchmarks/preference_speed.py --pairs ../shared/data/formats/dpo_en_demo.json --name "DPO demo"
    python benchmarks/preference_speed.py                   pairs made from the demo's rows
    python benchmarks/preference_speed.py --only dpo --steps 4 --rounds 1
    python benchmarks/preference_speed.py --resume          resume the newest run; write its report again

The models are the 125 M Llama of train_speed.py and SmolLM2-135M-Instruct (`tunesmith bases get`). Every setting runs
in a process of its own, one after another: in the first round all settings on the reference model, and on the other one
Tunesmith and the setting of TRL that was the fastest; then these. In the end both train DPO in fp32 from the same
adapter, and their losses are compared. GRPO's steps are timed as a whole, with the sampling. In bf16, or in fp32 where
the processor has no instructions for bf16. Before the first one, the rate of the machine's matrix products is measured.
Writes preference_speed.{json,md}, in fp32 preference_speed_fp32.{json,md}, with --only preference_speed_fp32_dpo etc.
It runs in Tunesmith's environment.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer_environments import make_environment
from peers.measured import (
    ALPHA,
    BETA,
    GRPO_GROUP,
    GRPO_PROMPTS,
    GRPO_TOKENS,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    RANK,
    SEED,
)  # fmt: skip
from preference_speed_report import pairs_per_second, summarize, table
from stored_result import store
from train_speed import HERE, OUR_PYTHON, RAW, RESULTS, Setting, docstring_rows, fastest, run_ours, run_peer
from train_speed_report import machine

MODELS = {
    "reference": "reference",
    "smollm2": str(Path.home() / ".cache" / "tunesmith" / "bases" / "smollm2-135m-instruct"),
}
SHORT = {"function": "length", "options": {"maximum": 1000, "margin": 999, "unit": "characters"}}
"""GRPO's reward: the shorter, the better, as in peers/trl_grpo.py."""

OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"kind": "dpo", "beta": BETA},
    "reward": {"kind": "reward"},
    "grpo": {
        "kind": "grpo",
        "rewards": [SHORT],
        "prompts": GRPO_PROMPTS,
        "group_size": GRPO_GROUP,
        "max_new_tokens": GRPO_TOKENS,
    },
}
"""The objectives that are measured, as the recipe's section."""

CHECK = "check"
"""The objective of the settings whose losses are compared: DPO in fp32, from the same adapter."""


@dataclass(frozen=True)
class PreferenceSetting(Setting):
    """As in train_speed.py.

    Attributes:
        objective: one of OBJECTIVES, or CHECK.
        precision: bf16 or fp32: where the setting belongs.
    """

    objective: str = "dpo"
    precision: str = "bf16"


def settings_of(precision: str) -> list[PreferenceSetting]:
    """Those of a machine. Another objective is a line in OBJECTIVES and settings here, with the peer's script."""
    ours = [PreferenceSetting(f"ours-{each}", "Tunesmith", "ours", objective=each) for each in OBJECTIVES]
    pure = "pure" if precision == "bf16" else "fp32"
    names = [f"dpo-batch-before-{pure}", f"dpo-rows-before-{pure}", f"dpo-batch-with-{pure}"]
    names += [f"reward-batch-{pure}", f"reward-rows-{pure}", f"grpo-batch-{pure}", f"grpo-groups-{pure}"]
    if precision == "bf16":
        names += ["dpo-batch-before-autocast", "reward-batch-autocast", "grpo-batch-autocast"]
    theirs = [
        PreferenceSetting(f"trl-{name}", "TRL", "trl", _script(name), name, objective=name.split("-")[0])
        for name in names
    ]
    check = [
        PreferenceSetting("ours-check", "Tunesmith", "ours", objective=CHECK, precision="fp32"),
        PreferenceSetting(
            "trl-check", "TRL", "trl", "trl_preference.py", "dpo-batch-with-fp32", objective=CHECK, precision="fp32"
        ),
    ]
    return [*ours, *theirs, *check]


def _script(setting: str) -> str:
    return "trl_grpo.py" if setting.startswith("grpo") else "trl_preference.py"


def precision_here() -> str:
    """bf16 if the processor multiplies in it, else fp32."""
    return "bf16" if {"AMX bf16", "AVX-512 bf16"} & set(machine()["instructions"]) else "fp32"


def recipe_of(setting: PreferenceSetting, work: Path, steps: int, precision: str) -> dict[str, Any]:
    """The same task as the peers': the rows of the steps in the file's order, constant rate, no held-out rows."""
    plan = json.loads((work / "plan.json").read_text())
    lines = (work / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    if setting.objective == "grpo":
        rows = work / f"prompts-{steps}.jsonl"
        prompts = [{"prompt": json.loads(line)["prompt"]} for line in lines[: steps * GRPO_PROMPTS]]
        rows.write_text("".join(json.dumps(each) + "\n" for each in prompts), encoding="utf-8")
    else:
        rows = work / f"rows-{steps}.jsonl"
        rows.write_text("".join(lines[: steps * plan["rows_per_step"]]), encoding="utf-8")
    base: dict[str, Any] = {"path": str(work / "model")}
    if setting.objective == CHECK:
        base["adapter"] = str(work / "adapter")
    return {
        "base": base,
        "data": {"train": str(rows), "held_out": 0.0, "cache": False},
        "method": {"kind": "lora", "rank": RANK, "alpha": ALPHA, "target_modules": "all-linear"},
        "objective": OBJECTIVES["dpo" if setting.objective == CHECK else setting.objective],
        "train": {
            "steps": steps,
            "tokens_per_step": 2048,
            "learning_rate": LEARNING_RATE,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "max_grad_norm": MAX_GRAD_NORM,
            "shuffle": False,
            "seed": SEED,
            "precision": "fp32" if setting.precision == "fp32" else precision,
            "device": "cpu",
            "checkpoint_every": steps,
            "evaluate_every": steps,
        },
    }


def measure_once(setting: PreferenceSetting, work: Path, parameters: dict[str, Any], out: Path) -> dict[str, Any]:
    """One process: its measurements, or `failed` with the end of its output."""
    steps = parameters["steps"]
    more = ["--adapter", str(work / "adapter")] if setting.objective == CHECK else []
    try:
        if setting.peer == "ours":
            recipe = recipe_of(setting, work, steps, parameters["precision"])
            result = run_ours(Path(parameters["python"]), work, steps, out, recipe)
            result["description"] = "prompts shared, the reference computed before training"
        else:
            result = run_peer(setting, work, steps, out, {}, more)
    except RuntimeError as failure:
        return {"failed": str(failure)}
    if setting.objective == "grpo":
        return of_rollouts(result)
    plan = json.loads((work / "plan.json").read_text())
    expected = [sum(plan["tokens"][row] for row in rows) for rows in plan["steps"][:steps]]
    found = [step["tokens"] for step in result["steps"]]
    assert found == expected, f"{setting.name} trained on steps of {found} tokens in place of {expected}"
    return {**result, "pairs_per_step": plan["rows_per_step"]}


def of_rollouts(result: dict[str, Any]) -> dict[str, Any]:
    """GRPO's measurements: a step of ours is timed from event to event, so that sampling counts; the first step, which
    has no event before it, is of the warmup. Its answers are the pairs."""
    steps = result["steps"]
    for step, seconds in zip(steps[1:], result.get("seconds_between_events", ()), strict=False):
        step["seconds"] = seconds
    if "seconds_between_events" in result:
        result["description"] = "sampled by its own engine, prompts shared"
    return {**result, "pairs_per_step": GRPO_PROMPTS * GRPO_GROUP}


def measure(run: Path) -> None:
    """Run the missing measurements; each result or failure is a file in a directory of the model."""
    parameters = json.loads((run / "run.json").read_text())
    settings = [each for each in settings_of(parameters["precision"]) if each.objective in parameters["objectives"]]
    first, *others = parameters["works"]
    for number in range(parameters["rounds"]):
        for model, work in parameters["works"].items():
            (run / model).mkdir(exist_ok=True)
            for objective in parameters["objectives"]:
                own = [setting for setting in settings if setting.objective == objective]
                if objective == CHECK and (number or model != (others or [first])[-1]):
                    continue
                if objective != CHECK and (number or model != first):
                    own = fastest(run / first, own, pairs_per_second)
                for setting in own:
                    _measure(setting, model, RAW / work, parameters, run / model / f"{setting.name}-{number}.json")


def _measure(setting: PreferenceSetting, model: str, work: Path, parameters: dict[str, Any], out: Path) -> None:
    if out.exists():
        return
    print(f"{model}, {out.stem} … ", end="", flush=True)
    started = time.perf_counter()
    result = measure_once(setting, work, parameters, out)
    identity = {"name": setting.name, "label": setting.label, "peer": setting.peer, "objective": setting.objective}
    out.write_text(json.dumps({**identity, **result}, indent=1))
    if "failed" in result:
        print(f"failed:\n{result['failed']}\n", flush=True)
        return
    rate, peak = pairs_per_second([result]), result["peak_rss_bytes"]
    print(f"{rate:.2f} pairs/s, {peak / 1e9:.2f} GB, {time.perf_counter() - started:.0f} s", flush=True)


def work_of(model: str, pairs: Path, name: str, python: Path) -> str:
    """The name of the directory of this model with these pairs; created if missing."""
    scripts = b"".join((HERE / script).read_bytes() for script in ("preference_work.py", "reference_work.py"))
    key = hashlib.sha256(pairs.read_bytes() + scripts + name.encode() + model.encode()).hexdigest()
    work = RAW / f"preferences-{key[:12]}"
    if not (work / "plan.json").exists():
        command = [str(python), str(HERE / "preference_work.py"), "--pairs", str(pairs), "--name", name]
        subprocess.run([*command, "--model", model, "--out", str(work)], check=True)
    return work.name


def start_run(options: argparse.Namespace) -> Path:
    """Create what the run needs, and write its parameters."""
    if options.python == OUR_PYTHON:
        make_environment("tunesmith")
    make_environment("trl")
    pairs = (options.pairs or docstring_rows(options.python)).resolve()
    name = options.name or ("Python docstring pairs" if options.pairs is None else pairs.stem)
    models = {each: MODELS[each] for each in (options.model or MODELS)}
    run = RAW / time.strftime("preference-run-%Y%m%d-%H%M%S")
    run.mkdir(parents=True)
    objectives = options.only or [*OBJECTIVES, CHECK]
    parameters = {
        "works": {each: work_of(path, pairs, name, options.python) for each, path in models.items()},
        "steps": options.steps,
        "rounds": options.rounds,
        "objectives": objectives,
        "complete": not options.model,
        "parts": sorted(set(options.only or ())),
        "precision": options.precision or precision_here(),
        "products_per_second": matrix_products_per_second(options.python) if "dpo" in objectives else {},
        "python": str(options.python),
        "date": time.strftime("%Y-%m-%d"),
    }
    (run / "run.json").write_text(json.dumps(parameters, indent=1))
    return run


def matrix_products_per_second(python: Path) -> dict[str, float]:
    """Of the machine, in floating-point operations, by precision."""
    code = "import json, generation_engines; print(json.dumps(generation_engines.limits()))"
    out = subprocess.run([str(python), "-c", code], cwd=HERE, capture_output=True, text=True, check=True).stdout
    found = json.loads(out.splitlines()[-1])
    return {precision: found[precision] for precision in ("fp32", "bf16")}


def newest_run() -> Path:
    runs = sorted(path.parent for path in RAW.glob("preference-run-*/run.json"))
    if not runs:
        sys.exit("there is no run to resume; start one without --resume")
    return runs[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=Path, help="JSON or JSONL of pairs; default: made from the demo's rows")
    parser.add_argument("--name", help="the data set's name in the tables; default: from the file name")
    parser.add_argument("--steps", type=int, default=5, help="steps of at most 2,048 tokens in each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=[*OBJECTIVES, CHECK], help="an objective")
    parser.add_argument("--model", action="append", choices=MODELS, help="one of the models")
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="default: bf16 if the processor multiplies in it")
    parser.add_argument("--resume", action="store_true", help="resume the newest run")
    parser.add_argument("--python", type=Path, default=OUR_PYTHON, help="the Python with Tunesmith installed")
    options = parser.parse_args()
    options.python = options.python.absolute()  # not resolve(): an environment's Python is a link out of it
    if options.steps < 4:
        parser.error("--steps: at least 4, because the first two are warmup")
    run = newest_run() if options.resume else start_run(options)
    measure(run)
    found = summarize(run, RAW)
    parameters = json.loads((run / "run.json").read_text())
    suffixes = [*([] if parameters["precision"] == "bf16" else ["fp32"]), *parameters["parts"]]
    name = "_".join(["preference_speed", *suffixes]) + ".json"
    store((RESULTS if parameters["complete"] else run) / name, found, table({"machine": machine(), **found}))
    if found["failed"]:
        sys.exit(f"failed: {', '.join(sorted(found['failed']))}")


if __name__ == "__main__":
    main()
