"""Reward functions: scores of completions for reinforcement learning, each by name, combined as a weighted sum."""
