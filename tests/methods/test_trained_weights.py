"""The weights that each method trains, their learning rates and initialization, and what it refuses."""

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.layer import Linear as PeftLoraLinear
from pydantic import ValidationError
from settings_coverage import settings_of_recipes
from small_models import method_of, moving, randomize, small_model
from torch.nn import functional
from transformers import DistilBertConfig, PretrainedConfig

from tunesmith.config.method_list import list_methods
from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import METHODS
from tunesmith.engine.trainable import learning_rates
from tunesmith.errors import UserError
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.heads.new_head import head_parameters
from tunesmith.heads.sequence_classification import SequenceClassificationHead
from tunesmith.methods.peft import OWN, REFUSED
from tunesmith.methods.wrapping import by_size, wrap_with_peft
from tunesmith.models.forward import run_probe
from tunesmith.modules import fused_lora
from tunesmith.modules.fused_lora import FusedLoraLinear
from tunesmith.ops.lora_linear import LinearParts, lora_linears

CLASSES = SequenceClassificationHead(("calm", "bold", "dry"))

RATES = [
    ("full", {}, 8e-4, 2e-5),
    ("layers", {"last": 1}, 3e-3, 5e-5),
    ("layers", {"patterns": ["a"]}, 3e-3, 5e-5),
    ("layers", {"embeddings": True}, 3e-3, 5e-5),
    ("layers", {"norms_and_biases": True, "head": True}, 4e-2, 1e-3),
    ("lora", {}, 5e-3, 2e-4),
    ("adapter", {}, 8e-3, 3e-4),
    ("prefix", {}, 3e-1, 1e-3),
    ("prefix", {"projection": True}, 1e-2, 1e-3),
    ("prompt", {}, 5e-2, 3e-3),
    ("ptuning", {}, 2e-3, 5e-4),
    ("ia3", {}, 1e-1, 5e-3),
    ("peft", {"peft_type": "VERA"}, 5e-3, 5e-4),
]
"""A method, and its learning rates for ten million and for a billion parameters."""


@pytest.mark.parametrize(("kind", "values", "small", "large"), RATES, ids=str)
def test_a_methods_learning_rate_falls_geometrically_with_size(
    kind: str, values: dict[str, Any], small: float, large: float
) -> None:
    method = method_of(kind, **values)
    for parameters in (0, 1, 1234, 10**7):
        assert method.learning_rate(parameters) == small
    for parameters in (10**9, 7 * 10**10):
        assert method.learning_rate(parameters) == large
    assert method.learning_rate(10**8) == pytest.approx((small * large) ** 0.5, rel=0.05)
    third = 10 ** (7 + 2 / 3)
    assert method.learning_rate(round(third)) == float(f"{small ** (2 / 3) * large ** (1 / 3):.1e}")


def test_an_interpolated_learning_rate_is_rounded_to_two_digits() -> None:
    assert by_size(10**8, small=1e-2, large=3e-4) == 1.7e-3  # √3 e-3
    assert by_size(2 * 10**8, small=1e-2, large=3e-4) == 1.0e-3  # 10 ** (−2 − 0.6505 × 1.5229)


@pytest.mark.parametrize(
    ("method", "objective", "peak"),
    [
        ("full", "instruction", 8e-4),
        ("full", "classification", 2.4e-4),
        ("full", "embedding", 7.2e-5),
        ({"kind": "layers", "last": 1}, "regression", 9e-4),
        ("lora", "instruction", 5e-3),
        ("lora", "multi_label", 1.5e-3),
        ("lora", "token_classification", 1.5e-3),
        ("lora", "few_shot", 4.5e-4),
        ("adapter", "classification", 8e-3),
        ("adapter", "embedding", 2.4e-3),
        ("ia3", "classification", 1e-1),
        ("prompt", "few_shot", 1.5e-2),
        ({"kind": "peft", "peft_type": "VERA"}, "classification", 5e-3),
    ],
    ids=str,
)
def test_the_peak_rate_is_smaller_for_classes_and_for_vectors(method: Any, objective: str, peak: float) -> None:
    labels = {"labels": list(CLASSES.labels)} if objective.endswith(("classification", "multi_label")) else {}
    values = {"data": {"train": "rows.jsonl"}, "method": method, "objective": {"kind": objective, **labels}}
    recipe = Recipe.load(values)
    model = small_model("llama" if objective == "instruction" else "bert", recipe.objective.head)
    model.name_or_path = "none"
    assert learning_rates(recipe, recipe.method.apply(model, seed=0))[0] == peak
    explicit = Recipe.load({**values, "train": {"learning_rate": 0.0123}})
    assert learning_rates(explicit, model)[0] == 0.0123


