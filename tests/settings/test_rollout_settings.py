"""Every setting of the objectives that learn from their own samples, by its formula on texts computed one by one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from completions import COMPLETIONS, PROMPTS, completions_table
from settings_coverage import shows
from small_models import objective_of, own_forward, small_model
from torch import Tensor

from tunesmith.data.batch import collate
from tunesmith.data.tokens import TokenTable

LENGTHS = [len(answer) for answers in COMPLETIONS for answer in answers]
FIRST_OF_GROUP = [0, 2, 5, 7]


def known(seed: int) -> list[Tensor]:
    """Numbers for each token of each completion, in float64 as float32 has them."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, generator=generator).double() for length in LENGTHS]


ADVANTAGE, OLD, REFERENCE, WEIGHT = known(1), known(2), known(3), [each.abs() for each in known(4)]


def table_with_columns(model: Any, temperature: float) -> TokenTable:
    """The completions, with log π_old and log π_ref near log π, so that some tokens are clipped."""
    table = completions_table()
    near = [each.detach().double() for each in log_probs(model, temperature)]
    columns = {
        "advantage": ADVANTAGE,
        "weight": WEIGHT,
        "old": [own + 0.3 * noise for own, noise in zip(near, OLD, strict=True)],
        "reference": [own + 0.3 * noise for own, noise in zip(near, REFERENCE, strict=True)],
    }
    arrays = {}
    for name, values in columns.items():
        arrays[name] = np.zeros(len(table.ids), np.float32)
        arrays[name][table.loss_mask] = torch.cat(values).float().numpy()
    return replace(table, columns=arrays)


def log_probs(model: Any, temperature: float = 1.0) -> list[Tensor]:
    """log π of each completion's tokens, each completion after its prompt as a text of its own."""
    found = []
    for prompt, answers in zip(PROMPTS, COMPLETIONS, strict=True):
        for answer in answers:
            ids = torch.tensor([*prompt, *answer])[None]
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0] / temperature
            logs = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
            found.append(logs.gather(1, ids[0, len(prompt) :, None])[:, 0])
    return found


def columns_of(table: TokenTable, name: str) -> list[Tensor]:
    values = torch.from_numpy(table.columns[name][table.loss_mask]).double()
    return list(torch.split(values, LENGTHS))


def expected_loss(model: Any, table: TokenTable, config: Any) -> Tensor:
    """The loss of the step, completion by completion and token by token."""
    own = log_probs(model, config.temperature)
    old, reference, advantage, weight = (
        columns_of(table, name) for name in ("old", "reference", "advantage", "weight")
    )
    low, high = config.clip, config.clip_high or config.clip
    per_completion = []
    for i, each in enumerate(own):
        losses = []
        for t in range(len(each)):
            log_ratio = (each - old[i]).mean() if config.importance == "sequence" else each[t] - old[i][t]
            ratio = log_ratio.exp()
            loss = -torch.minimum(ratio * advantage[i][t], ratio.clamp(1 - low, 1 + high) * advantage[i][t])
            loss = loss * weight[i][t]
            if config.kl_in == "loss":
                difference = reference[i][t] - each[t]
                loss = loss + config.beta * (difference.exp() - difference - 1)
            losses.append(loss)
        per_completion.append(torch.stack(losses))
    if config.normalization == "tokens":
        return torch.cat(per_completion).mean()
    if config.normalization == "sequences":
        return torch.stack([each.mean() for each in per_completion]).mean()
    return torch.stack([each.sum() for each in per_completion]).mean() / config.max_new_tokens


@shows(
    "objective.grpo.importance",
    "objective.grpo.clip",
    "objective.grpo.clip_high",
    "objective.grpo.normalization",
    "objective.grpo.beta",
    "objective.grpo.temperature",
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "clip": 0.1, "clip_high": 0.4, "max_new_tokens": 9, "normalization": "constant"},
        {"importance": "sequence", "clip": 0.02, "normalization": "sequences", "beta": 0.3},
    ],
    ids=["default", "dr_grpo", "gspo"],
)
def test_loss_and_gradients_are_the_formula_on_separate_texts(options: dict[str, Any]) -> None:
    """In float64 on GPT-2, whose norms do not compute in fp32; one batch, and accumulated over three."""
    model = small_model("gpt2")
    config = objective_of("grpo", rewards=["exact"], **options)
    table = table_with_columns(own_forward(model), config.temperature)
    plain = own_forward(model)
    expected = expected_loss(plain, table, config)
    gradients = torch.autograd.grad(expected, list(plain.parameters()))
    for batches in ([[0, 1, 2]], [[2], [0], [1]]):
        objective = config.build()
        objective.begin_step(table, [0, 1, 2])
        total = sum(objective.loss(model, collate(table, rows)) for rows in batches) / 3
        assert total.item() == pytest.approx(expected.item(), rel=1e-6)
        for ours, theirs in zip(torch.autograd.grad(total, list(model.parameters())), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        assert 0 < objective.take_notes()["clipped"] < 1
