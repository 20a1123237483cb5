"""Re-ranking: a cross-encoder reads question and chunk together, and orders the first chunks of another way anew."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tunesmith.config.base import Base
from tunesmith.errors import UserError
from tunesmith.heads.prediction import room_for_text
from tunesmith.models.load import locate
from tunesmith.models.quiet import no_progress_bars
from tunesmith.retrieval.chunk import searched_text
from tunesmith.retrieval.search import Hit


class Reranker:
    """A cross-encoder (Nogueira & Cho 2019): a model of two texts with one output.

    Args:
        name: a model directory, a hub name, or a short name.

    Raises:
        UserError: nothing of that name exists, or it has more than one output.
    """

    def __init__(self, name: str) -> None:
        try:
            where = locate(Base(path=name))
            with no_progress_bars():
                self._model = AutoModelForSequenceClassification.from_pretrained(where, use_safetensors=True).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(where)
        except (OSError, ValueError) as error:
            raise UserError(f"The re-ranker {name} cannot be loaded: {str(error).strip().splitlines()[0]}") from None
        if self._model.config.num_labels != 1:
            raise UserError(
                f"{name} has {self._model.config.num_labels} outputs, and a re-ranker has one. Name a cross-encoder, "
                "such as cross-encoder/ms-marco-MiniLM-L6-v2."
            )

    @torch.no_grad()
    def score(self, question: str, text: str) -> float:
        """How well a text fits a question; its end is left out if both are longer than the model reads."""
        room = room_for_text(self._model)
        limits = {} if room is None else {"truncation": "only_second", "max_length": room}
        inputs = self._tokenizer(question, text, return_tensors="pt", **limits)
        return float(self._model(**inputs).logits[0, 0])

    def rerank(self, question: str, hits: Sequence[Hit], k: int) -> list[Hit]:
        """The hits in the order of the model's scores.

        Args:
            question: in words.
            hits: of another way.
            k: how many to return.

        Returns:
            The best, each with the model's score.
        """
        scored = [replace(hit, score=self.score(question, searched_text(hit.text, hit.headings))) for hit in hits]
        return sorted(scored, key=lambda hit: -hit.score)[:k]
