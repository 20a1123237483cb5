"""Any GGUF file as a base: converted once into a Hugging Face model directory, in bf16, which training can start from.

Dequantization is gguf's. The config, the tokenizer, the names of the tensors and what llama.cpp changes in them (the
order of Llama's queries and keys, Gemma's norms) are transformers'.
"""

import json
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from gguf import dequantize
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tunesmith.cache_directory import cache_directory
from tunesmith.errors import UserError
from tunesmith.file_hash import file_sha256
from tunesmith.models.gguf_config import DIVISORS, first_line, read_config, unsupported
from tunesmith.models.gguf_file import GgufFile, read_gguf
from tunesmith.models.quiet import no_progress_bars
from tunesmith.run import atomic_directory, cached_directory

_CONVERTER = 1
"""Increase it when a conversion gives another result: directories of other numbers in the cache are not used."""


def gguf_base(file: Path) -> Path:
    """The model directory of a GGUF file, which is converted on first use and kept in the user's cache.

    Args:
        file: the GGUF file. Its content decides which directory it is, not its name.

    Returns:
        The directory.

    Raises:
        UserError: the file cannot be converted (see `convert_gguf`), or the cache cannot be written.
    """
    digest = _sha256(file)
    directory = cache_directory() / "gguf" / f"{digest}-{_CONVERTER}"
    try:
        return cached_directory(directory, lambda partial: _convert(read_gguf(file), digest, partial, None))
    except SafetensorError as error:
        raise _not_written(directory.parent, error, "Set TUNESMITH_CACHE to another directory.") from None


def convert_gguf(file: Path, directory: Path, origin: str | None = None) -> None:
    """Convert a GGUF file into a Hugging Face model directory: bf16 weights, config, tokenizer and a model card.

    Args:
        file: the GGUF file. Its weights are dequantized, one tensor at a time.
        directory: must not exist. It is written completely or not at all.
        origin: where the file comes from, for the model card. Default: what its metadata says.

    Raises:
        UserError: `directory` exists or cannot be written, the file cannot be read (see `read_gguf`), or transformers
            does not support its architecture, its tokenizer, or a tensor or setting in it.
    """
    if directory.exists():
        raise UserError(f"{directory} exists. Choose another directory for the converted model.")
    try:
        with atomic_directory(directory) as partial:
            _convert(read_gguf(file), _sha256(file), partial, origin)
    except (OSError, SafetensorError) as error:
        raise _not_written(directory, error, "Choose another directory.") from None


def _not_written(directory: Path, error: Exception, advice: str) -> UserError:
    return UserError(f"{directory} cannot be written: {getattr(error, 'strerror', None) or error}. {advice}")


def _convert(file: GgufFile, digest: str, directory: Path, origin: str | None) -> None:
    """Write the model into the directory."""
    with tempfile.TemporaryDirectory(dir=directory) as parts, no_progress_bars():
        config = read_config(file, Path(parts))
        tokenizer = _read_tokenizer(file, Path(parts))
        model = _read_model(file, config)
    model.generation_config = _generation_config(file)
    with no_progress_bars():
        model.save_pretrained(directory)
    _save_tokenizer(file, tokenizer, directory)
    (directory / "README.md").write_text(_card(file, digest, origin), encoding="utf-8")


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Give the path of a GGUF file.") from None


