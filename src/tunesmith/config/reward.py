"""A reward function in a recipe: which one, its weight and its options. The functions are in `tunesmith.rewards`."""

import difflib
from collections.abc import Callable
from typing import Any

from pydantic import Field, field_validator, model_validator

from tunesmith.config.extensions import is_path
from tunesmith.config.registry import REWARDS, Strict
from tunesmith.config.strict_file import checked_values
from tunesmith.errors import UserError


class RewardConfig(Strict):
    """A score of each completion, one of several that are added up."""

    function: str
    """Which function: one of those that are shipped, such as `exact` or `length`, or your own as `module:function`."""

    weight: float = Field(default=1.0, allow_inf_nan=False)
    """The factor of its rewards in the sum."""

    options: dict[str, Any] = Field(default_factory=dict)
    """The function's own options. One of yours receives them as keyword arguments."""

    name: str | None = None
    """What its figures are called; default: the function. Only needed if a function is there twice."""

    timeout: float | None = Field(default=600.0, gt=0)
    """Seconds that one call may take, for all completions of a step; then the run stops with an error. `null`: no
    limit; the function then runs in the main thread, as one that uses signals must."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"function": value} if isinstance(value, str) else value

    @field_validator("function")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value in REWARDS or is_path(value):
            return value
        near = difflib.get_close_matches(value, list(REWARDS), n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(REWARDS)}; or your own as module:function."
        raise ValueError(f"{value!r} is not known. {hint}")

    @model_validator(mode="after")
    def _options_are_known(self) -> "RewardConfig":
        if not REWARDS.is_users(self.function):
            try:
                self.shipped()
            except UserError as error:
                raise ValueError(str(error).partition("\n")[0]) from None
        return self

    @property
    def title(self) -> str:
        """What its figures are called."""
        return self.name or self.function

    def shipped(self) -> Any:
        """The function with its options, if it is one of ours.

        Raises:
            UserError: an option is wrong.
        """
        return checked_values(REWARDS.load(self.function), self.options, self.function)

    def with_absolute_paths(self, absolute: Callable[[str], str]) -> "RewardConfig":
        """The same, with options that name files or models resolved, so that a run can be resumed from anywhere.

        Args:
            absolute: resolves a path beside the recipe; returns what is no path as it is.
        """
        if REWARDS.is_users(self.function):
            return self
        options = self.shipped().with_absolute_paths(absolute)
        return self.model_copy(update={"options": {**self.options, **options}})
