"""The config of the model in a GGUF file."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tunesmith.errors import UserError
from tunesmith.models.gguf_file import GgufFile
from tunesmith.models.quiet import no_warnings

DIVISORS = "rope_freqs.weight"
"""The tensor that the rotary frequencies of Llama 3.1 and later are divided by."""


def read_config(file: GgufFile, parts: Path) -> PretrainedConfig:
    """The config that transformers reads from a GGUF file's metadata, with the scaling of its position embeddings.

    Args:
        file: the GGUF file.
        parts: a directory for a temporary file.

    Returns:
        The config.

    Raises:
        UserError: transformers does not support the architecture, or the scaling is neither linear nor Llama 3's.
    """
    file.write_outline(parts / "outline.gguf")
    try:
        with no_warnings():  # about token ids outside of the outline's vocabulary
            config = AutoConfig.from_pretrained(parts, gguf_file="outline.gguf")
    except Exception as error:  # whatever a config class raises
        raise unsupported(file, error) from None
    vars(config).pop("_model_name_or_path", None)  # general.name, which is no path
    embedding = next((tensor for tensor in file.tensors if tensor.name == "token_embd.weight"), None)
    if embedding is not None:
        config.vocab_size = int(embedding.shape[1])
    _set_rope_scaling(file, config)
    return config


def unsupported(file: GgufFile, error: Exception) -> UserError:
    """The error that says that transformers cannot read the file's architecture, and why."""
    names = ", ".join(sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer"}))
    return UserError(
        f"{file.path}: transformers cannot read a GGUF of the architecture {file.architecture} "
        f"({first_line(error)}). "
        f"Use the original model, or one of {names}."
    )


def first_line(error: Exception) -> str:
    """The first line of an error of another library."""
    return str(error).strip().split("\n")[0]


def _set_rope_scaling(file: GgufFile, config: PretrainedConfig) -> None:
    """Set how position embeddings are stretched for long texts, most of which transformers does not read."""
    all_parameters = getattr(config, "rope_parameters", None) or {}
    parameters = all_parameters.get("full_attention", all_parameters)
    kind = file.value(f"{file.architecture}.rope.scaling.type")
    if kind == "linear":
        parameters |= {"rope_type": "linear", "factor": file.value(f"{file.architecture}.rope.scaling.factor")}
    elif kind not in (None, "none", parameters.get("rope_type")):
        raise _other_scaling(file, kind)
    divisors = file.tensor(DIVISORS)
    if divisors is not None:
        if "rope_theta" not in all_parameters:
            raise _other_scaling(file, DIVISORS)
        _set_llama3_scaling(file, config, torch.from_numpy(divisors.copy()).flatten())


def _set_llama3_scaling(file: GgufFile, config: PretrainedConfig, divisors: Tensor) -> None:
    """Set the scaling of Llama 3.1 and later, of which the file contains the result, and check the result.

    Args:
        divisors: (head_dim / 2,), what llama.cpp divides the frequencies by.
    """
    size = len(divisors)
    plain = config.rope_parameters["rope_theta"] ** (-torch.arange(size) / size)
    config.rope_parameters |= {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    if len(scaled) != size or not torch.allclose(plain / scaled, divisors, rtol=1e-3):
        raise _other_scaling(file, DIVISORS)


def _other_scaling(file: GgufFile, kind: str) -> UserError:
    return UserError(
        f"{file.path} scales its position embeddings in a way that is not supported in a GGUF ({kind}). "
        "Use the original model."
    )
