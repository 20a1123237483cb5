"""Small models as GGUF files, written as llama.cpp's converter does, by the gguf package."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from bytewise import CHATML
from families import config_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

Kind = gguf.GGMLQuantizationType
SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TEXTS = [
    "The quick brown fox, and the other one.",
    "  two  spaces\n\n\tand a tab",
    "Grüße, Ελλάδα, 日本語 🙂",
    "<|im_start|>user\nWhat is 12 + 345?<|im_end|>\n<|endoftext|>",
    "",
]
CONTROL, NORMAL = 3, 1
NORMS_PLUS_ONE = {"gemma2", "gemma3"}


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges and ChatML's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=316, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, "the other brown weather is there, and user and what"] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[0]
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    return fast


def small_source(family: str, **more: Any) -> Any:
    """A small model whose weights, norms and biases included, are random and exact in bf16."""
    tokenizer = bpe_tokenizer()
    config = config_of(family, len(tokenizer), initializer_range=0.2, **more)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randint(-8, 8, weight.shape) / 64)
            weight.copy_(weight.bfloat16())
    return model


def write_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, template: str | None) -> None:
    """Write a byte-level BPE as llama.cpp's converter does."""
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in SPECIAL else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if template is not None:
        writer.add_chat_template(template)


def write_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.hidden_size // config.num_attention_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)


def as_llama_cpp(name: str, weight: np.ndarray, config: Any) -> np.ndarray:
    """What llama.cpp's converter changes: Llama's order of queries and keys, and Gemma's norms."""
    if config.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        return halves.swapaxes(1, 2).reshape(weight.shape)
    if config.model_type in NORMS_PLUS_ONE and name.endswith("norm.weight"):
        return weight + 1
    return weight


def write_gguf(
    path: Path,
    model: Any,
    kind: Kind = Kind.F32,
    template: str | None = CHATML,
    tokenizer: PreTrainedTokenizerFast | None = None,
    extra: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    without: str = "no tensor",
) -> Path:
    """Write the model as llama.cpp's converter does, matrices in this kind. Returns the path."""
    family = model.config.model_type
    writer = gguf.GGUFWriter(path, family)
    write_sizes(writer, model.config)
    write_tokenizer(writer, tokenizer or bpe_tokenizer(), template)
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    for name, weight in model.state_dict().items():
        if name not in tied and without not in name:
            values = as_llama_cpp(name, weight.numpy(), model.config)
            stored = kind if weight.ndim == 2 else Kind.F32
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(target, gguf.quantize(values, stored), raw_dtype=stored)
    extra(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