def rate_of(recipe: Recipe, model: Any) -> dict[str, float]:
    peak, factor = learning_rates(recipe, model)
    return {name: peak * factor(name) for name in moving(model)}


def test_only_the_output_layer_of_a_regression_scales_with_the_standard_deviation() -> None:
    recipe = Recipe.load(
        {
            "data": {"train": "rows.jsonl"},
            "method": "full",
            "objective": {"kind": "regression", "mean": 40.0, "std": 12.5, "head_learning_rate": 0.004},
            "train": {"learning_rate": 1e-3},
        }
    )
    rates = rate_of(recipe, small_model("roberta", recipe.objective.head).requires_grad_(True))
    for name, rate in rates.items():
        expected = 0.05 if "out_proj" in name else 0.004 if name.startswith("classifier.") else 1e-3
        assert rate == pytest.approx(expected), name


def test_layer_decay_lowers_the_rate_of_lower_blocks_but_not_of_a_new_head() -> None:
    recipe = Recipe.load(
        {
            "data": {"train": "rows.jsonl"},
            "method": "full",
            "objective": {"kind": "classification", "labels": ["a", "b"]},
            "train": {"learning_rate": 1e-3, "layer_decay": 0.5},
        }
    )
    rates = rate_of(recipe, small_model("bert", recipe.objective.head).requires_grad_(True))
    for name, rate in rates.items():
        block = re.search(r"layer\.(\d)\.", name)
        depth = 3 - int(block[1]) if block else 4 if "embeddings" in name else 0
        assert rate == pytest.approx(0.02 if name.startswith("classifier") else 1e-3 * 0.5**depth), name


@pytest.mark.parametrize(
    ("kind", "values", "virtual", "trains_base", "is_resumable"),
    [
        ("full", {}, 0, True, False),
        ("layers", {"last": 1}, 0, True, False),
        ("layers", {"patterns": ["a"]}, 0, True, False),
        ("layers", {"embeddings": True}, 0, True, False),
        ("layers", {"norms_and_biases": True, "head": True}, 0, False, False),
        ("lora", {}, 0, False, True),
        ("lora", {"initialization": "gaussian"}, 0, False, True),
        ("lora", {"initialization": "orthogonal"}, 0, True, False),
        ("lora", {"initialization": "pissa"}, 0, True, False),
        ("lora", {"initialization": "loftq"}, 0, False, False),
        ("adapter", {}, 0, False, True),
        ("prefix", {"tokens": 7}, 7, False, True),
        ("prefix", {"tokens": 7, "projection": True}, 7, False, False),
        ("prompt", {"tokens": 6}, 6, False, True),
        ("ptuning", {"tokens": 5}, 5, False, False),
        ("ia3", {}, 0, False, True),
        ("peft", {"peft_type": "VERA"}, 0, False, True),
    ],
    ids=str,
)
def test_virtual_tokens_trains_base_and_is_resumable_of_each_method(
    kind: str, values: dict[str, Any], virtual: int, trains_base: bool, is_resumable: bool
) -> None:
    method = method_of(kind, **values)
    assert (method.virtual_tokens, method.trains_base, method.is_resumable) == (virtual, trains_base, is_resumable)


DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {},
    "layers": {"last": 0, "patterns": [], "norms_and_biases": False, "embeddings": False, "head": False},
    "lora": {
        "rank": 16,
        "alpha": 32.0,
        "dropout": 0.0,
        "target_modules": "all-linear",
        "last": None,
        "experts": False,
        "rank_stabilized": False,
        "dora": False,
        "initialization": "zero",
        "b_learning_rate_ratio": 1.0,
        "ranks": {},
    },
    "adapter": {"reduction": 16, "placement": "pfeiffer", "non_linearity": "relu", "scale": None},
    "prefix": {"tokens": 20, "projection": False, "projection_size": None, "start": None},
    "prompt": {"tokens": 20, "start": None},
    "ptuning": {"tokens": 20, "inner_size": None, "start": None},
    "ia3": {},
    "peft": {"peft_type": "VERA", "config": {}},
}


@pytest.mark.parametrize("kind", METHODS)
def test_methods_have_their_papers_defaults(kind: str) -> None:
    method = method_of(kind, **({"peft_type": "VERA"} if kind == "peft" else {}))
    assert method.model_dump() == {"kind": kind, **DEFAULTS[kind]}


