"""Sequence-to-sequence language model: an encoder reads a text, a decoder writes the answer."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForSeq2SeqLM, PretrainedConfig

from tunesmith.heads.language_model import LanguageModelHead


@dataclass(frozen=True)
class Seq2SeqLMHead(LanguageModelHead):
    """−log p(yₜ | y₍<t₎, x) from the decoder's hidden state at t − 1."""

    kind: ClassVar[str] = "seq2seq_lm"

    def model_class(self, config: PretrainedConfig) -> Any:
        return AutoModelForSeq2SeqLM
