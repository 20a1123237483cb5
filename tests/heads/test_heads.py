"""Heads: their modules, logits on packed rows, probabilities, vectors, initial weights and file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import ENCODERS
from small_models import (
    ROWS,
    batch_of,
    config_for,
    logits_alone,
    method_of,
    randomize,
    small_model,
    states_alone,
)
from torch import Tensor
from torch.nn import functional
from transformers import BertForSequenceClassification, LlamaForCausalLM
from transformers.modeling_outputs import SequenceClassifierOutput

from tunesmith.config.head import Head, read_head, write_head
from tunesmith.data.example import Source
from tunesmith.data.pack import collate
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.heads.embedding import EmbeddingClassifierHead, EmbeddingHead
from tunesmith.heads.new_head import head_names, head_parameters, initialize_head, last_linear
from tunesmith.heads.seq2seq_lm import Seq2SeqLMHead
from tunesmith.heads.sequence_classification import (
    MultiLabelHead,
    RegressionHead,
    SequenceClassificationHead,
    class_logits,
    with_features,
)
from tunesmith.heads.token_classification import TokenClassificationHead, tag_logits
from tunesmith.methods.wrapping import _task_type
from tunesmith.models.attention import use_document_attention
from tunesmith.models.forward import (
    check_lm_head,
    first_hidden_states,
    next_token_losses,
    pool,
)

CPU = torch.device("cpu")
CLASSES = SequenceClassificationHead(("calm", "bold", "dry"))
TAGS = TokenClassificationHead(("calm", "bold", "dry"))
VECTORS = EmbeddingHead()


# Heads


@pytest.mark.parametrize(
    ("family", "head", "heads", "last", "task"),
    [
        ("bert", CLASSES, ["classifier"], "classifier", "SEQ_CLS"),
        ("roberta", CLASSES, ["classifier"], "classifier.out_proj", "SEQ_CLS"),
        ("distilbert", CLASSES, ["pre_classifier", "classifier"], "classifier", "SEQ_CLS"),
        ("deberta", CLASSES, ["pooler", "classifier"], "classifier", "SEQ_CLS"),
        ("llama", CLASSES, ["score"], "score", "SEQ_CLS"),
        ("bert", TAGS, ["classifier"], "classifier", "TOKEN_CLS"),
    ],
)
def test_new_head_modules_are_found(family: str, head: Head, heads: list[str], last: str, task: str) -> None:
    model = small_model(family, head)
    assert head_names(model) == heads
    assert last_linear(model) is model.get_submodule(last)
    assert _task_type(model) == task
    own = [name for name, _ in model.named_parameters() if name.split(".")[0] in heads]
    assert head_parameters(model) == sum(model.get_parameter(name).numel() for name in own) > 0
    peft_model = method_of("lora", rank=2).apply(model, seed=0)
    assert last_linear(peft_model).weight.requires_grad
    assert last_linear(peft_model).out_features == 3


@pytest.mark.parametrize(
    ("family", "head", "task"),
    [
        ("llama", CausalLMHead(), "CAUSAL_LM"),
        ("t5", Seq2SeqLMHead(), "SEQ_2_SEQ_LM"),
        ("bert", VECTORS, "FEATURE_EXTRACTION"),
    ],
)
def test_language_model_heads_and_vectors_have_no_new_head(family: str, head: Head, task: str) -> None:
    model = small_model(family, head)
    assert (head_names(model), head_parameters(model), _task_type(model)) == ([], 0, task)


@pytest.mark.parametrize("family", [*ENCODERS, "llama", "gpt2", "qwen3", "bloom"])
def test_sequence_classification_heads_run_on_packed_rows(family: str) -> None:
    layers = 1 if family == "albert" else 3
    model = small_model(family, CLASSES, layers=layers)
    actual = class_logits(model, batch_of(targets=[[0.0]] * 4))
    torch.testing.assert_close(actual, torch.stack(logits_alone(model)), rtol=1e-5, atol=2e-6)
    CLASSES.check(model)
    table = table_of(targets=True)
    featured = with_features(model.train(), table, 16)
    assert model.training
    assert featured.features is not None
    assert featured.features.shape == (4, 32)
    actual = class_logits(model.eval(), collate(featured, [2, 0, 3]))
    expected = torch.stack(logits_alone(model))[[2, 0, 3]]
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


def table_of(targets: bool = False) -> TokenTable:
    rows: list[Any] = []
    for number, ids in enumerate(ROWS):
        loss_mask = np.arange(len(ids)) == len(ids) - 1
        row = (np.asarray(ids, np.int32), loss_mask, Source("rows", number + 1))
        rows.append((*row, (1.0,)) if targets else row)
    return TokenTable.build(rows)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2", "modernbert", "electra"])
def test_token_classification_heads_run_on_packed_rows(family: str) -> None:
    model = small_model(family, TAGS)
    words = [[1, 3], [2], [0, 1], [2, 5, 6]]
    actual = tag_logits(model, batch_of(loss_mask=words, targets=[[0.0] * len(each) for each in words]))
    expected = [logits[positions] for logits, positions in zip(logits_alone(model), words, strict=True)]
    torch.testing.assert_close(actual, torch.cat(expected), rtol=1e-7, atol=1e-7)
    TAGS.check(model)


class LastForSequenceClassification(BertForSequenceClassification):
    """Reads the last token, which no supported encoder's head does."""

    def forward(self, **arguments: Any) -> SequenceClassifierOutput:  # type: ignore[override]
        return SequenceClassifierOutput(logits=self.classifier(self.bert(**arguments).last_hidden_state[:, -1]))


