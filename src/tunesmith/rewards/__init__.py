"""Reward functions: scores of completions for reinforcement learning, each by name, combined as a weighted sum."""

from tunesmith.rewards.calling import Sampled, TrainerState
from tunesmith.rewards.function import RewardFunction
from tunesmith.rewards.rewards import Rewards, RewardValues

__all__ = ["RewardFunction", "RewardValues", "Rewards", "Sampled", "TrainerState"]
