"""Every setting of every method does what its documentation says: which weights train, and what they compute."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from settings_coverage import shows
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
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.config.base import Base
from tunesmith.config.recipe import Recipe
from tunesmith.engine.trainable import learning_rates
from tunesmith.models.attention import use_document_attention
from tunesmith.models.forward import next_token_losses
from tunesmith.models.load import load_model
from tunesmith.models.prompts import keys_and_values

LINEARS = {
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
}
NORMS = {"input_layernorm", "post_attention_layernorm"}


def block(*indices: int) -> set[str]:
    """The names of all parameters in these blocks of a Llama."""
    inside = [f"{name}.weight" for name in (*LINEARS, *NORMS)]
    inside += [f"self_attn.{name}_proj.bias" for name in "qkvo"]
    return {f"model.layers.{index}.{name}" for index in indices for name in inside}


EVERY_NORM_AND_BIAS = {
    name for name in block(0, 1, 2) | {"model.norm.weight"} if "norm" in name or name.endswith(".bias")
}


@shows(
    "method.layers.last",
    "method.layers.patterns",
    "method.layers.norms_and_biases",
    "method.layers.embeddings",
    "method.layers.head",
)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({"last": 1}, block(2) | {"model.norm.weight"}, id="the last block"),
        pytest.param({"last": 2}, block(1, 2) | {"model.norm.weight"}, id="the last two of three"),
        pytest.param({"last": 3}, block(0, 1, 2) | {"model.norm.weight"}, id="all blocks"),
        pytest.param(
            {"patterns": [r"layers\.(0|2)\.mlp\.up", "q_proj.bias"]},
            {f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 2)}
            | {f"model.layers.{n}.self_attn.q_proj.bias" for n in range(3)},
            id="patterns that match anywhere in a name",
        ),
        pytest.param({"norms_and_biases": True}, EVERY_NORM_AND_BIAS, id="norms and biases"),
        pytest.param({"embeddings": True}, {"model.embed_tokens.weight"}, id="embeddings"),
        pytest.param({"head": True}, {"lm_head.weight"}, id="head"),
        pytest.param(
            {"last": 1, "embeddings": True, "norms_and_biases": True, "patterns": ["layers.0.mlp.down"], "head": True},
            block(2)
            | EVERY_NORM_AND_BIAS
            | {"model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.down_proj.weight"},
            id="all combined",
        ),
    ],
)
def test_exactly_the_chosen_weights_are_trained(values: dict[str, Any], expected: set[str]) -> None:
    model = small_model()
    method = method_of("layers", **values)
    count = method.trained_parameters(model)
    assert moving(method.apply(model, seed=0)) == expected
    assert count == sum(parameter.numel() for name, parameter in model.named_parameters() if name in expected)


@shows("method.layers.head", "method.layers.embeddings")
@pytest.mark.parametrize("chosen", ["head", "embeddings"])
def test_a_head_tied_to_the_embeddings_trains_with_them(chosen: str) -> None:
    model = small_model("qwen2")
    assert moving(method_of("layers", **{chosen: True}).apply(model, seed=0)) == {"model.embed_tokens.weight"}
    assert model.lm_head.weight.requires_grad


def lora(model: Any, **values: Any) -> Any:
    """The model with LoRA, A and B at random values."""
    return randomize(method_of("lora", **values).apply(model, seed=0))


def layer_of(model: Any, name: str = "self_attn.q_proj", index: int = 1) -> Any:
    return model.get_base_model().get_submodule(f"model.layers.{index}.{name}")


def parts_of(layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """W, A and B."""
    return layer.get_base_layer().weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight


def inputs_of(layer: Any, rows: int = 5) -> Tensor:
    return torch.randn(rows, layer.in_features, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@shows("method.lora.rank", "method.lora.alpha", "method.lora.rank_stabilized", "method.lora.ranks")
@pytest.mark.parametrize(
    ("values", "name", "rank", "scale"),
    [
        pytest.param({"rank": 4, "alpha": 6.0}, "mlp.down_proj", 4, 1.5, id="alpha over rank"),
        pytest.param({"rank": 5, "alpha": 4.0}, "self_attn.k_proj", 5, 0.8, id="another rank and alpha"),
        pytest.param({}, "mlp.up_proj", 16, 2.0, id="the defaults"),
        pytest.param(
            {"rank": 9, "alpha": 6.0, "rank_stabilized": True},
            "mlp.down_proj",
            9,
            2.0,
            id="alpha over the root of the rank",
        ),
        pytest.param(
            {"rank": 4, "alpha": 6.0, "ranks": {"down_proj": 10}},
            "mlp.down_proj",
            10,
            1.5,
            id="another rank, same scale",
        ),
        pytest.param(
            {"rank": 4, "alpha": 6.0, "ranks": {"down_proj": 10}},
            "mlp.up_proj",
            4,
            1.5,
            id="other layers keep their rank",
        ),
        pytest.param(
            {"rank": 4, "alpha": 6.0, "ranks": {r"1\.self_attn\.[qk]_proj": 2}},
            "self_attn.k_proj",
            2,
            1.5,
            id="a rank by a regular expression",
        ),
    ],
)
def test_a_lora_layer_adds_its_scaled_low_rank_product(
    values: dict[str, Any], name: str, rank: int, scale: float
) -> None:
    layer = layer_of(lora(small_model(), **values), name)
    weight, a, b = parts_of(layer)
    assert (a.shape, b.shape) == ((rank, layer.in_features), (layer.out_features, rank))
    x = inputs_of(layer)
    bias = layer.get_base_layer().bias
    torch.testing.assert_close(layer(x), functional.linear(x, weight + scale * b @ a, bias), rtol=1e-12, atol=1e-12)


@shows("method.lora.dropout")
def test_dropout_zeroes_a_share_of_the_lora_inputs_in_training_only() -> None:
    model = lora(small_model(), rank=4, alpha=6.0, dropout=0.25).eval()
    layer = layer_of(model)
    weight, a, b = parts_of(layer)
    x, bias = inputs_of(layer, rows=50), layer.get_base_layer().bias
    plain = functional.linear(x, weight, bias)
    torch.testing.assert_close(layer(x), plain + 1.5 * x @ a.T @ b.T)
    layer.train()
    torch.manual_seed(11)
    actual = layer(x)
    torch.manual_seed(11)
    dropped = functional.dropout(x, 0.25)
    assert (dropped == 0).double().mean().item() == pytest.approx(0.25, abs=0.05)
    torch.testing.assert_close(actual, plain + 1.5 * dropped @ a.T @ b.T)


@shows("method.lora.target_modules")
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param("all-linear", LINEARS, id="all"),
        pytest.param("attention", {name for name in LINEARS if "attn" in name}, id="attention"),
        pytest.param("feed-forward", {name for name in LINEARS if "mlp" in name}, id="feed-forward"),
        pytest.param(["q_proj", "mlp.down_proj"], {"self_attn.q_proj", "mlp.down_proj"}, id="suffixes of names"),
        pytest.param(r"model\.layers\.\d\.mlp\.(up|gate)_proj", {"mlp.up_proj", "mlp.gate_proj"}, id="full names"),
    ],
)
def test_lora_is_on_exactly_the_chosen_layers(target: Any, expected: set[str]) -> None:
    method = method_of("lora", rank=2, target_modules=target)
    model = small_model()
    count = method.trained_parameters(model)
    peft_model = method.apply(model, seed=0)
    names = {
        re.sub(r"^.*layers\.(\d)\.(.*)\.lora_([AB])\.default\.weight$", r"\1 \2 \3", n) for n in moving(peft_model)
    }
    assert names == {f"{index} {name} {side}" for index in range(3) for name in expected for side in "AB"}
    assert count == sum(parameter.numel() for parameter in peft_model.parameters() if parameter.requires_grad)


@shows("method.lora.target_modules")
def test_a_regular_expression_selects_layers_by_their_full_names() -> None:
    peft_model = method_of("lora", rank=2, target_modules=r".*layers\.2\.mlp\.up_proj|lm_head").apply(small_model(), 0)
    names = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in moving(peft_model)}
    assert names == {"model.layers.2.mlp.up_proj", "lm_head"}


@shows("method.lora.last")
@pytest.mark.parametrize("target", ["all-linear", "attention", ["mlp.down_proj"]])
def test_lora_on_the_last_blocks_leaves_the_lower_ones_alone(target: Any) -> None:
    everywhere = moving(method_of("lora", rank=2, target_modules=target).apply(small_model(), 0))
    method, model = method_of("lora", rank=2, target_modules=target, last=2), small_model()
    count, peft_model = method.trained_parameters(model), method.apply(model, 0)
    assert set(moving(peft_model)) == {name for name in everywhere if ".layers.0." not in name}
    assert count == sum(parameter.numel() for parameter in peft_model.parameters() if parameter.requires_grad)


def mixtral() -> Any:
    return small_model("mixtral", dtype=torch.float32)  # PyTorch's grouped matrix products do not support fp64


@shows("method.lora.experts")
def test_each_expert_gets_its_own_low_rank_product_as_in_peft() -> None:
    plain = moving(method_of("lora", rank=4, alpha=6.0).apply(mixtral(), seed=0))
    assert not any(".experts." in name for name in plain)
    peft_model = lora(mixtral(), rank=4, alpha=6.0, experts=True)
    tensors = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    theirs = get_peft_model(
        mixtral(),
        LoraConfig(
            r=4,
            lora_alpha=6.0,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            target_parameters=tensors,
        ),
    )
    ours = {name: parameter for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
    assert set(ours) == moving(theirs)
    assert sum(".experts." in name for name in ours) == 3 * 2 * 2
    theirs.load_state_dict(peft_model.state_dict())
    losses = next_token_losses(peft_model, batch_of())
    expected = [
        functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
        for logits, ids in zip(logits_alone(theirs.get_base_model()), ROWS, strict=True)
    ]
    torch.testing.assert_close(losses, torch.cat(expected), rtol=1e-5, atol=1e-5)


@shows("method.lora.dora")
def test_dora_scales_each_output_to_a_trained_magnitude() -> None:
    model = lora(small_model(), rank=4, alpha=6.0, dora=True)
    layer = layer_of(model, "mlp.down_proj")
    weight, a, b = parts_of(layer)
    magnitude = layer.lora_magnitude_vector["default"].weight
    assert magnitude.requires_grad
    assert magnitude.shape == (layer.out_features,)
    merged = weight + 1.5 * b @ a
    x = inputs_of(layer)
    expected = x @ (magnitude[:, None] * merged / merged.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    fresh = method_of("lora", rank=4, dora=True).apply(small_model(), seed=0)
    layer = layer_of(fresh, "mlp.down_proj")
    torch.testing.assert_close(layer.lora_magnitude_vector["default"].weight.data, weight.norm(dim=1))
    assert not any("magnitude" in name for name in moving(method_of("lora", rank=4).apply(small_model(), seed=0)))


@shows("method.lora.initialization")
@pytest.mark.parametrize("start", ["zero", "gaussian", "orthogonal", "pissa"])
def test_a_and_b_are_initialized_as_in_peft(start: str) -> None:
    values = {"rank": 4, "alpha": 6.0, "target_modules": ["q_proj", "down_proj"]}
    ours = method_of("lora", initialization=start, **values).apply(small_model(dtype=torch.float32), seed=5)
    torch.manual_seed(5)
    config = LoraConfig(
        r=4,
        lora_alpha=6.0,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights=True if start == "zero" else start,
    )
    theirs = get_peft_model(small_model(dtype=torch.float32), config) if start == "pissa" else None
    if theirs is None:
        base = small_model(dtype=torch.float32)
        torch.manual_seed(5)
        theirs = get_peft_model(base, config)
    for (name, one), (other_name, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other_name
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)
    weight, a, b = parts_of(layer_of(ours, "mlp.down_proj"))
    original = small_model(dtype=torch.float32).model.layers[1].mlp.down_proj.weight
    torch.testing.assert_close(weight + 1.5 * b @ a, original, rtol=1e-4, atol=1e-5)
    if start == "pissa":
        values = torch.linalg.svdvals(original)
        torch.testing.assert_close(torch.linalg.svdvals(1.5 * b @ a)[:4], values[:4], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.linalg.svdvals(weight)[0], values[4], rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bases on disk; GPT-2 stores its matrices transposed."""
    directory = tmp_path_factory.mktemp("stored")
    for family in ("llama", "gpt2"):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config_for(family)).save_pretrained(directory / family)
    return {family: directory / family for family in ("llama", "gpt2")}


