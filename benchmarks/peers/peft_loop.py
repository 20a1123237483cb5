"""The loop that many users write themselves: transformers, PEFT for its methods, AdamW, all in bf16, no trainer.

Settings:
    rows   one row at a time, with gradient accumulation over the step
    batch  all rows of the step in one batch, padded on the right to the longest
"""

import json
from pathlib import Path

import torch
from measured import (
    ALPHA,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    MAX_LENGTH,
    RANK,
    SEED,
    VIRTUAL_TOKENS,
    Report,
    arguments,
    read_rows,
)
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

DESCRIPTIONS = {
    "rows": "pure bf16, one row at a time with accumulation",
    "batch": "pure bf16, a step's rows in one padded batch",
}


def encode(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> tuple[Tensor, Tensor]:
    """Token ids and labels of a conversation; tokens that are not the assistant's have the label -100."""
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = torch.tensor(encoded["input_ids"])[:MAX_LENGTH]
    loss_mask = torch.tensor(encoded["assistant_masks"], dtype=torch.bool)[:MAX_LENGTH]
    return ids, torch.where(loss_mask, ids, -100)


def peft_model(method: str, path: Path) -> PreTrainedModel | PeftModel:
    """The model with the method's trainable parameters."""
    quantized = None
    if method == "qlora":
        quantized = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, quantization_config=quantized)
    if method == "full":
        return model
    configs = {
        "ia3": IA3Config(task_type="CAUSAL_LM"),
        "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL_TOKENS),
    }
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, configs.get(method, lora), autocast_adapter_dtype=False)


def main() -> None:
    options = arguments(__doc__.split("\n")[0], list(DESCRIPTIONS))
    plan = json.loads(options.plan.read_text())
    report = Report(plan, DESCRIPTIONS[options.setting])
    torch.manual_seed(SEED)

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = [encode(tokenizer, messages) for messages in read_rows(options.rows)]
    model = peft_model(options.method, options.model)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    report.begin()
    for step in range(options.steps):
        members = plan["steps"][step % len(plan["steps"])]
        loss_tokens = sum(int((rows[row][1][1:] != -100).sum()) for row in members)
        total = 0.0
        for batch in [members] if options.setting == "batch" else [[row] for row in members]:
            ids = pad_sequence([rows[row][0] for row in batch], True, tokenizer.pad_token_id)
            labels = pad_sequence([rows[row][1] for row in batch], True, -100)
            mask = pad_sequence([torch.ones_like(rows[row][0]) for row in batch], True, 0)
            loss = model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=loss_tokens).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        report.step(total, rows=members)
    report.write(options.out, ["torch", "transformers", "peft"])


if __name__ == "__main__":
    main()
