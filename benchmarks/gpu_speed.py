"""LoRA and QLoRA of a Mistral-7B-sized model on a GPU: Tunesmith, a plain PEFT loop, TRL and Unsloth on the same text.

    python benchmarks/gpu_speed.py                                  everything, seven minutes at most
    python benchmarks/gpu_speed.py --shape tiny --device cpu        the same code, small, on a CPU

The weights are random (Mistral 7B's sizes: hidden 4,096, MLP 14,336, 32 layers, 32 heads, 8 key–value heads), created
once on the device. The text is this Python's own documentation, in full sequences of 2,048 and of 8,192 tokens, so
there is no padding. LoRA of rank 16 on all linear layers, activation checkpointing, AdamW, bf16. Each trial is a
process; a trial that does not fit into the time budget is left out and reported. Writes gpu_speed.json: tokens per
second, peak memory of the GPU, fraction of its measured bf16 rate at 4 FLOPs per token and non-embedding parameter.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from peers.measured import ALPHA, LEARNING_RATE, RANK, SEED
from train_speed import RAW, RESULTS, matrix_rate

HERE = Path(__file__).resolve().parent
SHAPES: dict[str, dict[str, int]] = {
    "mistral-7b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 2000,
    },
}  # fmt: skip
TRAINERS = ("tunesmith", "peft", "trl", "unsloth")
WARM_UP = 2


def make_model(directory: Path, shape: str, device: str) -> None:
    """Random weights in bf16 and a byte-level tokenizer, as a Hugging Face directory."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    sizes = SHAPES[shape]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sizes["vocab_size"], special_tokens=["<|pad|>", "<|end|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(documents(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.save_pretrained(directory)
    torch.manual_seed(SEED)
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model = MistralForCausalLM(MistralConfig(**sizes, max_position_embeddings=32768, sliding_window=None))
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(directory)


def documents() -> list[str]:
    """This Python's own help topics."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def make_text(model: Path, length: int, rows: int) -> Path:
    """`rows` sequences of exactly `length` tokens of the repeated documentation, as token ids."""
    file = model / f"ids-{length}.json"
    if not file.exists():
        from transformers import AutoTokenizer

        ids = AutoTokenizer.from_pretrained(model)("\n".join(documents()))["input_ids"]
        ids = ids * (-(-rows * length // len(ids)))
        file.write_text(json.dumps([ids[at * length : (at + 1) * length] for at in range(rows)]))
    return file


def learn_with_tunesmith(options: argparse.Namespace, sequences: list[list[int]]) -> list[float]:
    """Seconds of each step, through the engine's own model, optimizer and loss."""
    import torch

    from tunesmith.config.recipe import Recipe
    from tunesmith.data.batch import Batch
    from tunesmith.engine.master_weights import MasterWeights
    from tunesmith.engine.trainable import trainable_model

    recipe = Recipe.load(
        {
            "base": {
                "path": str(options.model),
                "weights": "nf4" if options.method == "qlora" else "bf16",
                "double_quantization": options.method == "qlora",
            },
            "data": {"train": "unused.jsonl"},
            "method": {"kind": "lora", "rank": RANK, "alpha": ALPHA},
            "objective": "text",
            "train": {
                "learning_rate": LEARNING_RATE,
                "gradient_checkpointing": True,
                "device": options.device,
                "precision": "bf16",
                "seed": SEED,
            },
        }
    )
    device = torch.device(options.device)
    model, objective = trainable_model(recipe, torch.bfloat16, device)
    model.train()
    masters = MasterWeights(model.named_parameters(), recipe.train)
    positions = torch.arange(options.length, device=device)

    def step(ids: list[int]) -> float:
        row = torch.tensor(ids, device=device)
        batch = Batch(
            input_ids=row[None],
            position_ids=positions[None],
            lengths=[len(ids)],
            loss_positions=positions[:-1],
            labels=row[1:],
            rows=(0,),
            tokens=len(ids),
            loss_tokens_per_row=[len(ids) - 1],
            documents_per_row=[1],
        )
        loss = objective.loss(model, batch)
        torch.autograd.backward(loss)
        masters.step(LEARNING_RATE, batch.loss_tokens, 1.0)
        return float(loss.detach()) / batch.loss_tokens

    return timed(step, sequences, options.device)


def learn_with_peft(options: argparse.Namespace, sequences: list[list[int]]) -> list[float]:
    """Seconds of each step of the loop that many users write themselves; Unsloth's model in the same loop."""
    import torch

    if options.trainer == "unsloth":
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            str(options.model), max_seq_length=options.length, load_in_4bit=options.method == "qlora",
            dtype=torch.bfloat16,
        )  # fmt: skip
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = FastLanguageModel.get_peft_model(
            model, r=RANK, lora_alpha=ALPHA, lora_dropout=0, target_modules=targets,
            use_gradient_checkpointing="unsloth", random_state=SEED,
        )  # fmt: skip
    else:
        model = peft_model(options)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=options.device == "cuda")

    def step(ids: list[int]) -> float:
        row = torch.tensor([ids], device=options.device)
        loss = model(input_ids=row, labels=row).loss
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return timed(step, sequences, options.device)