@shows("method.lora.initialization")
@pytest.mark.parametrize(
    ("family", "rank", "alpha", "names"),
    [
        ("llama", 4, 6.0, ["model.layers.1.self_attn.v_proj", "model.layers.1.mlp.up_proj"]),
        ("llama", 26, 10.0, ["model.layers.1.self_attn.v_proj"]),  # this matrix has only 16 rows
        ("gpt2", 4, 6.0, ["transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_fc"]),
    ],
)
def test_loftq_starts_at_the_best_low_rank_fit_of_the_quantization_error(
    family: str, rank: int, alpha: float, names: list[str], stored: dict[str, Path]
) -> None:
    original = load_model(Base(path=str(stored[family])), torch.float32)
    model = load_model(Base(path=str(stored[family]), weights="nf4"), torch.float32)
    method = method_of("lora", rank=rank, alpha=alpha, initialization="loftq", target_modules=names)
    wrapped = method.apply(model, seed=0)
    method.initialize(wrapped)
    peft_model = wrapped.get_base_model()
    for name in names:
        quantized, a, b = (part.double() for part in parts_of(peft_model.get_submodule(name)))
        error = original.get_submodule(name).weight.double() - quantized
        u, s, v = torch.linalg.svd(error, full_matrices=False)
        best = (error - (u[:, :rank] * s[:rank]) @ v[:rank]).norm()
        assert best < 0.9 * error.norm()
        assert (error - alpha / rank * b @ a).norm() <= 1.02 * best + 1e-5 * error.norm()
        torch.testing.assert_close(a.norm(dim=1)[: len(s)], b.norm(dim=0)[: len(s)], rtol=1e-4, atol=1e-5)


