"""sentence-transformers' format: the files that turn a body into a model of vectors, or of classes of them.

https://sbert.net/docs/package_reference/sentence_transformer/modules.html: `modules.json` names the steps; a folder
each holds a step's settings. Steps here: the transformer, pooling, normalization, and a dense layer over classes.
"""

import json
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunesmith.ending import Ending, Pooling
from tunesmith.errors import UserError

MODULES = "modules.json"
POOLING = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
"""A way to pool → the setting that says so, by the names that every version of the library reads."""
STEPS = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "[0-9]_*")
"""What a folder of such a model holds besides the body, as patterns."""
_TYPES = "sentence_transformers.models"


def stored_pooling(file: Path) -> Ending:
    """How a model makes vectors, by its `modules.json`.

    Raises:
        UserError: it pools in a way that is not known here, or does more.
    """
    directory = file.parent
    steps = json.loads(file.read_text(encoding="utf-8"))
    kinds = {step["type"].rsplit(".", 1)[-1]: step["path"] for step in steps}
    unknown = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if unknown or "Pooling" not in kinds:
        raise UserError(
            f"{directory}/{MODULES} has a step that is not known here: {', '.join(unknown) or 'no pooling'}."
        )
    if not (directory / kinds["Pooling"] / "config.json").exists():
        raise UserError(
            f"{directory} lacks {kinds['Pooling']}/config.json. Download the whole model, and name its folder."
        )
    settings: dict[str, Any] = json.loads((directory / kinds["Pooling"] / "config.json").read_text(encoding="utf-8"))
    chosen = [how for how, name in POOLING.items() if settings.get(name)]
    named = {"cls": "first", "lasttoken": "last"}.get(str(settings.get("pooling_mode")), settings.get("pooling_mode"))
    how = next((each for each in get_args(Pooling) if each == named or [each] == chosen), None)
    if how is None:
        raise UserError(f"{directory} pools otherwise than by the mean, the first or the last token.")
    return Ending("vectors", pooling=how, normalized="Normalize" in kinds)


def write_steps(directory: Path, ending: Ending, hidden: int, max_length: int, head: nn.Linear | None) -> None:
    """Beside a body (or its adapter) what makes sentence-transformers pool its states, and put the head on them."""
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if ending.normalized:
        steps.append(("2_Normalize", "Normalize"))
    if head is not None:
        steps.append((f"{len(steps)}_Dense", "Dense"))
        _write_dense(directory / steps[-1][0], head)
    for path, _ in steps:
        (directory / path).mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": hidden, **{name: how == ending.pooling for how, name in POOLING.items()}}
    _write(directory / "1_Pooling" / "config.json", pooling)
    _write(directory / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(directory / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"{_TYPES}.{kind}"}
        for place, (path, kind) in enumerate(steps)
    ]
    _write(directory / MODULES, modules)


def stored_head(directory: Path) -> nn.Linear | None:
    """The dense layer over classes that lies there; None where there is none."""
    file = next(directory.glob("*_Dense/model.safetensors"), None)
    if file is None:
        return None
    tensors = load_file(file)
    weight = tensors["linear.weight"]
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(tensors["linear.bias"])
    return head


def _write_dense(directory: Path, head: nn.Linear) -> None:
    directory.mkdir()
    settings = {"in_features": head.in_features, "out_features": head.out_features, "bias": True}
    _write(directory / "config.json", {**settings, "activation_function": "torch.nn.modules.linear.Identity"})
    tensors = {"linear.weight": head.weight.detach().contiguous(), "linear.bias": head.bias.detach().contiguous()}
    save_file(tensors, directory / "model.safetensors")


def _write(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values, indent=2), encoding="utf-8")
