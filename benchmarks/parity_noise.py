"""How far each kind of export is from its model: what the limits of the parity gate are chosen from.

    python benchmarks/parity_noise.py --data FILE    # 6 minutes; finished kinds are skipped

Each kind is written, read by its own program and compared with the model at the answers of 32 rows, as by
`tunesmith export`. Writes results/parity_noise.json and .md.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from train_speed_report import machine

import tunesmith
from tunesmith.exporting.export import export

RESULTS = Path(__file__).parent / "results" / "parity_noise.json"
BASE = "smollm2-135m-instruct"
KINDS = (
    *("hf", "gguf:f32", "gguf:f16", "gguf:bf16", "int8", "gguf:q8_0", "gguf:q6_k"),
    *("gguf:q5_k_m", "gguf:q4_k_m", "gguf:q4_0", "nf4", "gguf:q3_k_m", "gguf:q2_k"),
)
KEPT = (
    *("kind", "rows", "positions", "token_ids_equal"),
    *("top1_agreement", "top1_agreement_interval", "kl", "kl_interval", "loss"),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--data", type=Path, help="a file of rows with answers")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results |= {"base": options.base, "machine": machine()}
    for kind in options.kinds:
        if kind not in results.setdefault("kinds", {}):
            results["kinds"][kind] = measured(options.base, kind, options.data)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            RESULTS.with_suffix(".md").write_text(table(results), encoding="utf-8")
    print(table(results))


def measured(base: str, kind: str, data: Path | None, rows: int = 32) -> dict[str, Any]:
    """The figures of one kind."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / ("model.gguf" if kind.startswith("gguf") else "model")
        export(base, output, kind)
        found = tunesmith.parity(base, output, rows=rows, data=data, max_new_tokens=1)
        size = sum(file.stat().st_size for file in ([output] if output.is_file() else output.rglob("*.safetensors")))
    return {**{key: found[key] for key in KEPT}, "bytes": size}


def table(results: dict[str, Any]) -> str:
    """The figures in Markdown, with 95 % intervals."""
    lines = [
        "| export | MB | same most likely token | KL, nats per token | change of the loss |",
        "|---|---|---|---|---|",
    ]
    for kind, found in results["kinds"].items():
        low, high = (f"{100 * each:.1f}" for each in found["top1_agreement_interval"])
        loss = found["loss"]
        lines.append(
            f"| `{kind}` | {found['bytes'] / 1e6:.0f} | {found['top1_agreement']:.1%} ({low} to {high}) | "
            f"{found['kl']:.2g} ({found['kl_interval'][0]:.2g} to {found['kl_interval'][1]:.2g}) | "
            f"{loss['difference']:+.4f} ({loss['difference_interval'][0]:+.4f} to "
            f"{loss['difference_interval'][1]:+.4f}) |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
