"""Heads: their modules, logits on packed rows, probabilities, vectors, rows, initial weights and file."""

import json
import math
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
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForSequenceClassification,
    LlamaForCausalLM,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from tunesmith.config.head import Head
from tunesmith.config.registry import HEADS
from tunesmith.data.batch import collate
from tunesmith.data.example import Source
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.heads.embedding import EmbeddingClassifierHead, EmbeddingHead
from tunesmith.heads.head_file import read_head, write_head
from tunesmith.heads.new_head import head_names, head_parameters, labels_of, last_linear, peft_task_type
from tunesmith.heads.no_head import NoHead
from tunesmith.heads.seq2seq_lm import Seq2SeqLMHead
from tunesmith.heads.sequence_classification import (
    MultiLabelHead,
    RegressionHead,
    SequenceClassificationHead,
    class_logits,
)
from tunesmith.heads.token_classification import TokenClassificationHead, tag_logits
from tunesmith.metrics.prediction_metrics import PREDICTION_METRICS
from tunesmith.models.attention import use_document_attention
from tunesmith.models.forward import check_lm_head, first_hidden_states, next_token_losses, pool

CPU = torch.device("cpu")
CLASSES = SequenceClassificationHead(("calm", "bold", "dry"))
TAGS = TokenClassificationHead(("calm", "bold", "dry"))
VECTORS = EmbeddingHead()
SEVERAL = MultiLabelHead(CLASSES.labels)
FEW_SHOT = EmbeddingClassifierHead(CLASSES.labels)


# What heads declare


