"""What a base is, by its config, and what identifies it; what of its files stays after it is loaded."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import stored_base
from transformers import BartConfig, BertConfig, GPT2Config, PretrainedConfig, RobertaConfig, T5Config

from tunesmith.config.base import Base
from tunesmith.errors import UserError
from tunesmith.models.load import fingerprint, kind_of, load_model, stored_weight


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (BertConfig(), "encoder"),
        (BertConfig(architectures=["BertForMaskedLM"]), "encoder"),
        (BertConfig(architectures=["BertLMHeadModel"]), "decoder"),
        (RobertaConfig(architectures=["RobertaForCausalLM"]), "decoder"),
        (BertConfig(is_decoder=True), "decoder"),
        (GPT2Config(), "decoder"),
        (T5Config(), "encoder-decoder"),
        (BartConfig(), "encoder-decoder"),
        (PretrainedConfig(), "encoder"),
        (PretrainedConfig(auto_map={"AutoModel": "own.Own"}), "encoder"),
        (PretrainedConfig(auto_map={"AutoModelForCausalLM": "own.Own"}), "decoder"),
    ],
)
def test_the_kind_of_a_base_follows_from_its_family_and_its_class(config: PretrainedConfig, kind: str) -> None:
    assert kind_of(config) == kind


def test_a_fingerprint_does_not_depend_on_the_order_of_the_config(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    values: dict[str, Any] = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(values.items()))))
    assert fingerprint(Base(path=str(tmp_path / "model"))) == fingerprint(Base(path=str(tiny_model)))
    file.write_text(json.dumps({**values, "hidden_act": "gelu"}))
    assert fingerprint(Base(path=str(tmp_path / "model"))) != fingerprint(Base(path=str(tiny_model)))


def test_a_weight_that_the_files_do_not_have_is_refused(tiny_model: Path) -> None:
    model = load_model(Base(path=str(tiny_model)), torch.float32)
    with pytest.raises(UserError, match=r"llama does not store model\.none\.weight, so its quantization error"):
        stored_weight(model, "model.none.weight")


@pytest.mark.skipif(sys.platform != "linux", reason="mapped files are read from Linux's /proc")
@pytest.mark.parametrize(("family", "weights"), [("llama", "int8"), ("gpt2", "auto")])
def test_a_base_whose_layers_were_replaced_keeps_no_file_in_memory(family: str, weights: Any, tmp_path: Path) -> None:
    base = stored_base(tmp_path / "base", family)
    model = load_model(Base(path=str(base), weights=weights), torch.float32)
    assert str(base) not in Path("/proc/self/maps").read_text()
    assert model.get_input_embeddings().weight.any()
