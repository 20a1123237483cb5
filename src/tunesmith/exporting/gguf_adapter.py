"""Write a LoRA adapter as a GGUF file, which llama.cpp adds to a model's weights when it loads them."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.exporting.gguf_family import Layout
from tunesmith.exporting.gguf_mix import FLOATS, MIXES
from tunesmith.exporting.gguf_model import opened, write_origin
from tunesmith.exporting.gguf_quantizer import bytes_of, quantize
from tunesmith.exporting.subject import Subject
from tunesmith.models.load import config_of, skeleton
from tunesmith.run import atomic_file

_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def write_adapter(path: Path, subject: Subject, mix: str) -> None:
    """Write the adapter alone, completely or not at all. Its base is read only as far as its config.

    Args:
        path: of the file.
        subject: a run or an adapter.
        mix: f32, f16 or bf16.

    Raises:
        UserError: there is no LoRA adapter, it changes more than linear layers, or llama.cpp has no such layers.
    """
    if mix not in MIXES or MIXES[mix].most not in FLOATS:
        raise UserError(f"--to gguf:{mix} is not for adapters. Use gguf:f16, gguf:bf16 or gguf:f32.")
    settings = _settings(subject)
    base = subject.reference.base
    layout = Layout.of(config_of(base), skeleton(base, subject.reference.head).base_model_prefix)
    factors = list(_factors(subject, settings, layout))
    with atomic_file(path) as partial, opened(partial, layout) as writer:
        write_origin(writer, subject)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings["lora_alpha"]))
        writer.add_file_type(MIXES[mix].file_type)
        kind = MIXES[mix].most
        for name, values in factors:
            shape = tuple(values.shape)
            writer.add_tensor_info(name, shape, np.dtype(np.float32), bytes_of(shape, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, values in factors:
            writer.write_tensor_data(quantize(values.contiguous().numpy(), kind))


def _settings(subject: Subject) -> dict[str, Any]:
    """The adapter's config, if llama.cpp can apply such an adapter."""
    directory = subject.reference.adapter
    if directory is None:
        raise UserError(f"{subject.name} has no adapter. Leave out --adapter-only.")
    settings: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    reasons = {
        f"its method is {settings['peft_type']}": settings["peft_type"] != "LORA",
        "it is DoRA": settings.get("use_dora"),
        "it trains biases": settings.get("bias", "none") != "none",
        "it trains complete modules too": settings.get("modules_to_save"),
        "its initialization changed the base": settings.get("init_lora_weights") not in (True, False, "gaussian"),
    }
    refused = next((reason for reason, is_so in reasons.items() if is_so), None)
    if refused is not None:
        raise UserError(f"{directory} cannot become a GGUF adapter: {refused}. Leave out --adapter-only to merge it.")
    return settings


def _factors(subject: Subject, settings: dict[str, Any], layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """A (rank, in) and B (out, rank) of each layer, fp32, under llama.cpp's names.

    llama.cpp multiplies B A by alpha / rank. What is scaled in another way has the rest in B.
    """
    directory = Path(str(subject.reference.adapter))
    with safe_open(directory / "adapter_model.safetensors", framework="pt") as tensors:
        for key in sorted(tensors.keys()):
            found = _FACTOR.fullmatch(key)
            target = None if found is None else layout.name(f"{found[1]}.weight")
            if found is None or target is None:
                raise UserError(
                    f"{directory} cannot become a GGUF adapter: llama.cpp has no place for {key}. Leave out "
                    "--adapter-only to merge it."
                )
            values = tensors.get_tensor(key).float()
            if found[2] == "B":
                rank = values.shape[1]
                rest = _scale(settings, found[1], rank) / (settings["lora_alpha"] / rank)
                values = layout.values(f"{found[1]}.weight", values) * rest
            yield f"{target}.lora_{found[2].lower()}", values


def _scale(settings: dict[str, Any], layer: str, rank: int) -> float:
    """What B A is multiplied by in PEFT."""
    patterns = settings.get("alpha_pattern") or {}
    own = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?{pattern}", layer))
    alpha = float(next(own, settings["lora_alpha"]))
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
