"""What a run checks of its sampler, on given log-probabilities: each limit from both sides, and what is reported."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tunesmith.config.objective import SamplingServer
from tunesmith.data.example import Source
from tunesmith.errors import UserError
from tunesmith.objectives.completion_rows import column_of
from tunesmith.objectives.rollouts import Completion, Prompt
from tunesmith.objectives.sampler_checks import SamplerChecks, changed_weights
from tunesmith.objectives.scored import Scored
from tunesmith.ops.policy_loss import martingale_bound

LENGTHS = (3, 1, 2, 1, 4, 2)
TOKENS = sum(LENGTHS)
FP32 = torch.float32


def scored(log_prob: float = -2.0) -> Scored:
    """One prompt with six completions, whose tokens the sampler gives this log p."""
    chat = ({"role": "user", "content": "?"},)
    group = [Completion([7] * length, [log_prob] * length, "x", False) for length in LENGTHS]
    return Scored([0], [Prompt([5, 6], "?", chat, {}, Source("prompts", 1))], [group], np.zeros((1, 6)), {}, {})


def compared(
    checks: SamplerChecks, dtype: torch.dtype = FP32, sampled: float = -2.0, **values: float | Sequence[float]
) -> dict[str, float]:
    """The figures of a phase in which the trainer computes this of each token: by default what the sampler says, at an
    entropy of 2 nats."""
    same = {"plain": -2.0, "scaled": -2.0, "entropy": 2.0, "variance": 1.0, **values}
    own = {name: np.broadcast_to(value, TOKENS).astype(np.float32) for name, value in same.items()}
    return checks.compare(np.full(TOKENS, sampled, np.float32), own, dtype)


def checks_of(server: SamplingServer | None = None, temperature: float = 1.0) -> SamplerChecks:
    return SamplerChecks(lambda phase, table: {}, temperature, server)


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float64, 1e-6), (torch.float32, 1e-4), (torch.bfloat16, 0.15)], ids=str
)
def test_sampler_and_trainer_may_differ_by_what_rounding_explains(dtype: torch.dtype, most: float) -> None:
    compared(checks_of(), dtype, sampled=0.0, plain=0.98 * most)
    with pytest.raises(UserError, match=rf"^The sampler and the trainer disagree: .* rounding explains {most:g}\. The"):
        compared(checks_of(), dtype, sampled=0.0, plain=-1.02 * most)
    with pytest.raises(UserError, match="differ by nan nats"):
        compared(checks_of(), dtype, sampled=0.0, plain=float("nan"))


def test_a_server_may_differ_by_its_own_limit_and_is_named() -> None:
    server = SamplingServer(server="http://gpu:8000/v1#tiny", max_gap=0.5)
    compared(checks_of(server), plain=-2.49)
    with pytest.raises(
        UserError,
        match=r"^The server http://gpu:8000/v1 and the trainer disagree: .* by 0\.51 nats on average, and "
        r"objective\.sampler\.max_gap is 0\.5\. It serves another base or precision",
    ):
        compared(checks_of(server), plain=-1.49)


def test_the_figures_of_a_phase_are_means_over_its_tokens() -> None:
    difference = np.linspace(-1e-4, 6e-5, TOKENS)
    scaled, entropy = -np.linspace(1, 3, TOKENS), np.linspace(1.5, 2.6, TOKENS)
    assert compared(checks_of(), plain=-2 + difference, scaled=scaled, entropy=entropy) == {
        "sampler_gap": pytest.approx(np.abs(difference).mean(), rel=0.01),
        "sampler_gap_max": pytest.approx(1e-4, rel=0.01),
        "entropy": pytest.approx(2.05, rel=1e-6),
        "nll": pytest.approx(2.0, rel=1e-6),
    }


def test_tokens_may_be_as_surprising_as_chance_explains_over_all_phases() -> None:
    """Freedman's bound with a probability of 1e-9 and increments of at most 15 nats, from both sides."""
    bound = martingale_bound(2 * 3.0 * TOKENS, 15.0, 1e-9)
    for sign in (1, -1):
        checks = checks_of()
        for share in (0.5, 0.49):
            surprise = sign * share * bound / TOKENS
            compared(checks, scaled=-2 - surprise, variance=3.0)
        state = checks.state()
        assert state["surprise"] == pytest.approx(sign * 0.99 * bound, rel=1e-4)
        assert state["variance"] == pytest.approx(2 * 3.0 * TOKENS)
        assert state["slack"] == 0
        again = checks_of()
        again.restore(state)
        assert again.state() == state
        again.restore({"surprise": 0.0, "variance": 0.0})
        assert again.state()["slack"] == 0, "a checkpoint of an older version has none"
        again.restore({**state, "surprise": sign * 0.51 * bound, "variance": 3.0 * TOKENS})
        with pytest.raises(UserError, match=r"do not come from the policy: .* at temperature 1\. The sampler uses"):
            compared(again, scaled=-2 - sign * 0.5 * bound / TOKENS, variance=3.0)


