"""The first extension point: the base class of methods, which decide which weights are trained."""

from abc import ABC, abstractmethod
from typing import ClassVar

from tunesmith.config.registry import Strict, unwritten
from tunesmith.config.types import PreTrainedModel
from tunesmith.errors import UserError


class MethodConfig(Strict, ABC):
    """Which weights are trained. Subclasses are in `tunesmith.methods`, one file each."""

    kind: str
    """The method's name in recipes."""

    formula: ClassVar[str]
    """What it computes, in one line."""

    choose: ClassVar[str]
    """When to choose it, and its known weakness, in one or two sentences."""

    adds_weights: ClassVar[bool] = True
    """Whether it trains weights of its own beside the base's, and not the base's."""

    is_mergeable: ClassVar[bool] = False
    """Whether its adapter can be folded into the base's weights."""

    usual_weights: ClassVar[tuple[str, ...]] = ()
    """The values of `base.weights` with which it is planned for a base without a recipe."""

    classification_rate_factor: ClassVar[float] = 1.0
    """Factor on its learning rate for classification. A row has one label where a text has a hundred tokens, so
    gradients are noisier, and methods that train large matrices need smaller steps."""

    copies_prompts: ClassVar[bool] = False
    """Whether each completion of a prompt needs a copy of it, since what the method puts before a text is computed with
    the text."""

    @property
    def virtual_tokens(self) -> int:
        """Positions of the model's context that the method uses for itself."""
        return 0

    @property
    def top_blocks(self) -> int:
        """How many of the top blocks it trains, if not those below; 0 if it treats all blocks alike. A method that
        overrides this overrides `with_top_blocks` too."""
        return 0

    def with_top_blocks(self, count: int) -> "MethodConfig":
        """The same method on this many of the top blocks, for the planner, which simulates few blocks.

        Args:
            count: of blocks.

        Returns:
            A copy.

        Raises:
            UserError: the class does not say how.
        """
        raise unwritten(self, "with_top_blocks")

    @property
    def is_resumable(self) -> bool:
        """Whether it saves an adapter that a later run can continue training."""
        return not self.trains_base

    @property
    def trains_base(self) -> bool:
        """Whether it changes matrices of the base itself, which then cannot be quantized."""
        return False

    @abstractmethod
    def apply(self, model: PreTrainedModel, seed: int) -> PreTrainedModel:
        """Return the model with gradients required for exactly the method's weights.

        Args:
            model: the base with its head.
            seed: for the method's own initial weights.

        Returns:
            The model, or PEFT's around it.

        Raises:
            UserError: the method does not work with this model.
        """

    def initialize(self, model: PreTrainedModel) -> None:  # most methods need nothing
        """After `apply`: starting values that depend on those of the base.

        Args:
            model: that `apply` returned.
        """

    @abstractmethod
    def learning_rate(self, parameters: int) -> float:
        """The default peak learning rate.

        Args:
            parameters: of the base.

        Returns:
            The rate, for AdamW.
        """

    def learning_rate_factor(self, parameter: str) -> float:
        """Factor on the learning rate of one parameter.

        Args:
            parameter: its name.

        Returns:
            The factor.
        """
        return 1.0

    @abstractmethod
    def trained_parameters(self, model: PreTrainedModel) -> int:
        """How many parameters it trains.

        Args:
            model: the base, which may have no values.

        Returns:
            Their number, without a new head.
        """


def with_defaults(chosen: type[MethodConfig]) -> MethodConfig:
    """A method with its default settings.

    Raises:
        UserError: a setting has no default.
    """
    required = [name for name, field in chosen.model_fields.items() if field.is_required()]
    if required:
        raise UserError(f"it has no default for {', '.join(required)}, so it needs a recipe.")
    return chosen()  # type: ignore[call-arg]