PROPERTIES: dict[str, dict[str, Any]] = {
    "none": {"auto_class": AutoModel},
    "causal_lm": {"auto_class": AutoModelForCausalLM, "commands": ("generate",), "generates_text": True},
    "seq2seq_lm": {"auto_class": AutoModelForSeq2SeqLM, "commands": ("generate",), "generates_text": True},
    "sequence_classification": {
        "auto_class": AutoModelForSequenceClassification,
        "commands": ("classify",),
        "is_new": True,
        "metrics": ("accuracy", "macro_f1", "calibration_error"),
    },
    "multi_label_classification": {
        "auto_class": AutoModelForSequenceClassification,
        "commands": ("classify",),
        "is_new": True,
        "metrics": ("exact_match_of_labels", "micro_f1", "macro_f1_of_labels", "calibration_of_labels"),
    },
    "regression": {
        "auto_class": AutoModelForSequenceClassification,
        "labels": ("value",),
        "commands": ("classify",),
        "is_new": True,
        "has_probabilities": False,
        "needs_fp32": True,
        "metrics": ("root_mean_square_error", "correlation", "rank_correlation"),
    },
    "graded_reward": {
        "auto_class": AutoModelForSequenceClassification,
        "commands": ("reward",),
        "is_new": True,
        "has_probabilities": False,
    },
    "process_reward": {
        "auto_class": AutoModelForSequenceClassification,
        "labels": ("step",),
        "commands": ("reward",),
        "is_new": True,
        "has_probabilities": False,
    },
    "reward": {
        "auto_class": AutoModelForSequenceClassification,
        "labels": ("reward",),
        "commands": ("reward",),
        "is_new": True,
        "has_probabilities": False,
        "metrics": ("pair_calibration_error",),
    },
    "token_classification": {
        "auto_class": AutoModelForTokenClassification,
        "commands": ("classify",),
        "is_new": True,
        "metrics": ("tag_accuracy",),
    },
    "embedding": {
        "auto_class": AutoModel,
        "commands": ("embed",),
        "metrics": ("recall_at_1", "recall_at_10", "mean_reciprocal_rank"),
    },
    "embedding_classifier": {
        "auto_class": AutoModel,
        "commands": ("classify", "embed"),
        "metrics": ("accuracy", "macro_f1", "calibration_error"),
    },
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_declares_its_model_commands_and_metrics(kind: str) -> None:
    head = HEADS.load(kind)()
    common = {"labels": (), "commands": (), "is_new": False, "generates_text": False, "metrics": ()}
    expected = {**common, "has_probabilities": True, "needs_fp32": False, **PROPERTIES[kind], "kind": kind}
    auto_class = expected.pop("auto_class")
    assert {name: getattr(head, name) for name in expected} == expected
    assert head.model_class(config_for("bert")) is auto_class
    assert set(head.metrics) <= set(PREDICTION_METRICS)


def test_entities_are_measured_before_tags_if_a_tag_begins_an_entity() -> None:
    assert TokenClassificationHead(("B-X", "I-X", "O")).metrics == ("entity_f1", "tag_accuracy")
    assert TokenClassificationHead(("I-X", "O")).metrics == TAGS.metrics == ("tag_accuracy",)


def test_only_a_language_model_has_a_perplexity_which_stays_finite() -> None:
    for head in (CausalLMHead(), Seq2SeqLMHead()):
        assert head.loss_metrics(2.0) == {"perplexity": pytest.approx(math.exp(2.0))}
        assert head.loss_metrics(1e4) == {"perplexity": pytest.approx(math.exp(700.0))}
    for head in (NoHead(), CLASSES, SEVERAL, RegressionHead(), TAGS, VECTORS, FEW_SHOT):
        assert head.loss_metrics(2.0) == {}


def test_a_family_without_the_head_is_refused_unless_its_own_code_has_it() -> None:
    config = config_for("cohere")
    with pytest.raises(
        UserError,
        match=r"^base: transformers has no sequence classification head for cohere\. Use another base, or objective: "
        r"few_shot, which needs no such head\.$",
    ):
        CLASSES.model_class(config)
    with pytest.raises(
        UserError, match=r"^base: transformers has no token classification head for cohere\. Use another"
    ):
        TAGS.model_class(config)
    config.auto_map = {"AutoModelForSequenceClassification": "modeling.Own"}
    assert CLASSES.model_class(config) is AutoModelForSequenceClassification
    with pytest.raises(UserError, match="no token classification head"):
        TAGS.model_class(config)


def test_a_new_head_writes_its_labels_and_its_problem_into_the_config() -> None:
    for head, problem in (
        (CLASSES, "single_label_classification"),
        (SEVERAL, "multi_label_classification"),
        (RegressionHead(), "regression"),
        (TAGS, None),
    ):
        config = config_for("bert", head)
        assert config.problem_type == problem
        assert config.num_labels == len(head.labels)
        assert config.id2label == dict(enumerate(head.labels))
        assert config.label2id == {label: number for number, label in enumerate(head.labels)}
        assert labels_of(config) == head.labels


def test_labels_of_a_config_are_in_the_order_of_the_outputs() -> None:
    config = config_for("bert", CLASSES)
    config.id2label = {2: 7, 0: "calm", 1: "bold"}
    assert labels_of(config) == ("calm", "bold", "7")
    config.id2label = None
    assert labels_of(config) == ()


@pytest.mark.parametrize(
    ("stored", "architecture"),
    [
        (CLASSES, "BertForSequenceClassification"),
        (SEVERAL, "BertForSequenceClassification"),
        (RegressionHead(), "BertForSequenceClassification"),
        (TAGS, "BertForTokenClassification"),
    ],
    ids=str,
)
def test_a_head_is_stored_with_the_same_architecture_problem_and_labels(stored: Head, architecture: str) -> None:
    config = config_for("bert", stored)
    assert not stored.is_stored(config), "a config without an architecture"
    config.architectures = ["BertForMaskedLM"]
    assert not stored.is_stored(config)
    config.architectures = [architecture]
    other_labels = [type(stored)(CLASSES.labels[::-1]), type(stored)(CLASSES.labels[:2])]
    same_labels = [SequenceClassificationHead(("value",)), RegressionHead(CLASSES.labels)]
    without_labels = [CausalLMHead(), VECTORS, NoHead()]
    heads = [CLASSES, SEVERAL, RegressionHead(), TAGS, *other_labels, *same_labels, *without_labels]
    assert [head for head in heads if head.is_stored(config)] == [stored]


def test_a_stored_head_without_a_problem_type_has_one_class_for_each_text() -> None:
    config = config_for("bert", CLASSES)
    config.architectures, config.problem_type = ["BertForSequenceClassification"], None
    assert CLASSES.is_stored(config)
    assert not SEVERAL.is_stored(config)


# Rows


def row(count: int, marked: list[int], *targets: float) -> Any:
    """A row of the ids 10, 11, …, with loss at these positions."""
    marks = np.zeros(count, np.bool_)
    marks[marked] = True
    return np.arange(10, 10 + count, dtype=np.int32), marks, Source("rows", 3), *([targets] if targets else [])


def values_of(row: Any) -> tuple[list[int], list[int], Source, tuple[Any, ...]]:
    """Its ids, loss positions, source and targets."""
    ids, marks, source, *targets = row
    assert len(marks) == len(ids)
    return ids.tolist(), np.flatnonzero(marks).tolist(), source, tuple(targets)


def test_tags_have_a_target_for_each_word_and_other_heads_a_set_for_each_text() -> None:
    values = np.array([2.0, 0.0, 1.0], np.float32)
    assert TAGS.targets(values).tolist() == [[2.0], [0.0], [1.0]]
    for head in (CLASSES, SEVERAL, RegressionHead(), VECTORS, FEW_SHOT, CausalLMHead()):
        assert head.targets(values).tolist() == [[2.0, 0.0, 1.0]]
    assert VECTORS.targets(values[:0]).shape == (1, 0)


def test_a_truncated_classified_text_keeps_its_closing_tokens_and_targets() -> None:
    for head, targets in ((CLASSES, (2.0,)), (SEVERAL, (1.0, 0.0, 1.0)), (RegressionHead(), (-2.5,))):
        kept = head.truncated(row(9, [8], *targets), limit=5, closing=1)
        assert values_of(kept) == ([10, 11, 12, 13, 18], [4], Source("rows", 3), (targets,))
    without_end_token = CLASSES.truncated(row(9, [8], 2.0), limit=5, closing=0)
    assert values_of(without_end_token)[:2] == ([10, 11, 12, 13, 14], [4])
    two_at_the_end = CLASSES.truncated(row(9, [8], 2.0), limit=5, closing=2)
    assert values_of(two_at_the_end)[:2] == ([10, 11, 12, 17, 18], [4])


def test_a_truncated_tagged_text_loses_the_tags_of_the_words_that_are_cut() -> None:
    kept = TAGS.truncated(row(9, [1, 3, 4, 7], 0.0, 1.0, 2.0, 1.0), limit=5, closing=1)
    assert kept is not None
    assert values_of(kept) == ([10, 11, 12, 13, 18], [1, 3], Source("rows", 3), ((0.0, 1.0),))
    assert TAGS.truncated(row(9, [4, 7], 0.0, 1.0), limit=5, closing=1) is None, "no word is left"
    assert TAGS.truncated(row(9, [0], 0.0), limit=5, closing=1) is not None


def test_each_text_of_a_row_for_vectors_is_truncated_alone() -> None:
    texts = [5, 7, 15, 16]  # the last tokens of texts of 6, 2, 8 and 1 tokens
    kept = VECTORS.truncated(row(17, texts), limit=4, closing=1)
    ids = [10, 11, 12, 15, 16, 17, 18, 19, 20, 25, 26]
    assert values_of(kept) == (ids, [3, 5, 9, 10], Source("rows", 3), ())
    assert values_of(FEW_SHOT.truncated(row(6, [5], 2.0), limit=4, closing=2)) == (
        [10, 11, 14, 15],
        [3],
        Source("rows", 3),
        ((2.0,),),
    )


def test_a_truncated_text_for_a_language_model_needs_a_loss_token_after_its_first() -> None:
    for head in (CausalLMHead(), Seq2SeqLMHead()):
        kept = head.truncated(row(9, [0, 4, 8]), limit=5, closing=1)
        assert values_of(kept) == ([10, 11, 12, 13, 14], [0, 4], Source("rows", 3), ())
        assert head.truncated(row(9, [1]), limit=5, closing=1) is not None
        assert head.truncated(row(9, [0, 5]), limit=5, closing=1) is None


def test_the_length_of_a_row_for_vectors_is_that_of_its_longest_text() -> None:
    table = TokenTable.build([row(17, [5, 7, 15, 16]), row(4, [2, 3])])
    assert VECTORS.text_lengths(table).tolist() == [8, 3]
    assert CausalLMHead().text_lengths(table).tolist() == [17, 4]


@pytest.mark.parametrize(
    ("head", "targets"),
    [(CLASSES, 1), (SEVERAL, 3), (RegressionHead(), 1), (CausalLMHead(), None), (Seq2SeqLMHead(), None)],
    ids=str,
)
def test_rows_for_a_plan_have_the_loss_tokens_and_targets_of_real_ones(head: Head, targets: int | None) -> None:
    table = head.dummy_rows([4, 1, 6])
    assert table.lengths.tolist() == [4, 1, 6]
    assert table.loss_tokens == (3 if targets else 3 + 0 + 5)
    for index, (ids, marks) in enumerate(table):
        assert ids.dtype == np.int32
        assert marks.tolist() == ([False] * (len(ids) - 1) + [True] if targets else [True] * len(ids))
        assert targets is None or table.targets_of(index).tolist() == [0.0] * targets
    assert (table.targets is None) == (targets is None)


def test_lengths_do_not_say_what_rows_of_tags_and_vectors_cost() -> None:
    assert [head.dummy_rows([4, 6]) for head in (TAGS, VECTORS, FEW_SHOT, NoHead())] == [None] * 4


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
    assert peft_task_type(model) == task
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
    assert (head_names(model), head_parameters(model), peft_task_type(model)) == ([], 0, task)


@pytest.mark.parametrize("family", [*ENCODERS, "llama", "gpt2", "qwen3", "bloom"])
def test_sequence_classification_heads_run_on_packed_rows(family: str) -> None:
    layers = 1 if family == "albert" else 3
    model = small_model(family, CLASSES, layers=layers)
    actual = class_logits(model, batch_of(targets=[[0.0]] * 4))
    torch.testing.assert_close(actual, torch.stack(logits_alone(model)), rtol=1e-5, atol=2e-6)
    CLASSES.check(model)
    table = table_of(targets=True)
    featured = CLASSES.with_features(model.train(), table, 16)
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


@pytest.mark.parametrize(
    "text", ["not JSON", "[]", '{"labels": []}', '{"kind": "another", "labels": []}', '{"kind": "none", "x": 1}']
)
def test_a_head_file_of_another_program_or_version_is_refused_by_its_path(text: str, tmp_path: Path) -> None:
    (tmp_path / "head.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"{tmp_path}/head.json does not describe a head that this version knows"):
        read_head(tmp_path)


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


# Outcomes


def test_outcomes_of_language_models_and_tags_are_their_log_probabilities() -> None:
    for head, family in ((CausalLMHead(), "llama"), (TAGS, "bert")):
        positions = [[1, 3], [2], [1, 2], [2, 5, 6]]
        targets = None if family == "llama" else [[0.0] * len(each) for each in positions]
        model = small_model(family, head)
        actual = head.log_probabilities(model, batch_of(loss_mask=positions, targets=targets))
        # the next token is predicted one position before it
        read = [[at - (family == "llama") for at in each] for each in positions]
        logits = torch.cat([each[at] for each, at in zip(logits_alone(model), read, strict=True)])
        torch.testing.assert_close(actual, torch.log_softmax(logits, -1).float(), rtol=1e-5, atol=1e-5)


def test_outcomes_of_vectors_and_values_are_one_for_each_row_and_cannot_differ() -> None:
    batch = batch_of(targets=[[0.0]] * 4)
    for head in (VECTORS, FEW_SHOT, RegressionHead()):
        outcomes = head.log_probabilities(small_model("bert", head), batch)
        assert (outcomes.tolist(), outcomes.dtype) == ([[0.0]] * 4, torch.float32)


# Initialization of a new head


def expected_head(seed: int, spread: float) -> Tensor:
    torch.manual_seed(seed)
    return torch.empty(3, 32).normal_(0.0, spread)


def test_a_new_head_is_initialized_from_the_seed_and_initializer_range() -> None:
    model = small_model("bert", CLASSES, dtype=torch.float32)
    CLASSES.initialize(model, [], is_stored=False, seed=5)
    torch.testing.assert_close(model.classifier.weight.data, expected_head(5, 0.2))
    assert model.classifier.bias.tolist() == [0.0] * 3
    assert model.new_modules == []
    assert head_names(model) == ["classifier"]
    pooler = model.bert.pooler.dense.weight.detach().clone()
    model.config.initializer_range = 0.0
    CLASSES.initialize(model, ["bert.pooler.dense.weight"], is_stored=False, seed=6)
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
    CLASSES.initialize(model, ["bert.embeddings.word_embeddings.weight"], is_stored=True, seed=5)
    torch.testing.assert_close(model.classifier.weight.data, kept, rtol=0, atol=0)
    assert model.new_modules == []
    modern = small_model("modernbert", CLASSES, dtype=torch.float32)
    CLASSES.initialize(modern, [], is_stored=False, seed=5)
    assert head_names(modern) == ["head", "classifier"]
    assert modern.head.norm.weight.tolist() == [1.0] * 32
    assert modern.head.dense.weight.std().item() == pytest.approx(0.2, rel=0.1)
