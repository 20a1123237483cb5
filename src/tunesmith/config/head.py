"""The third extension point: the base class of heads."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tunesmith.config.registry import unwritten
from tunesmith.config.types import (
    AutoModelClass,
    Batch,
    Counts,
    Floats,
    Linear,
    Prediction,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Tensor,
    Tokens,
    TokenTable,
)

Command = Literal["generate", "classify", "embed", "reward"]
"""What a model can be used for."""


@dataclass(frozen=True)
class Head(ABC):
    """What a model ends in. Subclasses are in `tunesmith.heads`, one file each.

    Attributes:
        labels: the names of its outputs, in order; empty if they have none.
    """

    labels: tuple[str, ...] = ()

    kind: ClassVar[str]
    """Its name in `config.registry.HEADS`; of a user's head, `module:Class`."""

    commands: ClassVar[tuple[Command, ...]] = ()
    """The commands that use a model with this head, the usual one first."""

    is_new: ClassVar[bool] = False
    """Whether the head has weights that the base lacks: they start at random and are always trained."""

    has_probabilities: ClassVar[bool] = True
    """Whether a prediction has a probability."""

    needs_fp32: ClassVar[bool] = False
    """Whether its outputs need more digits than bf16 has."""

    @property
    def generates_text(self) -> bool:
        """Whether the model writes text."""
        return "generate" in self.commands

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of its outputs, named as in `tunesmith.metrics.prediction_metrics`; empty for written text."""
        return ()

    # The model

    @abstractmethod
    def model_class(self, config: PretrainedConfig) -> AutoModelClass:
        """The auto class of transformers that builds models with this head.

        Args:
            config: after `configure`.

        Returns:
            The class, such as `transformers.AutoModelForSequenceClassification`.

        Raises:
            UserError: the family of this config has no such head.
        """

    def is_stored(self, config: PretrainedConfig) -> bool:
        """Whether a base has this head already, with the same outputs.

        Args:
            config: the base's, as stored.

        Returns:
            True if its weights are to be kept.
        """
        return False

    def configure(self, config: PretrainedConfig) -> None:  # noqa: B027  # most heads need nothing
        """Write the head's settings into a config.

        Args:
            config: which is changed.
        """

    def initialize(self, model: PreTrainedModel, missing: Sequence[str], is_stored: bool, seed: int) -> None:  # noqa: B027
        """Give a new head's weights their starting values.

        Args:
            model: the model as loaded.
            missing: names of parameters that the base does not store.
            is_stored: whether the base has this head already; then it is kept.
            seed: of the weights.
        """

    def check(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Compare our computation of the head with the model's own forward pass on a few tokens; families differ.

        Args:
            model: with this head, in evaluation mode.

        Raises:
            UserError: they differ, so training would be wrong.
        """

    # Rows

    def text_lengths(self, table: TokenTable) -> Counts:
        """The length of each row's longest text, to which `data.max_length` applies.

        Args:
            table: the rows.

        Returns:
            (rows,) tokens.
        """
        return table.text_lengths

    def truncated(self, row: Tokens, limit: int, closing: int) -> Tokens | None:
        """Cut the end of a row's text.

        Args:
            row: its tokens, loss mask, source and targets.
            limit: the most tokens that a text keeps.
            closing: how many tokens the tokenizer adds after a text; heads that read a whole text keep them.

        Returns:
            The row; None if no loss token is left.

        Raises:
            UserError: the class has no such method.
        """
        raise unwritten(self, "truncated")

    def dummy_rows(self, lengths: Sequence[int]) -> TokenTable | None:
        """Rows for the planner.

        Args:
            lengths: of the rows, in tokens.

        Returns:
            Rows of these lengths; None if lengths do not say what rows cost.
        """
        return None

    def reads_features(self, model: PreTrainedModel) -> bool:
        """Whether only the head is trained and reads one hidden state of each row, which is then computed once.

        Args:
            model: ready to train.

        Returns:
            True if `with_features` is to be called.
        """
        return False

    def with_features(self, model: PreTrainedModel, table: TokenTable, tokens_per_batch: int) -> TokenTable:
        """Rows with the hidden states that a frozen body gives them, so that only the head runs in training.

        Args:
            model: whose head alone is trained.
            table: the rows.
            tokens_per_batch: the most tokens in a batch of this computation.

        Returns:
            The rows with these states.

        Raises:
            UserError: the class has no such method.
        """
        raise unwritten(self, "with_features")

    # Outputs

    def outputs(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The model's outputs at each loss position: probabilities, values or vectors.

        Args:
            model: in evaluation mode.
            batch: the rows.

        Returns:
            (loss positions, k).

        Raises:
            UserError: the class has no such method.
        """
        raise unwritten(self, "outputs")

    def targets(self, values: Floats) -> Floats:
        """A row's targets at its loss positions.

        Args:
            values: (values,) as the row has them.

        Returns:
            (loss positions, values).
        """
        return values.reshape(1, -1)

    def log_probabilities(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The log-probabilities of the outcomes, to compare two models' predictions. Outputs without probabilities have
        a single outcome of probability 1, which cannot differ.

        Args:
            model: in evaluation mode.
            batch: the rows.

        Returns:
            (positions, outcomes) fp32, in nats.

        Raises:
            UserError: the class has no such method.
        """
        raise unwritten(self, "log_probabilities")

    def loss_metrics(self, loss: float) -> dict[str, float]:
        """What is reported beside a loss.

        Args:
            loss: per loss token.

        Returns:
            Figures by name, such as the perplexity.
        """
        return {}

    # Predictions

    def with_classifier(self, classifier: Linear) -> "Head":
        """The head with a classifier that was fitted on the model's vectors.

        Args:
            classifier: from vectors to classes.

        Returns:
            The head that predicts with the classifier and saves it; itself if it does not predict from vectors.
        """
        return self

    def predict(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> list[Prediction]:
        """What the model predicts for a text, by its own forward pass.

        Args:
            model: in evaluation mode.
            tokenizer: the model's.
            text: of any length; what exceeds the model's context is cut off.

        Returns:
            The predictions.

        Raises:
            UserError: the class has no such method.
        """
        raise unwritten(self, "predict")

    def vector(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
        """A text's vector, by the model's own forward pass.

        Args:
            model: in evaluation mode.
            tokenizer: the model's.
            text: of any length; what exceeds the model's context is cut off.

        Returns:
            (hidden,) fp32.

        Raises:
            UserError: the class has no such method.
        """
        raise unwritten(self, "vector")

    def describe(self, output: Floats) -> str:
        """A row's output in words.

        Args:
            output: (loss positions, k), as `outputs` returns it.

        Returns:
            The words, as `evaluate` shows them.

        Raises:
            UserError: the class has no such method.
        """
        raise unwritten(self, "describe")

    def describe_target(self, target: Floats) -> str | None:
        """A row's targets in words.

        Args:
            target: (values,).

        Returns:
            The words; None if targets have no form in words.
        """
        return None

    # Files

    def save(self, directory: Path, model: PreTrainedModel, max_length: int) -> None:  # noqa: B027
        """Write what a saved model or adapter needs besides its weights, so that this head is found again.

        Args:
            directory: of the saved model or adapter.
            model: the trained one.
            max_length: of the training, in tokens.
        """

    def copy(self, source: Path, target: Path) -> None:  # noqa: B027
        """Copy what `save` wrote beside an adapter to the merged model, as far as it is needed there.

        Args:
            source: the adapter's directory.
            target: the merged model's.
        """