PROPERTIES: dict[str, dict[str, Any]] = {
    "full": {"adds_weights": False, "usual_weights": ("auto",), "classification_rate_factor": 0.3},
    "layers": {"adds_weights": False, "classification_rate_factor": 0.3},
    "lora": {"is_mergeable": True, "usual_weights": ("auto", "int8", "nf4"), "classification_rate_factor": 0.3},
    "adapter": {"usual_weights": ("auto",)},
    "prefix": {"usual_weights": ("auto",)},
    "prompt": {},
    "ptuning": {},
    "ia3": {"is_mergeable": True, "usual_weights": ("auto",)},
    "peft": {"is_mergeable": True},
}


@pytest.mark.parametrize("kind", METHODS)
def test_a_method_declares_whether_it_merges_and_how_it_is_planned(kind: str) -> None:
    method = METHODS.load(kind)
    common = {"adds_weights": True, "is_mergeable": False, "usual_weights": (), "classification_rate_factor": 1.0}
    assert {name: getattr(method, name) for name in common} == {**common, **PROPERTIES[kind]}


@pytest.mark.parametrize(
    ("setting", "invalid", "valid"),
    [
        ("layers.last", -1, 0),
        ("lora.rank", 0, 1),
        ("lora.alpha", 0.0, 0.5),
        ("lora.dropout", -0.1, 0.0),
        ("lora.dropout", 1.0, 0.9),
        ("lora.b_learning_rate_ratio", 0.0, 0.5),
        ("lora.initialization", "one", "pissa"),
        ("adapter.reduction", 0, 1),
        ("adapter.scale", 0.0, 0.5),
        ("adapter.placement", "nowhere", "parallel"),
        ("adapter.non_linearity", "tanh", "gelu"),
        ("prefix.tokens", 0, 1),
        ("prefix.projection_size", 0, 1),
        ("prompt.tokens", 0, 1),
        ("ptuning.tokens", 0, 1),
        ("ptuning.inner_size", 0, 1),
        ("lora.rang", 3, None),
    ],
)
def test_a_setting_out_of_range_is_refused(setting: str, invalid: Any, valid: Any) -> None:
    kind, name = setting.split(".")
    with pytest.raises(ValidationError, match=name):
        method_of(kind, **{name: invalid})
    if valid is not None:
        assert getattr(method_of(kind, **{name: valid}), name) == valid
        assert f"method.{setting}" in set(settings_of_recipes())


def test_full_trains_all_weights_and_adapters_train_only_their_own() -> None:
    model = small_model()
    model.requires_grad_(False)
    assert moving(method_of("full").apply(model, seed=0)) == {name for name, _ in model.named_parameters()}
    for kind, mark in (("lora", ".lora_"), ("adapter", ".bottleneck_"), ("ia3", ".ia3_l.")):
        actual = moving(method_of(kind).apply(small_model(), seed=0))
        assert actual
        assert all(mark in name for name in actual), kind


def test_ia3_scales_keys_values_and_the_feed_forwards_inner_activation() -> None:
    peft_model = randomize(method_of("ia3").apply(small_model(), seed=0))
    actual = {name.split(".layers.")[1].split(".ia3_l")[0] for name in moving(peft_model)}
    assert actual == {
        f"{index}.{name}" for index in range(3) for name in ("self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")
    }
    mlp, attention = (getattr(peft_model.get_base_model().model.layers[1], name) for name in ("mlp", "self_attn"))
    x = torch.randn(5, 32, dtype=torch.float64)
    inner = functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x)
    factor = mlp.down_proj.ia3_l["default"].flatten()
    assert factor.shape == (48,)
    torch.testing.assert_close(mlp(x), (factor * inner) @ mlp.down_proj.weight.T)
    keys = attention.k_proj
    expected = keys.ia3_l["default"].flatten() * functional.linear(x, keys.weight, keys.bias)
    torch.testing.assert_close(keys(x), expected)


