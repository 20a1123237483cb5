"""The command that serves the same model, adapters and chat template with vLLM, which runs as a process of its own."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.config.base import Base
from tunesmith.errors import UserError
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.vllm_adapters import VLLM_RANKS, vllm_obstacle
from tunesmith.models.load import locate


def vllm_command(
    model: str, name: str, adapters: Mapping[str, str | Path], host: str, port: int, template: Path
) -> list[str]:
    """The command line.

    Args:
        model: as in `serve`.
        name: that clients call the model by.
        adapters: runs or adapter directories by name.
        host: the address to listen on.
        port: to listen on.
        template: where the model's chat template is written, if it has one.

    Returns:
        The words of the command, beginning with `vllm`.

    Raises:
        UserError: vLLM cannot take the model or an adapter; the message says what to do instead.
    """
    reference = ModelReference.find(model)
    if not reference.head.generates_text:
        raise UserError(f"{model} does not write text. Serve it without --engine vllm.")
    if reference.base.quantized:
        raise UserError(
            f"{model} was trained on a base in {reference.base.weights}. vLLM quantizes otherwise: export it with "
            f"tunesmith export {model} --to hf --output DIR, and serve DIR."
        )
    own = {} if reference.adapter is None else {name: reference.adapter}
    directories = own | {each: _adapter_of(path, reference.base) for each, path in adapters.items()}
    served = f"{name}-base" if own else name
    words = [
        "vllm",
        "serve",
        locate(reference.base),
        "--served-model-name",
        served,
        "--host",
        host,
        "--port",
        str(port),
    ]
    text = reference.tokenizer().chat_template
    if isinstance(text, str):
        template.write_text(text, encoding="utf-8")
        words += ["--chat-template", str(template)]
    if directories:
        rank = max(_rank(each) for each in directories.values())
        allowed = next(each for each in VLLM_RANKS if each >= rank)
        words += ["--enable-lora", "--max-lora-rank", str(allowed), "--max-loras", str(len(directories))]
        words += ["--lora-modules", *(f"{each}={path}" for each, path in directories.items())]
    return words


def run_vllm(words: Sequence[str], host_is_local: bool) -> None:
    """Become the process of that command.

    Args:
        words: from `vllm_command`.
        host_is_local: whether only this machine can reach it; any other needs a key in VLLM_API_KEY.

    Raises:
        UserError: vLLM is not installed, or needs a key.
    """
    if not host_is_local and not os.environ.get("VLLM_API_KEY"):
        raise UserError("Other machines can reach this host, so clients need a key. Set VLLM_API_KEY to one.")
    if shutil.which(words[0]) is None:
        raise UserError(
            "vLLM is not installed. Install it in an environment of its own (its pins conflict with ours): "
            "python -m venv vllm && vllm/bin/pip install vllm, and add vllm/bin to PATH. --dry-run prints the command."
        )
    os.execvp(words[0], list(words))


def _adapter_of(path: str | Path, base: Base) -> Path:
    reference = ModelReference.find(str(path))
    if reference.adapter is None:
        raise UserError(f"{path} has no adapter.")
    if locate(reference.base) != locate(base):
        raise UserError(f"{path} is an adapter of {reference.base.path}, and {base.path} is served.")
    return reference.adapter


def _rank(adapter: Path) -> int:
    """The adapter's rank, if vLLM takes it."""
    config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    reason = vllm_obstacle(config)
    if reason is not None:
        raise UserError(
            f"vLLM cannot take {adapter}: it has {reason}. Merge it with tunesmith export RUN --to hf --output DIR, "
            "and serve DIR."
        )
    return int(config["r"])