def test_a_server_that_computes_a_little_differently_has_that_much_slack() -> None:
    """At most the product of the deviations of its difference and of log p, at the temperature."""
    server = SamplingServer(server="http://gpu:8000/v1", max_gap=0.5)
    checks = checks_of(server, temperature=0.5)
    difference = np.linspace(-0.4, 0.6, TOKENS)
    for phases in (1, 2):
        compared(checks, plain=-2 + difference, variance=4.0)
        expected = phases * TOKENS * np.sqrt(np.square(difference).mean()) / 0.5 * 2.0
        assert checks.state()["slack"] == pytest.approx(expected, rel=1e-5)
    bound = martingale_bound(3 * 4.0 * TOKENS, 15.0, 1e-9) + 3 * TOKENS * np.sqrt(np.square(difference).mean()) * 4.0
    surprise = 0.99 * bound / TOKENS
    compared(checks, plain=-2 + difference, scaled=-2 - surprise, variance=4.0)


class OneWeight(nn.Module):
    """A model whose log p of any token is −2 plus its weight; a sampler may see a share of that."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def first_phase(share: float, gap: float = 1e-5, effect: float = 1.0) -> tuple[list[Any], list[str], Any]:
    """Verify a sampler that sees this share of a change of the weights, of which the trainer sees `effect`, and whose
    log p differs by `gap`.

    Returns:
        The pairs that it scored, the warnings, and how to verify again.
    """
    model, asked, warnings = OneWeight(), [], []

    def log_prob(factor: float) -> float:
        return -2 + factor * model.weight.item()

    def scores(phase: Any, table: Any) -> dict[str, NDArray[np.float32]]:
        return {"plain": column_of(table, np.full(int(table.loss_mask.sum()), log_prob(effect) + gap))}

    def score(pairs: Sequence[Any]) -> list[list[float]]:
        asked.append(pairs)
        return [[log_prob(share * effect)] * len(tokens) for _, tokens in pairs]

    phase: Any = SimpleNamespace(
        model=model, score=score, seed=3, tokens_per_batch=100, events=lambda _, message: warnings.append(message)
    )
    checks = SamplerChecks(scores, 1.0)
    try:
        checks.verify(phase, scored())
    finally:
        assert model.weight.item() == 0
    return asked, warnings, lambda: checks.verify(phase, scored())


def test_a_new_run_verifies_that_the_sampler_sees_a_change_of_the_weights() -> None:
    asked, warnings, again = first_phase(1.0)
    assert [(list(prompt), len(tokens)) for prompt, tokens in asked[0]] == [([5, 6], length) for length in (3, 1, 2, 1)]
    assert not warnings
    again()
    assert len(asked) == 1, "once in a run"
    first_phase(0.6)
    for share in (0.4, 0.0):
        with pytest.raises(UserError, match=r"^The sampler does not use the weights in training: with changed weights"):
            first_phase(share)


def test_weights_are_changed_until_the_effect_is_four_times_the_rounding() -> None:
    """The noise of the seed moves the weight by 0.1 of each size in turn, times a normal number."""
    step = abs(float(torch.randn(1, generator=torch.Generator().manual_seed(3)))) * 0.1
    sizes = (0.01, 0.03, 0.1, 0.3, 1.0)
    for number, size in enumerate(sizes):
        gap = 1e-4 * 0.9  # the effect of this size is a little more than four times as large
        asked, warnings, _ = first_phase(1.0, gap, effect=4.1 * gap / (size * step))
        assert (len(asked), warnings) == (number + 1, [])
    asked, (warning,), _ = first_phase(0.0, gap, effect=3.9 * gap / (1.0 * step))
    assert len(asked) == 5
    assert warning.startswith("Whether the sampler uses the weights in training cannot be verified")
    asked, warnings, _ = first_phase(1.0, 0.0, effect=4.1e-6 / (0.01 * step))
    assert (len(asked), warnings) == (1, []), "where nothing is rounded, the effect is to be seen all the same"


def test_trained_weights_without_an_effect_stop_the_run() -> None:
    with pytest.raises(UserError, match=r"^The trained weights have no effect on what the model computes"):
        first_phase(1.0, effect=0.0)


@pytest.mark.parametrize(("scale", "expected"), [(3.0, 3.0), (0.0, 0.1)])
def test_changed_weights_have_noise_of_a_share_of_their_size_and_come_back(scale: float, expected: float) -> None:
    model: Any = nn.Linear(200, 100)
    with torch.no_grad():
        model.weight.copy_(scale * torch.randn(100, 200, generator=torch.Generator().manual_seed(1)))
    model.bias.requires_grad_(False)
    before = {name: each.clone() for name, each in model.state_dict().items()}

    def changed(seed: int) -> torch.Tensor:
        with changed_weights(model, 0.2, seed):
            assert torch.equal(model.bias, before["bias"]), "only trained weights are changed"
            return (model.weight - before["weight"]).detach()

    assert float(changed(1).std()) == pytest.approx(0.2 * expected, rel=0.03)
    assert torch.equal(changed(1), changed(1))
    assert not torch.equal(changed(1), changed(2))
    raised: Callable[[], Any] = lambda: (_ for _ in ()).throw(KeyboardInterrupt)  # noqa: E731
    with pytest.raises(KeyboardInterrupt), changed_weights(model, 0.2, 1):
        raised()
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
