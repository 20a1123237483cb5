"""Loading a base: the embedded one, a directory, a run, or a hub name; weights from safetensors alone."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tunesmith.errors import UserError
from tunesmith.recipe import Base


def embedded_base() -> Path:
    """The directory of the small pretrained model that ships with Tunesmith."""
    return Path(__file__).parent / "embedded"


def locate(base: Base) -> str:
    """The directory or hub name to load from.

    Raises:
        UserError: something that looks like a path is not there, or holds no model.
    """
    if base.model == "embedded":
        return str(embedded_base())
    path = Path(base.model)
    if (path / "recipe.yaml").exists():
        if (path / "model" / "config.json").exists():
            return str(path / "model")
        if (path / "adapter").exists():
            raise UserError(
                f"base: {base.model} is a run with an adapter. Merge it first: "
                f"tunesmith merge {base.model} --output DIR, then base: DIR."
            )
        raise UserError(f"base: {base.model} is a run that has not finished. tunesmith train --resume {base.model}")
    if path.exists() and not (path / "config.json").exists():
        raise UserError(f"base: {base.model} holds no config.json, so it is not a model's directory.")
    looks_like_path = base.model.startswith((".", "/", "~")) or base.model.count("/") > 1
    if not path.exists() and looks_like_path:
        raise UserError(f"base: {base.model} does not exist. Give a model's directory, a hub name, or embedded.")
    return base.model


def load_tokenizer(base: Base) -> PreTrainedTokenizerBase:
    """The base's tokeniser, with the recipe's chat template in place of its own if one is given."""
    tokenizer = tokenizer_at(locate(base), base)
    if base.chat_template is not None:
        try:
            tokenizer.chat_template = base.chat_template.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"base.chat_template: {base.chat_template} cannot be read: {error.strerror}") from None
    return tokenizer


def tokenizer_at(where: str, base: Base) -> PreTrainedTokenizerBase:
    """The tokeniser in a directory (an adapter's, say) or at a hub name, under the base's terms of trust."""
    try:
        return AutoTokenizer.from_pretrained(where, revision=base.revision, trust_remote_code=base.trust_remote_code)
    except (OSError, ValueError) as error:
        raise _not_loaded(base, "tokeniser", error) from error


def load_model(base: Base, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """The base as a causal language model in `dtype`, on the CPU, in evaluation mode.

    Args:
        base: what to load; with `weights: random`, the architecture with new weights drawn from `seed`.
        dtype: of all weights.
        seed: of new weights.

    Raises:
        UserError: it is not there, has no safetensors, or wants its own code run.
    """
    where = locate(base)
    options = {"revision": base.revision, "trust_remote_code": base.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(where, **options)
        if base.weights == "random":
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=base.trust_remote_code)
            return model.to(dtype).eval()
        with no_progress_bars():
            return AutoModelForCausalLM.from_pretrained(
                where, config=config, dtype=dtype, use_safetensors=True, **options
            ).eval()
    except (OSError, ValueError) as error:
        raise _not_loaded(base, "model", error) from error


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Within the block transformers draws no bars of its own: the run's events are what is shown."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def no_renaming_warnings() -> Iterator[None]:
    """Within the block nothing is said of a property that PEFT asks for and transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def _not_loaded(base: Base, what: str, error: Exception) -> UserError:
    first = str(error).strip().split("\n")[0]
    return UserError(f"base: {base.model}: its {what} could not be loaded: {first}")


def fingerprint(base: Base) -> dict[str, str]:
    """What tells this base from another one of the same name: sizes and headers of its weights, or its hub commit."""
    where = Path(locate(base))
    if not where.exists():
        config = AutoConfig.from_pretrained(str(where), revision=base.revision)
        return {"commit": str(getattr(config, "_commit_hash", None))}
    marks = {"config": json.dumps(json.loads((where / "config.json").read_text(encoding="utf-8")), sort_keys=True)}
    for file in sorted(where.glob("*.safetensors")):
        marks[file.name] = _file_sha256(file)
    return marks


def _file_sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
