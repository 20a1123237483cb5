"""Write a model as a Hugging Face directory: its weights as they are stored, or in bitsandbytes' 8 or 4 bits."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from tunesmith.config.head import write_users_head
from tunesmith.errors import UserError
from tunesmith.exporting.merged_model import refuse_existing
from tunesmith.exporting.subject import Subject
from tunesmith.models.architecture import linears_in_blocks
from tunesmith.models.load import stored_dtype
from tunesmith.models.quiet import no_progress_bars
from tunesmith.modules.transposed_linear import as_stored
from tunesmith.ops.quantized import BLOCK, SCALE_BLOCK, Quantized, code_points, quantize
from tunesmith.run import Events, atomic_directory

Bits = Literal["int8", "nf4"]


@contextmanager
def _directory(output: Path, subject: Subject, card: str) -> Iterator[Path]:
    """A directory with all but the weights and the config, which appears completely or not at all.

    Raises:
        UserError: it exists, or cannot be written.
    """
    refuse_existing(output)
    try:
        with atomic_directory(output) as partial, no_progress_bars():
            yield partial
            if subject.generation is not None:
                subject.generation.save_pretrained(partial)
            subject.tokenizer.save_pretrained(partial)
            if subject.reference.directory is not None:
                subject.reference.head.copy(subject.reference.directory, partial)
            write_users_head(subject.reference.head, partial)
            (partial / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}.") from None


def write_full(output: Path, subject: Subject, card: str) -> None:
    """Write the model in the dtype that its base is stored in.

    Raises:
        UserError: the output exists or cannot be written, or a weight is too large for the dtype.
    """
    model = subject.model.to(stored_dtype(subject.reference.base))
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise UserError(f"{name} is too large for {model.dtype}. Merge it: tunesmith merge … --precision bf16.")
    with _directory(output, subject, card) as partial:
        as_stored(model).save_pretrained(partial)


def write_quantized(output: Path, subject: Subject, card: str, bits: Bits, events: Events) -> None:
    """Write the model with the linear layers of its blocks in bitsandbytes' format, which transformers loads.

    Args:
        output: the directory, which must not exist.
        subject: the model.
        card: its README.md.
        bits: `int8`, one scale for each row; or `nf4`, one for each 64 numbers, which are quantized too.
        events: receives `progress`, in layers.

    Raises:
        UserError: the output exists or cannot be written.
    """
    model = subject.model
    dtype = stored_dtype(subject.reference.base)
    dtype = torch.bfloat16 if dtype == torch.float32 else dtype
    chosen = {layer.name for layer in linears_in_blocks(model)}
    kept = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name not in chosen]
    config = json.loads(model.config.to_json_string(use_diff=False))
    config |= {"dtype": str(dtype).removeprefix("torch."), "architectures": [type(model).__name__]}
    config["quantization_config"] = _settings(bits, kept, dtype)
    weights: dict[str, Tensor] = {}
    done = 0
    is_tied = model.config.get_text_config().tie_word_embeddings
    for name, values in model.state_dict().items():
        layer, _, parameter = name.rpartition(".")
        if is_tied and layer == "lm_head":
            continue
        if parameter != "weight" or layer not in chosen:
            weights[name] = values.to(dtype) if values.is_floating_point() else values
            continue
        weights |= _STORED[bits](name, quantize(values, bits, double_quantization=True), dtype)
        done += 1
        events.emit("progress", what=f"{bits}, layers", done=done, total=len(chosen))
    with _directory(output, subject, card) as partial:
        save_torch_state_dict(weights, partial, metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


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
