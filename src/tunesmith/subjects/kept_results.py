"""What the result cache knows a model and a row by, and how it holds answers and log-probabilities."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from tunesmith.config.objective import ObjectiveConfig
from tunesmith.data.cache import tokenizer_fingerprint
from tunesmith.data.tokens import TokenTable
from tunesmith.heads.head_file import described_head
from tunesmith.inference.model import Model
from tunesmith.inference.result_cache import ResultCache, digest_of
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score
from tunesmith.inference.writing import Writing
from tunesmith.models.load import fingerprint
from tunesmith.subjects.subject import Chat


class KeptAnswers:
    """Puts answers into the cache as they end.

    Args:
        writings: by the key of the cache.
        cache: where they are kept.
    """

    def __init__(self, writings: Mapping[str, Writing], cache: ResultCache) -> None:
        self._open, self._cache = dict(writings), cache

    def add_ended(self, least: int) -> None:
        """Keep the answers that have ended.

        Args:
            least: how many must have ended, or nothing is kept yet.
        """
        ended = {key: writing for key, writing in self._open.items() if _has_ended(writing)}
        if len(ended) < least:
            return
        self._cache.add({key: _answer_of(writing) for key, writing in ended.items()})
        for key in ended:
            del self._open[key]


def _has_ended(writing: Writing) -> bool:
    return writing.request.finish in ("stop", "length") and writing.request.exception is None


def _answer_of(writing: Writing) -> dict[str, Any]:
    found = writing.finish()
    return {"text": found.text.strip(), "tokens": len(found.tokens), "finish_reason": found.finish_reason}


def model_digest(model: Model, tokenizer: str, objective: ObjectiveConfig | None) -> str:
    """Of the weights, of how they are stored and computed, and of the tokenizer.

    Args:
        model: not loaded yet.
        tokenizer: its fingerprint.
        objective: that gives a new head its first values, if any.

    Returns:
        In hexadecimal.
    """
    return digest_of(
        {
            **_content(model, tokenizer),
            "objective": None if objective is None else objective.model_dump(mode="json"),
            "computed": [str(model.dtype), model.device.type],
            "versions": {name: version(name) for name in ("tunesmith", "torch", "transformers")},
        }
    )


def content_digest(model: Model) -> str:
    """Of the weights, of how they are stored and in which precision they are computed, and of the tokenizer: the same
    on all machines.

    Args:
        model: not loaded yet.

    Returns:
        In hexadecimal.
    """
    return digest_of({**_content(model, tokenizer_fingerprint(model.tokenizer)), "computed": str(model.dtype)})


def _content(model: Model, tokenizer: str) -> dict[str, Any]:
    reference = model.reference
    base = reference.base.model_copy(update={"adapter": reference.adapter})
    files = [] if reference.adapter is None else [reference.adapter / "adapter_config.json"]
    return {
        "files": fingerprint(base),
        "adapter": {file.name: file.read_text(encoding="utf-8") for file in files},
        "base": base.model_dump(mode="json", exclude={"path", "adapter", "chat_template"}),
        "head": described_head(model.head),
        "tokenizer": tokenizer,
    }


def chat_digest(chat: Chat, number: int, sampling: Sampling) -> str:
    """Of all that determines an answer beside model and sampling.

    Args:
        chat: that is answered.
        number: its place among the chats, by which samples have their random numbers.
        sampling: how tokens are chosen.

    Returns:
        In hexadecimal.
    """
    return digest_of([list(chat), number if sampling.temperature else None])


def row_digest(table: TokenTable, row: int) -> str:
    """Of all that determines a row's loss beside the model.

    Args:
        table: has the row.
        row: its index.

    Returns:
        In hexadecimal.
    """
    ids, mask = table[row]
    targets = None if table.targets is None else table.targets_of(row).tolist()
    return digest_of([ids.tolist(), mask.tolist(), targets])


def score_values(score: Score) -> list[Any]:
    """A score as the cache holds it.

    Args:
        score: of a text.

    Returns:
        Plain values.
    """
    return [list(score.tokens), score.log_probabilities.tolist()]


def score_from(values: list[Any]) -> Score:
    """The inverse of `score_values`.

    Args:
        values: from the cache.

    Returns:
        The score.
    """
    tokens, logs = values
    return Score(tuple(tokens), np.array(logs))
