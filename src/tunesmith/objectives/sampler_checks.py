"""Checks that what is sampled comes from the weights in training, at the temperature of training."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tunesmith.config.objective import SamplingServer
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.objectives.completion_rows import table_of
from tunesmith.objectives.rollouts import Phase
from tunesmith.objectives.scored import Scored
from tunesmith.ops.policy_loss import martingale_bound

MOST_GAP = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.15}
"""The largest mean difference (nats) between the sampler's and the trainer's log p of the same tokens, by precision.
SmolLM2-135M in bf16 has 0.039 to 0.044, at an entropy of 2.3 nats."""

PROBE_EFFECT = 4
"""Weights are changed until log p changes by this many times its rounding, to see whether the sampler's does, too."""

PROBED = 4
"""Completions on which a run verifies that the sampler uses the weights in training."""

RARE, LARGEST = 1e-9, 15.0
"""A run stops if its tokens are as surprising as tokens sampled from the policy are with this probability, where no
token is more surprising than this, in nats."""

Columns = dict[str, NDArray[np.float32]]
"""(tokens,) by name."""

Scores = Callable[[Phase, TokenTable], Columns]
"""What the trainer computes of each token with a loss: `plain`, `scaled`, `entropy` and `variance`."""


class SamplerChecks:
    """The checks of a run, phase by phase.

    Args:
        scores: of the trainer.
        temperature: of the sampling.
        server: that samples; None: this process does.
    """

    def __init__(self, scores: Scores, temperature: float, server: SamplingServer | None = None) -> None:
        self._scores, self._temperature, self._server = scores, temperature, server
        self._is_verified = False
        self._surprise, self._variance, self._slack = 0.0, 0.0, 0.0

    @property
    def _sampler(self) -> str:
        """What samples, in messages."""
        return "sampler" if self._server is None else f"server {self._server.address}"

    def verify(self, phase: Phase, scored: Scored) -> None:
        """Once in a run: verify on a few completions that the sampler computes with the weights in training. Change
        them, and it must see the change that the trainer sees. At the start an adapter computes what its base does, so
        that equal numbers show nothing.

        Args:
            phase: the first one.
            scored: its completions.

        Raises:
            UserError: the sampler has other weights, or the trained weights have no effect.
        """
        if self._is_verified:
            return
        first = scored.taken([0])
        few = replace(first, groups=[first.groups[0][:PROBED]], rewards=first.rewards[:, :PROBED])
        part, _ = table_of(few, phase.tokens_per_batch)
        pairs = [(few.prompts[0].ids, completion.tokens) for completion in few.groups[0]]
        at, effect = part.loss_mask, 0.0
        before = self._scores(phase, part)["plain"][at]
        noise = float(np.abs(before - sampled_log_probs(few)).mean())
        self._is_verified = True
        for size in (0.01, 0.03, 0.1, 0.3, 1.0):
            with changed_weights(phase.model, size, phase.seed):
                trainer = self._scores(phase, part)["plain"][at]
                sampler = np.concatenate(phase.score(pairs))
            effect = float(np.abs(trainer - before).mean())
            gap = float(np.abs(trainer - sampler).mean())
            if effect > PROBE_EFFECT * max(noise, 1e-6):
                if gap > effect / 2:
                    raise UserError(
                        f"The {self._sampler} does not use the weights in training: with changed weights, the "
                        f"trainer's log-probabilities moved by {effect:.2g} nats, and the sampler's differ from them "
                        f"by {gap:.2g}. The run stopped before the first step."
                    )
                return
        if not effect:
            raise UserError(
                "The trained weights have no effect on what the model computes, so no reward can change it."
            )
        phase.events(
            "warning",
            message="Whether the sampler uses the weights in training cannot be verified before the first step: "
            "rounding hides their effect. Each phase compares the log-probabilities.",
        )

    def compare(self, sampled: NDArray[np.float32], own: Columns, dtype: torch.dtype) -> dict[str, float]:
        """Compare the sampler with the trainer.

        Args:
            sampled: (tokens,) the sampler's log p of each token of a phase.
            own: (tokens,) what the trainer computes there: `plain`, `scaled`, `entropy` and `variance`.
            dtype: that the trainer computes in.

        Returns:
            The figures of the phase.

        Raises:
            UserError: they do not agree.
        """
        difference = own["plain"] - sampled
        gap = self._gap(difference, dtype)
        if self._server is not None:
            self._add_slack(difference, own["variance"])
        self._check_distribution(own)
        return {
            "sampler_gap": gap,
            "sampler_gap_max": float(np.abs(difference).max()),
            "entropy": float(own["entropy"].mean()),
            "nll": -float(own["scaled"].mean()),
        }

    def state(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"surprise": self._surprise, "variance": self._variance, "slack": self._slack}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self._surprise, self._variance = state["surprise"], state["variance"]
        self._slack = state.get("slack", 0.0)  # not in checkpoints of older versions

    def _add_slack(self, difference: NDArray[np.float32], variance: NDArray[np.float32]) -> None:
        """Allow for a sampler that computes a little differently, such as in another precision. With δ its difference
        in log p, the mean of −log p of its tokens is off by the covariance of δ and log p: at most the product of their
        standard deviations.

        Args:
            difference: (tokens,) δ, in nats.
            variance: (tokens,) of log p at the temperature.
        """
        off = float(np.sqrt(np.square(difference, dtype=np.float64).mean())) / self._temperature
        self._slack += len(difference) * off * float(np.sqrt(max(0.0, variance.mean(dtype=np.float64))))

    def _check_distribution(self, own: Columns) -> None:
        """Compare −log p of all tokens sampled so far with the entropy where they were sampled, which is its mean if
        they come from the policy. It shows a wrong temperature, or tokens that the sampler leaves out.

        Raises:
            UserError: the difference is larger than chance explains.
        """
        entropy = own["entropy"].astype(np.float64)
        self._surprise += float((-own["scaled"] - entropy).sum())
        self._variance += max(0.0, float(own["variance"].astype(np.float64).sum()))
        if abs(self._surprise) > self._slack + martingale_bound(self._variance, LARGEST, RARE):
            raise UserError(
                "The sampled tokens do not come from the policy: the mean of their −log p is "
                f"{-own['scaled'].mean():.3g} nats, and where they were sampled the entropy is "
                f"{entropy.mean():.3g} at temperature {self._temperature:g}. The {self._sampler} "
                "uses another temperature, or leaves tokens out, so the run stopped."
            )

    def _gap(self, difference: NDArray[np.float32], dtype: torch.dtype) -> float:
        """The mean difference in log p, in nats.

        Args:
            difference: (tokens,) of the trainer's log p and the sampler's.
            dtype: that the trainer computes in.

        Raises:
            UserError: it is larger than rounding explains.
        """
        gap = float(np.abs(difference).mean())
        most = MOST_GAP[dtype] if self._server is None else self._server.max_gap
        if gap <= most:
            return gap
        bound = f"rounding explains {most:g}" if self._server is None else f"objective.sampler.max_gap is {most:g}"
        cause = "" if self._server is None else "It serves another base or precision, or does not apply the adapter. "
        raise UserError(
            f"The {self._sampler} and the trainer disagree: their log-probabilities of the same tokens differ by "
            f"{gap:.2g} nats on average, and {bound}. {cause}The completions do not come from the weights in training, "
            "so the run stopped."
        )


def sampled_log_probs(scored: Scored) -> NDArray[np.float32]:
    """(tokens,) the sampler's log p of each token of completions, in the order of their table."""
    return np.array([log for group in scored.groups for each in group for log in each.log_probs], np.float32)


@contextmanager
def changed_weights(model: PreTrainedModel, size: float, seed: int) -> Iterator[None]:
    """Within the block, the trained weights have noise of this size, relative to the largest of their kind; afterwards
    they are what they were, to the bit."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = [parameter.detach().clone() for parameter in trained]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for parameter in trained:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(noise * size * max(0.1, float(parameter.float().square().mean().sqrt())))
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(trained, saved, strict=True):
                parameter.copy_(before)
