"""The extension points: the registries of methods, objectives and heads, and the base classes of the first two.

All are looked up by `kind`. A new one of ours takes one file and one line here; a user's is named as `module:Class`, or
registered by an installed package as an entry point.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, create_model

from tunesmith.config.extensions import Registry
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
from tunesmith.errors import UserError

METHODS = Registry(
    "tunesmith.methods",
    {
        "full": "tunesmith.methods.full:Full",
        "layers": "tunesmith.methods.layers:Layers",
        "lora": "tunesmith.methods.lora:LoRA",
        "adapter": "tunesmith.methods.adapter:Adapter",
        "prefix": "tunesmith.methods.prefix:Prefix",
        "prompt": "tunesmith.methods.prompt:Prompt",
        "ptuning": "tunesmith.methods.ptuning:PTuning",
        "ia3": "tunesmith.methods.ia3:IA3",
        "peft": "tunesmith.methods.peft:Peft",
    },
)
"""Which weights are trained: `kind` → the class, imported on first use."""

DEFAULT_METHOD = "lora"

OBJECTIVES = Registry(
    "tunesmith.objectives",
    {
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
    },
)
"""What the model is trained to do: `kind` → the class, imported on first use."""

HEADS = Registry(
    "tunesmith.heads",
    {
        "none": "tunesmith.heads.no_head:NoHead",
        "causal_lm": "tunesmith.heads.causal_lm:CausalLMHead",
        "seq2seq_lm": "tunesmith.heads.seq2seq_lm:Seq2SeqLMHead",
        "sequence_classification": "tunesmith.heads.sequence_classification:SequenceClassificationHead",
        "multi_label_classification": "tunesmith.heads.sequence_classification:MultiLabelHead",
        "regression": "tunesmith.heads.sequence_classification:RegressionHead",
        "token_classification": "tunesmith.heads.token_classification:TokenClassificationHead",
        "embedding": "tunesmith.heads.embedding:EmbeddingHead",
        "embedding_classifier": "tunesmith.heads.embedding:EmbeddingClassifierHead",
    },
)
"""What a model ends in (`tunesmith.config.head`): `kind` → the class, imported on first use."""

FORMATS = Registry("tunesmith.formats", {})
"""Row formats of installed packages; ours are `tunesmith.data.row_formats.FORMATS`."""

METRICS = Registry("tunesmith.metrics", {})
"""Metrics of installed packages, which are computed if they are asked for; ours are
`tunesmith.evaluation.metrics.METRICS`."""

BaseKind = Literal["decoder", "encoder", "encoder-decoder"]
"""The architecture of a base: it continues text, it encodes text, or it encodes text and then writes text."""


class Strict(BaseModel):
    """A model that refuses unknown fields and takes each field's description from the string below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


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

    loss_unit: ClassVar[str] = "nats per loss token"
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
    def output_scale(self) -> float:
        """The scale of a new head's outputs, in the unit of the targets."""
        return 1.0

    @property
    def concatenates_rows(self) -> bool:
        """Whether rows are concatenated and split again at `max_length`, regardless of row boundaries."""
        return False

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

    def resolve(self, read: Callable[[], Iterable[Example]]) -> "ObjectiveConfig":
        """Resolve what depends on the training rows, such as the names of the classes.

        Args:
            read: returns an iterator over them.

        Returns:
            A copy with everything resolved.
        """
        return self

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


def unwritten(owner: object, method: str) -> UserError:
    """The error for a method that a class of a user needs and does not have.

    Args:
        owner: an instance of the class.
        method: its name.
    """
    name = f"{type(owner).__module__}:{type(owner).__qualname__}"
    return UserError(f"{name} has no method {method}, which is needed here. Write it (docs/extending.md).")


def config_class(registry: Registry, kind: str, base: type[Strict], directory: Path | None = None) -> Any:
    """The class that a recipe's `kind` stands for, whose own `kind` it is.

    Args:
        registry: of our own and installed kinds.
        kind: a name in it, or `module:Class`.
        base: what the class has to extend.
        directory: where the recipe is.

    Raises:
        UserError: it cannot be imported.
        ValueError: it does not extend `base`.
    """
    found = registry.load(kind, directory)
    if not registry.is_users(kind):
        return found
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{kind} does not extend {base.__module__}.{base.__name__}")
    return _with_kind(found, kind)


def config_classes(registry: Registry, base: type[Strict]) -> dict[str, Any]:
    """The classes of all kinds, as `config_class`. Code of an installed package that cannot be used is logged and left
    out."""
    found = {}
    for kind in registry:
        with registry.left_out_if_broken(kind):
            found[kind] = config_class(registry, kind, base)
    return found


def with_defaults(chosen: type[MethodConfig]) -> MethodConfig:
    """A method with its default settings.

    Raises:
        UserError: a setting has no default.
    """
    required = [name for name, field in chosen.model_fields.items() if field.is_required()]
    if required:
        raise UserError(f"it has no default for {', '.join(required)}, so it needs a recipe.")
    return chosen()  # type: ignore[call-arg]


@cache
def _with_kind(found: type[Strict], kind: str) -> Any:
    """A user's class, under the name by which a recipe refers to it."""
    return create_model(
        found.__name__,
        __base__=found,
        __module__=found.__module__,
        __doc__=found.__doc__,
        kind=(Literal[kind], kind),  # type: ignore[arg-type]
    )
