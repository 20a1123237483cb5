"""What generation_speed.py runs on: a random Llama, GGUF files of its and SmolLM2's weights, and LoRA adapters."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SMOLLM2, LLAMA = "smollm2-135m-instruct", "random-llama-124m"
MODELS = (SMOLLM2, LLAMA)
LLAMA_SHAPE = {
    "vocab_size": 32_000, "hidden_size": 768, "intermediate_size": 2_560, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 2_048, "tie_word_embeddings": True,
}  # fmt: skip
"""GPT-2 small's shape, with Llama's blocks: 123.7 million weights."""

RANKS = (4, 8, 16, 32)
"""Adapter n has rank RANKS[n % 4]."""


def make_llama(directory: Path, shape: dict[str, Any]) -> None:
    """A Llama with weights from a normal distribution, stored in bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape)).bfloat16().save_pretrained(directory)


def model_config(model: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return config


def matrix_weights(config: dict[str, Any], with_output: bool = True) -> int:
    """How many weights of a Llama a token is multiplied with; a prompt's tokens, but the last, need no output layer."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv_hidden = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    block = 2 * hidden * hidden + 2 * hidden * kv_hidden + 3 * hidden * inner
    return int(config["num_hidden_layers"] * block + with_output * hidden * config["vocab_size"])


def token_cache_bytes(config: dict[str, Any]) -> int:
    """The bytes of one token's keys and values in fp32."""
    kv_hidden = config["hidden_size"] // config["num_attention_heads"] * config["num_key_value_heads"]
    return int(4 * 2 * config["num_hidden_layers"] * kv_hidden)


def gguf_file(directory: Path, model: Path, precision: str) -> Path:
    return directory / f"{model.name}-{precision}.gguf"


def write_gguf(model: Path, file: Path, precision: str) -> None:
    """A Llama's weights as llama.cpp reads them: its matrices in `precision`, its vectors in F32.

    Requests are token ids, so the vocabulary is one of placeholders.

    Args:
        model: the directory of the model, in safetensors.
        file: to write.
        precision: a name of `GGMLQuantizationType`.
    """
    import numpy as np
    from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quantize
    from safetensors.torch import load_file

    config = model_config(model)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    _add_placeholders(writer, config["vocab_size"])
    kind = GGMLQuantizationType[precision]
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(model / "model.safetensors").items():
        values = tensor.float().numpy()
        for part, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if f".{part}." in name:
                values = _interleaved(values, count)
        own = names.get_name(name, try_suffixes=(".weight",)) or name
        if values.ndim == 1:
            writer.add_tensor(own, values.astype(np.float32))
        else:
            writer.add_tensor(own, quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleaved(matrix: Any, heads: int) -> Any:
    """A (heads × dim, in) matrix of queries or keys in llama.cpp's order: it rotates neighbors, not the two halves."""
    return matrix.reshape(heads, 2, -1, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)


def _add_placeholders(writer: Any, size: int) -> None:
    """A vocabulary in which token n reads <n>, and the first 259 are as SentencePiece has them."""
    from gguf import TokenType

    start = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    tokens = start + [f"<{number}>" for number in range(len(start), size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(size)])
    writer.add_token_types(kinds + [TokenType.NORMAL] * (size - len(kinds)))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def add_adapters(adapters: Any, sizes: dict[str, tuple[int, int]], directory: Path, names: Sequence[str]) -> None:
    """Write random adapters, unless they are there, and load them.

    Args:
        adapters: the engine's shelf.
        sizes: (in, out) of each of the base's layers by its name.
        directory: for their files.
        names: of the adapters; the number at the end decides the rank.
    """
    for name in names:
        write_adapter(directory / name, sizes)
        adapters.add(name, directory / name)


def write_adapter(directory: Path, sizes: dict[str, tuple[int, int]], base: str | None = None) -> None:
    """Write a LoRA adapter with random numbers on every linear layer of the blocks, unless it is there.

    Args:
        directory: for its files; the number at the end of its name decides the rank.
        sizes: (in, out) of each of the base's layers by its name.
        base: what the adapter is for, by name or path.
    """
    import torch
    from safetensors.torch import save_file

    number = int(directory.name.removeprefix("adapter"))
    rank = RANKS[number % len(RANKS)]
    if directory.exists():
        return
    torch.manual_seed(number)
    weights = {}
    for layer, (inputs, outputs) in sizes.items():
        if ".layers." in layer:
            weights[f"base_model.model.{layer}.lora_A.weight"] = torch.randn(rank, inputs) / inputs**0.5
            weights[f"base_model.model.{layer}.lora_B.weight"] = torch.randn(outputs, rank) * 0.01
    directory.mkdir(parents=True)
    save_file(weights, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": base}
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
