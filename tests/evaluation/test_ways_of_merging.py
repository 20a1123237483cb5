"""An adapter of a quantized base is merged both ways; each way's loss and divergence are a plain forward pass's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bytewise import byte_tokenizer
from families import config_of
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from small_models import batch_of, objective_of, small_model
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import prepare
from tunesmith.ending import Ending
from tunesmith.evaluation import merging
from tunesmith.evaluation.merging import merge
from tunesmith.models.load import load_tokenizer
from tunesmith.models.model_reference import ModelReference

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory as it lies after training on a base in nf4; the adapter is at random values."""
    directory = tmp_path_factory.mktemp("quantized")
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = config_of("llama", len(tokenizer), initializer_range=0.2)
    model = AutoModelForCausalLM.from_config(config).bfloat16()
    model.save_pretrained(directory / "base")
    tokenizer.save_pretrained(directory / "base")
    rows = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}."} for n in range(12)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "base": {"path": str(directory / "base"), "weights": "nf4"},
        "data": {"train": str(directory / "rows.jsonl"), "held_out": 0.5, "cache": False},
    }
    (directory / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    peft_model = get_peft_model(
        model.float(), LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    peft_model.save_pretrained(directory / "adapter")
    return directory


@torch.no_grad()
def log_probabilities(model: Any, run: Path, rows: int) -> tuple[Tensor, Tensor]:
    """(positions, vocabulary) float64 at the learnt positions of the first held-out rows, and the tokens there."""
    recipe = Recipe.load(run / "recipe.yaml")
    table = prepare(recipe, load_tokenizer(recipe.base)).held_out
    found, tokens = [], []
    for row in range(min(rows, len(table))):
        ids, loss_mask = (torch.tensor(np.array(each)) for each in table[row])
        logits = model(input_ids=ids[None].long()).logits[0, :-1].double()
        found.append(functional.log_softmax(logits, -1)[loss_mask[1:]])
        tokens.append(ids[1:][loss_mask[1:]].long())
    return torch.cat(found), torch.cat(tokens)


@pytest.mark.parametrize(("rows", "positions"), [(2, 512), (6, 21)])
def test_each_ways_loss_and_divergence_are_those_of_plain_forward_passes(
    rows: int, positions: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "ROWS", rows)
    monkeypatch.setattr(merging, "POSITIONS", positions)
    merged = merge(str(run), tmp_path / "merged")
    trained, tokens = log_probabilities(ModelReference.find(str(run)).model(torch.float32, CPU), run, rows)
    trained, tokens = trained[:positions], tokens[:positions]

    def loss(found: Tensor) -> float:
        return float(-found.gather(1, tokens[:, None]).mean())

    assert merged.trained_loss == pytest.approx(loss(trained), rel=1e-5)
    assert [way.into for way in merged.ways] == ["original", "dequantized"]
    for way in merged.ways:
        model = merging.merged_model(ModelReference.find(str(run)), way.into).to(torch.bfloat16)
        found = log_probabilities(model, run, rows)[0][:positions]
        assert way.loss == pytest.approx(loss(found), rel=1e-3)
        divergence = float((trained.exp() * (trained - found)).sum(-1).mean())
        assert way.divergence == pytest.approx(divergence, rel=0.02)
    best = min(merged.ways, key=lambda way: way.loss)
    assert merged.into == best.into
    told = json.loads((merged.path / "merge.json").read_text(encoding="utf-8"))
    ways = [{"into": way.into, "loss": way.loss, "divergence": way.divergence} for way in merged.ways]
    assert told == {"into": best.into, "trained_loss": merged.trained_loss, "ways": ways}
    written = load_file(merged.path / "model.safetensors")
    wanted = merging.merged_model(ModelReference.find(str(run)), best.into).state_dict()
    name = "model.layers.1.mlp.down_proj.weight"
    assert written[name].dtype == torch.bfloat16
    assert torch.equal(written[name], wanted[name].bfloat16())


def test_what_the_base_stores_and_what_it_held_in_training_are_told_apart(run: Path, tmp_path: Path) -> None:
    usable = ModelReference.find(str(run))
    stored = load_file(run / "base" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].float()
    held = usable.model(torch.float32, CPU).get_base_model().model.layers[0].mlp.up_proj.weight
    assert not torch.equal(stored, held)
    for into, weight in (("original", stored), ("dequantized", held)):
        made = merging.merged_model(usable, into).model.layers[0].mlp.up_proj
        assert torch.equal(made.weight, weight), into
        assert type(made) is torch.nn.Linear


def test_without_rows_the_weights_that_were_trained_on_are_taken(run: Path, tmp_path: Path) -> None:
    """An adapter's directory has no recipe beside it; a run may have held nothing out."""
    lone = tmp_path / "lone"
    lone.mkdir()
    recipe = json.loads((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["data"]["held_out"] = 0.0
    (lone / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    (lone / "adapter").symlink_to(run / "adapter")
    merged = merge(str(lone), tmp_path / "merged", "fp32")
    assert (merged.into, merged.trained_loss, merged.ways) == ("dequantized", None, ())
    assert not (merged.path / "merge.json").exists()
    wanted = merging.merged_model(ModelReference.find(str(lone)), "dequantized").state_dict()
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(load_file(merged.path / "model.safetensors")[name], wanted[name])


CLASSES = Ending("classes", ("a", "b", "c"))
ROWS = [[5, 9, 13, 21, 2], [7, 8, 33, 11, 40, 2]]


@torch.no_grad()
def outcomes(kind: str, ending: Ending) -> tuple[Tensor, Tensor]:
    """What is compared of a model with a head, and the head's logits."""
    model = small_model("bert", ending, torch.float32)
    objective = objective_of(kind, labels=list(ending.labels)) if ending.labels[0] != "value" else objective_of(kind)
    batch = batch_of(ROWS, told=[(0.0,) * (3 if kind == "multi_label" else 1)] * 2)
    found = merging._log_probabilities(model, objective, batch)
    model.set_attn_implementation("eager")
    logits = torch.cat([model(input_ids=torch.tensor([row])).logits for row in ROWS])
    return found, logits


def test_classes_are_compared_by_their_probabilities_and_labels_as_holding_or_not() -> None:
    found, logits = outcomes("classification", CLASSES)
    torch.testing.assert_close(found, torch.log_softmax(logits, -1), rtol=1e-4, atol=1e-5)
    found, logits = outcomes("multi_label", Ending("classes", ("a", "b", "c"), "multi_label_classification"))
    wanted = torch.stack([functional.logsigmoid(logits), functional.logsigmoid(-logits)], -1).reshape(6, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_values_have_one_outcome_which_cannot_diverge() -> None:
    found, _ = outcomes("regression", Ending("classes", ("value",), "regression"))
    assert found.tolist() == [[0.0], [0.0]]
