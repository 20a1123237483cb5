"""The registries of methods, objectives, heads, row formats, metrics and reward functions.

All are looked up by `kind`. A new one of ours takes one file and one line here; a user's is named as `module:Class`, or
registered by an installed package as an entry point.
"""

import importlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model

from tunesmith.config.extensions import imported, in_one_line, is_path
from tunesmith.errors import UserError

logger = logging.getLogger(__name__)


class Registry(Mapping[str, str]):
    """Kinds by name → the class as `module:Class`, imported on first use. Installed packages add to them.

    Args:
        group: the entry points of packages that belong here, such as `tunesmith.methods`.
        own: our own kinds.
    """

    def __init__(self, group: str, own: dict[str, str]) -> None:
        self.group = group
        self.own = own

    @cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}

    @cached_property
    def _kinds(self) -> dict[str, str]:
        return {**{name: point.value for name, point in self._installed.items()}, **self.own}

    def __getitem__(self, kind: str) -> str:
        return self._kinds[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def is_users(self, kind: str) -> bool:
        """Whether it is code of users: `module:Class`, or registered by an installed package."""
        return is_path(kind) or (kind in self and kind not in self.own)

    def path(self, kind: str) -> str:
        """The class of a name here, or of `module:Class` itself, as `module:Class`."""
        return kind if is_path(kind) else self[kind]

    def load(self, kind: str, directory: Path | None = None) -> Any:
        """Import the class.

        Args:
            kind: one of the names here, or `module:Class`.
            directory: where the recipe is.

        Raises:
            UserError: it cannot be imported.
        """
        if kind in self.own:
            module, name = self.own[kind].split(":")
            return getattr(importlib.import_module(module), name)
        if is_path(kind):
            return imported(kind, directory)
        return imported(self[kind], directory, self._advice(kind))

    def _advice(self, kind: str) -> str:
        """What to do about a kind of an installed package that fails."""
        distribution = self._installed[kind].dist
        package = "A package" if distribution is None else f"The package {distribution.name} {distribution.version}"
        return f"{package} registers it as {kind}: update or uninstall it."

    @contextmanager
    def left_out_if_broken(self, kind: str) -> Iterator[None]:
        """For lists of all kinds: log what fails within, in one line, if an installed package registers the kind. An
        error in a kind of ours is raised."""
        try:
            yield
        except Exception as error:
            if kind in self.own:
                raise
            reason = error if isinstance(error, UserError) else f"{in_one_line(error)}. {self._advice(kind)}"
            logger.warning("%s: %s is left out: %s", self.group, kind, reason)


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
        "reward": "tunesmith.objectives.reward:Reward",
        "graded_reward": "tunesmith.objectives.graded_reward:GradedReward",
        "process_reward": "tunesmith.objectives.process_reward:ProcessReward",
        "dpo": "tunesmith.objectives.dpo:DPO",
        "listwise": "tunesmith.objectives.listwise:Listwise",
        "kto": "tunesmith.objectives.kto:KTO",
        "grpo": "tunesmith.objectives.grpo:GRPO",
        "ppo": "tunesmith.objectives.ppo:PPO",
        "online_dpo": "tunesmith.objectives.online_dpo:OnlineDPO",
        "best_of_n": "tunesmith.objectives.best_of_n:BestOfN",
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
        "reward": "tunesmith.heads.reward:RewardHead",
        "graded_reward": "tunesmith.heads.reward:GradedRewardHead",
        "process_reward": "tunesmith.heads.reward:ProcessRewardHead",
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
`tunesmith.metrics.METRICS`."""

REWARDS = Registry(
    "tunesmith.rewards",
    {
        "exact": "tunesmith.rewards.answers:Exact",
        "number": "tunesmith.rewards.answers:Number",
        "similarity": "tunesmith.rewards.answers:Similarity",
        "metric": "tunesmith.rewards.answers:AnyMetric",
        "regex": "tunesmith.rewards.shape:Regex",
        "format": "tunesmith.rewards.shape:Format",
        "json": "tunesmith.rewards.shape:Json",
        "length": "tunesmith.rewards.shape:Length",
        "language": "tunesmith.rewards.shape:Language",
        "repetition": "tunesmith.rewards.shape:Repetition",
        "code": "tunesmith.rewards.code:Code",
        "classifier": "tunesmith.rewards.classifier:Classifier",
        "judge": "tunesmith.rewards.judge:JudgeReward",
    },
)
"""Reward functions: the name → the class, imported on first use."""


class Strict(BaseModel):
    """A model that refuses unknown fields and takes each field's description from the string below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


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
