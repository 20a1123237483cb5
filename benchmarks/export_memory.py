"""Memory of an export: of writing it with its adapter merged, and of the comparison with the model.

    python benchmarks/export_memory.py     # three minutes; writes results/export_memory.json, .md

SmolLM2-135M-Instruct (fetched once) with a random LoRA adapter of rank 16 on all linear layers. Each figure is of a
separate process: anonymous resident memory (Linux's RssAnon), sampled every millisecond, above what Python and the
libraries hold before. Pages of mapped files, which the kernel can drop at any time, are not counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantized_memory import Peak
from train_speed_report import machine

RESULTS = Path(__file__).parent / "results" / "export_memory.json"
BASE = "smollm2-135m-instruct"
KINDS = ("hf", "int8", "nf4", "gguf:f16", "gguf:q8_0", "gguf:q4_k_m")


def make_adapter(directory: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tunesmith import get_base

    torch.manual_seed(0)
    base = get_base(BASE)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=16, lora_alpha=1, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(directory)


def writing(adapter: str, kind: str, output: str) -> dict[str, float]:
    """Peak of an export without the comparison."""
    prepare()
    from tunesmith.exporting.export import export

    with Peak() as peak:
        export(adapter, output, kind)
    return peak.summary()


def comparing(adapter: str, form: str) -> dict[str, float]:
    """Peak of `tunesmith.parity`."""
    prepare()
    import tunesmith

    with Peak() as peak:
        tunesmith.parity(adapter, form, rows=8, max_new_tokens=32)
    return peak.summary()


def prepare() -> None:
    """Import what is imported on first use."""
    import bitsandbytes.functional  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import tunesmith.exporting.export
    import tunesmith.proving.parity  # noqa: F401


def in_a_process(what: str, *arguments: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, "--one", what, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(what, *arguments[1:], found, flush=True)
    return found


def table(results: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = ["| export | file, MB | writing, MB | comparing, MB |", "|---|---|---|---|"]
    for kind, found in results["kinds"].items():
        sizes = (found["bytes"], found["writing"]["peak"], found["comparing"]["peak"])
        lines.append(f"| `{kind}` | {' | '.join(f'{size / 1e6:,.0f}' for size in sizes)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.one:
        what, *rest = options.one
        measure: dict[str, Callable[..., Any]] = {"writing": writing, "comparing": comparing}
        print(json.dumps(measure[what](*rest)))
        return
    results: dict[str, Any] = {"base": BASE, "machine": machine(), "kinds": {}}
    with tempfile.TemporaryDirectory() as temporary:
        adapter = Path(temporary) / "adapter"
        make_adapter(adapter)
        for kind in options.kinds:
            output = Path(temporary) / f"{kind.replace(':', '-')}{'.gguf' if kind.startswith('gguf') else ''}"
            found: dict[str, Any] = {"writing": in_a_process("writing", str(adapter), kind, str(output))}
            files = [output] if output.is_file() else output.glob("*.safetensors")
            found["bytes"] = sum(file.stat().st_size for file in files)
            found["comparing"] = in_a_process("comparing", str(adapter), str(output))
            results["kinds"][kind] = found
    options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    options.results.with_suffix(".md").write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