@pytest.mark.parametrize(
    ("family", "values", "expected"),
    [
        ("bert", {"last": 1}, r"bert\.encoder\.layer\.2\.|bert\.pooler\.|classifier\."),
        ("bert", {"last": 2}, r"bert\.encoder\.layer\.[12]\.|bert\.pooler\.|classifier\."),
        ("bert", {"patterns": ["layer.0.*key"]}, r"bert\.encoder\.layer\.0\.attention\.self\.key\.|classifier\."),
        ("bert", {}, r"classifier\."),
        ("bert", {"embeddings": True, "head": True}, r"bert\.embeddings\.word_embeddings\.|classifier\."),
        ("modernbert", {"last": 1}, r"model\.layers\.2\.|model\.final_norm\.|head\.|classifier\."),
        ("gpt2", {"last": 1}, r"transformer\.h\.2\.|transformer\.ln_f\.|score\."),
    ],
    ids=str,
)
def test_layers_trains_a_new_head_and_the_top_blocks_with_later_layers(
    family: str, values: dict[str, Any], expected: str
) -> None:
    model = small_model(family, CLASSES)
    method = method_of("layers", **values)
    counted = method.trained_parameters(model)
    actual = moving(method.apply(model, seed=0))
    assert actual == {name for name, _ in model.named_parameters() if re.match(expected, name)}
    assert counted == sum(model.get_parameter(name).numel() for name in actual) - head_parameters(model)


def test_the_last_blocks_of_an_encoder_decoder_are_the_decoders() -> None:
    model = small_model("t5")
    actual = moving(method_of("layers", last=2).apply(model, seed=0))
    assert actual == {
        name for name, _ in model.named_parameters() if re.match(r"decoder\.(block\.[12]|final_layer_norm)\.", name)
    }


def test_more_layers_than_blocks_are_refused_and_all_blocks_are_accepted() -> None:
    with pytest.raises(UserError, match=r"method.last: 4 blocks to train, but LlamaForCausalLM has 3\."):
        method_of("layers", last=4).apply(small_model(), seed=0)
    assert "model.layers.0.mlp.up_proj.weight" in moving(method_of("layers", last=3).apply(small_model(), seed=0))


COUNTED = [
    ("full", {}),
    ("layers", {"last": 2}),
    ("layers", {"norms_and_biases": True, "embeddings": True}),
    ("lora", {"rank": 3}),
    ("lora", {"rank": 3, "dora": True, "target_modules": "attention"}),
    ("lora", {"rank": 3, "target_modules": "feed-forward"}),
    ("adapter", {"reduction": 5}),
    ("adapter", {"placement": "houlsby"}),
    ("adapter", {"placement": "parallel", "reduction": 3}),
    ("ia3", {}),
    ("prefix", {"tokens": 3}),
    ("prefix", {"tokens": 3, "projection": True, "projection_size": 5}),
    ("prompt", {"tokens": 3}),
    ("ptuning", {"tokens": 3, "inner_size": 7}),
]


@pytest.mark.parametrize(("kind", "values"), COUNTED, ids=str)
@pytest.mark.parametrize("family", ["qwen3", "gpt_neox", "opt", "roberta"])
def test_the_formula_gives_the_number_of_trained_parameters(family: str, kind: str, values: dict[str, Any]) -> None:
    head = CLASSES if family == "roberta" else CausalLMHead()
    more = {"num_key_value_heads": 1, "head_dim": 12} if family == "qwen3" else {}
    model = small_model(family, head, dtype=torch.float32, **more)
    method = method_of(kind, **values)
    counted = method.trained_parameters(model)
    head = head_parameters(model)
    peft_model = method.apply(model, seed=0)
    assert counted == sum(each.numel() for each in peft_model.parameters() if each.requires_grad) - head


def test_other_ranks_and_magnitudes_are_counted() -> None:
    ranks = {"down_proj": 7, r"0\.mlp\.up_proj": 5}
    model = small_model()
    method = method_of("lora", rank=2, dora=True, ranks=ranks)
    #       q, o: 32 → 32; k, v: 32 → 16; gate, up: 32 → 48; down: 48 → 32
    attention = 3 * (2 * 2 * (32 + 32) + 2 * 2 * (32 + 16) + (32 + 32 + 16 + 16))
    feed_forward = 3 * (2 * (32 + 48) + 48) + (5 + 2 * 2) * (32 + 48) + 3 * 48 + 3 * (7 * (48 + 32) + 32)
    assert method.trained_parameters(model) == attention + feed_forward
    peft_model = method.apply(model, seed=0)
    assert sum(each.numel() for each in peft_model.parameters() if each.requires_grad) == attention + feed_forward


