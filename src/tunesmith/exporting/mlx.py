"""Write a model for MLX on Apple's chips, in the format of mlx-lm: 4 or 8 bits in groups of 64 numbers.

A group of a row is stored as integers q with one scale and one bias, w ≈ scale · q + bias
(https://ml-explore.github.io/mlx/build/html/python/_autosummary/mlx.core.quantize.html).
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PretrainedConfig

from tunesmith.errors import UserError
from tunesmith.exporting.huggingface import stored_config, stored_names, written_directory
from tunesmith.exporting.subject import Subject
from tunesmith.run import Events

GROUP = 64
"""Numbers with one scale and one bias."""

WORD = 32
"""Bits of an integer that codes are packed into, the first code in the lowest bits."""

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi3")
"""Those that mlx-lm computes as transformers does, from tensors with the same names."""

ROTATIONS = ("default", "linear", "llama3")


def write_mlx(output: Path, subject: Subject, card: str, bits: int, events: Events) -> None:
    """Write the model with its linear layers and embeddings in `bits` bits.

    Args:
        output: the directory, which must not exist.
        subject: the model.
        card: its README.md.
        bits: 4 or 8.
        events: receives `progress`, in layers.

    Raises:
        UserError: mlx-lm computes something else, or the adapter cannot be merged.
        OSError: the output cannot be written.
    """
    model, dtype = subject.model, subject.written_dtype
    family = model.config.get_text_config().model_type
    if family not in FAMILIES or not subject.reference.head.generates_text:
        raise UserError(
            f"--to mlx is not for this {family} model. Export it to hf, or use one of {', '.join(FAMILIES)}."
        )
    rope = _rotary(model.config.get_text_config())
    kind = "default" if rope["rope_scaling"] is None else rope["rope_scaling"]["rope_type"]
    if kind not in ROTATIONS:
        raise UserError(f"--to mlx is not for rotary embeddings of the kind {kind}. Export the model to hf.")
    chosen = {
        f"{name}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Embedding) and layer.weight.shape[1] % GROUP == 0
    }
    weights: dict[str, Tensor] = {}
    names = stored_names(subject)
    for done, name in enumerate(names, 1):
        values = subject.weights[name]
        parts = quantize_groups(values.float(), bits, dtype) if name in chosen else {"weight": values.to(dtype)}
        weights |= {
            name: parts.pop("weight"),
            **{f"{name.removesuffix('weight')}{part}": parts[part] for part in parts},
        }
        events.emit("progress", what=f"mlx, {bits} bits, tensors", done=done, total=len(names))
    config = stored_config(subject, dtype) | rope
    config |= {"quantization": {"group_size": GROUP, "bits": bits, "mode": "affine"}}
    with written_directory(output, subject, card) as partial:
        save_torch_state_dict(weights, partial, metadata={"format": "mlx"})
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _rotary(config: PretrainedConfig) -> dict[str, Any]:
    """The rotary embeddings under the names that mlx-lm reads, which were transformers' before version 5."""
    rope: dict[str, Any] = config.rope_parameters or {}
    full, local = rope.get("full_attention", rope), rope.get("sliding_attention")
    scaling = None if full.get("rope_type", "default") == "default" else full
    found = {"rope_theta": full.get("rope_theta", 10_000.0), "rope_scaling": scaling}
    return found if local is None else found | {"rope_local_base_freq": local["rope_theta"]}


def quantize_groups(values: Tensor, bits: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """A matrix as MLX stores it.

    The end of a group's range that is farther from zero is stored exactly, and zero if it is in the range.

    Args:
        values: (out, in) fp32.
        bits: 4 or 8.
        dtype: of scales and biases.

    Returns:
        weight (out, in · bits / 32) uint32, scales and biases (out, in / 64).
    """
    groups = values.reshape(len(values), -1, GROUP)
    most = 2**bits - 1
    low, high = groups.amin(-1), groups.amax(-1)
    is_low = low.abs() > high.abs()
    scales = ((high - low) / most).clamp(min=1e-7) * torch.where(is_low, 1, -1)
    biases = torch.where(is_low, low, high)
    steps = (biases / scales).round()
    scales = torch.where(steps != 0, biases / steps, scales).to(dtype)
    biases = torch.where(steps != 0, biases, 0).to(dtype)
    codes = ((groups - biases[..., None].float()) / scales[..., None].float()).round().clamp(0, most).long()
    words = codes.reshape(len(values), -1, WORD // bits) << torch.arange(0, WORD, bits)
    return {"weight": words.sum(-1).to(torch.uint32), "scales": scales, "biases": biases}