@shows("method.lora.b_learning_rate_ratio")
def test_b_has_its_own_learning_rate() -> None:
    recipe = Recipe.load(
        {
            "data": {"train": "rows.jsonl"},
            "method": {"kind": "lora", "b_learning_rate_ratio": 12.0},
            "train": {"learning_rate": 3e-4},
        }
    )
    peft_model = recipe.method.apply(small_model(), seed=0)
    peak, factor = learning_rates(recipe, peft_model)
    assert peak == 3e-4
    for name in moving(peft_model):
        assert factor(name) == (12.0 if ".lora_B." in name else 1.0), name


def bottlenecks(model: Any) -> dict[str, Any]:
    from tunesmith.modules.bottleneck import BottleneckLayer

    modules = model.get_base_model().named_modules()
    return {name: module for name, module in modules if isinstance(module, BottleneckLayer)}


@shows("method.adapter.reduction", "method.adapter.non_linearity", "method.adapter.scale", "method.adapter.placement")
@pytest.mark.parametrize(
    ("values", "inner", "function", "scale"),
    [
        pytest.param({}, 2, functional.relu, 1.0, id="the defaults"),
        pytest.param({"reduction": 5}, 6, functional.relu, 1.0, id="hidden over reduction"),
        pytest.param({"reduction": 99}, 1, functional.relu, 1.0, id="at least one"),
        pytest.param({"non_linearity": "gelu"}, 2, functional.gelu, 1.0, id="gelu"),
        pytest.param({"non_linearity": "silu", "scale": 0.3}, 2, functional.silu, 0.3, id="silu, scaled"),
        pytest.param({"placement": "houlsby", "scale": 2.5}, 2, functional.relu, 2.5, id="houlsby"),
        pytest.param(
            {"placement": "parallel", "reduction": 4}, 8, functional.relu, 4.0, id="parallel has scale 4 by default"
        ),
        pytest.param(
            {"placement": "parallel", "scale": 0.7}, 2, functional.relu, 0.7, id="parallel with another scale"
        ),
    ],
)
def test_a_bottleneck_adapter_computes_its_formula_at_its_placement(
    values: dict[str, Any], inner: int, function: Callable[[Tensor], Tensor], scale: float
) -> None:
    peft_model = randomize(method_of("adapter", **values).apply(small_model(), seed=0))
    adapters = bottlenecks(peft_model)
    targets = {"mlp.down_proj"} | ({"self_attn.o_proj"} if values.get("placement") == "houlsby" else set())
    assert set(adapters) == {f"model.layers.{index}.{name}" for index in range(3) for name in targets}
    decoder = peft_model.get_base_model().model.layers[1]
    h = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for name in targets:
        layer = adapters[f"model.layers.1.{name}"]
        down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
        assert down.weight.shape == (inner, 32)
        assert up.weight.shape == (32, inner)
    mlp = decoder.mlp
    layer = adapters["model.layers.1.mlp.down_proj"]
    y = layer.get_base_layer()(functional.silu(mlp.gate_proj(h)) * mlp.up_proj(h))
    source = h if values.get("placement") == "parallel" else y
    middle = function(
        functional.linear(source, layer.bottleneck_down["default"].weight, layer.bottleneck_down["default"].bias)
    )
    added = functional.linear(middle, layer.bottleneck_up["default"].weight, layer.bottleneck_up["default"].bias)
    torch.testing.assert_close(mlp(h), y + scale * added, rtol=1e-12, atol=1e-12)