@pytest.mark.parametrize("kind", ["lora", "adapter", "ia3"])
def test_adapter_weights_have_the_bases_dtype(kind: str) -> None:
    peft_model = method_of(kind).apply(small_model(dtype=torch.bfloat16), seed=0)
    assert {each.dtype for each in peft_model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("kind", "values", "mark"),
    [("lora", {}, "lora_A"), ("adapter", {}, "bottleneck_down"), ("prompt", {}, "prompt_encoder")],
    ids=str,
)
def test_initialization_depends_only_on_the_seed(kind: str, values: dict[str, Any], mark: str) -> None:
    def start(seed: int, before: int) -> torch.Tensor:
        model = small_model()
        torch.manual_seed(before)
        peft_model = method_of(kind, **values).apply(model, seed)
        return torch.cat([each.detach().flatten() for name, each in peft_model.named_parameters() if mark in name])

    torch.testing.assert_close(start(3, before=1), start(3, before=2), rtol=0, atol=0)
    assert (start(3, before=1) - start(4, before=1)).abs().mean() > 0.01


@pytest.mark.parametrize("kind", ["lora", "adapter", "ia3", "prompt", "prefix"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_new_head_is_trained_and_saved_with_an_adapter(kind: str, family: str, tmp_path: Any) -> None:
    peft_model = method_of(kind).apply(small_model(family, CLASSES, dtype=torch.float32), seed=0)
    name = "classifier" if family == "bert" else "score"
    assert peft_model.active_peft_config.task_type == "SEQ_CLS"
    heads = {each for each in moving(peft_model) if f".{name}." in each}
    assert {each.rsplit(".", 1)[-1] for each in heads} == ({"weight", "bias"} if family == "bert" else {"weight"})
    peft_model.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    assert any(f"{name}.weight" in each for each in load_file(tmp_path / "adapter_model.safetensors"))


# LoRA


def test_layers_with_the_same_suffix_are_distinguished_by_longer_names() -> None:
    """`attention.output.dense`, `intermediate.dense` and `output.dense` of BERT have the same last part."""
    peft_model = method_of("lora", rank=2, target_modules="attention").apply(small_model("bert", CLASSES), seed=0)
    actual = {re.split(r"layer\.\d\.", name)[1].split(".lora_")[0] for name in moving(peft_model) if ".lora_" in name}
    assert actual == {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_modules": ["proj"]}, "no linear layer of LlamaForCausalLM has a name that ends in 'proj'"),
        (
            {"target_modules": ["q_proj", "k_prj"]},
            "no linear layer of LlamaForCausalLM has a name that ends in 'k_prj'",
        ),
        (
            {"target_modules": "q_proj"},
            "no linear layer of LlamaForCausalLM has a full name that matches 'q_proj'. Its linear layers: "
            "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj.",
        ),
        (
            {"ranks": {"lm_head": 3}},
            "method.ranks: 'lm_head' matches no chosen layer's name. One of them: model.layers.0.",
        ),
        ({"ranks": {"up_proj": 3}, "target_modules": "attention"}, "'up_proj' matches no chosen layer's name"),
        ({"last": 4}, "method.last: 4 blocks to adapt, but LlamaForCausalLM has 3."),
        ({"last": 1, "target_modules": "lm_head"}, "none of the layers that method.target_modules names is in the top"),
        ({"initialization": "loftq"}, "Set base.weights: nf4, or initialization: zero."),
        ({"experts": True}, "method.experts: LlamaForCausalLM has no expert weight tensors. Remove method.experts."),
        ({"rank": 3, "initialization": "orthogonal"}, "LORA cannot be applied to LlamaForCausalLM: Orthogonal"),
    ],
    ids=str,
)
def test_invalid_lora_settings_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        method_of("lora", **values).apply(small_model(), seed=0)


@pytest.mark.parametrize(
    "values", [{"dropout": 0.1}, {"dora": True}, {"initialization": "gaussian"}, {"last": 1}], ids=str
)
def test_experts_are_refused_with_unsupported_settings(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="without dropout, dora, last or a special initialization"):
        method_of("lora", experts=True, **values).apply(small_model("mixtral"), seed=0)


def test_expert_parameters_are_counted_by_their_shapes() -> None:
    model = small_model("mixtral")
    plain = method_of("lora", rank=4).trained_parameters(model)
    # gate and up in one (4, 96, 32), down (4, 32, 48)
    assert method_of("lora", rank=4, experts=True).trained_parameters(model) == plain + 3 * 4 * 4 * (128 + 80)


def layers_of(peft_model: Any) -> dict[str, FusedLoraLinear]:
    return {name: each for name, each in peft_model.named_modules() if isinstance(each, FusedLoraLinear)}


def fused(**values: Any) -> Any:
    return randomize(method_of("lora", rank=3, **values).apply(small_model(), seed=0))


@pytest.mark.parametrize("state", ["plain", "disabled", "merged", "two adapters", "fp32 inputs", "dropout", "dora"])
def test_a_lora_layer_equals_pefts_own_in_every_state(state: str) -> None:
    peft_model = fused(**{"dropout": {"dropout": 0.4}, "dora": {"dora": True}}.get(state, {}))
    layer = layers_of(peft_model)["base_model.model.model.layers.1.mlp.down_proj"]
    x = torch.randn(7, 48, dtype=torch.float64)
    if state == "disabled":
        layer.enable_adapters(False)
    if state == "merged":
        layer.merge()
    if state == "two adapters":
        peft_model.add_adapter("other", LoraConfig(r=2, target_modules=["down_proj"]))
        torch.nn.init.normal_(layer.lora_B["other"].weight)
        peft_model.double()
        peft_model.base_model.set_adapter(["default", "other"])
    if state == "fp32 inputs":
        layer.float()
        layer.base_layer.double()
    if state == "dropout":
        layer.train()
    torch.manual_seed(1)
    ours = layer(x)
    torch.manual_seed(1)
    theirs = PeftLoraLinear.forward(layer, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert (layer.parts(torch.float64) is not None) == (state == "plain")


def test_zero_dropout_and_evaluation_use_the_fused_path() -> None:
    layer = next(iter(layers_of(fused(dropout=0.4).eval()).values()))
    assert layer.parts(torch.float64) is not None
    layer.train()
    assert layer.parts(torch.float64) is None
    assert layer.parts(torch.float32) is None
    layer.lora_dropout["default"].p = 0.0
    assert layer.parts(torch.float64) is not None


def test_layers_compute_separately_after_they_get_different_inputs() -> None:
    peft_model = fused()
    attention = peft_model.get_base_model().model.layers[0].self_attn
    shared = attention.q_proj.shared
    assert shared is attention.k_proj.shared is attention.v_proj.shared
    assert shared is not None
    assert attention.o_proj.shared is None
    mlp = peft_model.get_base_model().model.layers[0].mlp
    assert mlp.gate_proj.shared is mlp.up_proj.shared
    assert mlp.gate_proj.shared not in (None, shared)
    assert mlp.down_proj.shared is None

    def alone(layer: FusedLoraLinear, x: torch.Tensor) -> torch.Tensor:
        return PeftLoraLinear.forward(layer, x)

    one, other = torch.randn(2, 6, 32, dtype=torch.float64)
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        torch.testing.assert_close(layer(one), alone(layer, one))
    torch.testing.assert_close(attention.q_proj(one), alone(attention.q_proj, one))
    torch.testing.assert_close(attention.k_proj(other), alone(attention.k_proj, other))
    torch.testing.assert_close(attention.v_proj(one), alone(attention.v_proj, one))
    assert (shared._layers, shared._outputs, shared._x) == ([], {}, None), "they are still shared"
    torch.testing.assert_close(attention.q_proj(other), alone(attention.q_proj, other))
    assert shared._outputs == {}


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_layers_of_two_attentions_are_computed_once_each_from_the_first_pass_on(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder's block has two attentions, whose layers read different tensors."""
    peft_model = method_of("lora", rank=2).apply(small_model(family), seed=0)
    sizes: list[int] = []

    def recorded(x: torch.Tensor, layers: list[LinearParts]) -> tuple[torch.Tensor, ...]:
        sizes.append(len(layers))
        return lora_linears(x, layers)

    monkeypatch.setattr(fused_lora, "lora_linears", recorded)
    run_probe(peft_model)
    assert sum(sizes) == len(layers_of(peft_model))
    assert sizes[0] == 3, "the encoder's queries, keys and values"


def test_a_layer_called_twice_with_one_input_is_no_longer_shared() -> None:
    attention = fused().get_base_model().model.layers[0].self_attn
    x = torch.randn(6, 32, dtype=torch.float64)
    first = attention.q_proj(x)
    torch.testing.assert_close(attention.q_proj(x), first)
    assert attention.q_proj.shared._layers == []
    torch.testing.assert_close(attention.k_proj(x), PeftLoraLinear.forward(attention.k_proj, x))


def test_an_aborted_pass_is_dropped_and_the_layers_stay_shared() -> None:
    attention = fused().get_base_model().model.layers[0].self_attn
    one, other = torch.randn(2, 6, 32, dtype=torch.float64)
    attention.q_proj(one)
    shared = attention.q_proj.shared
    assert shared._x is one
    assert set(shared._outputs) == {attention.k_proj, attention.v_proj}
    for layer in (attention.q_proj, attention.o_proj):
        layer.drop_pass()
    assert shared._x is None
    assert shared._outputs == {}
    torch.testing.assert_close(attention.q_proj(other), PeftLoraLinear.forward(attention.q_proj, other))
    assert len(shared._layers) == 3


# PEFT's other methods


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "VERRA"}, "PEFT has no method VERRA. Did you mean VERA?"),
        ({"peft_type": "zzzzzz"}, "PEFT has no method ZZZZZZ. It has: "),
        ({"peft_type": "ADALORA"}, "ADALORA cannot be trained here: it reallocates ranks between layers"),
        ({"peft_type": "IA3"}, "IA3 has its own kind here. Set method: {kind: ia3}"),
        ({"peft_type": "VERA", "config": {"rr": 1}}, "config.rr is not a field of PEFT's VeraConfig."),
        ({"peft_type": "VERA", "config": {"target_module": []}}, "VeraConfig. Did you mean target_modules?"),
    ],
    ids=str,
)
def test_unknown_and_unsupported_peft_methods_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        method_of("peft", **values)


