"""The fields that the objectives share that train a policy on its own samples."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from tunesmith.config.head import Head
from tunesmith.config.objective import ObjectiveConfig, RolloutPlan, SamplingServer
from tunesmith.config.reward import RewardConfig
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer, Rendering
from tunesmith.heads.causal_lm import CausalLMHead

MODEL = "model"
"""What the figures of `reward` are called."""


class PolicyConfig(ObjectiveConfig, ABC):
    """A policy that is trained on completions that it samples itself, scored by rewards."""

    rewards: list[RewardConfig] = Field(default_factory=list)
    """The functions that score a completion; the reward is the weighted sum of their scores."""

    reward: str | None = None
    """A reward model that scores a completion, with weight 1: a run with objective `reward`, a sequence classifier with
    one output, or either on a server with vLLM's pooling API as `http://HOST:PORT/v1#MODEL`. It reads text, so that its
    tokenizer may be another."""

    group_size: int = Field(default=1, ge=1)
    """Completions of each prompt."""

    prompts: int = Field(default=16, ge=1)
    """Prompts whose completions a phase samples before the weights change."""

    max_new_tokens: int = Field(default=256, ge=1)
    """The most tokens of a completion; a longer one is cut there."""

    temperature: float = Field(default=1.0, gt=0)
    """Of the sampling. The trained policy is the softmax at this temperature. 1: the model as it is."""

    passes: int = Field(default=1, ge=1)
    """How often a phase's completions are trained on. 1: the completions always come from the current weights."""

    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps in a pass, each on its own share of the phase's prompts."""

    max_kl: float | None = Field(default=None, gt=0)
    """Stop the run when the policy is further than this from where it started, as a mean over tokens, in nats."""

    sampler: SamplingServer | None = None
    """A server that samples instead of this process. Default: the generation engine samples, on the weights in
    training."""

    formats: ClassVar[tuple[str, ...]] = ("prompts",)
    loss_unit: ClassVar[str] = "mean reward, negated"
    rate_factor: ClassVar[float] = 0.1  # as for preferences: TRL's default is 1e-6, a twentieth of its SFT's

    @model_validator(mode="after")
    def _has_a_reward(self) -> "PolicyConfig":
        if not self.reward_functions:
            raise ValueError("there is nothing to learn from. Set rewards: [exact], or reward: RUN")
        return self

    @field_validator("rewards", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @property
    def reward_functions(self) -> Sequence[RewardConfig]:
        if self.reward is None:
            return self.rewards
        options = {"model": self.reward, "reads": "chat"}
        return [*self.rewards, RewardConfig(function="classifier", options=options, name=MODEL)]

    def with_absolute_paths(self, absolute: Callable[[str], str]) -> "PolicyConfig":
        rewards = [each.with_absolute_paths(absolute) for each in self.rewards]
        reward = None if self.reward is None else absolute(self.reward)
        sampler = self.sampler
        if sampler is not None and sampler.folder is not None:
            sampler = sampler.model_copy(update={"folder": absolute(sampler.folder)})
        return self.model_copy(update={"rewards": rewards, "reward": reward, "sampler": sampler})

    @property
    def head(self) -> Head:
        return CausalLMHead()

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether completions are also scored with the initial weights."""

    @property
    def rollouts(self) -> RolloutPlan:
        return RolloutPlan(
            self.prompts,
            self.group_size,
            self.max_new_tokens,
            self.temperature,
            self.passes,
            self.passes * self.minibatches,
            self.needs_reference,
            self.trained,
            self.are_compared,
            self.sampler,
        )

    @property
    def trained(self) -> int:
        """The most completions of a prompt that are trained on."""
        return self.group_size

    @property
    def are_compared(self) -> bool:
        """Whether the loss compares a prompt's completions, which are then in one row."""
        return False

    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        return [renderer.render_prompt(example)]
