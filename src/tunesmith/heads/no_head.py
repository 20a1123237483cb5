"""No head: an encoder as pretrained, whose hidden states nothing reads yet."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModel, PretrainedConfig

from tunesmith.config.head import Head


@dataclass(frozen=True)
class NoHead(Head):
    """A body alone: a base to train with another head."""

    kind: ClassVar[str] = "none"

    def model_class(self, config: PretrainedConfig) -> Any:
        return AutoModel
