"""New heads, pooled vectors, NEFTune, bottlenecks, prompts and layer names, compared with the family's own forward."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import ENCODERS
from peft import PeftModel
from small_models import (
    ROWS,
    batch_of,
    config_for,
    logits_alone,
    method_of,
    moving,
    own_forward,
    randomize,
    small_model,
    states_alone,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, BertForSequenceClassification, LlamaForCausalLM
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.pytorch_utils import Conv1D

from tunesmith.data.example import Source
from tunesmith.data.pack import collate
from tunesmith.data.tokens import TokenTable
from tunesmith.ending import Ending
from tunesmith.errors import UserError
from tunesmith.models.adapters import load_adapter_weights, refuse_pickle
from tunesmith.models.architecture import block_layers, blocks, linears, linears_in_blocks, norms, short_names, stacks
from tunesmith.models.attention import packs, use_document_attention
from tunesmith.models.bottleneck import BottleneckConfig, BottleneckLayer
from tunesmith.models.conv1d import TransposedLinear, as_linear, as_stored
from tunesmith.models.forward import (
    check_head,
    first_hidden_states,
    head_of,
    next_token_loss,
    next_token_losses,
    pool,
    run_probe,
)
from tunesmith.models.heads import (
    body_is_frozen,
    check_new_head,
    class_logits,
    head_names,
    head_parameters,
    head_probabilities,
    last_linear,
    tag_logits,
    task_type,
    vectors,
    with_features,
)
from tunesmith.models.neftune import add_neftune, tokens_of_rows
from tunesmith.models.new_head import initialize_head
from tunesmith.models.prompts import (
    has_prefix,
    has_prompt,
    keys_and_values,
    model_inputs,
    padded,
    padded_positions,
    plain_model,
    virtual_tokens,
)
from tunesmith.models.sentence_transformers_format import stored_head, stored_pooling, write_steps

CPU = torch.device("cpu")
CLASSES = Ending("classes", ("calm", "bold", "dry"))
TAGS = Ending("tags", ("calm", "bold", "dry"))
VECTORS = Ending("vectors")


# Heads


@pytest.mark.parametrize(
    ("family", "ending", "heads", "last", "task"),
    [
        ("bert", CLASSES, ["classifier"], "classifier", "SEQ_CLS"),
        ("roberta", CLASSES, ["classifier"], "classifier.out_proj", "SEQ_CLS"),
        ("distilbert", CLASSES, ["pre_classifier", "classifier"], "classifier", "SEQ_CLS"),
        ("deberta", CLASSES, ["pooler", "classifier"], "classifier", "SEQ_CLS"),
        ("llama", CLASSES, ["score"], "score", "SEQ_CLS"),
        ("bert", TAGS, ["classifier"], "classifier", "TOKEN_CLS"),
    ],
)
def test_new_head_modules_are_found(family: str, ending: Ending, heads: list[str], last: str, task: str) -> None:
    model = small_model(family, ending)
    assert head_names(model) == heads
    assert last_linear(model) is model.get_submodule(last)
    assert task_type(model) == task
    own = [name for name, _ in model.named_parameters() if name.split(".")[0] in heads]
    assert head_parameters(model) == sum(model.get_parameter(name).numel() for name in own) > 0
    peft_model = method_of("lora", rank=2).apply(model, seed=0)
    assert last_linear(peft_model).weight.requires_grad
    assert last_linear(peft_model).out_features == 3


@pytest.mark.parametrize(
    ("family", "ending", "task"),
    [
        ("llama", Ending(), "CAUSAL_LM"),
        ("t5", Ending(), "SEQ_2_SEQ_LM"),
        ("bert", VECTORS, "FEATURE_EXTRACTION"),
    ],
)
def test_language_model_heads_and_vectors_have_no_new_head(family: str, ending: Ending, task: str) -> None:
    model = small_model(family, ending)
    assert (head_names(model), head_parameters(model), task_type(model)) == ([], 0, task)


@pytest.mark.parametrize("family", [*ENCODERS, "llama", "gpt2", "qwen3", "bloom"])
def test_sequence_classification_heads_run_on_packed_rows(family: str) -> None:
    layers = 1 if family == "albert" else 3
    model = small_model(family, CLASSES, layers=layers)
    actual = class_logits(model, batch_of(targets=[[0.0]] * 4))
    torch.testing.assert_close(actual, torch.stack(logits_alone(model)), rtol=1e-5, atol=2e-6)
    check_new_head(model)
    table = table_of(targets=True)
    featured = with_features(model.train(), table, 16, CPU)
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
    check_new_head(model)


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
        check_new_head(model)
    check_new_head(BertForSequenceClassification(config).eval())


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
        check_head(model)
    torch.manual_seed(0)
    supported = LlamaForCausalLM(config_for("llama")).train()
    use_document_attention(supported)
    check_head(supported)
    assert supported.training


def test_a_frozen_body_with_a_classification_head_is_detected() -> None:
    head = small_model("bert", CLASSES)
    assert body_is_frozen(method_of("layers").apply(head, seed=0))
    assert not body_is_frozen(method_of("layers", last=1).apply(small_model("bert", CLASSES), seed=0))
    assert not body_is_frozen(small_model("bert", CLASSES).requires_grad_(False)), "nothing is trained"
    assert not body_is_frozen(method_of("layers").apply(small_model("bert", TAGS), seed=0)), "the head reads every word"
    assert not body_is_frozen(method_of("layers", head=True).apply(small_model(), seed=0))
    assert not body_is_frozen(method_of("lora").apply(small_model("bert", CLASSES), seed=0))


def test_head_probabilities_for_each_problem_type() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    several = Ending("classes", CLASSES.labels, "multi_label_classification")
    torch.testing.assert_close(head_probabilities(logits, CLASSES), logits.exp() / logits.exp().sum())
    torch.testing.assert_close(head_probabilities(logits, several), 1 / (1 + (-logits).exp()))
    assert head_probabilities(logits, Ending("classes", ("value",), "regression")) is logits
    torch.testing.assert_close(head_probabilities(logits.expand(2, 3), TAGS).sum(-1), torch.ones(2))


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
    "ending",
    [
        CLASSES,
        Ending("classes", ("value",), "regression"),
        TAGS,
        Ending("vectors", ("a", "b"), pooling="last", normalized=False),
    ],
    ids=str,
)
def test_the_head_file_is_read_back_from_the_adapter_directory(ending: Ending, tmp_path: Path) -> None:
    assert Ending.beside(tmp_path) == Ending("vocabulary", (), "single_label_classification", "mean", True)
    ending.write(tmp_path)
    assert Ending.beside(tmp_path) == ending
    assert json.loads((tmp_path / "ending.json").read_text())["kind"] == ending.kind
    assert ending.has_head == (ending.kind in ("classes", "tags"))
    assert not Ending().has_head


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
    plain = vectors(model, batch_of(targets=[[0.0]] * 4), Ending("vectors", normalized=False))
    expected = torch.stack([states.mean(0) for states in states_alone(model, ROWS)])
    torch.testing.assert_close(plain, expected, rtol=1e-8, atol=1e-8)
    actual = vectors(model, batch_of(targets=[[0.0]] * 4), VECTORS)
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
    initialize_head(model, [], is_trained=False, seed=5)
    torch.testing.assert_close(model.classifier.weight.data, expected_head(5, 0.2))
    assert model.classifier.bias.tolist() == [0.0] * 3
    assert model.new_modules == []
    assert head_names(model) == ["classifier"]
    pooler = model.bert.pooler.dense.weight.detach().clone()
    model.config.initializer_range = 0.0
    initialize_head(model, ["bert.pooler.dense.weight"], is_trained=False, seed=6)
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
    initialize_head(model, ["bert.embeddings.word_embeddings.weight"], is_trained=True, seed=5)
    torch.testing.assert_close(model.classifier.weight.data, kept, rtol=0, atol=0)
    assert model.new_modules == []
    modern = small_model("modernbert", CLASSES, dtype=torch.float32)
    initialize_head(modern, [], is_trained=False, seed=5)
    assert head_names(modern) == ["head", "classifier"]
    assert modern.head.norm.weight.tolist() == [1.0] * 32
    assert modern.head.dense.weight.std().item() == pytest.approx(0.2, rel=0.1)


# NEFTune


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_neftune_noise_is_uniform_within_each_rows_bound_and_only_in_training(family: str) -> None:
    model = small_model(family, hidden_dropout=0.0)
    assert packs(model) == (family == "llama")
    add_neftune(model, alpha=6.0)
    inputs = model_inputs(model, batch_of())
    embeddings: list[Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda _, __, out: embeddings.append(out.detach()))
    model.base_model(**inputs.arguments, use_cache=False)
    model.train()
    model.base_model(**inputs.arguments, use_cache=False)
    plain, noisy = (each.flatten(0, 1)[inputs.positions] for each in embeddings)
    weight = model.get_input_embeddings().weight
    documents = batch_of().lengths[:4]
    ids = batch_of().input_ids[0]
    torch.testing.assert_close(plain[: sum(documents)], weight[ids][: sum(documents)])
    for row in torch.split((noisy - plain)[: sum(documents)], documents):
        bound = 6.0 / (len(row) * 32) ** 0.5
        assert 0.8 * bound < row.abs().max() <= bound * (1 + 1e-9)
        assert row.std().item() == pytest.approx(bound / 3**0.5, rel=0.25)
        assert abs(row.mean().item()) < 0.3 * bound


def test_row_tokens_are_counted_by_documents_or_by_the_mask() -> None:
    packed = tokens_of_rows({"document_lengths": [2, 3]})
    assert packed.tolist() == [[2.0, 2.0, 3.0, 3.0, 3.0]]
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    counted = tokens_of_rows({"attention_mask": mask, "input_ids": torch.zeros(2, 4)})
    assert counted.tolist() == [[3.0] * 4, [1.0] * 4]
    with_prompt = tokens_of_rows({"attention_mask": torch.ones(1, 6), "input_ids": torch.zeros(1, 4)})
    assert with_prompt.tolist() == [[6.0] * 4]


def test_neftune_adds_noise_to_the_encoders_embeddings() -> None:
    model = small_model("t5")
    add_neftune(model, alpha=6.0)
    batch = batch_of(loss_mask=[range(2, len(ids)) for ids in ROWS])
    quiet = next_token_losses(model, batch)
    model.train()
    first, second = next_token_losses(model, batch), next_token_losses(model, batch)
    assert (first - quiet).abs().max() > 1e-3
    assert (first - second).abs().max() > 1e-3
    model.eval()
    torch.testing.assert_close(next_token_losses(model, batch), quiet)


# Bottlenecks


def test_a_bottleneck_needs_a_linear_layer_and_cannot_be_merged() -> None:
    from peft import get_peft_model

    model = small_model("gpt2")
    as_stored(model)
    peft_model = get_peft_model(model, BottleneckConfig(target_modules=["mlp.c_proj"], reduction=4), "own")
    layer = peft_model.get_base_model().transformer.h[0].mlp.c_proj
    assert isinstance(layer, BottleneckLayer)
    assert isinstance(layer.get_base_layer(), Conv1D)
    assert (layer.in_features, layer.out_features, layer.source_size) == (48, 32, 32)
    assert layer.bottleneck_down["own"].out_features == 8
    assert layer.bottleneck_up["own"].weight.abs().max() == 0
    assert layer.bottleneck_up["own"].bias.abs().max() == 0
    with pytest.raises(ValueError, match="cannot be merged"):
        peft_model.merge_and_unload()
    with pytest.raises(ValueError, match="ln_f is not a linear layer"):
        get_peft_model(small_model("gpt2"), BottleneckConfig(target_modules=["ln_f"]))


def test_a_second_bottleneck_is_inactive_until_it_is_selected() -> None:
    peft_model = randomize(method_of("adapter", reduction=8).apply(small_model(), seed=0))
    batch = batch_of()
    first = next_token_losses(peft_model, batch)
    peft_model.add_adapter("other", BottleneckConfig(target_modules=["down_proj"], reduction=4, scale=3.0))
    peft_model.double()
    torch.testing.assert_close(next_token_losses(peft_model, batch), first)
    assert not any(".other." in name for name in moving(peft_model))
    peft_model.set_adapter("other")
    assert all(".other." in name for name in moving(peft_model))
    torch.testing.assert_close(next_token_losses(peft_model, batch), next_token_losses(small_model(), batch))
    layer = peft_model.get_base_model().model.layers[0].mlp.down_proj
    assert layer.bottleneck_down["other"].out_features == 8


# Adapter files


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    peft_model = randomize(method_of("lora", rank=2).apply(loaded(tiny_model), seed=0))
    peft_model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def loaded(directory: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(directory)
    use_document_attention(model)
    return model


def test_training_continues_from_an_adapter_only_with_the_same_method(adapter: Path, tiny_model: Path) -> None:
    again = method_of("lora", rank=2).apply(loaded(tiny_model), seed=9)
    load_adapter_weights(again, adapter)
    theirs = PeftModel.from_pretrained(loaded(tiny_model), adapter)
    torch.testing.assert_close(next_token_losses(again, batch_of()), next_token_losses(theirs, batch_of()))
    for values, reason in (
        ({"rank": 3}, "size mismatch|Error"),
        ({"rank": 2, "target_modules": "attention"}, "it contains .*mlp"),
        ({"rank": 2, "dora": True}, "it lacks .*magnitude"),
    ):
        with pytest.raises(UserError, match=f"was not made by this method on this base: .*{reason}"):
            load_adapter_weights(method_of("lora", **values).apply(loaded(tiny_model), seed=0), adapter)
    with pytest.raises(UserError, match="this method trains no adapter, so it cannot continue from"):
        load_adapter_weights(method_of("layers", last=1).apply(loaded(tiny_model), seed=0), adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        load_adapter_weights(again, adapter)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_a_prompt_or_prefix_is_loaded_to_continue_training(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    peft_model = randomize(method_of(kind, tokens=4).apply(loaded(tiny_model), seed=0))
    expected = next_token_losses(peft_model, batch_of())
    peft_model.save_pretrained(tmp_path)
    again = method_of(kind, tokens=4).apply(loaded(tiny_model), seed=8)
    load_adapter_weights(again, tmp_path)
    torch.testing.assert_close(next_token_losses(again, batch_of()), expected)
    with pytest.raises(UserError, match="was not made by this method"):
        load_adapter_weights(method_of("lora").apply(loaded(tiny_model), seed=0), tmp_path)


def test_a_pickle_is_refused_unless_safetensors_exist_too(tmp_path: Path) -> None:
    refuse_pickle(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="stores its weights as a pickle"):
        refuse_pickle(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    refuse_pickle(tmp_path)


# GPT-2's layers


def test_transposed_layers_compute_the_same_and_convert_back() -> None:
    torch.manual_seed(0)
    stored = AutoModelForCausalLM.from_config(config_for("gpt2")).eval()
    ids = torch.tensor(ROWS[:1])
    with torch.no_grad():
        before, weights = stored(input_ids=ids).logits, {n: e.clone() for n, e in stored.state_dict().items()}
        layer = stored.transformer.h[1].mlp.c_fc
        layer.weight.requires_grad_(False)
        turned = as_linear(stored)
        assert turned is stored
        linear = stored.transformer.h[1].mlp.c_fc
        assert isinstance(linear, TransposedLinear)
        assert (linear.in_features, linear.out_features) == (32, 48)
        assert linear.weight.is_contiguous()
        assert not linear.weight.requires_grad
        assert stored.transformer.h[2].mlp.c_fc.weight.requires_grad
        torch.testing.assert_close(linear.weight, weights["transformer.h.1.mlp.c_fc.weight"].T)
        assert not any(isinstance(each, Conv1D) for each in stored.modules())
        assert not hasattr(layer, "weight"), "the old layer keeps its weight"
        torch.testing.assert_close(stored(input_ids=ids).logits, before)
        back = as_stored(stored)
        assert (back.transformer.h[1].mlp.c_fc.nx, back.transformer.h[1].mlp.c_fc.nf) == (32, 48)
        assert {name: each.shape for name, each in back.state_dict().items()} == {
            n: e.shape for n, e in weights.items()
        }
        torch.testing.assert_close(back(input_ids=ids).logits, before)


def test_a_transposed_layer_used_twice_stays_shared() -> None:
    layer = Conv1D(3, 2)
    pair = nn.Sequential(nn.Sequential(layer), nn.Sequential(nn.ReLU(), layer))
    as_linear(pair)  # type: ignore[type-var]
    assert pair[0][0] is pair[1][1]
    assert isinstance(pair[0][0], TransposedLinear)


# sentence-transformers' format


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("normalized", [True, False])
def test_pooling_is_written_and_read_back(pooling: Any, normalized: bool, tmp_path: Path) -> None:
    ending = Ending("vectors", pooling=pooling, normalized=normalized)
    write_steps(tmp_path, ending, hidden=32, max_length=77, head=None)
    assert stored_pooling(tmp_path / "modules.json") == ending
    assert stored_head(tmp_path) is None
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
    head = nn.Linear(32, 3)
    write_steps(tmp_path, Ending("vectors", normalized=normalized), hidden=32, max_length=8, head=head)
    again = stored_head(tmp_path)
    assert again is not None
    assert (again.in_features, again.out_features) == (32, 3)
    torch.testing.assert_close(again.weight, head.weight)
    torch.testing.assert_close(again.bias, head.bias)
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
    write_steps(tmp_path, Ending("vectors"), hidden=32, max_length=8, head=None)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    if pooling is None:
        with pytest.raises(UserError, match="uses a pooling other than the mean, the first token or the last token"):
            stored_pooling(tmp_path / "modules.json")
    else:
        assert stored_pooling(tmp_path / "modules.json").pooling == pooling


def test_a_directory_without_pooling_settings_is_refused(tmp_path: Path) -> None:
    write_steps(tmp_path, Ending("vectors"), hidden=32, max_length=8, head=None)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(UserError, match=r"lacks 1_Pooling/config.json. Download the complete model"):
        stored_pooling(tmp_path / "modules.json")
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "x.Transformer", "path": ""}]))
    with pytest.raises(UserError, match="has no pooling step"):
        stored_pooling(tmp_path / "modules.json")


# Prompts


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("family", ["llama", "bloom", "falcon"])
def test_packed_rows_with_a_prompt_have_the_losses_of_peft_alone(family: str, kind: str) -> None:
    peft_model = randomize(method_of(kind, tokens=3).apply(small_model(family), seed=0))
    assert (has_prompt(peft_model), has_prefix(peft_model), virtual_tokens(peft_model)) == (True, kind == "prefix", 3)
    actual = next_token_losses(peft_model, batch_of())
    peft_model.get_base_model().set_attn_implementation("eager")
    expected = []
    for ids in ROWS:
        tokens = torch.tensor(ids)[None]
        logits = peft_model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -len(ids) :]
        expected.append(functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="none"))
    torch.testing.assert_close(actual, torch.cat(expected), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("family", ["bert", "deberta"])
def test_a_head_reads_the_first_virtual_token_as_in_peft(family: str) -> None:
    peft_model = randomize(method_of("prompt", tokens=3).apply(small_model(family, CLASSES), seed=0))
    actual = class_logits(peft_model, batch_of(targets=[[0.0]] * 4))
    peft_model.get_base_model().set_attn_implementation("eager")
    expected = []
    for ids in ROWS:
        tokens = torch.tensor(ids)[None]
        expected.append(peft_model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0])
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-7, atol=1e-7)


def test_a_model_without_a_wrapper_has_no_prompt() -> None:
    model = small_model()
    assert (has_prompt(model), has_prefix(model), virtual_tokens(model)) == (False, False, 0)
    assert plain_model(model) is model
    peft_model = method_of("lora").apply(model, seed=0)
    assert (has_prompt(peft_model), has_prefix(peft_model), virtual_tokens(peft_model)) == (False, False, 0)
    assert plain_model(peft_model) is model


def test_rows_are_padded_on_the_right_to_a_multiple_of_sixteen() -> None:
    model = small_model("bloom", pad_token_id=3)
    ids, mask = padded(model, [torch.tensor([7, 8]), torch.arange(4, 21)])
    assert ids.shape == mask.shape == (2, 32)
    assert ids[0].tolist() == [7, 8] + [3] * 30
    assert ids[1].tolist() == [*range(4, 21)] + [3] * 15
    assert mask[0].tolist() == [1, 1] + [0] * 30
    assert mask[1].tolist() == [1] * 17 + [0] * 15
    assert padded(model, [torch.arange(16)])[0].shape == (1, 16)
    assert padded_positions([2, 3], 16, CPU).tolist() == [0, 1, 16, 17, 18]


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_keys_and_values_equal_the_familys_own_cache(family: str) -> None:
    model = small_model(family)
    actual = keys_and_values(model, torch.tensor(ROWS[1]))
    cache = own_forward(model)(input_ids=torch.tensor(ROWS[1:2]), use_cache=True).past_key_values
    assert len(actual) == 3
    for (keys, values), layer in zip(actual, cache.layers, strict=True):
        torch.testing.assert_close(keys, layer.keys, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(values, layer.values, rtol=1e-5, atol=2e-6)


def test_models_without_keys_and_values_are_refused_for_a_prefix() -> None:
    with pytest.raises(
        UserError, match=r"GraniteMoeHybridForCausalLM has layers without them or does not return them\. Use"
    ):
        method_of("prefix").apply(small_model("granitemoehybrid", dtype=torch.float32, layers=2), seed=0)
    with pytest.raises(UserError, match="prefix does not support encoder-decoders such as T5ForConditionalGeneration"):
        method_of("prefix").apply(small_model("t5"), seed=0)
    with pytest.raises(UserError, match="PROMPT_TUNING does not support encoder-decoders such as Bart"):
        method_of("prompt").apply(small_model("bart"), seed=0)


# Layer names


@pytest.mark.parametrize(
    ("family", "attention", "keys", "out", "feed_forward", "feed_forward_in", "feed_forward_out"),
    [
        (
            "llama",
            "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj",
            "self_attn.k_proj self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj mlp.up_proj mlp.down_proj",
            "mlp.gate_proj mlp.up_proj",
            "mlp.down_proj",
        ),
        (
            "gpt2",
            "attn.c_attn attn.c_proj",
            "attn.c_attn",
            "attn.c_proj",
            "mlp.c_fc mlp.c_proj",
            "mlp.c_fc",
            "mlp.c_proj",
        ),
        (
            "bert",
            "attention.self.query attention.self.key attention.self.value attention.output.dense",
            "attention.self.key attention.self.value",
            "attention.output.dense",
            "intermediate.dense output.dense",
            "intermediate.dense",
            "output.dense",
        ),
        (
            "gpt_neox",
            "attention.query_key_value attention.dense",
            "attention.query_key_value",
            "attention.dense",
            "mlp.dense_h_to_4h mlp.dense_4h_to_h",
            "mlp.dense_h_to_4h",
            "mlp.dense_4h_to_h",
        ),
    ],
)
def test_block_layers_are_grouped_by_role(
    family: str, attention: str, keys: str, out: str, feed_forward: str, feed_forward_in: str, feed_forward_out: str
) -> None:
    model = small_model(family, CLASSES if family == "bert" else Ending())
    ((name, stack),) = stacks(model)
    assert len(stack) == 3
    assert model.get_submodule(name) is stack
    assert blocks(model) == list(stack)
    for index, block in enumerate(block_layers(model)):

        def names(layers: Any, index: int = index) -> str:
            return " ".join(layer.name.removeprefix(f"{name}.{index}.") for layer in layers)

        assert (names(block.attention), names(block.key_value)) == (attention, keys)
        assert (names(block.feed_forward), names(block.feed_forward_in)) == (feed_forward, feed_forward_in)
        assert (names([block.attention_out]), names([block.feed_forward_out])) == (out, feed_forward_out)
        for layer in (*block.attention, *block.feed_forward):
            assert model.get_submodule(layer.name).weight.shape == (layer.outputs, layer.inputs)


def test_encoder_decoders_have_two_stacks() -> None:
    model = small_model("t5")
    assert [name for name, _ in stacks(model)] == ["encoder.block", "decoder.block"]
    assert blocks(model) == [*model.encoder.block, *model.decoder.block]


def test_unidentifiable_blocks_are_refused() -> None:
    with pytest.raises(UserError, match=r"^Linear has no stack of transformer blocks"):
        stacks(nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"layers of a block \(MixtralDecoderLayer\) cannot be identified"):
        method_of("ia3").apply(small_model("mixtral"), seed=0)


def test_short_names_are_the_shortest_unique_suffixes() -> None:
    model = small_model("bert", CLASSES)
    in_blocks = linears_in_blocks(model)
    assert {layer.name for layer in in_blocks} < {layer.name for layer in linears(model)}
    assert not any("pooler" in layer.name or "classifier" in layer.name for layer in in_blocks)
    dense = [layer for layer in in_blocks if layer.name.endswith("attention.output.dense")]
    assert short_names(model, dense) == ["attention.output.dense"]
    second = [layer for layer in in_blocks if layer.name.endswith("layer.1.intermediate.dense")]
    assert short_names(model, second) == ["1.intermediate.dense"]
    assert short_names(model, in_blocks) == ["intermediate.dense", "key", "output.dense", "query", "value"]
    stored = as_stored(small_model("gpt2"))
    first = next(layer for layer in linears(stored) if layer.name == "transformer.h.0.mlp.c_fc")
    assert (first.inputs, first.outputs) == (32, 48)
    assert norms(small_model())[:2] == ["model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"]
    assert len(norms(small_model())) == 7


# Heads with adapters


@pytest.mark.parametrize("chunk", [2, 512])
def test_a_head_with_an_adapter_gives_the_loss_of_its_own_logits(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.models.forward.CHUNK", chunk)
    peft_model = randomize(method_of("lora", rank=3, target_modules=["lm_head", "q_proj"]).apply(small_model(), seed=0))
    assert head_of(peft_model) is None
    check_head(peft_model)
    logits = torch.cat([each[:-1] for each in logits_alone(peft_model.get_base_model())]).float()
    labels = torch.tensor([token for ids in ROWS for token in ids[1:]])
    own = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(next_token_losses(peft_model, batch_of()).float(), own, rtol=1e-4, atol=1e-4)
    negative_log_probabilities = -torch.log_softmax(logits, -1)
    expected = 0.7 * own + 0.3 * negative_log_probabilities.mean(1) + 0.05 * torch.logsumexp(logits, -1) ** 2
    loss = next_token_loss(peft_model, batch_of(), 0.3, 0.05)
    torch.testing.assert_close(loss.float(), expected.sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(next_token_loss(peft_model, batch_of()).float(), own.sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["granite", "cohere", "gemma2", "t5", "bart"])
def test_the_head_scales_caps_and_shifts_logits_as_the_family_does(family: str) -> None:
    more = {"tie_word_embeddings": True} if family == "t5" else {}
    if family == "gemma2":
        more["final_logit_softcapping"] = 2.0
    model = small_model(family, **more)
    head = head_of(model)
    assert head is not None
    scale = {"granite": 0.5, "cohere": 0.5, "t5": 32**-0.5}.get(family, 1.0)
    assert (head.scale, head.softcap) == (pytest.approx(scale), 2.0 if family == "gemma2" else None)
    check_head(model)


def test_a_rehearsal_is_one_pass_without_gradients() -> None:
    model = small_model().requires_grad_(True)
    has_gradients: list[bool] = []
    model.base_model.register_forward_hook(lambda _, __, out: has_gradients.append(out.last_hidden_state.requires_grad))
    run_probe(model)
    assert has_gradients == [False]