def test_a_head_that_reads_another_position_is_refused() -> None:
    config = config_for("bert", CLASSES)
    torch.manual_seed(0)
    model = LastForSequenceClassification(config).eval()
    with pytest.raises(
        UserError, match="LastForSequenceClassification's head reads its body's output in an unknown way"
    ):
        CLASSES.check(model)
    CLASSES.check(BertForSequenceClassification(config).eval())


class TwiceForCausalLM(LlamaForCausalLM):
    """Doubles its logits after the last layer."""

    def forward(self, **arguments: Any) -> Any:
        out = super().forward(**arguments)
        out.logits = 2 * out.logits
        return out


def test_logits_changed_after_the_last_layer_are_refused() -> None:
    torch.manual_seed(0)
    model = TwiceForCausalLM(config_for("llama")).eval()
    use_document_attention(model)
    with pytest.raises(UserError, match="TwiceForCausalLM changes its logits after the last layer"):
        check_lm_head(model)
    torch.manual_seed(0)
    supported = LlamaForCausalLM(config_for("llama")).train()
    use_document_attention(supported)
    check_lm_head(supported)
    assert supported.training


def test_a_frozen_body_with_a_classification_head_is_detected() -> None:
    assert CLASSES.reads_features(method_of("layers").apply(small_model("bert", CLASSES), seed=0))
    assert not CLASSES.reads_features(method_of("layers", last=1).apply(small_model("bert", CLASSES), seed=0))
    assert not CLASSES.reads_features(small_model("bert", CLASSES).requires_grad_(False)), "nothing is trained"
    assert not TAGS.reads_features(method_of("layers").apply(small_model("bert", TAGS), seed=0)), (
        "the head reads every word"
    )
    assert not CausalLMHead().reads_features(method_of("layers", head=True).apply(small_model(), seed=0))
    assert not CLASSES.reads_features(method_of("lora").apply(small_model("bert", CLASSES), seed=0))