def applied(tiny_model: Path, kind: str, **values: Any) -> tuple[Any, Any]:
    """The base, and the base with the method applied."""
    base = load_model(Base(path=str(tiny_model)), torch.float32)
    use_document_attention(base)
    return base, method_of(kind, **values).apply(base, seed=4)


def ids_of(tiny_model: Path, text: str) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(tiny_model)(text, add_special_tokens=False)["input_ids"]
    return ids


@shows("method.prompt.tokens", "method.prompt.start", "method.ptuning.tokens", "method.ptuning.start")
@pytest.mark.parametrize(
    ("tokens", "start", "full_text"),
    [
        pytest.param(5, "abcde", "abcde", id="same length"),
        pytest.param(3, "abcde", "abc", id="truncated"),
        pytest.param(7, "abc", "abcabca", id="repeated"),
        pytest.param(6, "abc", "abcabc", id="repeated evenly"),
    ],
)
@pytest.mark.parametrize("kind", ["prompt", "ptuning"])
def test_a_prompt_is_initialized_with_the_embeddings_of_its_text(
    kind: str, tokens: int, start: str, full_text: str, tiny_model: Path
) -> None:
    base, peft_model = applied(tiny_model, kind, tokens=tokens, start=start)
    expected = base.get_input_embeddings().weight[ids_of(tiny_model, full_text)]
    torch.testing.assert_close(peft_model.get_prompt(1)[0], expected, rtol=1e-4, atol=1e-5)
    assert method_of(kind, tokens=tokens).virtual_tokens == tokens


