"""The two choices that are open to additions: what a method is, what an objective is, and which there are.

Both are looked up by `kind` in the registries below; a new one is one file and one line here.
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
"""Which weights move: `kind` → the class, imported when first asked for."""

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
"""What is learnt: `kind` → the class, imported when first asked for."""


BaseKind = Literal["decoder", "encoder", "encoder-decoder"]
"""What a base is made for: to write on, to read, or to read and then write."""


class Strict(BaseModel):
    """Refuses unknown fields and documents each field from the string beneath it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class MethodConfig(Strict, ABC):
    """Which weights move. Subclasses live in `tunesmith.methods`, one file each."""

    kind: str

    formula: ClassVar[str]
    """What it computes, in a line."""

    choose: ClassVar[str]
    """When to choose it, and its known weakness, in a sentence or two."""

    share_for_classes: ClassVar[float] = 1.0
    """What its learning rate is multiplied by for classes: a row gives one label where a text gives a hundred tokens,
    so directions are rougher, and methods that move matrices of many numbers want smaller steps."""

    @property
    def virtual_tokens(self) -> int:
        """Positions of the model's context that it takes for itself."""
        return 0

    @property
    def is_resumable(self) -> bool:
        """Whether what it leaves is an adapter that training can go on with."""
        return not self.trains_base

    @property
    def trains_base(self) -> bool:
        """Whether it changes matrices of the base itself, which then cannot be held quantized."""
        return False

    @abstractmethod
    def apply(self, model: Any, seed: int) -> Any:
        """Return the model with exactly the method's weights requiring gradients.

        Args:
            model: a `transformers.PreTrainedModel`.
            seed: of the method's own initial weights.

        Raises:
            UserError: the method and this model do not go together.
        """

    @abstractmethod
    def learning_rate(self, parameters: int) -> float:
        """The peak learning rate where the recipe names none, for a base of so many weights."""

    def learning_rate_factor(self, parameter: str) -> float:
        """What the rate is multiplied by for the parameter of that name."""
        return 1.0

    @abstractmethod
    def trained_parameters(self, model: Any) -> int:
        """How many numbers it trains on a model of this shape (which may have no weights), a new head not counted."""


class ObjectiveConfig(Strict, ABC):
    """What is learnt. Subclasses live in `tunesmith.objectives`, one file each."""

    kind: str

    overflow: ClassVar[Literal["refuse", "truncate", "split", "drop"]] = "refuse"
    """What `data.overflow: auto` means for this objective."""

    formats: ClassVar[tuple[str, ...]] = ()
    """The forms of rows that it takes, where they tell something of a text; empty: chats and raw texts."""

    bases: ClassVar[tuple[BaseKind, ...]] = ("decoder",)
    """The kinds of base that can learn it."""

    loss_unit: ClassVar[str] = "nats a learnt token"
    """What its loss is counted in, for reports."""

    rate_share: ClassVar[float] = 1.0
    """What the method's learning rate is multiplied by, where what the base knows already is what is wanted of it."""

    @property
    def ending(self) -> Ending:
        """What its model ends in."""
        return VOCABULARY

    @property
    def metrics(self) -> tuple[str, ...]:
        """What its outputs are judged by, as `tunesmith.evaluation.prediction_metrics` names them; empty where it writes text."""
        return ()

    @property
    def reads(self) -> tuple[str, ...]:
        """Other models that it learns from."""
        return ()

    @property
    def reference_models(self) -> tuple[Any, ...]:
        """Those of them that are held beside the one that learns, once it has begun."""
        return ()

    @property
    def output_scale(self) -> float:
        """The size of a step in what a new head says."""
        return 1.0

    @property
    def joins_rows(self) -> bool:
        """Whether rows are laid end to end and cut anew, without regard to where each ends."""
        return False

    def head_learning_rate_at(self, hidden: int) -> float:
        """The learning rate of a new head, which reads that many numbers."""
        raise NotImplementedError

    def resolve(self, read: Callable[[], Iterable[Any]]) -> "ObjectiveConfig":
        """The same with everything that only the training rows can tell; `read` goes over their examples."""
        return self

    def check(self, table: Any) -> None:
        """Look at the training rows' `TokenTable`, before anything is loaded.

        Raises:
            UserError: what is left of the rows cannot be learnt from.
        """

    def begin(self, model: Any, base: Any) -> None:
        """Before the method is applied: set what the objective itself puts on the model, or beside it.

        Raises:
            UserError: they do not go together.
        """

    def finish(self, model: Any, vectors: Callable[[], tuple[Any, Any]]) -> Any:
        """After the last step: a head on the model's vectors (`torch.nn.Linear`), where the objective learns one so.

        Args:
            model: as it was trained.
            vectors: gives those of all training rows (rows, hidden) and what is told of them (rows, values).
        """
        return None

    @abstractmethod
    def render(self, renderer: Any, example: Any) -> list[Any]:
        """Turn an `Example` into the `Rendering`s whose learnt spans this objective trains on."""

    @abstractmethod
    def loss(self, model: Any, batch: Any) -> Any:
        """Turn a `Batch` into the *sum* of the losses of its learnt units (nats): a scalar tensor."""

    @abstractmethod
    def losses(self, model: Any, batch: Any) -> Any:
        """The loss of each learnt unit (learnt,), in the batch's order, without gradients: for evaluation."""

    def outputs(self, model: Any, batch: Any, head: Any = None) -> Any:
        """What the model says at each mark, where it does not write text: probabilities, values or vectors (marks, k).

        Args:
            model: in evaluation mode.
            batch: of rows.
            head: what `finish` gave, where it gives one.
        """
        raise NotImplementedError


def named_kind(registry: dict[str, str], kind: str) -> Any:
    """The class that the registry names, imported now."""
    module, name = registry[kind].split(":")
    return getattr(import_module(module), name)
