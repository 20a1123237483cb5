"""Causal language model: a decoder that continues a text."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForCausalLM, PretrainedConfig

from tunesmith.heads.language_model import LanguageModelHead


@dataclass(frozen=True)
class CausalLMHead(LanguageModelHead):
    """−log p(xₜ | x₍<t₎) from the hidden state at t − 1."""

    kind: ClassVar[str] = "causal_lm"

    def model_class(self, config: PretrainedConfig) -> Any:
        return AutoModelForCausalLM
