"""Load a base: the embedded model, a directory, a run, or a hub name. Weights are read only from safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from tunesmith.config.base import Base
from tunesmith.config.head import Head
from tunesmith.config.objective import BaseKind, ObjectiveConfig
from tunesmith.config.registry import OBJECTIVES, config_classes
from tunesmith.errors import UserError
from tunesmith.file_hash import file_sha256
from tunesmith.models import hub
from tunesmith.models.attention import first_position
from tunesmith.models.bases import embedded_base, get_base, known_bases
from tunesmith.models.layer_by_layer import Replacement, quantizing, replacing, without_quantization_marks
from tunesmith.models.quiet import no_progress_bars, no_warnings
from tunesmith.modules.transposed_linear import TransposedLinear, as_linear
from tunesmith.run import resolve_run


def locate(base: Base) -> str:
    """The directory or hub name to load from. A base with a short name is fetched if it is not on this machine; a GGUF
    file is converted.

    Raises:
        UserError: a path does not exist, or contains no model; or the hub cannot be reached.
    """
    if base.path == "embedded":
        return str(embedded_base())
    path = resolve_run(Path(base.path))
    if base.path in known_bases() and not path.exists():
        return get_base(base.path, base.revision)
    if path.suffix == ".gguf" and path.is_file():
        from tunesmith.models.gguf import gguf_base

        return str(gguf_base(path))
    if (path / "recipe.yaml").exists():
        if (path / "model" / "config.json").exists():
            return str(path / "model")
        if (path / "adapter").exists():
            raise UserError(
                f"base: {base.path} is a run with an adapter. Merge it first: "
                f"tunesmith export {base.path} --to hf --output DIR, then base: DIR."
            )
        raise UserError(
            f"base: {base.path} is a run that has not finished. Resume it: tunesmith train --resume {base.path}"
        )
    if path.exists() and not (path / "config.json").exists():
        raise UserError(f"base: {base.path} contains no config.json, so it is not a model directory.")
    if not path.exists() and not _can_be_hub_name(base.path):
        raise UserError(
            f"base: {base.path} does not exist. Give a model directory, a GGUF file, a hub name, or a short name "
            "(tunesmith bases)."
        )
    if not path.exists():
        hub.refuse_out_of_reach(base.path, base.revision)
    return base.path


def _can_be_hub_name(path: str) -> bool:
    """Whether the hub could have a repository of this name."""
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """The base's tokenizer. A chat template in the recipe replaces its own."""
    tokenizer = tokenizer_at(locate(base), base)
    if base.chat_template is not None:
        try:
            tokenizer.chat_template = base.chat_template.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"base.chat_template: {base.chat_template} cannot be read: {error.strerror}") from None
    return tokenizer


def tokenizer_at(where: str, base: Base) -> PreTrainedTokenizerBase:
    """The tokenizer in a directory (such as an adapter's) or at a hub name, with the base's `trust_remote_code`."""
    try:
        return AutoTokenizer.from_pretrained(where, revision=base.revision, trust_remote_code=base.trust_remote_code)
    except (OSError, ValueError) as error:
        raise not_loaded(base, "tokenizer", error) from error


