"""A random Mistral of a billion parameters in NF4: memory while loading and training, compared with arithmetic.

    python benchmarks/quantized_memory.py     # about five minutes; writes results/quantized_memory.json

Each measurement is a separate process. Memory is anonymous resident memory (Linux's RssAnon), above what Python and the
libraries hold; unquantized weights stay mapped from the checkpoint and are reported separately (`mapped_weights`). Then
the same checkpoint is loaded by a process that the kernel limits to less memory than the size of the checkpoint, with
all pages counted (a control group; needs root).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OUT = HERE / "results" / "quantized_memory.json"
SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
}
WIDTH = 1024  # tokens in a batch


def anonymous() -> int:
    """Bytes of anonymous resident memory."""
    with Path("/proc/self/status").open() as file:
        return int(next(line for line in file if line.startswith("RssAnon")).split()[1]) * 1024


class Peak:
    """Peak anonymous memory within the block, sampled every millisecond."""

    def __enter__(self) -> "Peak":
        self.before = self.most = anonymous()
        self._stop = False
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self._stop = True
        self._watcher.join()
        self.after = anonymous()

    def _watch(self) -> None:
        while not self._stop:
            self.most = max(self.most, anonymous())
            time.sleep(0.001)

    def summary(self) -> dict[str, float]:
        return {"peak": self.most - self.before, "held": self.after - self.before, "seconds": round(self.seconds, 1)}


def make(directory: Path) -> None:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = MistralConfig(**SHAPE, sliding_window=None, tie_word_embeddings=False)
    MistralForCausalLM(config).save_pretrained(directory, max_shard_size="1GB")


def load(directory: str, weights: str) -> Any:
    import torch

    from tunesmith.config.base import Base
    from tunesmith.models.load import load_model

    return load_model(Base(path=directory, weights=weights), torch.bfloat16)


def loading(directory: str, weights: str) -> dict[str, Any]:
    import bitsandbytes.functional
    import peft  # noqa: F401
    import torch

    bitsandbytes.functional.quantize_4bit(torch.randn(64, 64, dtype=torch.bfloat16))  # one-time setup
    with Peak() as peak:
        model = load(directory, weights)
    from tunesmith.modules.quantized_linear import quantized_bytes

    plain = sum(each.numel() * each.element_size() for each in model.parameters())
    largest = SHAPE["hidden_size"] * SHAPE["intermediate_size"] * 2
    return {**peak.summary(), "arithmetic": plain + quantized_bytes(model), "largest_matrix": largest}


def training(directory: str, weights: str) -> dict[str, Any]:
    import torch

    from tunesmith.config.train import Train
    from tunesmith.data.batch import collate
    from tunesmith.data.example import Source
    from tunesmith.data.tokens import TokenTable
    from tunesmith.engine.allocator import keep_freed_memory
    from tunesmith.engine.master_weights import MasterWeights
    from tunesmith.methods.lora import LoRA
    from tunesmith.models.attention import use_document_attention
    from tunesmith.models.forward import next_token_loss
    from tunesmith.modules.fused import use_fused_ops

    ids = torch.randint(5, SHAPE["vocab_size"], (WIDTH,)).int().numpy()
    batch = collate(TokenTable.build([(ids, ids > 0, Source("", 1))]), [0])
    seconds = []
    with keep_freed_memory(), Peak() as peak:
        model = load(directory, weights)
        mapped = sum(each.numel() * each.element_size() for each in model.parameters())
        use_document_attention(model)
        use_fused_ops(model)
        model = LoRA().apply(model, 0)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        masters = MasterWeights(model.named_parameters(), Train())
        model.train()
        for _ in range(3):
            started = time.perf_counter()
            next_token_loss(model, batch).backward()  # type: ignore[no-untyped-call]
            masters.step(1e-4, batch.loss_tokens, 1.0)
            seconds.append(time.perf_counter() - started)
    return {
        **peak.summary(),
        "mapped_weights": mapped,
        "tokens_per_second": round(WIDTH / sorted(seconds)[1], 1),
        "adapter_state": len(masters.flat) * 18,
    }


def limited(directory: str, limit: str) -> dict[str, Any]:
    """Loading in a control group (version 1) with that limit in bytes; the kernel kills a process that exceeds it."""
    group = Path("/sys/fs/cgroup/memory/tunesmith_benchmark")
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(limit)
    (group / "cgroup.procs").write_text(str(os.getpid()))
    result = loading(directory, "nf4")
    most = int((group / "memory.max_usage_in_bytes").read_text())
    return {**result, "limit": int(limit), "most_with_all_pages": most}


def in_a_process(what: str, *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        [sys.executable, __file__, "--one", what, *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(what, *arguments[1:], result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=("loading", "limited", "training"), help="repeat only this measurement")
    arguments = parser.parse_args()
    if arguments.one:
        kind, *rest = arguments.one
        print(json.dumps({"loading": loading, "training": training, "limited": limited}[kind](*rest)))
        return
    import bitsandbytes
    import torch

    with tempfile.TemporaryDirectory() as directory:
        make(Path(directory))
        stored = sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
        result: dict[str, Any] = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
        requested = [arguments.only] if arguments.only else ["loading", "limited", "training"]
        if "loading" in requested:
            result["loading"] = {weights: in_a_process("loading", directory, weights) for weights in ("nf4", "int8")}
        if "limited" in requested:
            result["limited"] = in_a_process("limited", directory, str(1_700_000_000))
        if "training" in requested:
            result["training"] = {weights: in_a_process("training", directory, weights) for weights in ("nf4", "bf16")}
        result |= {
            "shape": SHAPE,
            "stored_bytes": stored,
            "width": WIDTH,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "versions": {"torch": torch.__version__, "bitsandbytes": bitsandbytes.__version__},
            "date": time.strftime("%Y-%m-%d"),
        }
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