@shows("method.prompt.start", "method.ptuning.start", "method.prefix.start")
@pytest.mark.parametrize("kind", ["prompt", "ptuning", "prefix"])
def test_without_a_text_prompts_and_prefixes_start_from_random_tokens(kind: str, tiny_model: Path) -> None:
    base, peft_model = applied(tiny_model, kind, tokens=6)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(base.get_input_embeddings().num_embeddings, (6,), generator=generator)
    if kind == "prefix":
        assert_prefix(peft_model, keys_and_values(base, ids))
    else:
        expected = base.get_input_embeddings().weight[ids]
        torch.testing.assert_close(peft_model.get_prompt(1)[0], expected, rtol=1e-3, atol=1e-4)


@shows("method.ptuning.inner_size")
@pytest.mark.parametrize(("values", "inner"), [({"inner_size": 11}, 11), ({}, 32)])
def test_the_ptuning_encoder_has_the_given_inner_size(values: dict[str, int], inner: int, tiny_model: Path) -> None:
    _, peft_model = applied(tiny_model, "ptuning", tokens=4, **values)
    shapes = [tuple(parameter.shape) for parameter in peft_model.prompt_encoder["default"].parameters()]
    assert shapes == [(4, 32), (inner, 32), (inner,), (inner, inner), (inner,), (32, inner), (32,)]