@pytest.mark.parametrize("name", OWN)
def test_a_peft_method_with_a_kind_of_its_own_is_refused_by_that_kind(name: str) -> None:
    message = f"{name} has its own kind here. Set method: {{kind: {OWN[name]}}}"
    for spelling in (name, name.lower()):
        with pytest.raises(ValidationError, match=re.escape(message)):
            method_of("peft", peft_type=spelling)
    assert method_of(OWN[name]).apply(small_model(), seed=0).active_peft_config.peft_type == name


def test_every_refused_peft_method_is_refused_with_its_reason() -> None:
    assert set(REFUSED) <= {peft_type.value for peft_type in PEFT_TYPE_TO_CONFIG_MAPPING}
    for name, reason in REFUSED.items():
        with pytest.raises(ValidationError, match=re.escape(f"{name} cannot be trained here: {reason}")):
            method_of("peft", peft_type=name)


LINEARS = [*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]


@pytest.mark.parametrize(
    ("family", "values", "expected"),
    [
        pytest.param("llama", {"peft_type": "VERA"}, ["self_attn.q_proj", "self_attn.v_proj"], id="PEFT's default"),
        pytest.param(
            "qwen3",
            {"peft_type": "VERA"},
            ["self_attn.q_proj", "self_attn.v_proj"],
            id="PEFT's default for another family",
        ),
        pytest.param("olmo2", {"peft_type": "VERA"}, LINEARS, id="all linear layers of a family without a default"),
        pytest.param(
            "olmo2",
            {"peft_type": "LN_TUNING"},
            ["self_attn.q_norm", "self_attn.k_norm", "post_attention_layernorm", "post_feedforward_layernorm"],
            id="norms",
        ),
        pytest.param(
            "olmo2",
            {"peft_type": "LOHA", "config": {"target_modules": ["k_proj"]}},
            ["self_attn.k_proj"],
            id="from the recipe",
        ),
    ],
)
def test_peft_methods_use_the_given_or_default_target_modules(
    family: str, values: dict[str, Any], expected: list[str]
) -> None:
    peft_model = method_of("peft", **values).apply(small_model(family, dtype=torch.float32), seed=0)
    modules = {re.split(r"\.(?:hada|vera|ln_tuning)_", name)[0] for name in moving(peft_model)}
    expected_modules = {f"base_model.model.model.layers.{index}.{name}" for index in range(3) for name in expected}
    assert modules == expected_modules | (
        {"base_model.model.model.norm"} if values["peft_type"] == "LN_TUNING" else set()
    )


