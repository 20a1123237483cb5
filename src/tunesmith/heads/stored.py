"""The head of a stored model, found in its files."""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from tunesmith.config.base import Base
from tunesmith.config.head import Head
from tunesmith.heads.causal_lm import CausalLMHead
from tunesmith.heads.embedding import EmbeddingHead
from tunesmith.heads.head_file import FILE, read_head
from tunesmith.heads.new_head import labels_of
from tunesmith.heads.no_head import NoHead
from tunesmith.heads.reward import ABOVE, GradedRewardHead, ProcessRewardHead, RewardHead
from tunesmith.heads.sentence_transformers_format import MODULES, stored_pooling
from tunesmith.heads.seq2seq_lm import Seq2SeqLMHead
from tunesmith.heads.sequence_classification import MultiLabelHead, RegressionHead, SequenceClassificationHead
from tunesmith.heads.token_classification import TokenClassificationHead
from tunesmith.models.load import config_of, kind_of, stored_file

_OF_PROBLEM: dict[str, Any] = {
    head.problem_type: head for head in (SequenceClassificationHead, MultiLabelHead, RegressionHead)
}
_OF_LABELS: dict[tuple[str, ...], Head] = {head.labels: head for head in (RewardHead(), ProcessRewardHead())}
_OF_KIND: dict[str, Any] = {"decoder": CausalLMHead, "encoder-decoder": Seq2SeqLMHead, "encoder": NoHead}


def stored_head(base: Base) -> Head:
    """The head of a stored model: the one that its own files name, else the one that its architecture has.

    Raises:
        UserError: it computes vectors in an unsupported way, or the base does not exist.
    """
    config = config_of(base)  # first, since it says at once if there is no such base
    own = stored_file(base, FILE)
    named = None if own is None else read_head(own.parent)
    if named is not None:
        return named
    steps = stored_file(base, MODULES)
    if steps is not None:
        stored_file(base, "1_Pooling/config.json")
        pooling, normalized = stored_pooling(steps)
        return EmbeddingHead(pooling=pooling, normalized=normalized)
    name = (config.architectures or [""])[0]
    if name.endswith("ForTokenClassification"):
        return TokenClassificationHead(labels_of(config))
    if name.endswith("ForSequenceClassification"):
        labels = labels_of(config)
        if labels in _OF_LABELS:
            return _OF_LABELS[labels]
        if all(map(ABOVE.fullmatch, labels)):
            return GradedRewardHead(labels)
        head: Head = _OF_PROBLEM[config.problem_type or SequenceClassificationHead.problem_type](labels)
        return head
    return language_model_head(config)


def head_of_adapter(adapter: Path, base: Base) -> Head:
    """The head that an adapter was trained with: the one that its directory names, else the base's language model."""
    return read_head(adapter) or language_model_head(config_of(base))


def language_model_head(config: PretrainedConfig) -> Head:
    """The head of a base as pretrained, from its config."""
    head: Head = _OF_KIND[kind_of(config)]()
    return head