def assert_prefix(peft_model: Any, expected: list[tuple[Tensor, Tensor]]) -> None:
    """Compare keys and values (1, heads, tokens, dim) of each layer."""
    layers = peft_model.get_prompt(1).layers
    assert len(layers) == len(expected)
    for layer, (keys, values) in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.keys, keys, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(layer.values, values, rtol=1e-5, atol=1e-6)


@shows("method.prefix.start", "method.prefix.tokens")
@pytest.mark.parametrize(
    ("tokens", "start", "full_text"), [(5, "abcde", "abcde"), (3, "abcde", "abc"), (8, "xyz", "xyzxyzxy")]
)
def test_a_prefix_starts_with_the_keys_and_values_of_its_text(
    tokens: int, start: str, full_text: str, tiny_model: Path
) -> None:
    base, peft_model = applied(tiny_model, "prefix", tokens=tokens, start=start)
    cache = own_forward(base)(input_ids=torch.tensor([ids_of(tiny_model, full_text)]), use_cache=True).past_key_values
    assert_prefix(peft_model, [(layer.keys, layer.values) for layer in cache.layers])
    assert method_of("prefix", tokens=tokens).virtual_tokens == tokens


@shows("method.prefix.projection", "method.prefix.projection_size", "method.prefix.tokens")
@pytest.mark.parametrize(("values", "inner"), [({"projection_size": 9}, 9), ({}, 16)])
def test_a_prefix_projection_has_the_given_inner_size(values: dict[str, int], inner: int, tiny_model: Path) -> None:
    _, peft_model = applied(tiny_model, "prefix", tokens=7, projection=True, **values)
    encoder = peft_model.prompt_encoder["default"]
    first, last = encoder.transform[0], encoder.transform[2]
    assert encoder.embedding.weight.shape == (7, 16)  # kv heads × dim
    assert (first.in_features, first.out_features) == (16, inner)
    assert (last.in_features, last.out_features) == (inner, 2 * 2 * 16)  # layers × keys and values
    projected = last(torch.tanh(first(encoder.embedding.weight))).view(
        7, 2, 2, 2, 8
    )  # tokens, layers, k and v, heads, dim
    assert_prefix(peft_model, [(layer[0][None], layer[1][None]) for layer in projected.permute(1, 2, 3, 0, 4)])
    _, direct = applied(tiny_model, "prefix", tokens=7)
    assert [tuple(parameter.shape) for parameter in direct.parameters() if parameter.requires_grad] == [(7, 64)]


@shows("method.peft.peft_type", "method.peft.config")
@pytest.mark.parametrize(
    ("peft_type", "config", "expected"),
    [
        pytest.param("VERA", {"r": 6}, {"vera_lambda_b": (32,), "vera_lambda_d": (6,)}, id="VeRA"),
        pytest.param("loha", {"r": 3, "alpha": 9}, {"hada_w1_a": (32, 3), "hada_w2_b": (3, 32)}, id="LoHa in any case"),
        pytest.param("LOHA", {"r": 5}, {"hada_w1_a": (32, 5), "hada_w2_b": (5, 32)}, id="another rank"),
    ],
)
def test_any_peft_method_works_with_its_own_settings(
    peft_type: str, config: dict[str, Any], expected: dict[str, tuple[int, ...]]
) -> None:
    method = method_of("peft", peft_type=peft_type, config={**config, "target_modules": ["q_proj"]})
    model = small_model()
    count = method.trained_parameters(model)
    peft_model = method.apply(model, seed=0)
    parameters = dict(peft_model.named_parameters())
    shapes = {re.split(r"\.|_lambda", name)[-1]: tuple(parameter.shape) for name, parameter in parameters.items()}
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    assert peft_model.active_peft_config.peft_type.value == peft_type.upper()
    for part, shape in expected.items():
        of_part = [tuple(parameter.shape) for name, parameter in trained.items() if part in name]
        assert of_part == [shape] * 3, (part, shapes)
    assert all("q_proj" in name for name in trained)
    assert count == sum(parameter.numel() for parameter in trained.values())
    if config.get("alpha"):
        layer = peft_model.get_base_model().model.layers[1].self_attn.q_proj
        assert layer.scaling["default"] == 3.0