def test_a_self_targeting_peft_method_gets_no_target_modules() -> None:
    method = method_of("peft", peft_type="TRAINABLE_TOKENS", config={"token_indices": [5, 7, 9]})
    peft_model = method.apply(small_model(), seed=0)
    (name,) = moving(peft_model)
    assert "embed_tokens.trainable_tokens_delta" in name
    assert peft_model.get_parameter(name).shape == (3, 32)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "OFT", "config": {"r": 8, "oft_block_size": 8}}, "method.config: PEFT's OFTConfig rejects it: "),
        (
            {"peft_type": "LOHA", "config": {"target_modules": ["nowhere"]}},
            "method: LOHA cannot be applied to LlamaForCausalLM",
        ),
    ],
    ids=str,
)
def test_peft_config_errors_are_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        method_of("peft", **values).apply(small_model(), seed=0)
    assert "\n" not in str(refused.value)


def test_a_prompt_has_the_sizes_of_the_text_body_whatever_their_names() -> None:
    class Composite(PretrainedConfig):
        """A family of several bodies, of which one reads text."""

        model_type = "composite"
        sub_configs: ClassVar[dict[str, Any]] = {"text_config": DistilBertConfig}

        def __init__(self, text_config: Any = None, **others: Any) -> None:
            super().__init__(**others)
            self.text_config = text_config

    for composite in (False, True):
        model = small_model("distilbert", CLASSES)  # its names are n_layers, n_heads and dim
        if composite:
            model.config = Composite(model.config)
        config = method_of("prompt", tokens=4).apply(model, seed=0).active_peft_config
        assert (config.num_layers, config.num_attention_heads, config.token_dim) == (3, 4, 32)


