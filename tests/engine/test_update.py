"""Optimizers, averages and learning rates on the flat masters match their libraries and papers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import torch
from small_models import TwoLayers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig
from transformers.optimization import Adafactor

from tunesmith.config.train import Train
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.schedule import learning_rate
from tunesmith.engine.trainable import from_output
from tunesmith.training.stages import resume, train

RATE = 1e-2


def split(model: TwoLayers) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters for Muon, and those for AdamW."""
    return [model.block.weight], [model.embedding.weight, model.embedding.bias, model.block.bias]


THEIRS: dict[str, Callable[[TwoLayers], list[torch.optim.Optimizer]]] = {
    "adamw": lambda model: [torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)],
    "adafactor": lambda model: [Adafactor(model.parameters(), lr=RATE, scale_parameter=False, relative_step=False)],
    "lion": lambda model: [pytorch_optimizer.Lion(model.parameters(), lr=RATE, betas=(0.9, 0.99))],
    "schedule_free": lambda model: [pytorch_optimizer.ScheduleFreeAdamW(model.parameters(), lr=RATE)],
    "muon": lambda model: [
        torch.optim.Muon(split(model)[0], lr=RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(split(model)[1], lr=RATE, weight_decay=0.0),
    ],
}


def steps(model: TwoLayers, count: int, first: int = 0) -> Iterator[None]:
    """Compute the gradient of one random loss per step."""
    for step in range(first, first + count):
        x = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
        model(x).square().sum().backward()
        yield


def masters_of(model: TwoLayers, optimizer: str, **train: Any) -> MasterWeights:
    settings = Train(steps=1, optimizer=optimizer, **train)
    return MasterWeights(model.named_parameters(), settings, is_hidden=lambda name: name.startswith("block"))


@pytest.mark.parametrize("optimizer", THEIRS)
def test_each_optimizer_on_the_masters_matches_its_library(optimizer: str) -> None:
    torch.manual_seed(0)
    ours, theirs = TwoLayers(), TwoLayers()
    theirs.load_state_dict(ours.state_dict())
    masters, rules = masters_of(ours, optimizer), THEIRS[optimizer](theirs)
    for _ in zip(steps(ours, 4), steps(theirs, 4), strict=True):
        masters.step(RATE, 1, 1e9)
        for rule in rules:
            rule.step()
            rule.zero_grad()
    masters.take_average()
    for rule in rules:
        getattr(rule, "eval", lambda: None)()
    for (name, actual), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(actual, expected, msg=name)


@pytest.mark.parametrize("optimizer", THEIRS)
def test_masters_continue_bit_for_bit_after_restore_and_evaluation(optimizer: str) -> None:
    torch.manual_seed(0)
    model = TwoLayers()
    masters = masters_of(model, optimizer, ema_decay=0.9)
    for _ in steps(model, 3):
        masters.step(RATE, 1, 1.0)
    again = TwoLayers()
    restored = masters_of(again, optimizer, ema_decay=0.9)
    restored.restore({name: value.clone() for name, value in masters.state().items()})
    before = masters.flat.clone()
    with masters.averaged():
        assert not torch.equal(masters.flat, before)
    assert torch.equal(masters.flat, before)
    for _ in zip(steps(model, 3, 3), steps(again, 3, 3), strict=True):
        masters.step(RATE, 1, 1.0)
        restored.step(RATE, 1, 1.0)
    assert torch.equal(masters.flat, restored.flat)
    assert torch.equal(masters.average, restored.average)


