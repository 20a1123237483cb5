"""Encoders: models that turn texts into vectors, of questions and of chunks."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from tunesmith.config.recipe import Recipe
from tunesmith.heads.prediction import room_for_text
from tunesmith.inference.model import Model, load
from tunesmith.inference.model_reference import ModelReference, fingerprint_of
from tunesmith.models.load import stored_file
from tunesmith.retrieval.ranking import Vectors


class Encoder:
    """A model that embeds texts. Its weights are loaded at the first text.

    Args:
        name: a run with `objective: embedding`, a model directory, a hub name, or a short name.

    Raises:
        UserError: nothing of that name exists, or it does not embed texts.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._model: Model = load(name)
        self._model.require("embed")
        self._question_prefix, self._chunk_prefix = _prefixes(self._model.reference)

    @property
    def fingerprint(self) -> str:
        """Identifies its weights and prefixes; two encoders with the same one give the same vectors."""
        marks = {**fingerprint_of(self.name), "question": self._question_prefix, "chunk": self._chunk_prefix}
        return sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()

    def count(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, without those that the tokenizer adds at its ends."""
        if not texts:
            return []
        found = self._model.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return [len(ids) for ids in found["input_ids"]]

    def question(self, text: str) -> Vectors:
        """The vector of a question (hidden,), of length 1."""
        vector: Vectors = _scaled(self._model.embed([self._question_prefix + text]))[0]
        return vector

    def chunks(self, texts: Sequence[str]) -> Vectors:
        """The vectors of chunks (texts, hidden), of length 1. Of a text that is longer than the model reads, it is the
        mean over parts that it reads, so that nothing is left out."""
        return np.stack([self._chunk(self._chunk_prefix + text) for text in texts])

    def _chunk(self, text: str) -> Vectors:
        parts = self._parts(text)
        vector: Vectors = _scaled(_scaled(self._model.embed(parts)).mean(0, keepdims=True))[0]
        return vector

    def _parts(self, text: str) -> list[str]:
        """The text in parts that the model reads."""
        room = room_for_text(self._model.model)
        if room is None:
            return [text]
        tokenizer = self._model.tokenizer
        room -= tokenizer.num_special_tokens_to_add()
        found = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        offsets = found["offset_mapping"]
        if len(offsets) <= room:
            return [text]
        starts = [offsets[index][0] for index in range(0, len(offsets), room)]
        return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _scaled(vectors: Vectors) -> Vectors:
    """(texts, hidden) to length 1, so that a product is a cosine."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = np.divide(vectors, np.maximum(lengths, 1e-12), dtype=np.float32)
    return scaled


def _prefixes(reference: ModelReference) -> tuple[str, str]:
    """What the model was trained to read before a question and before a document: from the run's recipe, else from
    sentence-transformers' prompts."""
    for directory in () if reference.directory is None else (reference.directory, reference.directory.parent):
        if (directory / "recipe.yaml").exists():
            objective = Recipe.load(directory / "recipe.yaml").objective
            return getattr(objective, "query_prefix", ""), getattr(objective, "document_prefix", "")
    file = stored_file(reference.base, "config_sentence_transformers.json")
    prompts = {} if file is None else json.loads(Path(file).read_text(encoding="utf-8")).get("prompts") or {}
    documents = next((prompts[name] for name in ("document", "passage", "corpus") if prompts.get(name)), "")
    return prompts.get("query") or "", documents
