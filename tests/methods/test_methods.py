"""Each method trains what its formula says, in the place that its paper says, and starts where it should."""

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

from tunesmith.config.recipe import Base, Recipe
from tunesmith.config.registry import METHODS, named_kind
from tunesmith.data.example import Source
from tunesmith.data.pack import collate
from tunesmith.data.tokens import TokenTable
from tunesmith.ending import VOCABULARY, Ending
from tunesmith.errors import UserError
from tunesmith.methods.catalog import catalog
from tunesmith.models.attention import use_document_attention
from tunesmith.models.forward import next_token_losses
from tunesmith.models.heads import head_parameters
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
    return named_kind(METHODS, values["kind"]).model_validate(values)


def ready(path: Path, ending: Ending = VOCABULARY) -> Any:
    model = load_model(Base(path=str(path)), torch.float32, ending=ending)
    use_document_attention(model)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_a_method_trains_as_many_numbers_as_its_formula_says(values: dict[str, Any], family: str, bases: Path) -> None:
    ending = Ending("classes", ("a", "b", "c")) if family == "bert" else VOCABULARY
    method = method_of(values)
    formula = method.trained_parameters(skeleton(Base(path=str(bases / family)), ending))
    model = ready(bases / family, ending)
    head = head_parameters(model)
    peft_model = method.apply(model, seed=0)
    assert formula == sum(each.numel() for each in peft_model.parameters() if each.requires_grad) - head


def table_of(rows: int) -> TokenTable:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(rows):
        ids = torch.randint(5, 250, (3 + 5 * number,), generator=generator).int().numpy()
        made.append((ids, torch.ones(len(ids), dtype=torch.bool).numpy(), Source("rows", number + 1)))
    return TokenTable.build(made)


