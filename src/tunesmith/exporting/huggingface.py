"""Write a model as a Hugging Face directory: its weights as they are stored, or in bitsandbytes' 8 or 4 bits."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from tunesmith.exporting.subject import Subject
from tunesmith.exporting.weight_files import save_weights
from tunesmith.heads.head_file import write_users_head
from tunesmith.models.architecture import linears_in_blocks
from tunesmith.models.quiet import no_progress_bars
from tunesmith.ops.quantized import BLOCK, SCALE_BLOCK, Quantized, code_points, quantize
from tunesmith.run import Events, atomic_directory

Bits = Literal["int8", "nf4"]


@contextmanager
def written_directory(output: Path, subject: Subject, card: str) -> Iterator[Path]:
    """A directory with all but the weights and the config, which appears completely or not at all."""
    with atomic_directory(output) as partial, no_progress_bars():
        yield partial
        if subject.generation is not None:
            subject.generation.save_pretrained(partial)
        subject.tokenizer.save_pretrained(partial)
        if subject.reference.directory is not None:
            subject.reference.head.copy(subject.reference.directory, partial)
        write_users_head(subject.reference.head, partial)
        if subject.merging.ways:
            (partial / "merge.json").write_text(json.dumps(asdict(subject.merging), indent=2) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(card, encoding="utf-8")


def write_full(output: Path, subject: Subject, card: str) -> None:
    """Write the model with unquantized weights, in the subject's dtype.

    Args:
        output: the directory, which must not exist.
        subject: the model.
        card: its README.md.

    Raises:
        UserError: a weight is too large for the dtype, or the adapter cannot be merged.
        OSError: the output cannot be written.
    """
    with written_directory(output, subject, card) as partial:
        save_weights(subject.weights, partial, subject.written_dtype)


def write_quantized(output: Path, subject: Subject, card: str, bits: Bits, events: Events) -> None:
    """Write the model with the linear layers of its blocks in bitsandbytes' format, which transformers loads.

    Args:
        output: the directory, which must not exist.
        subject: the model.
        card: its README.md.
        bits: `int8`, one scale for each row; or `nf4`, one for each 64 numbers, which are quantized too.
        events: receives `progress`, in layers.

    Raises:
        UserError: the adapter cannot be merged.
        OSError: the output cannot be written.
    """
    model = subject.model
    dtype = subject.written_dtype
    dtype = torch.bfloat16 if dtype == torch.float32 else dtype
    chosen = {layer.name for layer in linears_in_blocks(model)}
    kept = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name not in chosen]
    config = stored_config(subject, dtype) | {"quantization_config": _settings(bits, kept, dtype)}
    weights: dict[str, Tensor] = {}
    done = 0
    for name in stored_names(subject):
        layer, _, parameter = name.rpartition(".")
        values = subject.weights[name]
        if parameter != "weight" or layer not in chosen:
            weights[name] = values.to(dtype) if values.is_floating_point() else values
            continue
        weights |= _STORED[bits](name, quantize(values, bits, double_quantization=True), dtype)
        done += 1
        events.emit("progress", what=f"{bits}, layers", done=done, total=len(chosen))
    with written_directory(output, subject, card) as partial:
        save_torch_state_dict(weights, partial, metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def stored_config(subject: Subject, dtype: torch.dtype) -> dict[str, Any]:
    """The content of config.json."""
    config: dict[str, Any] = json.loads(subject.model.config.to_json_string(use_diff=False))
    return config | {"dtype": str(dtype).removeprefix("torch."), "architectures": [type(subject.model).__name__]}


def stored_names(subject: Subject) -> list[str]:
    """The names of the tensors to store: without an output that is the embeddings too."""
    is_tied = subject.model.config.get_text_config().tie_word_embeddings
    return [name for name in subject.weights if not (is_tied and name.startswith("lm_head."))]


def _settings(bits: Bits, kept: list[str], dtype: torch.dtype) -> dict[str, Any]:
    """bitsandbytes' part of the config, as transformers writes it."""
    from transformers import BitsAndBytesConfig

    if bits == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=kept,
        )
    settings: dict[str, Any] = config.to_dict()
    return settings


def _int8(name: str, weight: Quantized, dtype: torch.dtype) -> dict[str, Tensor]:
    """bitsandbytes' Linear8bitLt: codes, and the largest magnitude of each row."""
    layer = name.removesuffix("weight")
    return {
        name: weight.codes,
        f"{layer}SCB": weight.scales,
        f"{layer}weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def _nf4(name: str, weight: Quantized, dtype: torch.dtype) -> dict[str, Tensor]:
    """bitsandbytes' Linear4bit: codes, and its quantization state as tensors."""
    functional = import_module("bitsandbytes.functional")
    scales = functional.QuantState(
        absmax=weight.scale_scales, blocksize=SCALE_BLOCK, code=functional.create_dynamic_map(), dtype=torch.float32
    )
    state = functional.QuantState(
        absmax=weight.scales,
        shape=torch.Size(weight.shape),
        code=code_points("nf4", torch.device("cpu")),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=dtype,
        offset=weight.scale_offset,
        state2=scales,
    )
    parts: dict[str, Tensor] = state.as_dict(packed=True)
    # A copy each: a tensor that several layers share would be stored for the first one only.
    return {name: weight.codes, **{f"{name}.{part}": values.clone() for part, values in parts.items()}}


_STORED = {"int8": _int8, "nf4": _nf4}
