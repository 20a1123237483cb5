"""The two extension points: the base classes of methods and objectives, and the registries of both.

Both are looked up by `kind`. A new one takes one file and one line here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from tunesmith.ending import VOCABULARY, Ending

METHODS = {
    "full": "tunesmith.methods.full:Full",
    "layers": "tunesmith.methods.layers:Layers",
    "lora": "tunesmith.methods.lora:LoRA",
    "adapter": "tunesmith.methods.adapter:Adapter",
    "prefix": "tunesmith.methods.prefix:Prefix",
    "prompt": "tunesmith.methods.prompt:Prompt",
    "ptuning": "tunesmith.methods.ptuning:PTuning",
    "ia3": "tunesmith.methods.ia3:IA3",
    "peft": "tunesmith.methods.peft:Peft",
}
"""Which weights are trained: `kind` → the class, imported on first use."""

OBJECTIVES = {
    "instruction": "tunesmith.objectives.instruction:Instruction",
    "text": "tunesmith.objectives.text:Text",
    "seq2seq": "tunesmith.objectives.seq2seq:Seq2Seq",
    "classification": "tunesmith.objectives.classification:Classification",
    "multi_label": "tunesmith.objectives.multi_label:MultiLabel",
    "regression": "tunesmith.objectives.regression:Regression",
    "token_classification": "tunesmith.objectives.token_classification:TokenClassification",
    "embedding": "tunesmith.objectives.embedding:Embedding",
    "few_shot": "tunesmith.objectives.few_shot:FewShot",
    "distillation": "tunesmith.objectives.distillation:Distillation",
}
"""What the model is trained to do: `kind` → the class, imported on first use."""

BaseKind = Literal["decoder", "encoder", "encoder-decoder"]
"""The architecture of a base: it continues text, it encodes text, or it encodes text and then writes text."""


class Strict(BaseModel):
    """A model that refuses unknown fields and takes each field's description from the string below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class MethodConfig(Strict, ABC):
    """Which weights are trained. Subclasses are in `tunesmith.methods`, one file each."""

    kind: str

    formula: ClassVar[str]
    """What it computes, in one line."""

    choose: ClassVar[str]
    """When to choose it, and its known weakness, in one or two sentences."""

    classification_rate_factor: ClassVar[float] = 1.0
    """Factor on its learning rate for classification. A row has one label where a text has a hundred tokens, so
    gradients are noisier, and methods that train large matrices need smaller steps."""

    @property
    def virtual_tokens(self) -> int:
        """Positions of the model's context that the method uses for itself."""
        return 0

    @property
    def is_resumable(self) -> bool:
        """Whether it saves an adapter that a later run can continue training."""
        return not self.trains_base

    @property
    def trains_base(self) -> bool:
        """Whether it changes matrices of the base itself, which then cannot be quantized."""
        return False

    @abstractmethod
    def apply(self, model: Any, seed: int) -> Any:
        """Return the model with gradients required for exactly the method's weights.

        Args:
            model: a `transformers.PreTrainedModel`.
            seed: for the method's own initial weights.

        Raises:
            UserError: the method does not work with this model.
        """

    @abstractmethod
    def learning_rate(self, parameters: int) -> float:
        """The default peak learning rate for a base with this many parameters."""

    def learning_rate_factor(self, parameter: str) -> float:
        """Factor on the learning rate of the parameter with this name."""
        return 1.0

    @abstractmethod
    def trained_parameters(self, model: Any) -> int:
        """The number of trained parameters on this model (which may be a fake model), without a new head."""


class ObjectiveConfig(Strict, ABC):
    """What the model is trained to do. Subclasses are in `tunesmith.objectives`, one file each."""

    kind: str

    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "refuse"
    """What `data.overflow: auto` means for this objective."""

    formats: ClassVar[tuple[str, ...]] = ()
    """The row formats with targets that it accepts; empty: chats and raw text."""

    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder",)
    """The kinds of base that it can train."""

    loss_unit: ClassVar[str] = "nats per loss token"
    """The unit of its loss, for reports."""

    rate_factor: ClassVar[float] = 1.0
    """Factor on the method's learning rate; below 1 where the base already has most of what the objective needs."""

    @property
    def ending(self) -> Ending:
        """The head of its model."""
        return VOCABULARY

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of its outputs, named as in `tunesmith.evaluation.prediction_metrics`; empty for written text."""
        return ()

    @property
    def reference_paths(self) -> tuple[str, ...]:
        """Other models that it learns from."""
        return ()

    @property
    def reference_models(self) -> tuple[Any, ...]:
        """Those of `reference_paths` that stay loaded beside the trained model, after `set_up`."""
        return ()

    @property
    def output_scale(self) -> float:
        """The scale of a new head's outputs, in the unit of the targets."""
        return 1.0

    @property
    def concatenates_rows(self) -> bool:
        """Whether rows are concatenated and split again at `max_length`, regardless of row boundaries."""
        return False

    def head_learning_rate_at(self, hidden: int) -> float:
        """The learning rate of a new head with `hidden` inputs."""
        raise NotImplementedError

    def resolve(self, read: Callable[[], Iterable[Any]]) -> "ObjectiveConfig":
        """A copy with everything resolved that depends on the training rows; `read` iterates over their examples."""
        return self

    def check(self, table: Any) -> None:
        """Check the training rows' `TokenTable`, before anything is loaded.

        Raises:
            UserError: the remaining rows cannot be used for training.
        """

    def set_up(self, model: Any, base: Any) -> None:
        """Before the method is applied: set up what the objective needs on the model, or beside it.

        Raises:
            UserError: the objective does not work with this model.
        """

    def fit_head(self, model: Any, vectors: Callable[[], tuple[Any, Any]]) -> Any:
        """After the last step: fit a head (`torch.nn.Linear`) on the model's vectors, if the objective needs one.

        Args:
            model: the trained model.
            vectors: returns the vectors of all training rows (rows, hidden) and their targets (rows, values).
        """
        return None

    @abstractmethod
    def render(self, renderer: Any, example: Any) -> list[Any]:
        """Turn an `Example` into `Rendering`s, whose loss spans this objective trains on."""

    @abstractmethod
    def loss(self, model: Any, batch: Any) -> Any:
        """The *sum* of the losses over the loss positions of a `Batch` (nats): a scalar tensor."""

    @abstractmethod
    def losses(self, model: Any, batch: Any) -> Any:
        """The loss at each loss position, (loss positions,), in the order of the batch, without gradients."""

    def outputs(self, model: Any, batch: Any, head: Any = None) -> Any:
        """The model's predictions at each loss position, if it does not write text: probabilities, values or vectors.

        Args:
            model: in evaluation mode.
            batch: the rows.
            head: the result of `fit_head`, if it returns one.

        Returns:
            (loss positions, k).
        """
        raise NotImplementedError


def named_kind(registry: dict[str, str], kind: str) -> Any:
    """Import and return the class that the registry names."""
    module, name = registry[kind].split(":")
    return getattr(import_module(module), name)