@pytest.mark.parametrize("values", [*VARIANTS[5:6], *VARIANTS[8:16]], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packed_rows_have_the_losses_that_they_have_alone_in_pefts_own_forward(
    values: dict[str, Any], family: str, bases: Path
) -> None:
    model = method_of(values).apply(ready(bases / family).double(), seed=0)
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
    base = ready(bases / "llama")
    before = next_token_losses(base, batch)
    peft_model = method_of(values).apply(base, seed=0)
    torch.testing.assert_close(next_token_losses(peft_model, batch), before, rtol=1e-5, atol=1e-5)


def test_a_prefix_that_starts_as_a_text_answers_as_if_the_text_stood_there(bases: Path) -> None:
    """Its keys and values are those of the text, so the base reads it as its own beginning."""
    base = ready(bases / "llama")
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
def test_lora_in_every_variant_says_what_plain_peft_says_of_its_saved_adapter(
    values: dict[str, Any], bases: Path, tmp_path: Path
) -> None:
    peft_model = method_of(values).apply(ready(bases / "llama"), seed=0)
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


def test_loftq_starts_nearer_to_the_whole_weights_than_plain_qlora(bases: Path) -> None:
    whole = ready(bases / "llama").model.layers[0].mlp.up_proj.weight
    gaps = {}
    for start in ("zero", "loftq"):
        model = load_model(Base(path=str(bases / "llama"), weights="nf4"), torch.float32)
        peft_model = method_of({"kind": "lora", "rank": 8, "initialization": start}).apply(model, seed=0)
        layer = peft_model.get_base_model().model.layers[0].mlp.up_proj
        gaps[start] = (layer.get_base_layer().weight + layer.get_delta_weight("default") - whole).norm().item()
    assert gaps["loftq"] < 0.8 * gaps["zero"]


def test_lora_plus_gives_b_its_own_rate_and_other_ranks_reach_their_layers(bases: Path) -> None:
    method = method_of({"kind": "lora", "b_learning_rate_ratio": 16.0, "ranks": {"v_proj": 2}})
    peft_model = method.apply(ready(bases / "llama"), seed=0)
    factors = {name.split(".")[-3]: method.learning_rate_factor(name) for name, _ in peft_model.named_parameters()}
    assert factors["lora_B"] == 16.0
    assert factors["lora_A"] == 1.0
    ranks = {name.split(".")[-4]: each.shape[0] for name, each in peft_model.named_parameters() if "lora_A" in name}
    assert ranks["v_proj"] == 2
    assert ranks["q_proj"] == 16


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"kind": "layers"}, "says of no weight that it moves"),
        ({"kind": "layers", "last": 9}, "9 blocks are to move, and LlamaForCausalLM has 2"),
        ({"kind": "layers", "patterns": ["nowhere"]}, "'nowhere' is found in no parameter's name"),
        ({"kind": "lora", "target_modules": "x.*"}, "fully matched by 'x.*'"),
        ({"kind": "lora", "initialization": "loftq"}, "loftq makes up for quantization"),
        ({"kind": "prompt", "start": ""}, "the text is empty"),
    ],
)
def test_what_cannot_be_applied_is_refused_in_a_line(method: dict[str, Any], said: str, bases: Path) -> None:
    with pytest.raises(UserError, match=said.replace("*", r"\*").replace(".", r"\.")):
        method_of(method).apply(ready(bases / "llama"), seed=0)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"base": {"weights": "nf4"}, "method": "full"}, "moves the base's own matrices"),
        ({"base": {"weights": "nf4"}, "method": {"kind": "lora", "initialization": "pissa"}}, "moves the base's own"),
        ({"base": {"weights": "fp32"}, "train": {"precision": "bf16"}}, "would have every layer cast its weights"),
        ({"base": {"weights": "int8", "from_scratch": True}}, "random weights, which would be frozen"),
        ({"method": {"kind": "peft", "peft_type": "VERRA"}}, "Did you mean VERA"),
        ({"method": {"kind": "peft", "peft_type": "LILY"}}, "averages over all tokens of a batch"),
        ({"method": {"kind": "peft", "peft_type": "LORA"}}, "a kind of its own: method: {kind: lora}"),
        ({"method": {"kind": "peft", "peft_type": "VERA", "config": {"rr": 1}}}, "config.rr is not a field"),
        ({"method": {"kind": "layers", "patterns": ["("]}}, "is not a regular expression"),
    ],
)
def test_combinations_that_cannot_be_are_refused_before_anything_is_loaded(recipe: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        Recipe.load({"data": {"train": "nowhere.jsonl"}, **recipe})
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_catalog_lists_every_kind_with_its_formula_and_numbers_for_a_base() -> None:
    found = catalog("embedded")
    assert [each["kind"] for each in found["methods"]] == [kind for kind in METHODS if kind != "peft"]
    assert all(each["trained_parameters"] > 0 and each["learning_rate"] > 0 for each in found["methods"])
    assert json.dumps(found)


def test_a_bottleneck_adapter_is_switched_and_stacked_by_peft_as_any_other(bases: Path, tmp_path: Path) -> None:
    peft_model = method_of({"kind": "adapter", "placement": "parallel"}).apply(ready(bases / "llama"), seed=0)
    for name, parameter in peft_model.named_parameters():
        if "bottleneck_up" in name:
            parameter.data = torch.randn_like(parameter)
    batch = collate(table_of(2), [1])
    trained = next_token_losses(peft_model, batch)
    peft_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "BOTTLENECK"

    again = PeftModel.from_pretrained(ready(bases / "llama"), tmp_path, adapter_name="first")
    again.load_adapter(tmp_path, "second")
    torch.testing.assert_close(next_token_losses(again, batch), trained)
    again.set_adapter("second")
    torch.testing.assert_close(next_token_losses(again, batch), trained)
    with again.disable_adapter():
        plain = next_token_losses(again, batch)
    torch.testing.assert_close(plain, next_token_losses(ready(bases / "llama"), batch))
    assert not torch.allclose(plain, trained, atol=1e-3)


@pytest.mark.long
def test_a_process_of_its_own_reads_a_bottleneck_adapter(bases: Path, tmp_path: Path) -> None:
    """Nothing but the package tells PEFT of the method, so whoever loads an adapter must have registered it."""
    peft_model = method_of({"kind": "adapter"}).apply(ready(bases / "llama"), seed=0)
    peft_model.save_pretrained(tmp_path)
    code = (
        "import sys, torch; from tunesmith.models.model_reference import ModelReference; "
        "ModelReference.find(sys.argv[1]).model(torch.float32, torch.device('cpu'))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True)


def test_lora_on_experts_trains_as_many_numbers_as_its_formula_says_and_is_refused_where_there_are_none(
    tmp_path: Path,
) -> None:
    make_bases(tmp_path, ["mixtral", "llama"])
    method = method_of({"kind": "lora", "rank": 4, "experts": True})
    model = ready(tmp_path / "mixtral")
    formula = method.trained_parameters(model)
    peft_model = method.apply(model, seed=0)
    moving = {name: each.numel() for name, each in peft_model.named_parameters() if each.requires_grad}
    assert formula == sum(moving.values())
    assert sum(count for name, count in moving.items() if ".experts." in name) > 0
    with pytest.raises(UserError, match="has no experts in tensors"):
        method.apply(ready(tmp_path / "llama"), seed=0)
    with pytest.raises(UserError, match="with no dropout, dora or initialization of its own"):
        method_of({"kind": "lora", "experts": True, "dropout": 0.1}).apply(ready(tmp_path / "mixtral"), seed=0)