def test_the_moving_average_matches_its_formula() -> None:
    model = TwoLayers()
    masters = masters_of(model, "adamw", ema_decay=0.5)
    expected = masters.flat.clone()
    for number, _ in enumerate(steps(model, 12), 1):
        masters.step(RATE, 1, 1.0)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * masters.flat
    torch.testing.assert_close(masters.average, expected)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"optimizer": "adafactor"}, marks=pytest.mark.long),
        pytest.param({"optimizer": "lion", "ema_decay": 0.8}, marks=pytest.mark.long),
        pytest.param({"optimizer": "muon"}, marks=pytest.mark.long),
        {"optimizer": "schedule_free"},
        pytest.param({"neftune_alpha": 5.0, "layer_decay": 0.8}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_run_lowers_its_loss_and_resumes_to_the_same_bytes(
    settings: dict[str, Any], tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and event["step"] == 4:
            raise KilledError

    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(write_rows(40)), "held_out": 0.2, "cache": False},
        "method": "full",
        "objective": {"kind": "instruction", "label_smoothing": 0.05, "z_loss": 1e-4},
        "train": {"steps": 8, "checkpoint_every": 4, "evaluate_every": 2, "precision": "fp32", **settings},
    }
    uninterrupted = train(recipe, tmp_path / "uninterrupted")
    losses = [event["loss"] for event in uninterrupted.events() if event["event"] == "evaluation"]
    assert losses[-1] < losses[0]
    with pytest.raises(KilledError):
        train(recipe, tmp_path / "killed", subscribers=[kill])
    resume(tmp_path / "killed")
    file = "model/model.safetensors"
    assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "uninterrupted" / file).read_bytes()


def test_the_saved_weights_are_the_average_that_was_evaluated(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    rows = str(write_rows(40))
    data = {"train": rows, "held_out": 0.3, "cache": False}
    recipe = {
        "base": str(tiny_model),
        "data": data,
        "method": "full",
        "train": {"steps": 6, "evaluate_every": 6, "precision": "fp32", "ema_decay": 0.9, "learning_rate": 1e-2},
    }
    run = train(recipe, tmp_path / "run")
    last = [event["loss"] for event in run.events() if event["event"] == "evaluation"][-1]
    again = {**recipe, "base": str(run.directory), "train": {"steps": 1, "precision": "fp32"}}
    first = next(event["loss"] for event in train(again, tmp_path / "again").events() if event["event"] == "evaluation")
    assert first == pytest.approx(last, rel=1e-6)


def test_layer_decay_counts_from_the_output() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8}
    model = AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=9, **sizes))
    distances = from_output(model)
    assert {distances[name] for name in distances if ".layer.2." in name} == {1}
    assert {distances[name] for name in distances if ".layer.0." in name} == {3}
    assert {distances[name] for name in distances if ".embeddings." in name} == {4}
    assert {distances[name] for name in distances if "pooler" in name or "classifier" in name} == {0}


def test_schedule_free_keeps_its_rate_after_warm_up() -> None:
    settings = Train(steps=10, optimizer="schedule_free", warmup_ratio=0.2)
    assert [learning_rate(settings, 1.0, step, 10) for step in range(1, 11)] == [0.5] + [1.0] * 9


def test_neftune_noise_scales_with_row_length_and_only_in_training(tiny_model: Path) -> None:
    from tunesmith.models.attention import use_document_attention
    from tunesmith.modules.neftune import add_neftune

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    use_document_attention(model)
    lengths = [4, 64]
    ids = torch.arange(sum(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    inputs = {"input_ids": ids, "position_ids": positions, "document_lengths": lengths}
    table = model.get_input_embeddings().weight.detach()
    seen: list[torch.Tensor] = []
    add_neftune(model, 5.0)
    model.get_input_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    model.train()(**inputs)
    model.eval()(**inputs)
    noise = (seen[0] - table[ids])[0].split(lengths)
    for part, length in zip(noise, lengths, strict=True):
        bound = 5.0 / (length * table.shape[1]) ** 0.5
        assert 0.9 * bound < part.abs().max() <= bound * (1 + 1e-5)
    assert torch.equal(seen[1], table[ids])


def test_an_optimizer_whose_package_is_missing_names_the_install_command(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.engine import optimizers
    from tunesmith.errors import UserError

    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    data = {"train": str(write_rows(20))}
    recipe = {"base": str(tiny_model), "data": data, "train": {"steps": 1, "optimizer": "lion"}}
    with pytest.raises(UserError, match=r"pip install 'tunesmith\[optimizers\]'"):
        train(recipe, tmp_path / "run")
