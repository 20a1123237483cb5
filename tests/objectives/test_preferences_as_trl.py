"""Preference losses and their gradients, compared with those of TRL's trainers on the same model and batch."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bytewise import byte_tokenizer
from completions import completions_table
from small_models import objective_of, own_forward, small_model
from torch import Tensor

from tunesmith.data.batch import Batch, collate
from tunesmith.heads.reward import RewardHead
from tunesmith.objectives.preference import completion_log_probs
from tunesmith.ops.preference_loss import PairLossName, Pairs, pair_losses

pytestmark = pytest.mark.long  # importing TRL's trainers takes longer than all comparisons

PAIRS = [
    {"prompt": "Name a river.", "chosen": " The Rhine.", "rejected": " A lake, I think."},
    {"prompt": "2 + 2 =", "chosen": " four", "rejected": " 5"},
    {"prompt": "Why?", "chosen": " So that it is.", "rejected": " No."},
]
BETA = 0.2
SHARED: dict[str, Any] = {
    "per_device_train_batch_size": len(PAIRS), "activation_checkpointing": False, "bf16": False, "use_cpu": True,
    "report_to": "none", "max_length": None,
}  # fmt: skip


def policy(seed: int = 0, head: Any = None) -> Any:
    """A model far enough from other seeds' that every term of a loss counts."""
    model = small_model("llama", head, torch.float32, layers=2, vocab_size=len(byte_tokenizer()))
    model.config.pad_token_id = byte_tokenizer().pad_token_id
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def last_layer_gradients(model: Any, loss: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss.backward()
    block = model.model.layers[-1]
    return [block.mlp.down_proj.weight.grad, block.self_attn.q_proj.weight.grad, model.model.norm.weight.grad]


def assert_same(ours: tuple[Any, Tensor], theirs: tuple[Any, Tensor]) -> None:
    """Losses and their gradients agree to fp32's rounding."""
    assert ours[1].item() == pytest.approx(theirs[1].item(), rel=1e-5, abs=1e-5)
    for mine, other in zip(last_layer_gradients(*ours), last_layer_gradients(*theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5 * float(other.abs().max() + 1))


def batch_of(rows: Iterable[dict[str, Any]], scores: Sequence[Sequence[float]], columns: Sequence[str]) -> Batch:
    """Tokens that TRL made, as a batch of ours."""
    chosen = list(rows)
    completions = [[row[column] for column in columns] for row in chosen]
    table = completions_table(scores, prompts=[row["prompt_ids"] for row in chosen], completions=completions)
    return collate(table, range(len(chosen)))


def with_reference(batch: Batch, model: Any) -> Batch:
    assert batch.completions is not None
    with torch.no_grad():
        values = completion_log_probs(model, batch)[0]
    return replace(batch, completions=replace(batch.completions, reference=values))


def mean_loss(model: Any, batch: Batch, kind: str, **options: Any) -> Tensor:
    loss: Tensor = objective_of(kind, **options).build().loss(model, batch) / len(batch.rows)
    return loss


class TRL:
    """A trainer of TRL, and the batch that it trains on."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.rows = list(trainer.train_dataset)
        self.model = trainer.model

    def loss(self, rows: Sequence[dict[str, Any]] | None = None) -> Tensor:
        names = self.trainer.train_dataset.column_names
        inputs = self.trainer.data_collator(
            [{name: row[name] for name in names} for row in (self.rows if rows is None else rows)]
        )
        loss: Tensor = self.trainer.compute_loss(self.model, inputs)
        return loss


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """A policy and its reference."""
    return policy(1), policy(2)


@pytest.fixture(scope="module")
def dpo(models: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> TRL:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        own_forward(models[0]),
        own_forward(models[1]),
        DPOConfig(str(tmp_path_factory.mktemp("dpo")), beta=BETA, **SHARED),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=byte_tokenizer(),
    )
    return TRL(trainer)


@pytest.mark.parametrize(
    ("loss", "smoothing"),
    [
        ("sigmoid", 0.0),
        ("hinge", 0.0),
        ("ipo", 0.0),
        ("exo_pair", 1e-3),
        ("exo_pair", 0.1),
        ("nca_pair", 0.0),
        ("robust", 0.2),
        ("sppo_hard", 0.0),
        ("apo_zero", 0.0),
        ("apo_down", 0.0),
        ("discopop", 0.0),
    ],
)
def test_dpo_is_that_of_trl(loss: str, smoothing: float, models: tuple[Any, Any], dpo: TRL) -> None:
    dpo.trainer.loss_types, dpo.trainer.label_smoothing = [loss], smoothing
    batch = with_reference(batch_of(dpo.rows, [[1.0, 0.0]] * 3, ("chosen_ids", "rejected_ids")), models[1])
    given = 0.0 if smoothing == 1e-3 else smoothing  # our default
    ours = mean_loss(models[0], batch, "dpo", beta=BETA, loss=loss, label_smoothing=given)
    assert_same((models[0], ours), (dpo.model, dpo.loss()))


def test_the_better_completions_own_loss_is_that_of_trl_for_a_pair(models: tuple[Any, Any], dpo: TRL) -> None:
    """TRL takes the mean over a batch's tokens, in place of the pairs: the same for one pair."""
    dpo.trainer.loss_types, dpo.trainer.label_smoothing = ["sigmoid", "sft"], 0.0
    dpo.trainer.loss_weights = [1.0, 0.7]
    batch = with_reference(batch_of(dpo.rows[:1], [[1.0, 0.0]], ("chosen_ids", "rejected_ids")), models[1])
    ours = mean_loss(models[0], batch, "dpo", beta=BETA, sft_weight=0.7)
    theirs = dpo.loss(dpo.rows[:1])
    dpo.trainer.loss_weights = [1.0]
    assert_same((models[0], ours), (dpo.model, theirs))


@pytest.mark.parametrize(
    ("loss", "smoothing"), [("cpo", 0.0), ("cpo", 0.2), ("simpo", 0.0), ("simpo", 0.2), ("orpo", 0.0)]
)
def test_losses_without_a_reference_are_those_of_trl(loss: PairLossName, smoothing: float) -> None:
    """TRL's functions of log-probabilities: sums for CPO, means per token for SimPO and ORPO."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    better, worse = torch.tensor([-12.0, -3.5, -40.0]), torch.tensor([-9.5, -6.0, -38.0])
    tokens = torch.tensor([8, 3, 11]), torch.tensor([5, 6, 9])
    ours = pair_losses(loss, Pairs(better, worse, better, worse, *tokens), BETA, smoothing, target_margin=0.3)
    trainer: Any = SimpleNamespace(
        loss_type={"cpo": "sigmoid"}.get(loss, loss), beta=BETA, label_smoothing=smoothing, alpha=0.0,
        simpo_gamma=0.3, accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    given = (better, worse) if loss == "cpo" else (better / tokens[0], worse / tokens[1])
    theirs = (
        -ORPOTrainer.odds_ratio_loss(trainer, *given)[0] if loss == "orpo" else CPOTrainer.cpo_loss(trainer, *given)[0]
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("baseline", ["kl", "zero"])
def test_kto_is_that_of_trl(baseline: str, models: tuple[Any, Any], tmp_path: Path) -> None:
    labels = [True, False, True]
    rows = [
        {"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label}
        for row, label in zip(PAIRS, labels, strict=True)
    ]
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    loss = {"kl": "kto", "zero": "apo_zero_unpaired"}[baseline]
    reference, model = models  # this way round the estimated divergence is positive
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    trainer = KTOTrainer(
        own_forward(model),
        own_forward(reference),
        KTOConfig(str(tmp_path), beta=BETA, loss_type=loss, **weights, **SHARED),
        train_dataset=Dataset.from_list(rows),
        processing_class=byte_tokenizer(),
    )
    trl = TRL(trainer)
    nan = float("nan")
    columns = ("completion_ids", "KL_completion_ids") if baseline == "kl" else ("completion_ids",)
    scores = [[float(label), nan][: len(columns)] for label in labels]
    batch = with_reference(batch_of(trl.rows, scores, columns), reference)
    ours = mean_loss(model, batch, "kto", beta=BETA, baseline=baseline, **weights)
    assert_same((model, ours), (trl.model, trl.loss()))
    if baseline == "kl":
        figures = objective_of("kto").build().figures(model, batch)
        assert figures["kl"].min().item() > 0.1, "no term of the loss is left out"


@pytest.mark.parametrize(("margins", "centering"), [(False, 0.0), (True, 0.0), (False, 0.1)])
def test_a_reward_model_is_that_of_trl(margins: bool, centering: float, tmp_path: Path) -> None:
    model = policy(3, RewardHead())
    distances = [0.5, 2.0, 1.0]
    rows = [row | ({"margin": distance} if margins else {}) for row, distance in zip(PAIRS, distances, strict=True)]
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    trainer = RewardTrainer(
        own_forward(model),
        RewardConfig(str(tmp_path), center_rewards_coefficient=centering or None, **SHARED),
        train_dataset=Dataset.from_list(rows),
        processing_class=byte_tokenizer(),
    )
    trl = TRL(trainer)
    scores = [[distance, 0.0] for distance in distances]
    table = completions_table(
        scores,
        with_targets=True,
        prompts=[[]] * len(rows),
        completions=[[row["chosen_ids"], row["rejected_ids"]] for row in trl.rows],
    )
    batch = collate(table, range(len(rows)))
    ours = mean_loss(model, batch, "reward", margin=float(margins), centering=centering)
    assert_same((model, ours), (trl.model, trl.loss()))
