"""Merging and serving: memory predicted by `tunesmith plan` against the peaks of `tunesmith export --to hf` and
`tunesmith generate`.

    python benchmarks/afterwards_memory.py    # seven minutes; writes results/afterwards_memory.json, .md

Models with random weights, two steps of LoRA in fp32; each command runs in a separate process. Generation continues one
text up to the number of tokens of the plan.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from plan_accuracy import make_base, recipe_of, write_text
from stored_result import store

RESULTS = Path(__file__).parent / "results" / "afterwards_memory.json"
TOKENS = 256
BASES = (
    ("gpt2-30m", "bf16"),
    ("gpt2-30m", "fp32"),
    ("llama-125m", "bf16"),
    ("llama-125m", "fp32"),
    ("qwen3-360m", "bf16"),
)
"""Model, and the precision of its stored weights."""

COMMAND = """
import sys
from tunesmith.cli import main
from tunesmith.planner.measure import peak_memory
import torch
try:
    main()
finally:
    print("PEAK", peak_memory(torch.device("cpu")), file=sys.stderr)
"""


def peak_of(*arguments: str) -> int:
    """Peak bytes of a command."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True)
    if done.returncode or "PEAK " not in done.stderr:
        raise SystemExit(f"tunesmith {' '.join(arguments)}: {done.stderr[-500:]}")
    return int(done.stderr.split("PEAK ")[1].split()[0])


def predicted(recipe: Path) -> dict[str, Any]:
    command = ["plan", "--recipe", str(recipe), "--json", "--context", str(TOKENS), "--concurrency", "1"]
    done = subprocess.run([sys.executable, "-m", "tunesmith", *command], capture_output=True, text=True, check=True)
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def stored_in_fp32(base: Path) -> Path:
    """A copy of the base whose file is in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    copy = base.with_name(f"{base.name}-fp32")
    shutil.copytree(base, copy)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(copy)
    return copy


def main() -> None:
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        write_text(directory)
        for base, stored in BASES:
            run = {"base": base, "method": "lora", "length": 128, "twice": False, "optimizer": "adamw"}
            base_path = make_base(base, directory)
            path = base_path if stored == "bf16" else stored_in_fp32(base_path)
            recipe = recipe_of(run, path, directory / "text.jsonl")
            recipe["train"] |= {"steps": 2, "precision": "fp32"}
            name = f"{base} in {stored}"
            file = directory / f"{name}.json"
            file.write_text(json.dumps(recipe), encoding="utf-8")
            trained = str(directory / f"run {name}")
            peak_of("train", str(file), "--run", trained)
            plan = predicted(file)
            measured = {
                "merging": peak_of("export", trained, "--to", "hf", "--output", str(directory / f"merged {name}")),
                "serving": peak_of("generate", trained, "def", "--raw", "--max-new-tokens", str(TOKENS)),
            }
            for task, peak in measured.items():
                results.append({"base": name, "task": task, "predicted": sum(plan[task].values()), "measured": peak})
                print(results[-1], plan[task], flush=True)
    lines = ["| | predicted | measured | |", "|---|---|---|---|"]
    for each in results:
        off = each["predicted"] / each["measured"] - 1
        sizes = f"{each['predicted'] / 1e6:,.0f} MB | {each['measured'] / 1e6:,.0f} MB"
        lines.append(f"| {each['base']}, {each['task']} | {sizes} | {off:+.1%} |")
    store(RESULTS, {"found": results}, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
