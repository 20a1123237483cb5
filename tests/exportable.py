"""Small models of the families that can be exported, in sizes that llama.cpp computes."""

from pathlib import Path
from typing import Any

import torch
from bytewise import CHATML
from small_gguf import TEXTS, bpe_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

ROTARY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4}
FACTORS = {"short_factor": [1.0 + n / 16 for n in range(16)], "long_factor": [2.0 + n / 16 for n in range(16)]}
WINDOWS = {"sliding_window": 6, "query_pre_attn_scalar": 32}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", ROTARY | {"attention_bias": True}),
    "llama with scaled positions": (
        "llama",
        ROTARY | {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}},
    ),
    "llama with linear scaling": (
        "llama",
        ROTARY | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "mistral": ("mistral", ROTARY | {"head_dim": 64}),
    "qwen2": ("qwen2", ROTARY | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", ROTARY | {"head_dim": 64}),
    "gemma": ("gemma", ROTARY),
    "gemma2": ("gemma2", ROTARY | WINDOWS | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}),
    "gemma3": (
        "gemma3_text",
        ROTARY | WINDOWS | {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    ),
    "phi3": ("phi3", ROTARY | {"sliding_window": None}),
    "phi3 with long factors": (
        "phi3",
        ROTARY
        | {"sliding_window": None, "original_max_position_embeddings": 256}
        | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **FACTORS}},
    ),
    "granite": (
        "granite",
        ROTARY
        | {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "attention_multiplier": 0.2},
    ),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_inner": 96, "n_positions": 512}),
}


def config_of(family: str, settings: dict[str, Any], vocabulary: int) -> PretrainedConfig:
    ids = {"bos_token_id": 316, "eos_token_id": 317, "pad_token_id": 318}
    return AutoConfig.for_model(family, **{"vocab_size": vocabulary, "initializer_range": 0.2, **ids, **settings})


def randomized(model: Any) -> Any:
    """Norms and biases differ from their usual values, so that a forgotten one shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def saved(directory: Path, family: str, settings: dict[str, Any]) -> Any:
    """A small model with random weights in a directory, with a chat template."""
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    model = randomized(AutoModelForCausalLM.from_config(config_of(family, settings, len(tokenizer))))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """RoBERTa's kind: GPT-2's rules, and a token at both ends of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("cls", "pad", "sep", "unk", "mask"), special, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        **{f"{name}_token": token for name, token in names.items()},
    )
