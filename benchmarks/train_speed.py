"""How fast does Tunesmith train the reference task, compared with its peers, in one run on one machine?

    python benchmarks/train_speed.py                        rows of the demo
    python benchmarks/train_speed.py --rows ROWS.jsonl --name "GSM8K train"
    python benchmarks/train_speed.py --only ours --only trl-rows --steps 4
    python benchmarks/train_speed.py --resume               resume the newest run; write its report again

Every setting runs in a separate process, one after another: in the first round all settings, in later rounds Tunesmith
and the fastest setting of each peer. The results go to benchmarks/results/train_speed.{json,md,svg}; the measurements
of each process stay in benchmarks/results/raw/. Standard library only: code that needs PyTorch runs in the peers'
environments, which are created if missing.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from peer_environments import make_environment, python_of
from train_speed_report import rate_of, write_report

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
RAW = RESULTS / "raw"
OUR_PYTHON = python_of("tunesmith")


@dataclass(frozen=True)
class Setting:
    """A way to train the reference task.

    Attributes:
        name: for `--only`.
        label: in the tables.
        peer: `ours`, or the peer's environment.
        script: under peers/.
        setting: the script's `--setting`.
        opt_in: runs only if `--only` names it, since it is known to be slow.
    """

    name: str
    label: str
    peer: str
    script: str = ""
    setting: str = ""
    opt_in: bool = False


SETTINGS = [
    Setting("ours", "Tunesmith", "ours"),
    Setting("trl-defaults", "TRL as it comes", "trl", "trl_sft.py", "defaults"),
    Setting("trl-rows", "TRL, row by row", "trl", "trl_sft.py", "rows"),
    Setting("trl-rows-pure", "TRL, row by row, pure bf16", "trl", "trl_sft.py", "rows-pure"),
    Setting("trl-packing", "TRL, packing", "trl", "trl_sft.py", "packing"),
    Setting("trl-packing-pure", "TRL, packing, pure bf16", "trl", "trl_sft.py", "packing-pure"),
    Setting("peft-rows", "PEFT loop, row by row", "peft", "peft_loop.py", "rows"),
    Setting("peft-batch", "PEFT loop, padded batch", "peft", "peft_loop.py", "batch"),
    Setting("litgpt-rows", "LitGPT, row by row", "litgpt", "litgpt_lora.py", "rows"),
    Setting("litgpt-batch", "LitGPT, padded batch", "litgpt", "litgpt_lora.py", "batch", opt_in=True),
]

S = TypeVar("S", bound=Setting)

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""The thresholds that Tunesmith sets for itself (`tunesmith.engine.allocator`), as environment variables of glibc."""


@dataclass(frozen=True)
class Ended:
    """The end of a process: exit code, peak resident memory in bytes, seconds."""

    code: int
    peak_rss_bytes: int
    seconds: float


