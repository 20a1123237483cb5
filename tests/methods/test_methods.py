"""Each method trains the number of parameters of its formula, where its paper puts them, and starts correctly."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import make_bases
from peft import PeftModel
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from tunesmith.config.base import Base
from tunesmith.config.head import Head
from tunesmith.config.method_list import STORED, list_methods, methods_to_store
from tunesmith.config.recipe import Recipe
from tunesmith.config.registry import METHODS
from tunesmith.data.batch import collate
from tunesmith.data.example import Source
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.heads.new_head import head_parameters
from tunesmith.heads.sequence_classification import SequenceClassificationHead
from tunesmith.methods.catalog import counted_methods
from tunesmith.models.attention import use_document_attention
from tunesmith.models.forward import next_token_losses
from tunesmith.models.load import load_model, skeleton

VARIANTS: list[dict[str, Any]] = [
    {"kind": "full"},
    {"kind": "layers", "last": 1},
    {"kind": "layers", "norms_and_biases": True},
    {"kind": "layers", "patterns": ["mlp|intermediate"]},
    {"kind": "layers", "embeddings": True},
    {"kind": "lora"},
    {"kind": "lora", "dora": True, "target_modules": "attention"},
    {"kind": "lora", "target_modules": "feed-forward", "rank": 3},
    {"kind": "adapter"},
    {"kind": "adapter", "placement": "houlsby", "reduction": 4},
    {"kind": "adapter", "placement": "parallel"},
    {"kind": "prefix", "tokens": 7},
    {"kind": "prefix", "projection": True, "projection_size": 11},
    {"kind": "prompt", "tokens": 5},
    {"kind": "ptuning", "tokens": 5, "inner_size": 9},
    {"kind": "ia3"},
    {"kind": "peft", "peft_type": "VERA", "config": {"r": 8}},
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases")
    make_bases(directory)
    config = AutoConfig.from_pretrained(directory / "bert")
    AutoModel.from_config(config).save_pretrained(directory / "bert")  # with its pooler
    return directory


def method_of(values: dict[str, Any]) -> Any:
    return METHODS.load(values["kind"]).model_validate(values)


def loaded(path: Path, head: Head | None = None) -> Any:
    model = load_model(Base(path=str(path)), torch.float32, head=head)
    use_document_attention(model)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_a_methods_formula_gives_its_number_of_trained_parameters(
    values: dict[str, Any], family: str, bases: Path
) -> None:
    head = SequenceClassificationHead(("a", "b", "c")) if family == "bert" else None
    method = method_of(values)
    formula = method.trained_parameters(skeleton(Base(path=str(bases / family)), head))
    model = loaded(bases / family, head)
    head = head_parameters(model)
    peft_model = method.apply(model, seed=0)
    assert formula == sum(each.numel() for each in peft_model.parameters() if each.requires_grad) - head


def table_of(rows: int) -> TokenTable:
    generator = torch.Generator().manual_seed(0)
    table = []
    for number in range(rows):
        ids = torch.randint(5, 250, (3 + 5 * number,), generator=generator).int().numpy()
        table.append((ids, torch.ones(len(ids), dtype=torch.bool).numpy(), Source("rows", number + 1)))
    return TokenTable.build(table)


@pytest.mark.parametrize("values", [*VARIANTS[5:6], *VARIANTS[8:16]], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packed_rows_have_the_losses_of_pefts_own_forward_alone(
    values: dict[str, Any], family: str, bases: Path
) -> None:
    model = method_of(values).apply(loaded(bases / family).double(), seed=0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data + 0.05 * torch.randn_like(parameter)
    table = table_of(4)
    packed = next_token_losses(model.eval(), collate(table, range(4)))
    model.get_base_model().set_attn_implementation("sdpa")
    alone = []
    for row in range(4):
        ids = torch.tensor(table[row][0].astype("int64"))[None]
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -ids.shape[1] :]
        alone.append(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none"))
    torch.testing.assert_close(packed, torch.cat(alone).to(packed.dtype), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("values", [*VARIANTS[5:11], VARIANTS[15]], ids=str)
def test_a_method_without_virtual_tokens_starts_as_the_base(values: dict[str, Any], bases: Path) -> None:
    batch = collate(table_of(3), range(3))
    base = loaded(bases / "llama")
    before = next_token_losses(base, batch)
    peft_model = method_of(values).apply(base, seed=0)
    torch.testing.assert_close(next_token_losses(peft_model, batch), before, rtol=1e-5, atol=1e-5)


def test_a_prefix_initialized_from_a_text_equals_the_text_as_context(bases: Path) -> None:
    """Its keys and values are those of the text, so the base sees the text before each row."""
    base = loaded(bases / "llama")
    text = "What is 3?"
    method = method_of({"kind": "prefix", "tokens": len(text), "start": text})
    batch = collate(table_of(1), [0])
    ids = torch.tensor(list(table_of(1)[0][0].astype("int64")))
    peft_model = method.apply(base, seed=0)
    prefixed = next_token_losses(peft_model, batch)
    plain = AutoModelForCausalLM.from_pretrained(bases / "llama")
    from transformers import AutoTokenizer

    before = AutoTokenizer.from_pretrained(bases / "llama")(text, return_tensors="pt")["input_ids"][0]
    logits = plain(input_ids=torch.cat([before, ids])[None]).logits[0, len(before) : -1]
    expected = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
    torch.testing.assert_close(prefixed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "lora", "rank": 4},
        {"kind": "lora", "rank": 4, "rank_stabilized": True},
        {"kind": "lora", "rank": 4, "dora": True},
        {"kind": "lora", "rank": 4, "initialization": "pissa"},
        {"kind": "lora", "rank": 4, "ranks": {"down_proj": 9}},
        {"kind": "lora", "rank": 4, "target_modules": "attention"},
    ],
    ids=str,
)
def test_lora_variants_give_the_losses_of_plain_peft_with_the_saved_adapter(
    values: dict[str, Any], bases: Path, tmp_path: Path
) -> None:
    peft_model = method_of(values).apply(loaded(bases / "llama"), seed=0)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    peft_model.save_pretrained(tmp_path)
    batch = collate(table_of(2), [1])
    ours = next_token_losses(peft_model.eval(), batch)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(bases / "llama"), tmp_path).eval()
    ids = torch.tensor(table_of(2)[1][0].astype("int64"))
    logits = plain(input_ids=ids[None]).logits[0, :-1]
    torch.testing.assert_close(
        ours, torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none"), rtol=1e-4, atol=1e-4
    )


def test_loftq_starts_closer_to_the_unquantized_weights_than_qlora(bases: Path) -> None:
    original = loaded(bases / "llama").model.layers[0].mlp.up_proj.weight
    gaps = {}
    for start in ("zero", "loftq"):
        model = load_model(Base(path=str(bases / "llama"), weights="nf4"), torch.float32)
        method = method_of({"kind": "lora", "rank": 8, "initialization": start})
        peft_model = method.apply(model, seed=0)
        method.initialize(peft_model)
        layer = peft_model.get_base_model().model.layers[0].mlp.up_proj
        gaps[start] = (layer.get_base_layer().weight + layer.get_delta_weight("default") - original).norm().item()
    assert gaps["loftq"] < 0.8 * gaps["zero"]


def test_lora_plus_scales_bs_rate_and_ranks_apply_to_their_layers(bases: Path) -> None:
    method = method_of({"kind": "lora", "b_learning_rate_ratio": 16.0, "ranks": {"v_proj": 2}})
    peft_model = method.apply(loaded(bases / "llama"), seed=0)
    factors = {name.split(".")[-3]: method.learning_rate_factor(name) for name, _ in peft_model.named_parameters()}
    assert factors["lora_B"] == 16.0
    assert factors["lora_A"] == 1.0
    ranks = {name.split(".")[-4]: each.shape[0] for name, each in peft_model.named_parameters() if "lora_A" in name}
    assert ranks["v_proj"] == 2
    assert ranks["q_proj"] == 16


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"kind": "layers"}, "selects no weight to train"),
        ({"kind": "layers", "last": 9}, "9 blocks to train, but LlamaForCausalLM has 2"),
        ({"kind": "layers", "patterns": ["nowhere"]}, "'nowhere' matches no parameter name"),
        ({"kind": "lora", "target_modules": "x.*"}, "has a full name that matches 'x.*'"),
        ({"kind": "lora", "initialization": "loftq"}, "loftq corrects quantization error"),
        ({"kind": "prompt", "start": ""}, "the text is empty"),
    ],
)
def test_methods_that_cannot_be_applied_are_refused_with_a_reason(
    method: dict[str, Any], message: str, bases: Path
) -> None:
    with pytest.raises(UserError, match=message.replace("*", r"\*").replace(".", r"\.")):
        method_of(method).apply(loaded(bases / "llama"), seed=0)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"base": {"weights": "nf4"}, "method": "full"}, "moves the base's own matrices"),
        ({"base": {"weights": "nf4"}, "method": {"kind": "lora", "initialization": "pissa"}}, "moves the base's own"),
        ({"base": {"weights": "fp32"}, "train": {"precision": "bf16"}}, "would have every layer cast its weights"),
        ({"base": {"weights": "int8", "from_scratch": True}}, "random weights, and base.weights: int8 would keep them"),
        ({"method": {"kind": "peft", "peft_type": "VERRA"}}, "Did you mean VERA"),
        ({"method": {"kind": "peft", "peft_type": "LILY"}}, "averages over all tokens of a batch"),
        ({"method": {"kind": "peft", "peft_type": "LORA"}}, "has its own kind here. Set method: {kind: lora}"),
        ({"method": {"kind": "peft", "peft_type": "VERA", "config": {"rr": 1}}}, "config.rr is not a field"),
        ({"method": {"kind": "layers", "patterns": ["("]}}, "is not a regular expression"),
    ],
)
def test_invalid_combinations_are_refused_before_loading(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        Recipe.load({"data": {"train": "nowhere.jsonl"}, **recipe})
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_catalog_lists_every_kind_with_parameters_for_a_base() -> None:
    listing = list_methods("embedded")
    assert [each["kind"] for each in listing["methods"]] == [kind for kind in METHODS if kind != "peft"]
    assert all(each["trained_parameters"] > 0 and each["learning_rate"] > 0 for each in listing["methods"])
    assert json.dumps(listing)


def test_the_stored_list_of_methods_is_the_counted_one() -> None:
    """If it is not: make schema."""
    assert json.loads(STORED.read_text(encoding="utf-8")) == methods_to_store()
    assert list_methods("embedded") == counted_methods("embedded")


def test_the_stored_list_is_used_with_its_version_of_peft_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.config.method_list.version", lambda name: "0.0")
    monkeypatch.setattr("tunesmith.methods.catalog.counted_methods", lambda base: {"base": base})
    assert list_methods("embedded") == {"base": "embedded"}


def test_peft_loads_switches_and_disables_bottleneck_adapters(bases: Path, tmp_path: Path) -> None:
    peft_model = method_of({"kind": "adapter", "placement": "parallel"}).apply(loaded(bases / "llama"), seed=0)
    for name, parameter in peft_model.named_parameters():
        if "bottleneck_up" in name:
            parameter.data = torch.randn_like(parameter)
    batch = collate(table_of(2), [1])
    trained = next_token_losses(peft_model, batch)
    peft_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "BOTTLENECK"

    again = PeftModel.from_pretrained(loaded(bases / "llama"), tmp_path, adapter_name="first")
    again.load_adapter(tmp_path, "second")
    torch.testing.assert_close(next_token_losses(again, batch), trained)
    again.set_adapter("second")
    torch.testing.assert_close(next_token_losses(again, batch), trained)
    with again.disable_adapter():
        plain = next_token_losses(again, batch)
    torch.testing.assert_close(plain, next_token_losses(loaded(bases / "llama"), batch))
    assert not torch.allclose(plain, trained, atol=1e-3)


@pytest.mark.long
def test_a_fresh_process_loads_a_bottleneck_adapter(bases: Path, tmp_path: Path) -> None:
    """Only this package registers the method with PEFT, so code that loads an adapter must import it first."""
    peft_model = method_of({"kind": "adapter"}).apply(loaded(bases / "llama"), seed=0)
    peft_model.save_pretrained(tmp_path)
    code = (
        "import sys, torch; from tunesmith.inference.model_reference import ModelReference; "
        "ModelReference.find(sys.argv[1]).model(torch.float32, torch.device('cpu'))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)


def test_lora_on_experts_trains_its_formulas_number_of_parameters_or_is_refused(
    tmp_path: Path,
) -> None:
    make_bases(tmp_path, ["mixtral", "llama"])
    method = method_of({"kind": "lora", "rank": 4, "experts": True})
    model = loaded(tmp_path / "mixtral")
    formula = method.trained_parameters(model)
    peft_model = method.apply(model, seed=0)
    trained = {name: each.numel() for name, each in peft_model.named_parameters() if each.requires_grad}
    assert formula == sum(trained.values())
    assert sum(count for name, count in trained.items() if ".experts." in name) > 0
    with pytest.raises(UserError, match="has no expert weight tensors"):
        method.apply(loaded(tmp_path / "llama"), seed=0)
    with pytest.raises(UserError, match="without dropout, dora, last or a special initialization"):
        method_of({"kind": "lora", "experts": True, "dropout": 0.1}).apply(loaded(tmp_path / "mixtral"), seed=0)