def test_head_probabilities_for_each_problem_type() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    several = MultiLabelHead(CLASSES.labels)
    torch.testing.assert_close(CLASSES.probabilities(logits), logits.exp() / logits.exp().sum())
    torch.testing.assert_close(several.probabilities(logits), 1 / (1 + (-logits).exp()))
    assert RegressionHead().probabilities(logits) is logits


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_adapter_has_the_seq2seq_task_type(family: str, tmp_path: Path) -> None:
    peft_model = randomize(method_of("lora", rank=2).apply(small_model(family), seed=0))
    peft_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    batch = batch_of(loss_mask=[range(2, len(ids)) for ids in ROWS])
    expected = []
    for ids in ROWS:
        target = torch.tensor(ids[2:])[None]
        logits = peft_model(input_ids=torch.tensor(ids[:2])[None], labels=target).logits[0]
        expected.append(functional.cross_entropy(logits, target[0], reduction="none"))
    torch.testing.assert_close(next_token_losses(peft_model, batch), torch.cat(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "head",
    [
        CLASSES,
        RegressionHead(),
        TAGS,
        EmbeddingClassifierHead(("a", "b"), pooling="last", normalized=False),
    ],
    ids=str,
)
def test_the_head_file_is_read_back_from_the_adapter_directory(head: Head, tmp_path: Path) -> None:
    assert read_head(tmp_path) is None
    write_head(head, tmp_path)
    assert read_head(tmp_path) == head
    assert json.loads((tmp_path / "head.json").read_text())["kind"] == head.kind


# Vectors


def test_each_text_is_pooled_separately() -> None:
    states = torch.tensor([[1.0, 10], [3, 20], [8, 60], [2, 2], [4, 6], [5, 7]])
    lengths = [2, 1, 3]
    assert pool(states, lengths, "mean").tolist() == [[2, 15], [8, 60], pytest.approx([11 / 3, 5])]
    assert pool(states, lengths, "first").tolist() == [[1, 10], [8, 60], [2, 2]]
    assert pool(states, lengths, "last").tolist() == [[3, 20], [8, 60], [5, 7]]
    assert pool(states.bfloat16(), lengths, "mean").dtype == torch.float32
    assert pool(states.double(), lengths, "mean").dtype == torch.float64


def test_vectors_are_normalized_if_configured() -> None:
    model = small_model("bert", VECTORS)
    plain = EmbeddingHead(normalized=False).vectors(model, batch_of(targets=[[0.0]] * 4))
    expected = torch.stack([states.mean(0) for states in states_alone(model, ROWS)])
    torch.testing.assert_close(plain, expected, rtol=1e-8, atol=1e-8)
    actual = VECTORS.vectors(model, batch_of(targets=[[0.0]] * 4))
    torch.testing.assert_close(actual, functional.normalize(expected, dim=1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", ["bert", "deberta"])
def test_first_hidden_states_are_those_of_each_rows_first_token(family: str) -> None:
    model = small_model(family, VECTORS)
    actual = first_hidden_states(model, batch_of(targets=[[0.0]] * 4))
    expected = torch.stack([states[0] for states in states_alone(model, ROWS)])
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-7)


# Initialization of a new head


def expected_head(seed: int, spread: float) -> Tensor:
    torch.manual_seed(seed)
    return torch.empty(3, 32).normal_(0.0, spread)


def test_a_new_head_is_initialized_from_the_seed_and_initializer_range() -> None:
    model = small_model("bert", CLASSES, dtype=torch.float32)
    initialize_head(model, [], is_stored=False, seed=5)
    torch.testing.assert_close(model.classifier.weight.data, expected_head(5, 0.2))
    assert model.classifier.bias.tolist() == [0.0] * 3
    assert model.new_modules == []
    assert head_names(model) == ["classifier"]
    pooler = model.bert.pooler.dense.weight.detach().clone()
    model.config.initializer_range = 0.0
    initialize_head(model, ["bert.pooler.dense.weight"], is_stored=False, seed=6)
    assert head_names(model) == ["bert.pooler", "classifier"]
    torch.testing.assert_close(model.classifier.weight.data, expected_head(6, 0.02))
    torch.manual_seed(0)
    expected_pooler = torch.empty(32, 32).normal_(0.0, 0.02)
    torch.testing.assert_close(model.bert.pooler.dense.weight.data, expected_pooler)
    assert (expected_pooler - pooler).abs().max() > 0.1
    assert model.bert.pooler.dense.bias.abs().max() == 0


def test_a_trained_head_is_kept_and_norms_start_at_one() -> None:
    model = small_model("bert", CLASSES, dtype=torch.float32)
    kept = model.classifier.weight.detach().clone()
    initialize_head(model, ["bert.embeddings.word_embeddings.weight"], is_stored=True, seed=5)
    torch.testing.assert_close(model.classifier.weight.data, kept, rtol=0, atol=0)
    assert model.new_modules == []
    modern = small_model("modernbert", CLASSES, dtype=torch.float32)
    initialize_head(modern, [], is_stored=False, seed=5)
    assert head_names(modern) == ["head", "classifier"]
    assert modern.head.norm.weight.tolist() == [1.0] * 32
    assert modern.head.dense.weight.std().item() == pytest.approx(0.2, rel=0.1)
