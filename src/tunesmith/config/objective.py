"""The second extension point: the base class of objectives, which decide what is optimized."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from tunesmith.config.registry import Strict, unwritten
from tunesmith.config.reward import RewardConfig
from tunesmith.config.types import (
    Base,
    Example,
    Head,
    ModelReference,
    Objective,
    PreTrainedModel,
    Renderer,
    Rendering,
    TokenTable,
)
from tunesmith.server_address import address_and_model, is_address

BaseKind = Literal["decoder", "encoder", "encoder-decoder"]
"""The architecture of a base: it continues text, it encodes text, or it encodes text and then writes text."""


PER_TOKEN = "nats per loss token"
"""The unit of a loss of text, which heads may report in another form, such as the perplexity."""


class SamplingServer(Strict):
    """A server of vLLM or of `tunesmith serve` that samples completions, and gets the adapter before each phase."""

    server: str
    """Its address, such as `http://gpu:8000/v1`; with `#NAME` if the base is not the first of its models. Its key is in
    `TUNESMITH_API_KEY`."""

    folder: str | None = None
    """Where the adapter is written for the server, which needs it at the same path. Default: the run's directory."""

    max_gap: float = Field(default=0.15, gt=0)
    """The largest mean difference (nats) between the server's and the trainer's log p of the same tokens; a larger one
    stops the run. 0.15: more than two implementations in bf16 differ by."""

    @field_validator("server")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not is_address(value):
            raise ValueError("must be an address, such as http://gpu:8000/v1")
        return value

    @property
    def address(self) -> str:
        """Without the model's name."""
        return address_and_model(self.server)[0]


@dataclass(frozen=True)
class RolloutPlan:
    """How a run generates what it trains on, phase by phase.

    Attributes:
        prompts: that a phase takes.
        samples: completions of each prompt.
        most_tokens: of a completion.
        temperature: of the sampling.
        passes: how often a phase's completions are trained on.
        updates: optimizer steps that a phase serves.
        keeps_initial_weights: whether the weights that the run started with stay in memory.
        trained: the most completions of a prompt that are trained on.
        are_compared: whether these are in one row, whatever its length.
        server: that samples; None: the generation engine does, on the weights in training.
    """

    prompts: int
    samples: int
    most_tokens: int
    temperature: float
    passes: int
    updates: int
    keeps_initial_weights: bool
    trained: int
    are_compared: bool = False
    server: SamplingServer | None = None


class ObjectiveConfig(Strict, ABC):
    """What the model is trained to do. Subclasses are in `tunesmith.objectives`, one file each."""

    kind: str
    """The objective's name in recipes."""

    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "refuse"
    """What `data.overflow: auto` means for this objective."""

    formats: ClassVar[tuple[str, ...]] = ()
    """The row formats with targets that it accepts; empty: chats and raw text."""

    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder",)
    """The kinds of base that it can train."""

    loss_unit: ClassVar[str] = PER_TOKEN
    """The unit of its loss, for reports."""

    rate_factor: ClassVar[float] = 1.0
    """Factor on the method's learning rate; below 1 where the base already has most of what the objective needs."""

    compares_rows: ClassVar[bool] = False
    """Whether a row's loss depends on the other rows of its batch."""

    @property
    @abstractmethod
    def head(self) -> Head:
        """What its model ends in."""

    @property
    def reference_paths(self) -> tuple[str, ...]:
        """Other models that it learns from."""
        return ()

    @property
    def reward_functions(self) -> Sequence[RewardConfig]:
        """The reward functions that it calls, if it learns from rewards."""
        return ()

    @property
    def output_scale(self) -> float:
        """The scale of a new head's outputs, in the unit of the targets."""
        return 1.0

    @property
    def concatenates_rows(self) -> bool:
        """Whether rows are concatenated and split again at `max_length`, regardless of row boundaries."""
        return False

    @property
    def rollouts(self) -> RolloutPlan | None:
        """How it generates what it trains on; None: it trains on the rows themselves."""
        return None

    def head_learning_rate_at(self, hidden: int) -> float:
        """The learning rate of a new head.

        Args:
            hidden: the number of its inputs.

        Returns:
            The rate.

        Raises:
            UserError: the class does not say.
        """
        raise unwritten(self, "head_learning_rate_at")

    def with_absolute_paths(self, absolute: Callable[[str], str]) -> "ObjectiveConfig":
        """Resolve paths in the objective's fields.

        Args:
            absolute: resolves a path beside the recipe; returns what is no path as it is.

        Returns:
            A copy with absolute paths.
        """
        return self

    def resolve(self, read: Callable[[], Iterable[Example]]) -> "ObjectiveConfig":
        """Resolve what depends on the training rows, such as the names of the classes.

        Args:
            read: returns an iterator over them.

        Returns:
            A copy with everything resolved.
        """
        return self

    def arrange(self, table: TokenTable) -> TokenTable:
        """Put rows together that the loss compares, after they are tokenized.

        Args:
            table: the rows of one side, training or held-out.

        Returns:
            As many rows, from the same sources.
        """
        return table

    def dummy_rows(self, lengths: Sequence[int]) -> TokenTable | None:
        """Rows for a plan without data.

        Args:
            lengths: of the rows, in tokens.

        Returns:
            Rows of these lengths; None if lengths do not say what rows cost.
        """
        return self.head.dummy_rows(lengths)

    def check(self, table: TokenTable) -> None:
        """Check the training rows, before anything is loaded.

        Args:
            table: the rows, tokenized.

        Raises:
            UserError: the remaining rows cannot be used for training.
        """

    def initialize_head(self, model: PreTrainedModel) -> None:  # most objectives need nothing
        """Before the method is applied: give the model's new head the starting values that the rows suggest.

        Args:
            model: with the head.

        Raises:
            UserError: the model's head cannot have them.
        """

    @abstractmethod
    def render(self, renderer: Renderer, example: Example) -> list[Rendering]:
        """Turn a row into text, with the parts that it is trained on.

        Args:
            renderer: applies the base's chat template.
            example: the row.

        Returns:
            What is trained on, with loss spans or targets.
        """

    def check_reference(self, reference: ModelReference, base: Base) -> None:  # most objectives have none
        """Check a model of `reference_paths`, before it is loaded.

        Args:
            reference: the model.
            base: of the trained model.

        Raises:
            UserError: the objective cannot learn from it.
        """

    @abstractmethod
    def build(self, references: Sequence[PreTrainedModel] = ()) -> Objective:
        """Make what computes the losses.

        Args:
            references: the models of `reference_paths`, loaded. Without them, the objective only evaluates.

        Returns:
            The objective.
        """
