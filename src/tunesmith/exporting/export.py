"""Export a model in the format of another engine, with its chat template, stop tokens and defaults."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import torch

from tunesmith.engine.allocator import keep_freed_memory
from tunesmith.errors import UserError
from tunesmith.exporting.card import model_card
from tunesmith.exporting.gguf_adapter import write_adapter
from tunesmith.exporting.gguf_mix import MIXES
from tunesmith.exporting.gguf_model import Importance, check_mix, layout_of, write_model
from tunesmith.exporting.huggingface import write_full, write_quantized
from tunesmith.exporting.importance import importance
from tunesmith.exporting.merging import Merging
from tunesmith.exporting.mlx import write_mlx
from tunesmith.exporting.ollama import modelfile
from tunesmith.exporting.subject import Subject
from tunesmith.run import Events, Subscriber, atomic_directory, atomic_write, refuse_existing, writing

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By `--precision`."""


class Options(TypedDict, total=False):
    """How a model is written.

    Attributes:
        precision: of `hf`: the weights' dtype, fp32, bf16 or fp16. Default: the base's own.
        importance_rows: of a GGUF file: how many of the run's training rows measure which inputs matter, by which
            errors of quantization are weighted. 0, the default: all inputs weigh the same.
        adapter_only: write a LoRA adapter without its base, as a GGUF file in f32 (the default), f16 or bf16.
    """

    precision: str | None
    importance_rows: int
    adapter_only: bool


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of `export`.

    Attributes:
        path: what was written: a directory, or a GGUF file.
        card: its model card.
        to: the format, such as `gguf:q8_0`.
        merging: how the adapter was merged, with the measured ways if its base was quantized in training.
    """

    path: Path
    card: Path
    to: str
    merging: Merging


@dataclass(frozen=True, slots=True)
class Request:
    """What `export` was asked for.

    Attributes:
        subject: the model.
        output: the path to write.
        mix: the numbers of a GGUF file; None if none were named.
        importance_rows: how many of the run's rows weight the errors of quantization.
        adapter_only: whether to write the adapter without its base.
        events: receives `progress`.
    """

    subject: Subject
    output: Path
    mix: str | None
    importance_rows: int
    adapter_only: bool
    events: Events


@keep_freed_memory()
def export(
    run: str | Path,
    output: str | Path,
    to: str,
    *,
    subscribers: Sequence[Subscriber] = (),
    **options: Unpack[Options],
) -> Exported:
    """Write a model for another engine. An adapter is merged into its base in fp32, and the sum is rounded once.

    The chat template, the tokens that end an answer, the token that begins a text, the defaults for generation and a
    model card are part of every format.

    Args:
        run: a run, an adapter, a model directory or a name of a base.
        output: the file (`gguf`) or directory to write, which must not exist.
        to: `hf`, a Hugging Face directory; `int8` or `nf4`, the same in bitsandbytes' format; `gguf:KIND`, a file for
            llama.cpp in q8_0 (the default), q4_k_m, f16 or another of `tunesmith.exporting.gguf_mix.MIXES`;
            `ollama:KIND`, a directory for `ollama create`; `mlx:q4` (the default) or `mlx:q8`, a directory for mlx-lm.
        subscribers: receive `progress` events (what, done, total).
        options: see `Options`.

    Returns:
        What was written.

    Raises:
        UserError: the format or its kind does not exist or does not fit the model, the model cannot be merged, or the
            output exists or cannot be written.
    """
    format, _, mix = to.lower().partition(":")
    if format not in FORMATS or (mix and format not in WITH_KINDS):
        raise UserError(f"--to {to} does not exist. Use one of {', '.join(FORMATS)}, with gguf:q4_k_m or another kind.")
    precision, importance_rows = options.get("precision"), options.get("importance_rows", 0)
    adapter_only = options.get("adapter_only", False)
    if (importance_rows or adapter_only) and format not in ("gguf", "ollama"):
        raise UserError(f"--to {to} takes neither --importance-rows nor --adapter-only. They are for gguf.")
    if precision is not None and format != "hf":
        raise UserError(f"--to {to} takes no --precision. It is for hf.")
    if precision is not None and precision not in DTYPES:
        raise UserError(f"--precision {precision} does not exist. Use one of {', '.join(DTYPES)}.")
    target = Path(output)
    refuse_existing(target)
    subject = Subject.find(str(run), target.parent, DTYPES.get(precision or ""))
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        request = Request(subject, target, mix or None, importance_rows, adapter_only, Events(*subscribers))
        card, done = FORMATS[format](request)
    return Exported(target, card, done, Merging() if adapter_only else subject.merging)


def _hf(request: Request) -> tuple[Path, str]:
    write_full(request.output, request.subject, _transformers_card(request, "Hugging Face's format"))
    return request.output / "README.md", "hf"


def _int8(request: Request) -> tuple[Path, str]:
    card = _transformers_card(request, "8 bits, in bitsandbytes' format")
    write_quantized(request.output, request.subject, card, "int8", request.events)
    return request.output / "README.md", "int8"


def _nf4(request: Request) -> tuple[Path, str]:
    card = _transformers_card(request, "4 bits (NF4, double quantization), in bitsandbytes' format")
    write_quantized(request.output, request.subject, card, "nf4", request.events)
    return request.output / "README.md", "nf4"


def _mlx(request: Request) -> tuple[Path, str]:
    """A directory for mlx-lm."""
    mix = request.mix or "q4"
    if mix not in MLX_BITS:
        raise UserError(f"--to mlx:{mix} does not exist. Use one of {', '.join(f'mlx:{each}' for each in MLX_BITS)}.")
    use = f"```\nmlx_lm.generate --model {request.output.name} --prompt …\n```"
    card = model_card(request.subject, f"MLX, {MLX_BITS[mix]} bits", "mlx", use)
    write_mlx(request.output, request.subject, card, MLX_BITS[mix], request.events)
    return request.output / "README.md", f"mlx:{mix}"


def _transformers_card(request: Request, form: str) -> str:
    kind = request.subject.reference.head.model_class(request.subject.model.config).__name__
    use = f"```python\ntransformers.{kind}.from_pretrained({request.output.name!r})\n```"
    return model_card(request.subject, form, "transformers", use)


def _gguf(request: Request) -> tuple[Path, str]:
    """The file, and its card beside it."""
    mix = request.mix or ("f32" if request.adapter_only else "q8_0")
    if mix in MIXES and request.output.suffix != ".gguf":
        raise UserError(f"gguf is one file. Give it a name that ends in .gguf: {request.output.name}.gguf.")
    card = request.output.with_suffix(".md")
    refuse_existing(card)
    if request.adapter_only:
        write_adapter(request.output, request.subject, mix)
        use = f"```\nllama-server -m BASE.gguf --lora {request.output.name}\n```"
    else:
        write_model(request.output, request.subject, mix, _importance(request, mix), request.events)
        use = f"```\nllama-server -m {request.output.name}\n```"
    form = f"GGUF, {mix.upper()}" + (", the adapter alone" if request.adapter_only else "")
    with atomic_write(card) as file:
        relation = "adapter" if request.adapter_only else "finetune"
        file.write(model_card(request.subject, form, "llama.cpp", use, relation))
    return card, f"gguf:{mix}"


def _ollama(request: Request) -> tuple[Path, str]:
    """A directory of a GGUF file and its Modelfile."""
    if request.adapter_only:
        raise UserError("--to ollama takes no --adapter-only. Export the adapter to gguf.")
    mix = request.mix or "q8_0"
    weights = _importance(request, mix)
    with atomic_directory(request.output) as partial:
        file = f"model-{mix}.gguf"
        write_model(partial / file, request.subject, mix, weights, request.events)
        (partial / "Modelfile").write_text(modelfile(request.subject, file), encoding="utf-8")
        use = f"```\nollama create {request.output.name} -f Modelfile\nollama run {request.output.name}\n```"
        card = model_card(request.subject, f"GGUF, {mix.upper()}, for Ollama", "ollama", use)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return request.output / "README.md", f"ollama:{mix}"


def _importance(request: Request, mix: str) -> Importance | None:
    check_mix(mix, request.importance_rows > 0)
    if not request.importance_rows:
        return None
    return importance(request.subject, layout_of(request.subject), request.importance_rows, request.events)


FORMATS: dict[str, Callable[[Request], tuple[Path, str]]] = {
    "hf": _hf,
    "int8": _int8,
    "nf4": _nf4,
    "gguf": _gguf,
    "ollama": _ollama,
    "mlx": _mlx,
}
"""What writes each format, and gives the card and the format in full."""

WITH_KINDS = ("gguf", "ollama", "mlx")
MLX_BITS = {"q4": 4, "q8": 8}
KINDS = tuple(MIXES)
