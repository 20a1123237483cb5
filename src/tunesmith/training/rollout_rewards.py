"""The reward functions of a recipe, for its rollouts."""

from collections.abc import Callable, Sequence
from typing import Any

from tunesmith.config.recipe import Recipe
from tunesmith.objectives.rollouts import Completion, Prompt
from tunesmith.rewards import Rewards, RewardValues, Sampled, TrainerState


def reward_of(
    recipe: Recipe, total_steps: int
) -> Callable[[Sequence[Prompt], Sequence[Completion], int], RewardValues]:
    """What scores completions, one for each prompt, after a number of optimizer steps.

    Args:
        recipe: with reward functions.
        total_steps: of the run.

    Raises:
        UserError: a function cannot be found or opened.
    """
    rewards = Rewards.open(recipe.objective.reward_functions, recipe.directory)

    def reward(prompts: Sequence[Prompt], completions: Sequence[Completion], step: int) -> RewardValues:
        names = sorted({name for prompt in prompts for name in prompt.columns})
        return rewards(
            Sampled(
                [prompt.given for prompt in prompts],
                [_like(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)],
                {name: [prompt.columns.get(name) for prompt in prompts] for name in names},
                [completion.tokens for completion in completions],
                [str(prompt.source) for prompt in prompts],
                TrainerState(step, total_steps),
            )
        )

    return reward


def _like(prompt: Prompt, completion: Completion) -> Any:
    """A completion of the same kind as its prompt: a text, or the assistant's message in a list."""
    if isinstance(prompt.given, str):
        return completion.text
    return [{"role": "assistant", "content": completion.text}]