def run_process(
    command: list[str], log: Path, watch: Iterator[None] | None = None, more: dict[str, str] | None = None
) -> Ended:
    """Run to the end, with the output in `log` and `more` in the environment; `watch` is advanced every 20 ms."""
    environment = {
        **os.environ,
        **(more or {}),
        "BENCHMARK_STARTED": repr(time.time()),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    started = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if watch is not None:
                next(watch, None)
            if pid:
                break
            time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(status)
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return Ended(process.returncode, usage.ru_maxrss * scale, time.perf_counter() - started)


def new_events(metrics: Path, seen: list[tuple[float, dict[str, Any]]]) -> Iterator[None]:
    """Read `metrics.jsonl` whenever advanced; append each new event with the time at which it was seen."""
    position = 0
    while True:
        if metrics.exists():
            with metrics.open("rb") as file:
                file.seek(position)
                complete, newline, _ = file.read().rpartition(b"\n")
            position += len(complete) + len(newline)
            seen += [(time.time(), json.loads(line)) for line in complete.split(b"\n") if line]
        yield


def our_recipe(work: Path, steps: int, plan: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    """The same task as the peers': rows in the file's order, constant rate, no held-out rows, no checkpoints on the
    way."""
    return {
        "base": str(work / "model"),
        "data": {
            "train": str(work / "rows.jsonl"),
            "held_out": 0.0,
            "max_length": plan["max_length"],
            "cache": False,
        },
        "method": {"kind": "lora", "rank": 16, "alpha": 32, "target_modules": "all-linear"},
        "objective": {"kind": "instruction"},
        "train": {
            "steps": steps,
            "tokens_per_step": 2048,
            "learning_rate": 1e-4,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "shuffle": False,
            "seed": 0,
            "precision": "bf16",
            "device": device,
            "checkpoint_every": steps,
            "evaluate_every": steps,
        },
    }


def steps_for_the_same_rows(plan: dict[str, Any], steps: int) -> int:
    """How many of Tunesmith's steps contain the rows of `steps` steps of the plan: ours end at 2,048 tokens or just
    before."""
    rows = plan["steps"][: min(steps, len(plan["steps"]))]
    tokens = sum(plan["tokens"][row] for step in rows for row in step)
    mean = sum(plan["tokens"]) / len(plan["tokens"])
    return int(min(-(-tokens // int(2048 - mean / 2)) + 1, sum(plan["tokens"]) // 2048))


def run_ours(
    python: Path, work: Path, steps: int, out: Path, own: dict[str, Any] | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """`tunesmith train` on the reference task, or with its own recipe.

    A step's seconds are from its event; `seconds_between_events` is the same, measured by this process.

    Raises:
        RuntimeError: with the end of its output, if it failed.
    """
    plan = json.loads((work / "plan.json").read_text())
    directory = out.with_suffix(".run")
    recipe = out.with_suffix(".yaml")
    own = own or our_recipe(work, steps_for_the_same_rows(plan, steps), plan, device)
    recipe.write_text(json.dumps(own, indent=1))  # JSON is valid YAML and needs no package
    call = "import sys; from tunesmith.cli import main; sys.argv[0] = 'tunesmith'; sys.exit(main())"
    events: list[tuple[float, dict[str, Any]]] = []
    watch = new_events(directory / "metrics.jsonl", events)
    started = time.time()
    command = [str(python), "-c", call, "train", str(recipe), "--run", str(directory)]
    ended = run_process(command, out.with_suffix(".log"), watch)
    next(watch)
    seen = [each for each in events if each[1]["event"] == "step"]
    if ended.code != 0 or not seen:
        raise RuntimeError(_end_of(out.with_suffix(".log")))
    kept = ("seconds", "tokens", "loss_tokens", "loss")
    return {
        "description": "packing in the file's order, bf16, otherwise its defaults",
        "versions": _versions(python, ["python", "torch", "transformers", "peft", "tunesmith"]),
        "seconds_to_first_step": seen[0][0] - started - seen[0][1]["seconds"],
        "peak_rss_bytes": ended.peak_rss_bytes,
        "seconds_between_events": [later[0] - earlier[0] for earlier, later in pairwise(seen)],
        "before": reference_batches(events),
        "steps": [{**{key: event[key] for key in kept}, "rows": None} for _, event in seen],
    }


def reference_batches(events: list[tuple[float, dict[str, Any]]]) -> list[tuple[int, float]]:
    """(rows, seconds) of each batch of the reference that is computed before the first step; the first one's seconds
    are unknown, and left out with it."""
    batches = [(time, event["done"]) for time, event in events if event.get("what") == "reference"]
    return [(done - known, time - before) for (before, known), (time, done) in pairwise(batches)]


def run_peer(
    setting: Setting, work: Path, steps: int, out: Path, more: dict[str, str], options: Sequence[str] = ()
) -> dict[str, Any]:
    """A peer's script in its environment, with `more` environment variables and further options.

    Raises:
        RuntimeError: with the end of its output, if it failed.
    """
    partial = out.with_suffix(".partial")
    command = [
        str(python_of(setting.peer)),
        str(HERE / "peers" / setting.script),
        "--setting",
        setting.setting,
    ]
    command += ["--model", str(work / "model"), "--rows", str(work / "rows.jsonl")]
    command += ["--steps", str(steps), "--out", str(partial), *options]
    ended = run_process(command, out.with_suffix(".log"), more=more)
    if ended.code != 0:
        killed = "killed by the system, which does that when memory runs out\n" if ended.code == -9 else ""
        raise RuntimeError(killed + _end_of(out.with_suffix(".log")))
    result: dict[str, Any] = json.loads(partial.read_text())
    partial.unlink()
    return {**result, "peak_rss_bytes": ended.peak_rss_bytes}


def _end_of(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return "\n".join(lines[-15:])


def _versions(python: Path, packages: list[str]) -> dict[str, str]:
    """Versions installed for `python`; "" if not installed."""
    code = (
        "import json, platform, sys\n"
        "from importlib.metadata import PackageNotFoundError, version\n"
        "def of(name):\n"
        "    try: return platform.python_version() if name == 'python' else version(name)\n"
        "    except PackageNotFoundError: return ''\n"
        "print(json.dumps({name: of(name) for name in sys.argv[1:]}))"
    )
    done = subprocess.run([str(python), "-c", code, *packages], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(done.stdout)
    return versions


def reference_work(rows: Path, name: str, python: Path) -> Path:
    """The directory of the reference task for these rows; created if missing."""
    key = hashlib.sha256(rows.read_bytes() + (HERE / "reference_work.py").read_bytes() + name.encode()).hexdigest()
    work = RAW / f"work-{key[:12]}"
    if not (work / "plan.json").exists():
        command = [str(python), str(HERE / "reference_work.py"), "--rows", str(rows), "--name", name]
        subprocess.run([*command, "--out", str(work)], check=True)
    return work


def docstring_rows(python: Path) -> Path:
    """The demo's question–answer pairs from this Python's documentation."""
    rows = RAW / "docstrings.jsonl"
    rows.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([str(python), "-m", "tunesmith.demo.docstrings", "--out", str(rows)], check=True)
    return rows


def matrix_rate(python: Path, out: Path, device: str = "cpu") -> None:
    command = [str(python), str(HERE / "matrix_rate.py"), "--out", str(out), "--device", device]
    subprocess.run(command, check=True)


def newest_run() -> Path:
    """The newest run's directory; exits if there is none."""
    runs = sorted(path.parent for path in RAW.glob("run-*/run.json"))
    if not runs:
        sys.exit("there is no run to resume; start one without --resume")
    return runs[-1]


def start_run(options: argparse.Namespace) -> Path:
    """Create what the run needs, and write its parameters."""
    if options.python == OUR_PYTHON:
        make_environment("tunesmith")
    rows = options.rows or docstring_rows(options.python)
    name = options.name or ("Python docstring pairs" if options.rows is None else f"{rows.parent.name} {rows.stem}")
    chosen = [each for each in SETTINGS if (each.name in options.only if options.only else not each.opt_in)]
    for environment in sorted({"peft", *(setting.peer for setting in chosen)} - {"ours"}):
        make_environment(environment)
    work = reference_work(rows.resolve(), name, python_of("peft"))
    plan = json.loads((work / "plan.json").read_text())
    run = RAW / time.strftime("run-%Y%m%d-%H%M%S")
    run.mkdir(parents=True)
    parameters = {
        "work": work.name,
        "steps": len(plan["steps"]) if options.full else options.steps,
        "repeats": options.repeats,
        "settings": [setting.name for setting in chosen],
        "complete": not options.only,
        "same_allocator": options.same_allocator,
        "python": str(options.python),
        "date": time.strftime("%Y-%m-%d"),
    }
    (run / "run.json").write_text(json.dumps(parameters, indent=1))
    return run


def measure(run: Path) -> None:
    """Run the missing measurements of the run; each result or failure is a file in `run`."""
    parameters = json.loads((run / "run.json").read_text())
    chosen = [setting for setting in SETTINGS if setting.name in parameters["settings"]]
    if not (run / "rate-before.json").exists():
        matrix_rate(python_of("peft"), run / "rate-before.json")
    for number in range(parameters["repeats"]):
        settings = chosen if number == 0 else fastest(run, chosen)
        for index, setting in enumerate(settings, 1):
            out = run / f"{setting.name}-{number}.json"
            if out.exists():
                continue
            print(f"round {number + 1}, {index}/{len(settings)}: {setting.label} … ", end="", flush=True)
            started = time.perf_counter()
            result = measure_once(setting, parameters, out)
            out.write_text(json.dumps({"name": setting.name, "label": setting.label, **result}, indent=1))
            print(f"{status(result)}, {time.perf_counter() - started:.0f} s", flush=True)
    if not (run / "rate-after.json").exists():
        matrix_rate(python_of("peft"), run / "rate-after.json")


def measure_once(setting: Setting, parameters: dict[str, Any], out: Path) -> dict[str, Any]:
    """One process: its measurements, or `failed` with the end of its output."""
    work, steps = RAW / parameters["work"], parameters["steps"]
    try:
        if setting.peer == "ours":
            return run_ours(Path(parameters["python"]), work, steps, out)
        return run_peer(setting, work, steps, out, ALLOCATOR if parameters["same_allocator"] else {})
    except RuntimeError as failure:
        return {"failed": str(failure)}


def status(result: dict[str, Any]) -> str:
    """One line for a result."""
    if "failed" in result:
        return f"failed:\n{result['failed']}\n"
    return f"{rate_of([result]):,.0f} tokens/s, {result['peak_rss_bytes'] / 1e9:.1f} GB"


def fastest(run: Path, chosen: Sequence[S], rate: Callable[[list[dict[str, Any]]], float] = rate_of) -> list[S]:
    """Each peer's fastest setting of the first round, by `rate` of its result; failed settings are left out."""
    rates: dict[str, float] = {}
    for setting in chosen:
        result = json.loads((run / f"{setting.name}-0.json").read_text())
        if "failed" not in result:
            rates[setting.name] = rate([result])
    best: dict[str, S] = {}
    for setting in chosen:
        if setting.name in rates and rates[setting.name] >= rates.get(best.get(setting.peer, setting).name, 0):
            best[setting.peer] = setting
    return list(best.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=Path, help="JSONL; default: the demo's docstring pairs")
    parser.add_argument("--name", help="the data set's name in the tables; default: from the file name")
    parser.add_argument("--steps", type=int, default=12, help="steps of about 2,048 tokens in each process")
    parser.add_argument("--full", action="store_true", help="all 2,000 rows instead of --steps (hours)")
    parser.add_argument("--repeats", type=int, default=2, help="rounds")
    parser.add_argument(
        "--same-allocator",
        action="store_true",
        help="start peers with the malloc thresholds that Tunesmith sets",
    )
    names = [setting.name for setting in SETTINGS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--resume", action="store_true", help="resume the newest run")
    parser.add_argument("--python", type=Path, default=OUR_PYTHON, help="the Python with Tunesmith installed")
    options = parser.parse_args()
    if options.steps < 4 and not options.full:
        parser.error("--steps: at least 4, because the first two are warmup")
    run = newest_run() if options.resume else start_run(options)
    measure(run)
    parameters = json.loads((run / "run.json").read_text())
    write_report(run, RAW / parameters["work"], RESULTS if parameters["complete"] else run)
    failed = [path.stem for path in run.glob("*-[0-9].json") if "failed" in json.loads(path.read_text())]
    if failed:
        sys.exit(f"failed: {', '.join(sorted(failed))}")


if __name__ == "__main__":
    main()