def _read_tokenizer(file: GgufFile, parts: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that transformers reads from the metadata, with the file's chat template if it has one."""
    file.write_vocabulary(parts / "vocabulary.gguf")
    try:
        return PreTrainedTokenizerFast.from_pretrained(parts, gguf_file="vocabulary.gguf")
    except Exception as error:  # tokenizers raises plain exceptions
        kind = file.value("tokenizer.ggml.model")
        raise UserError(
            f"{file.path}: transformers cannot read its tokenizer of the kind {kind} ({first_line(error)}). "
            "Use the original model."
        ) from None


def _save_tokenizer(file: GgufFile, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Save it without tokens that transformers adds to the file's own, such as GPT-2's, which have no embeddings."""
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["id"] < file.vocabulary_size]
    path.write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")


def _read_model(file: GgufFile, config: PretrainedConfig) -> PreTrainedModel:
    """The model with the file's weights, in bf16."""
    try:
        model = _empty_model(config)
        model.load_state_dict(_weights(file, model), strict=False, assign=True)
    except (RuntimeError, ValueError, KeyError) as error:  # such as sizes that are not the config's
        reason = str(error).strip().split("\n")[-1].strip()
        raise UserError(f"{file.path}: its tensors do not fit its metadata: {reason} Use the original model.") from None
    model.tie_weights()
    missing = [name for name, weight in model.state_dict().items() if weight.is_meta]
    if missing:
        raise UserError(
            f"{file.path} has no weights for {_first_of(missing)} of {type(model).__name__}. "
            "Use the original model, or another file."
        )
    return model


def _empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model on the meta device."""
    is_decoder = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    with torch.device("meta"):
        return (AutoModelForCausalLM if is_decoder else AutoModelForSeq2SeqLM).from_config(config, dtype=torch.bfloat16)


def _weights(file: GgufFile, model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights by transformers' names, in bf16."""
    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=model.config.to_dict())
    try:
        names = get_gguf_hf_weights_map(_Names.of(model), processor)
    except NotImplementedError as error:
        raise unsupported(file, error) from None
    weights: dict[str, Tensor] = {}
    unknown = []
    for tensor in file.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        done = processor.process(
            weights=values, name=tensor.name, tensor_key_mapping=names, parsed_parameters={"tensors": weights}
        )
        if done.name in names:
            weights[names[done.name]] = torch.from_numpy(done.weights.copy()).bfloat16()
        elif done.name is None:  # the processor has stored the tensor, merged with others
            weights.update({name: weight.bfloat16() for name, weight in weights.items()})
        elif tensor.name != DIVISORS:
            unknown.append(tensor.name)
    if unknown:
        raise UserError(
            f"{file.path} contains {_first_of(unknown)}, which {type(model).__name__} has no place for. "
            "Use the original model, or another file."
        )
    return weights


@dataclass(frozen=True)
class _Names:
    """Of a model, what transformers' map of names reads, with its body as the only submodule.

    The map is built for every submodule, 400 in a small model, which takes half of the time of a conversion.
    """

    config: PretrainedConfig
    names: list[str]
    body: str

    @classmethod
    def of(cls, model: PreTrainedModel) -> "_Names":
        return cls(model.config, list(model.state_dict()), model.base_model_prefix)

    def state_dict(self) -> dict[str, None]:
        return dict.fromkeys(self.names)

    def named_children(self) -> list[tuple[str, "_Names"]]:
        prefix = f"{self.body}."
        names = [name.removeprefix(prefix) for name in self.names if name.startswith(prefix)]
        return [(self.body, _Names(self.config, names, self.body))] if names else []


def _first_of(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _generation_config(file: GgufFile) -> GenerationConfig:
    """Where an answer begins and ends: the end of the text, and the end of a turn if that is another token."""
    ends = [file.value(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    unique = list(dict.fromkeys(end for end in ends if end is not None))
    return GenerationConfig(
        bos_token_id=file.value("tokenizer.ggml.bos_token_id"),
        eos_token_id=unique[0] if len(unique) == 1 else unique or None,
        pad_token_id=file.value("tokenizer.ggml.padding_token_id"),
    )


def _card(file: GgufFile, digest: str, origin: str | None) -> str:
    """The README.md of the directory."""
    license_name = file.value("general.license")
    head = {"library_name": "transformers"} | ({"license": license_name} if license_name else {})
    kinds = ", ".join(f"{kind} × {count}" for kind, count in file.kinds.items())
    return f"""---
{yaml.safe_dump(head, allow_unicode=True).strip()}
---

# {file.value("general.name") or file.path.stem}

Tunesmith {version("tunesmith")} converted this model from a GGUF file.

- Origin: {origin or _origin(file)}
- License: {license_name or "not stated in the file"}
- File: {file.path.name}, SHA-256 {digest}
- Quantization (kind × tensors): {kinds}

The weights passed through {file.bits_per_weight:.1f} bits each, on average. They are stored in bf16 here, which
does not restore what the quantization lost.
"""


def _origin(file: GgufFile) -> str:
    """Where the metadata says that the model comes from."""
    sources = ("source.huggingface.repository", "source.url", "source.repo_url", "repo_url", "url")
    keys = (*sources, "base_model.0.repo_url", "organization", "name")
    found = (file.value(f"general.{key}") for key in keys)
    return next((str(value) for value in found if value), "not stated in the file")
