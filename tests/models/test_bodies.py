"""Bodies of models: noise, bottlenecks, adapter files, transposed layers, prompts, layer names, output layers."""

from pathlib import Path
from typing import Any

import pytest
import torch
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
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import UserError
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.heads.embedding import EmbeddingHead
from tunesmith.heads.sequence_classification import SequenceClassificationHead, class_logits
from tunesmith.heads.token_classification import TokenClassificationHead
from tunesmith.models.adapters import load_adapter_weights, refuse_pickle
from tunesmith.models.architecture import block_layers, blocks, linears, linears_in_blocks, norms, short_names, stacks
from tunesmith.models.attention import packs, use_document_attention
from tunesmith.models.forward import check_lm_head, next_token_loss, next_token_losses, output_layer_of, run_probe
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
from tunesmith.modules.bottleneck import BottleneckConfig, BottleneckLayer
from tunesmith.modules.neftune import add_neftune, tokens_of_rows
from tunesmith.modules.transposed_linear import TransposedLinear, as_linear, as_stored

CPU = torch.device("cpu")
CLASSES = SequenceClassificationHead(("calm", "bold", "dry"))
TAGS = TokenClassificationHead(("calm", "bold", "dry"))
VECTORS = EmbeddingHead()


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
        ({"rank": 3}, r"size mismatch for .*lora_\w\.default\.weight"),
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


@pytest.mark.parametrize("family", ["bert", "deberta", "distilbert"])
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
    model = small_model(family, CLASSES if family == "bert" else CausalLMHead())
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
    assert output_layer_of(peft_model) is None
    check_lm_head(peft_model)
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
    head = output_layer_of(model)
    assert head is not None
    scale = {"granite": 0.5, "cohere": 0.5, "t5": 32**-0.5}.get(family, 1.0)
    assert (head.scale, head.softcap) == (pytest.approx(scale), 2.0 if family == "gemma2" else None)
    check_lm_head(model)


def test_a_rehearsal_is_one_pass_without_gradients() -> None:
    model = small_model().requires_grad_(True)
    has_gradients: list[bool] = []
    model.base_model.register_forward_hook(lambda _, __, out: has_gradients.append(out.last_hidden_state.requires_grad))
    run_probe(model)
    assert has_gradients == [False]
