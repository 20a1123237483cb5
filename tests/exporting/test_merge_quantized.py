"""Merging into a quantized base both ways: each loss and divergence equals that of a plain forward pass."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from small_models import batch_of, small_model, stored_base
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tunesmith.config.head import Head
from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import prepare
from tunesmith.exporting import merging
from tunesmith.exporting.export import export
from tunesmith.exporting.weights import Weights
from tunesmith.heads.sequence_classification import MultiLabelHead, RegressionHead, SequenceClassificationHead
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.load import load_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as after training on a base in nf4; the adapter has random values."""
    directory = tmp_path_factory.mktemp("quantized")
    base = stored_base(directory / "base", dtype=torch.bfloat16, initializer_range=0.2)
    rows = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}."} for n in range(12)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "base": {"path": str(base), "weights": "nf4"},
        "data": {"train": str(directory / "rows.jsonl"), "held_out": 0.5, "cache": False},
    }
    (directory / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    torch.manual_seed(1)
    peft_model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base).float(),
        LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    peft_model.save_pretrained(directory / "adapter")
    return directory


@torch.no_grad()
def log_probabilities(model: Any, run: Path, rows: int) -> tuple[Tensor, Tensor]:
    """(positions, vocabulary) float64 at the loss positions of the first held-out rows, and the tokens there."""
    recipe = Recipe.load(run / "recipe.yaml")
    table = prepare(recipe, load_tokenizer(recipe.base)).held_out
    log_p, tokens = [], []
    for row in range(min(rows, len(table))):
        ids, loss_mask = (torch.tensor(np.array(array)) for array in table[row])
        logits = model(input_ids=ids[None].long()).logits[0, :-1].double()
        log_p.append(functional.log_softmax(logits, -1)[loss_mask[1:]])
        tokens.append(ids[1:][loss_mask[1:]].long())
    return torch.cat(log_p), torch.cat(tokens)


@pytest.mark.parametrize(("rows", "positions"), [(2, 512), (6, 21)])
def test_losses_and_divergences_equal_those_of_plain_forward_passes(
    rows: int, positions: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "ROWS", rows)
    monkeypatch.setattr(merging, "POSITIONS", positions)
    done = export(run, tmp_path / "merged", "hf")
    merged = done.merging
    trained, tokens = log_probabilities(ModelReference.find(str(run)).model(torch.float32, CPU), run, rows)
    trained, tokens = trained[:positions], tokens[:positions]

    def loss(log_p: Tensor) -> float:
        return float(-log_p.gather(1, tokens[:, None]).mean())

    assert merged.trained_loss == pytest.approx(loss(trained), rel=1e-5)
    assert [way.into for way in merged.ways] == ["original", "dequantized"]
    for way in merged.ways:
        model = AutoModelForCausalLM.from_pretrained(run / "base")  # in bf16
        model.load_state_dict(dict(Weights(ModelReference.find(str(run)), way.into)))
        log_p = log_probabilities(model, run, rows)[0][:positions]
        assert way.loss == pytest.approx(loss(log_p), rel=1e-3)
        divergence = float((trained.exp() * (trained - log_p)).sum(-1).mean())
        assert way.divergence == pytest.approx(divergence, rel=0.02)
    best = min(merged.ways, key=lambda way: way.loss)
    assert merged.into == best.into
    report = json.loads((done.path / "merge.json").read_text(encoding="utf-8"))
    ways = [{"into": way.into, "loss": way.loss, "divergence": way.divergence} for way in merged.ways]
    assert report == {"into": best.into, "trained_loss": merged.trained_loss, "ways": ways}
    written = load_file(done.path / "model.safetensors")
    expected = Weights(ModelReference.find(str(run)), best.into)
    name = "model.layers.1.mlp.down_proj.weight"
    assert written[name].dtype == torch.bfloat16
    assert torch.equal(written[name], expected[name].bfloat16())


def test_original_and_dequantized_weights_of_the_base_are_distinguished(run: Path, tmp_path: Path) -> None:
    reference = ModelReference.find(str(run))
    stored = load_file(run / "base" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].float()
    dequantized = reference.model(torch.float32, CPU).get_base_model().model.layers[0].mlp.up_proj.weight
    assert not torch.equal(stored, dequantized)
    for into, weight in (("original", stored), ("dequantized", dequantized)):
        found = Weights(reference, into)["model.layers.0.mlp.up_proj.weight"]
        assert torch.equal(found.float(), weight), into


def test_without_held_out_rows_the_dequantized_weights_are_used(run: Path, tmp_path: Path) -> None:
    """A run may have no held-out rows."""
    copy = tmp_path / "copy"
    copy.mkdir()
    recipe = json.loads((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["data"]["held_out"] = 0.0
    (copy / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    (copy / "adapter").symlink_to(run / "adapter")
    done = export(copy, tmp_path / "merged", "hf", precision="fp32")
    assert (done.merging.into, done.merging.trained_loss, done.merging.ways) == ("dequantized", None, ())
    assert not (done.path / "merge.json").exists()
    expected = Weights(ModelReference.find(str(copy)), "dequantized")
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(load_file(done.path / "model.safetensors")[name], expected[name])


CLASSES = SequenceClassificationHead(("a", "b", "c"))
ROWS = [[5, 9, 13, 21, 2], [7, 8, 33, 11, 40, 2]]


@torch.no_grad()
def outcomes(kind: str, head: Head) -> tuple[Tensor, Tensor]:
    """The log-probabilities that are compared for a model with a head, and the head's logits."""
    model = small_model("bert", head, torch.float32)
    batch = batch_of(ROWS, targets=[(0.0,) * (3 if kind == "multi_label" else 1)] * 2)
    log_p = head.log_probabilities(model, batch)
    model.set_attn_implementation("eager")
    logits = torch.cat([model(input_ids=torch.tensor([row])).logits for row in ROWS])
    return log_p, logits


def test_outcomes_are_classes_or_for_each_label_present_and_absent() -> None:
    log_p, logits = outcomes("classification", CLASSES)
    torch.testing.assert_close(log_p, torch.log_softmax(logits, -1), rtol=1e-4, atol=1e-5)
    log_p, logits = outcomes("multi_label", MultiLabelHead(("a", "b", "c")))
    expected = torch.stack([functional.logsigmoid(logits), functional.logsigmoid(-logits)], -1).reshape(6, 2)
    torch.testing.assert_close(log_p, expected, rtol=1e-4, atol=1e-5)


def test_regression_has_one_outcome_which_cannot_diverge() -> None:
    log_p, _ = outcomes("regression", RegressionHead())
    assert log_p.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize(("objective", "batches"), [("instruction", [1] * 64), ("embedding", [64])])
def test_64_held_out_rows_are_compared_alone_or_together_if_the_loss_compares_rows(
    objective: str, batches: list[int], run: Path, tmp_path: Path
) -> None:
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(70)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"train": str(run / "rows.jsonl"), "held_out": [str(tmp_path / "rows.jsonl")], "cache": False}
    recipe = {"base": str(run / "base"), "data": data, "objective": objective}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    found = merging._held_out(tmp_path, ModelReference.find(str(run / "base")))
    assert found[0] is not None
    assert found[0].kind == objective
    assert [len(batch.rows) for batch in found[1]] == batches