def test_a_method_that_trains_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="method: LORA finds nothing to train on LlamaForCausalLM"):
        wrap_with_peft(small_model(), LoraConfig(target_modules=["q_proj"], inference_mode=True), seed=0)


def test_the_catalog_has_each_methods_parameters_and_peft_names(tmp_path: Path) -> None:
    model = small_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    listing = list_methods(str(tmp_path))
    parameters = sum(each.numel() for each in model.parameters())
    assert (listing["base"], listing["parameters"]) == (str(tmp_path), parameters)
    for each in listing["methods"]:
        method = method_of(each["kind"], **({"last": 2} if each["kind"] == "layers" else {}))
        assert each["trained_parameters"] == method.trained_parameters(model)
        assert each["learning_rate"] == method.learning_rate(parameters)
        assert each["settings"] == {name: value for name, value in method.model_dump().items() if name != "kind"}
        assert (each["formula"], each["choose"]) == (method.formula, method.choose)
    assert [each["kind"] for each in listing["methods"]] == [kind for kind in METHODS if kind != "peft"]
    names = set(listing["peft_types"])
    assert {"VERA", "OFT", "LN_TUNING"} <= names
    assert not names & {"LORA", "IA3", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "ADALORA", "LILY", "BOTTLENECK"}
    assert set(listing["refused_peft_types"]) >= {"ADALORA", "LILY"}
    assert listing["peft_types"] == sorted(names)


# P-tuning's initialization


@pytest.mark.parametrize(("tokens", "inner"), [(12, 3), (6, 9)])
def test_ptunings_mlp_fits_its_start_as_closely_as_its_size_allows(tokens: int, inner: int) -> None:
    torch.manual_seed(0)
    model = small_model(dtype=torch.float32)
    peft_model = method_of("ptuning", tokens=tokens, inner_size=inner).apply(model, seed=4)
    generator = torch.Generator().manual_seed(4)
    start = model.get_input_embeddings().weight[torch.randint(64, (tokens,), generator=generator)].double().detach()
    encoder = peft_model.prompt_encoder["default"]
    hidden = encoder.mlp_head[:-1](encoder.embedding.weight).double().detach()
    centered = start - start.mean(0)
    best = start.mean(0) + hidden @ torch.linalg.lstsq(hidden, centered, driver="gelsd").solution
    torch.testing.assert_close(peft_model.get_prompt(1)[0].double(), best, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(encoder.mlp_head[-1].bias.double(), start.mean(0), rtol=1e-5, atol=1e-6)


def test_ptunings_mlp_has_the_bases_dtype_and_starts_close_to_its_text() -> None:
    model = small_model(dtype=torch.bfloat16)
    peft_model = method_of("ptuning", tokens=5).apply(model, seed=4)
    assert {each.dtype for each in peft_model.prompt_encoder.parameters()} == {torch.bfloat16}
    ids = torch.randint(64, (5,), generator=torch.Generator().manual_seed(4))
    start = model.get_input_embeddings().weight[ids].float()
    assert (peft_model.get_prompt(1)[0].float() - start).norm() < 0.02 * start.norm()


def test_a_prefix_of_keys_and_values_of_two_sizes_is_refused() -> None:
    with pytest.raises(UserError, match="prefix needs keys and values of one size, and DeepseekV3ForCausalLM's differ"):
        method_of("prefix", tokens=3).apply(small_model("deepseek_v3", dtype=torch.float32), seed=0)


def test_a_prefix_is_refused_for_an_encoder_without_past_key_values() -> None:
    with pytest.raises(
        UserError, match=r"PREFIX_TUNING needs a cache of keys and values, and ModernBert.* accepts none"
    ):
        method_of("prefix", tokens=3, projection=True).apply(small_model("modernbert", CLASSES), seed=0)
