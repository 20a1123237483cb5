"""Tunesmith on a CUDA GPU: the tests marked `gpu`, and the reference task on the GPU and on the CPU.

Called by gpu.sh. The losses of the first steps are compared with those of the same steps on the CPU: bf16 rounds
differently on each, so they agree to a few thousandths, not exactly.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from train_speed import RAW, RESULTS, docstring_rows, matrix_rate, reference_work, run_ours
from train_speed_report import FLOP_PER_PARAMETER, non_embedding_parameters, rate_of

HERE = Path(__file__).resolve().parent


def gpu_tests() -> tuple[int, str]:
    """pytest's exit code and the end of its output."""
    plain = ["-o", "addopts=", "-o", "timeout=0"]  # without plug-ins that a borrowed machine may not have
    command = [sys.executable, "-m", "pytest", *plain, "tests/test_gpu.py", "-rA", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, check=False)
    print(done.stdout, done.stderr, sep="\n", flush=True)
    return done.returncode, "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])


def measured_memory(run: Path) -> str:
    """The cost that the run itself measured, if it did."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = [event["measured"] for event in events if event["event"] == "plan"]
    return json.dumps(measured[-1]) if measured else "not reported"


def machine_lines() -> list[str]:
    import torch
    import transformers

    device = torch.cuda.get_device_properties(0)
    return [
        f"- {device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}",
        f"- Python {sys.version.split()[0]}, torch {torch.__version__}, transformers {transformers.__version__}",
        f"- {time.strftime('%Y-%m-%d')}",
    ]


def page(name: str, tests: tuple[int, str], gpu: dict[str, Any], cpu: dict[str, Any], memory: str, bound: float) -> str:
    """The findings as Markdown."""
    verdict = {0: "all passed", 5: "none found"}.get(tests[0], "FAILED")
    lines = ["# Tunesmith on a GPU", "", *machine_lines(), "", f"## Tests marked `gpu`: {verdict}", ""]
    lines += ["```", tests[1], "```", "", f"## The reference task ({name})", ""]
    rate = rate_of([gpu])
    lines += [
        f"{rate:,.0f} tokens/s (median of {len(gpu['steps']) - 2} steps of about 2,048 tokens), "
        f"{rate / bound:.1%} of the {bound:,.0f} tokens/s that its own bf16 matrix products of these shapes allow; "
        f"{gpu['seconds_to_first_step']:.1f} s from start to first step; "
        f"{gpu['peak_rss_bytes'] / 1e9:.2f} GB of the machine's memory. "
        f"The run's own measurements: {memory}.",
        "",
        "| step | loss on the GPU | loss on the CPU | difference |",
        "|---|---|---|---|",
    ]
    for number, (on_gpu, on_cpu) in enumerate(zip(gpu["steps"], cpu["steps"], strict=False), 1):
        difference = on_gpu["loss"] - on_cpu["loss"]
        lines.append(f"| {number} | {on_gpu['loss']:.4f} | {on_cpu['loss']:.4f} | {difference:+.4f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=Path, help="JSONL; default: the demo's docstring pairs")
    parser.add_argument("--name", help="the data set's name")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    python = Path(sys.executable)
    tests = gpu_tests()
    rows = options.rows or docstring_rows(python)
    name = options.name or ("Python docstring pairs" if options.rows is None else f"{rows.parent.name} {rows.stem}")
    work = reference_work(rows.resolve(), name, python)
    directory = RAW / time.strftime("gpu-%Y%m%d-%H%M%S")
    directory.mkdir(parents=True)
    matrix_rate(python, directory / "rate.json", "cuda")
    best = max(json.loads((directory / "rate.json").read_text())["flop_per_second"].values())
    parameters = non_embedding_parameters(json.loads((work / "model" / "config.json").read_text()))
    gpu = run_ours(python, work, options.steps, directory / "gpu.json", device="cuda")
    cpu = run_ours(python, work, 6, directory / "cpu.json", device="cpu")
    memory = measured_memory(directory / "gpu.run")
    options.out.mkdir(parents=True, exist_ok=True)
    text = page(name, tests, gpu, cpu, memory, best / (FLOP_PER_PARAMETER * parameters))
    (options.out / "gpu_check.md").write_text(text)
    print(text)
    if tests[0] not in (0, 5):
        sys.exit("tests marked gpu failed")


if __name__ == "__main__":
    main()