def peft_model(options: argparse.Namespace) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantized = None
    if options.method == "qlora":
        quantized = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.bfloat16, quantization_config=quantized, device_map=options.device
    )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora, autocast_adapter_dtype=False).train()


def learn_with_trl(options: argparse.Namespace, sequences: list[list[int]]) -> list[float]:
    """Seconds of each step of TRL's SFTTrainer on the same ids."""
    import tempfile

    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ends: list[float] = []

    class StepTimer(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize(options.device)
            ends.append(time.perf_counter())

    settings = SFTConfig(
        tempfile.mkdtemp(), max_steps=len(sequences), per_device_train_batch_size=1, learning_rate=LEARNING_RATE,
        bf16=True, report_to=[], save_strategy="no", max_length=options.length, disable_tqdm=True,
        use_cpu=options.device == "cpu",
    )  # fmt: skip
    data = Dataset.from_list([{"input_ids": ids} for ids in sequences])
    SFTTrainer(peft_model(options), args=settings, train_dataset=data, callbacks=[StepTimer()]).train()
    return [later - earlier for earlier, later in pairwise(ends)]


def timed(step: Any, sequences: list[list[int]], device: str) -> list[float]:
    seconds = []
    for ids in sequences:
        started = time.perf_counter()
        loss = step(ids)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
        print(f"{seconds[-1]:.3f} s, loss {loss:.4f}", flush=True)
    return seconds


def synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def work(options: argparse.Namespace) -> None:
    """One trial, in a separate process."""
    import torch

    sequences = json.loads(make_text(options.model, options.length, options.steps).read_text())[: options.steps]
    learn = {"tunesmith": learn_with_tunesmith, "trl": learn_with_trl}.get(options.trainer, learn_with_peft)
    seconds = learn(options, sequences)
    peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else None
    reserved = torch.cuda.max_memory_reserved() if options.device == "cuda" else None
    results = {
        "tokens_per_second": options.length / statistics.median(seconds[WARM_UP:]),
        "peak_allocated_bytes": peak,
        "peak_reserved_bytes": reserved,
        "seconds": seconds,
    }
    options.out.write_text(json.dumps(results))


def non_embedding_parameters(shape: dict[str, int]) -> int:
    hidden, heads = shape["hidden_size"], shape["head_dim"]
    attention = 2 * hidden * heads * (shape["num_attention_heads"] + shape["num_key_value_heads"])
    return shape["num_hidden_layers"] * (attention + 3 * hidden * shape["intermediate_size"])


def trials(options: argparse.Namespace, directory: Path, model: Path) -> list[dict[str, Any]]:
    """Every trial that fits into the time budget, each in a separate process."""
    results = []
    end = time.monotonic() + options.budget
    for length in options.lengths:
        for method in ("qlora", "lora"):
            for trainer in TRAINERS:
                name = f"{trainer}-{method}-{length}"
                out = directory / f"{name}.json"
                command = [sys.executable, str(Path(__file__)), "--worker", "--trainer", trainer, "--method", method]
                command += ["--length", str(length), "--model", str(model), "--device", options.device]
                command += ["--steps", str(options.steps), "--out", str(out)]
                left = end - time.monotonic()
                row: dict[str, Any] = {"trainer": trainer, "method": method, "length": length}
                if left < 20:
                    results.append({**row, "left out": "the time budget was used up"})
                    continue
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
                    failed = None if done.returncode == 0 else (done.stderr or done.stdout).strip()[-400:]
                except subprocess.TimeoutExpired:
                    failed = "it was stopped at the end of the time budget"
                results.append({**row, "failed": failed} if failed else {**row, **json.loads(out.read_text())})
                status = failed or f"{results[-1]['tokens_per_second']:,.0f} tokens/s"
                print(f"{name}: {status}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="mistral-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--budget", type=float, default=400, help="seconds for all trials together")
    parser.add_argument("--out", type=Path, default=RESULTS)
    for hidden in ("--trainer", "--method", "--model"):
        parser.add_argument(hidden, type=Path if hidden == "--model" else str, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    directory = RAW / time.strftime("gpu-speed-%Y%m%d-%H%M%S")
    directory.mkdir(parents=True)
    model = RAW / f"{options.shape}-random"
    if not (model / "config.json").exists():
        make_model(model, options.shape, options.device)
    matrix_rate(Path(sys.executable), directory / "rate.json", options.device)
    best = max(json.loads((directory / "rate.json").read_text())["flop_per_second"].values())
    bound = best / (4 * non_embedding_parameters(SHAPES[options.shape]))
    rows = trials(options, directory, model)
    for row in rows:
        if "tokens_per_second" in row:
            row["share_of_bound"] = row["tokens_per_second"] / bound
    summary = {
        "date": time.strftime("%Y-%m-%d"),
        "shape": options.shape,
        "device": options.device,
        "matrix_products_flop_per_second": best,
        "bound_tokens_per_second": bound,
        "trials": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu_speed.json").write_text(json.dumps(summary, indent=1) + "\n")
    for row in rows:
        speed = f"{row['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in row else str(row)
        memory = f"{(row.get('peak_allocated_bytes') or 0) / 1e9:.1f} GB"
        print(f"{row['trainer']:>10} {row['method']:>6} {row['length']:>6}  {speed}  {memory}")


if __name__ == "__main__":
    main()
