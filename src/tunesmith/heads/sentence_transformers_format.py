"""sentence-transformers' format: the files that make a body an embedding model, or a classifier of embeddings.

https://sbert.net/docs/package_reference/sentence_transformer/modules.html: `modules.json` lists the steps, and each
step has a directory with its settings. Supported steps: the transformer, pooling, normalization, and a dense layer over
classes.
"""

import json
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunesmith.errors import UserError
from tunesmith.models.forward import Pooling

MODULES = "modules.json"
POOLING = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
"""Pooling → the setting that selects it, with names that every version of the library reads."""
STEPS = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "[0-9]_*")
"""Glob patterns of the files in such a model's directory besides the body."""
_TYPES = "sentence_transformers.models"


def stored_pooling(file: Path) -> tuple[Pooling, bool]:
    """How a model computes vectors, according to its `modules.json`: the pooling, and whether vectors are normalized.

    Raises:
        UserError: its pooling is not supported, or it has other steps.
    """
    directory = file.parent
    steps = json.loads(file.read_text(encoding="utf-8"))
    kinds = {step["type"].rsplit(".", 1)[-1]: step["path"] for step in steps}
    unknown = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if unknown or "Pooling" not in kinds:
        raise UserError(
            f"{directory}/{MODULES} has steps that are not supported: {', '.join(unknown)}."
            if unknown
            else f"{directory}/{MODULES} has no pooling step, which is not supported."
        )
    if not (directory / kinds["Pooling"] / "config.json").exists():
        raise UserError(
            f"{directory} lacks {kinds['Pooling']}/config.json. Download the complete model and give its directory."
        )
    settings: dict[str, Any] = json.loads((directory / kinds["Pooling"] / "config.json").read_text(encoding="utf-8"))
    chosen = [how for how, name in POOLING.items() if settings.get(name)]
    named = {"cls": "first", "lasttoken": "last"}.get(str(settings.get("pooling_mode")), settings.get("pooling_mode"))
    how = next((pooling for pooling in get_args(Pooling) if pooling == named or [pooling] == chosen), None)
    if how is None:
        raise UserError(f"{directory} uses a pooling other than the mean, the first token or the last token.")
    return how, "Normalize" in kinds


def write_steps(
    directory: Path,
    pooling: Pooling,
    normalized: bool,
    hidden: int,
    max_length: int,
    classifier: nn.Linear | None = None,
) -> None:
    """Write, next to a body or its adapter, the files that make sentence-transformers pool and classify its states.

    Args:
        directory: of the body or adapter.
        pooling: how a text's states become one vector.
        normalized: whether vectors are scaled to length 1.
        hidden: size of the hidden states.
        max_length: in tokens.
        classifier: from vectors to classes, if there is one.
    """
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if normalized:
        steps.append(("2_Normalize", "Normalize"))
    if classifier is not None:
        steps.append((f"{len(steps)}_Dense", "Dense"))
        _write_dense(directory / steps[-1][0], classifier)
    for path, _ in steps:
        (directory / path).mkdir(exist_ok=True)
    settings = {"word_embedding_dimension": hidden, **{name: how == pooling for how, name in POOLING.items()}}
    _write(directory / "1_Pooling" / "config.json", settings)
    _write(directory / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(directory / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"{_TYPES}.{kind}"}
        for index, (path, kind) in enumerate(steps)
    ]
    _write(directory / MODULES, modules)


def stored_classifier(directory: Path) -> nn.Linear | None:
    """The dense layer over classes in that directory; None if there is none."""
    file = next(directory.glob("*_Dense/model.safetensors"), None)
    if file is None:
        return None
    tensors = load_file(file)
    weight = tensors["linear.weight"]
    classifier = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(tensors["linear.bias"])
    return classifier


def _write_dense(directory: Path, classifier: nn.Linear) -> None:
    directory.mkdir()
    settings = {"in_features": classifier.in_features, "out_features": classifier.out_features, "bias": True}
    _write(directory / "config.json", {**settings, "activation_function": "torch.nn.modules.linear.Identity"})
    tensors = {
        "linear.weight": classifier.weight.detach().contiguous(),
        "linear.bias": classifier.bias.detach().contiguous(),
    }
    save_file(tensors, directory / "model.safetensors")


def _write(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values, indent=2), encoding="utf-8")
