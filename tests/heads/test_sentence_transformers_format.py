"""The files of sentence-transformers, as they are written and read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tunesmith.errors import UserError
from tunesmith.heads.embedding import EmbeddingHead
from tunesmith.heads.sentence_transformers_format import stored_classifier, stored_pooling, write_steps
from tunesmith.heads.sequence_classification import SequenceClassificationHead
from tunesmith.heads.token_classification import TokenClassificationHead

CPU = torch.device("cpu")
CLASSES = SequenceClassificationHead(("calm", "bold", "dry"))
TAGS = TokenClassificationHead(("calm", "bold", "dry"))
VECTORS = EmbeddingHead()


# sentence-transformers' format


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("normalized", [True, False])
def test_pooling_is_written_and_read_back(pooling: Any, normalized: bool, tmp_path: Path) -> None:
    write_steps(tmp_path, pooling, normalized, hidden=32, max_length=77)
    assert stored_pooling(tmp_path / "modules.json") == (pooling, normalized)
    assert stored_classifier(tmp_path) is None
    steps = json.loads((tmp_path / "modules.json").read_text())
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalized else [])]
    assert [(step["idx"], step["name"], step["type"]) for step in steps] == [
        (n, str(n), f"sentence_transformers.models.{kind}") for n, kind in enumerate(kinds)
    ]
    assert [step["path"] for step in steps] == ["", "1_Pooling", "2_Normalize"][: len(kinds)]
    settings = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    own = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken"}
    assert settings == {"word_embedding_dimension": 32} | {
        f"pooling_mode_{name}": how == pooling for how, name in own.items()
    }
    body_settings = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    assert body_settings == {"max_seq_length": 77, "do_lower_case": False}
    assert json.loads((tmp_path / "config_sentence_transformers.json").read_text()) == {"similarity_fn_name": "cosine"}


@pytest.mark.parametrize("normalized", [True, False])
def test_a_head_on_vectors_is_written_and_read_back(normalized: bool, tmp_path: Path) -> None:
    classifier = nn.Linear(32, 3)
    write_steps(tmp_path, "mean", normalized, hidden=32, max_length=8, classifier=classifier)
    again = stored_classifier(tmp_path)
    assert again is not None
    assert (again.in_features, again.out_features) == (32, 3)
    torch.testing.assert_close(again.weight, classifier.weight)
    torch.testing.assert_close(again.bias, classifier.bias)
    directory = tmp_path / ("3_Dense" if normalized else "2_Dense")
    assert json.loads((directory / "config.json").read_text()) == {
        "in_features": 32,
        "out_features": 3,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    with pytest.raises(UserError, match="has steps that are not supported: Dense"):
        stored_pooling(tmp_path / "modules.json")


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, None),
        ({"pooling_mode": "max"}, None),
        ({}, None),
    ],
)
def test_pooling_is_read_from_old_and_new_settings(
    settings: dict[str, Any], pooling: str | None, tmp_path: Path
) -> None:
    write_steps(tmp_path, "mean", True, hidden=32, max_length=8)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    if pooling is None:
        with pytest.raises(UserError, match="uses a pooling other than the mean, the first token or the last token"):
            stored_pooling(tmp_path / "modules.json")
    else:
        assert stored_pooling(tmp_path / "modules.json")[0] == pooling


def test_a_directory_without_pooling_settings_is_refused(tmp_path: Path) -> None:
    write_steps(tmp_path, "mean", True, hidden=32, max_length=8)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(UserError, match=r"lacks 1_Pooling/config.json. Download the complete model"):
        stored_pooling(tmp_path / "modules.json")
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "x.Transformer", "path": ""}]))
    with pytest.raises(UserError, match="has no pooling step"):
        stored_pooling(tmp_path / "modules.json")