def load_model(
    base: Base,
    dtype: torch.dtype,
    seed: int = 0,
    head: Head | None = None,
    replacement: Replacement | None = None,
) -> PreTrainedModel:
    """The base on the CPU, in evaluation mode; its `tunesmith_base` is `base`.

    Args:
        base: what to load. With `from_scratch`, the architecture with new weights, initialized from `seed`. With
            quantized `weights`, the blocks' linear layers are `QuantizedLinear`, quantized one by one as they are read.
        dtype: of all weights that are not quantized.
        seed: of new weights.
        head: what the model ends in; a new head that the base has stored keeps its weights. Default: as pretrained.
        replacement: makes other layers of the blocks' linear layers as they are read. Default: `weights` decides.

    Raises:
        UserError: the base does not exist, has no safetensors, needs its own code to run, or has no such head.
    """
    if base.quantized:
        replacement = quantizing(base.weights, base.double_quantization)  # type: ignore[arg-type]
    where = locate(base)
    options: dict[str, Any] = {"revision": base.revision, "trust_remote_code": base.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(where, **options)
        config._commit_hash = _commit_of(base)
        is_stored = head is not None and head.is_stored(config)
        kind = model_class(config, head)
        torch.manual_seed(seed)  # for the weights of a new head
        if base.from_scratch:
            model = kind.from_config(config, trust_remote_code=base.trust_remote_code).to(dtype)
            model.tunesmith_base = base
            return as_linear(model.eval())
        options |= {"config": config, "dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        options["ignore_mismatched_sizes"] = head is not None and head.is_new  # the stored head may have other classes
        with (
            no_progress_bars(),
            no_warnings(),
        ):  # no table of the weights of a new head, or of a stored one that is not used
            if replacement is None:
                model, info = kind.from_pretrained(where, **options)
            else:
                model, info = kind.from_pretrained(where, **options, **replacing(replacement))
                model = without_quantization_marks(model)
        if head is not None:
            head.initialize(model, info["missing_keys"], is_stored, seed)
        model = as_linear(model.eval())
        model.tunesmith_base = base
    except (OSError, ValueError) as error:
        raise not_loaded(base, "model", error) from error
    if base.quantized or any(isinstance(layer, TransposedLinear) for layer in model.modules()):
        _unmap_files(model)
    return model


def _unmap_files(model: PreTrainedModel) -> None:
    """Copy the tensors that are still memory-mapped, since a single one keeps its entire file in memory."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def skeleton(base: Base, head: Head | None = None) -> PreTrainedModel:
    """The base without weights: every parameter is on the meta device. Reads only the config."""
    options = {"trust_remote_code": base.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(locate(base), revision=base.revision, **options)
        kind = model_class(config, head)
        with torch.device("meta"):
            return as_linear(kind.from_config(config, **options).eval())
    except (OSError, ValueError) as error:
        raise not_loaded(base, "model", error) from error


def learned_positions(base: Base) -> int | None:
    """The number of the base's learned position embeddings; None if its positions are computed (such as rotary).

    Raises:
        UserError: the base does not exist.
    """
    config = config_of(base).get_text_config()
    computed = any(hasattr(config, name) for name in ("rope_parameters", "rope_theta", "rope_scaling", "alibi"))
    positions = None if computed else getattr(config, "max_position_embeddings", None)
    return None if positions is None else positions - first_position(skeleton(base))


def check_base_kind(base: Base, objective: ObjectiveConfig) -> None:
    """Raises:
    UserError: the objective does not support this kind of base, or the base does not exist.
    """
    config = config_of(base)
    kind = kind_of(config)
    if kind in objective.bases:
        return
    fitting = [name for name, each in config_classes(OBJECTIVES, ObjectiveConfig).items() if kind in each.bases]
    supported = " or ".join(_with_article(kind) for kind in objective.bases)
    raise UserError(
        f"base: {base.path} ({config.model_type}) is {_with_article(kind)}; objective: {objective.kind} needs "
        f"{supported}. Set objective: {' or '.join(fitting)}, or another base."
    )


def _with_article(kind: BaseKind) -> str:
    return f"{'a' if kind == 'decoder' else 'an'} {kind}"


def kind_of(config: PretrainedConfig) -> BaseKind:
    """Which kind of base this is the config of."""
    if config.is_encoder_decoder:
        return "encoder-decoder"
    return "decoder" if _has_decoder(config) else "encoder"


def config_of(base: Base) -> PretrainedConfig:
    """The base's own config.

    Raises:
        UserError: the base does not exist.
    """
    options = {"revision": base.revision, "trust_remote_code": base.trust_remote_code}
    try:
        return AutoConfig.from_pretrained(locate(base), **options)
    except (OSError, ValueError) as error:
        raise not_loaded(base, "config", error) from error


def stored_dtype(base: Base) -> torch.dtype:
    """The dtype of the base's weights according to its config; fp32 if the config has none."""
    named = config_of(base).dtype
    return named if isinstance(named, torch.dtype) else torch.float32


def stored_file(base: Base, name: str) -> Path | None:
    """A file of that name next to the model, in its directory or on the hub; None if there is none."""
    where = Path(locate(base))
    if where.exists():
        return where / name if (where / name).exists() else None
    file = cached_file(
        str(where), name, revision=base.revision, local_files_only=hub.obstacle() is not None,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if file is None else Path(file)


def _commit_of(base: Base) -> str | None:
    """The hub commit of the base's files; None for a directory."""
    file = cached_file(locate(base), "config.json", revision=base.revision, _raise_exceptions_for_missing_entries=False)
    commit: str | None = extract_commit_hash(file, None)
    return commit


def stored_weight(model: PreTrainedModel, name: str) -> Tensor:
    """The parameter of that name as stored in the files that the model was loaded from.

    Raises:
        UserError: the files contain no parameter of that name.
    """
    for key in (name, name.removeprefix(f"{model.base_model_prefix}."), f"{model.base_model_prefix}.{name}"):
        for file in _weight_files(model):
            with safe_open(file, framework="pt") as tensors:
                if key in tensors.keys():  # noqa: SIM118
                    weight: Tensor = tensors.get_tensor(key)
                    return weight
    raise UserError(f"{model.name_or_path} does not store {name}, so its quantization error cannot be computed.")


def _weight_files(model: PreTrainedModel) -> list[str]:
    options = {"revision": getattr(model.config, "_commit_hash", None)}
    index = cached_file(
        model.name_or_path, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False, **options
    )
    if index is None:
        return [cached_file(model.name_or_path, "model.safetensors", **options)]
    files = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    return [cached_file(model.name_or_path, file, **options) for file in files]


def model_class(config: PretrainedConfig, head: Head | None) -> Any:
    """The auto class of the model; the head's settings are written into the config.

    Raises:
        UserError: the family has no such head.
    """
    if head is not None:
        head.configure(config)
        return head.model_class(config)
    pretrained = {"decoder": AutoModelForCausalLM, "encoder-decoder": AutoModelForSeq2SeqLM, "encoder": AutoModel}
    return pretrained[kind_of(config)]


def _has_decoder(config: PretrainedConfig) -> bool:
    """Whether the family was made to generate text. Encoders also have a causal class in transformers, which is not
    used."""
    names = getattr(config, "architectures", None) or []
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})  # its own code declares it
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return not masked or any("CausalLM" in name or "LMHead" in name for name in names) or bool(config.is_decoder)


def not_loaded(base: Base, what: str, error: Exception) -> UserError:
    """The error that says that a base's config, tokenizer or model could not be loaded, and why."""
    first = str(error).strip().split("\n")[0]
    return UserError(f"base: {base.path}: its {what} could not be loaded: {first}")


def fingerprint(base: Base) -> dict[str, str]:
    """Values that identify this base among others of the same name: its config and weight hashes, or its hub commit."""
    where = Path(locate(base))
    if not where.exists():
        return {"commit": str(_commit_of(base))}
    marks = {"config": json.dumps(json.loads((where / "config.json").read_text(encoding="utf-8")), sort_keys=True)}
    for file in sorted(where.glob("*.safetensors")):
        marks[file.name] = file_sha256(file)
    if base.adapter is not None and (base.adapter / "adapter_model.safetensors").exists():
        marks["adapter"] = file_sha256(base.adapter / "adapter_model.safetensors")
    return marks
