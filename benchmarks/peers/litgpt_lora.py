"""LitGPT's LoRA fine-tuning: its model, data set, tokenizer and loss, driven by its own `fit` under Fabric.

Differences to the others, due to LitGPT: the loss is a mean over rows of each row's mean (still reported over tokens
here), gradients are not clipped, and q, k and v share one fused layer. Its weights are converted from the Hugging Face
directory by its own code.

Settings:
    rows   bf16-true, one row at a time (its default micro-batch)
    batch  bf16-true, all rows of the step in one padded batch
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import litgpt.finetune.lora as finetune
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule, SFTDataset, get_sft_collate_fn
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from litgpt.prompts import PromptStyle
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from litgpt.tokenizer import Tokenizer
from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer
from measured import ALPHA, LEARNING_RATE, MAX_LENGTH, RANK, SEED, Report, arguments, read_rows
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Subset

DESCRIPTIONS = {
    "rows": "bf16-true, one row at a time with accumulation (its default)",
    "batch": "bf16-true, a step's rows in one padded batch",
}


class Marks(PromptStyle):
    """The reference model's chat template, in LitGPT's style."""

    def apply(self, prompt: str, *, sys_prompt: str | None = None, **kwargs: str) -> str:
        return f"<|user|>{prompt}<|end|><|assistant|>"


class Rows(DataModule):
    """The reference rows, in order; LitGPT's own `JSON` would shuffle them."""

    def __init__(self, rows: Path, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        super().__init__()
        self.collate = collate
        self.pairs = [
            {"instruction": question["content"], "output": answer["content"]} for question, answer in read_rows(rows)
        ]
        self.prompt_style = Marks()

    def connect(
        self,
        tokenizer: Tokenizer | None = None,
        batch_size: int = 1,
        max_seq_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.data = SFTDataset(self.pairs, tokenizer, self.prompt_style, max_seq_length or -1)
        self.batch_size = batch_size

    def prepare_data(self) -> None:
        pass

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data, self.batch_size, shuffle=False, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Subset(self.data, range(1)), 1, collate_fn=get_sft_collate_fn())


class Watch:
    """Records the beginning, the end and the loss of steps.

    It replaces three things that `fit` calls: the collation of batches (the first call is the beginning), the loss
    (called unchanged, its value recorded), and the learning rate schedule (constant here), whose `step` is the end of
    an optimizer step.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.sums: list[float] = []
        self.loss_tokens: list[int] = []

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        if self.report.seconds_to_first_step is None:
            self.report.begin()
        return get_sft_collate_fn()(samples)

    def loss(self, logits: Tensor | list[Tensor], targets: Tensor, **kwargs: Any) -> Tensor:
        value = chunked_cross_entropy(logits, targets, **kwargs)
        if isinstance(logits, list):  # in training; validation gives one tensor
            loss_tokens = int((targets != -100).sum())
            self.sums.append(value.item() * loss_tokens)
            self.loss_tokens.append(loss_tokens)
        return value

    def step(self) -> None:
        members = self.report.plan["steps"][len(self.report.steps)]
        loss_tokens = sum(self.report.plan["loss_tokens"][row] for row in members)
        assert sum(self.loss_tokens) == loss_tokens, (
            f"LitGPT had {sum(self.loss_tokens)} loss tokens, not the {loss_tokens} of the plan"
        )
        self.report.step(sum(self.sums) / loss_tokens, rows=members)
        self.sums.clear()
        self.loss_tokens.clear()

    def get_last_lr(self) -> list[float]:
        return [LEARNING_RATE]


def lit_config(model: Path) -> Config:
    shape = json.loads((model / "config.json").read_text())
    return Config(
        name="reference",
        block_size=MAX_LENGTH,
        n_layer=shape["num_hidden_layers"],
        n_embd=shape["hidden_size"],
        n_head=shape["num_attention_heads"],
        n_query_groups=shape["num_key_value_heads"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        intermediate_size=shape["intermediate_size"],
        rotary_percentage=1.0,
        rope_base=int(shape["rope_parameters"]["rope_theta"]),
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=shape["rms_norm_eps"],
        mlp_class_name="LLaMAMLP",
        lora_r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        lora_query=True,
        lora_key=True,
        lora_value=True,
        lora_projection=True,
        lora_mlp=True,
        lora_head=False,
    )


def main() -> None:
    options = arguments(__doc__.split("\n")[0], list(DESCRIPTIONS))
    plan = json.loads(options.plan.read_text())
    watch = Watch(Report(plan, DESCRIPTIONS[options.setting]))
    micro = plan["rows_per_step"] if options.setting == "batch" else 1
    train = TrainArgs(
        save_interval=None,
        global_batch_size=plan["rows_per_step"],
        micro_batch_size=micro,
        lr_warmup_steps=0,
        epochs=10**9,
        max_steps=options.steps,
        max_seq_length=MAX_LENGTH,
    )
    evaluation = EvalArgs(interval=10**9, max_new_tokens=1, max_iters=1, initial_validation=False)

    fabric = L.Fabric(accelerator="cpu", devices=1, precision="bf16-true")
    fabric.seed_everything(SEED)
    data = Rows(options.rows, watch.collate)
    train_rows, val_rows = finetune.get_dataloaders(fabric, data, Tokenizer(options.model), train)
    config = lit_config(options.model)
    with fabric.init_module(empty_init=False):
        model = GPT(config)
    mark_only_lora_as_trainable(model)
    weights: dict[str, Tensor] = {}
    copy_weights_hf_llama(config, {}, weights, load_file(options.model / "model.safetensors"))
    model.load_state_dict(weights, strict=False)
    model = fabric.setup_module(model)
    optimizer = instantiate_torch_optimizer(
        {"class_path": "torch.optim.AdamW", "init_args": {"lr": LEARNING_RATE, "weight_decay": 0.0}},
        model.parameters(),
    )
    optimizer = fabric.setup_optimizers(optimizer)
    finetune.chunked_cross_entropy = watch.loss
    with tempfile.TemporaryDirectory() as out:
        finetune.fit(
            fabric=fabric,
            model=model,
            optimizer=optimizer,
            scheduler=watch,
            train_dataloader=train_rows,
            val_dataloader=val_rows,
            devices=1,
            checkpoint_dir=options.model,
            out_dir=Path(out),
            train=train,
            eval=evaluation,
            data=data,
        )
    watch.report.write(options.out, ["torch", "litgpt", "lightning"])


if __name__ == "__main__":
    main()
