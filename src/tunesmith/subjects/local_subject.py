"""A model under evaluation that this process loads: a run, an adapter, a model directory, a GGUF file, a base."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.head import Head
from tunesmith.config.objective import ObjectiveConfig
from tunesmith.config.registry import OBJECTIVES
from tunesmith.data.cache import tokenizer_fingerprint
from tunesmith.data.example import Example
from tunesmith.data.prepare import Prepared
from tunesmith.data.template import UnusableError
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.allocator import release_freed_memory
from tunesmith.errors import UserError
from tunesmith.inference.generate import Generator
from tunesmith.inference.held_out import RowLosses, held_out_losses, row_outputs, row_vectors
from tunesmith.inference.model import Model
from tunesmith.inference.result_cache import ResultCache, digest_of
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import SOURCE, Score, scores_of
from tunesmith.inference.writing import Writing
from tunesmith.metrics.prediction_metrics import Predictions
from tunesmith.models.attention import use_document_attention
from tunesmith.models.prompts import plain_model
from tunesmith.subjects.kept_results import (
    KeptAnswers,
    chat_digest,
    model_digest,
    row_digest,
    score_from,
    score_values,
)
from tunesmith.subjects.subject import Answer, Chat, Timing, as_chat
from tunesmith.subjects.timing import timed

ANSWERS = 32
"""Answers after which those that are complete are written to the cache."""

SCORES = 64
"""Texts whose log-probabilities are computed before they are written to the cache."""

LOSS_ROWS = 128
"""Rows whose losses are computed before they are written to the cache. A row's last bits may depend on what else is in
its batch, so the rows of a batch are always the same, whatever is in the cache."""

TOKENS = 2048
"""Tokens in a batch of losses, if the recipe says nothing else."""


class LocalSubject:
    """A model of this process. Its weights are loaded at the first call that needs them.

    Args:
        name: its column in the tables.
        model: not loaded yet.
        tokenizer: None: the model's own.
        objective: gives a new head its first values, if the model is a base before its training.
        keeps: whether results are read from the user's cache, and written to it.
    """

    scores_texts = True

    def __init__(
        self,
        name: str,
        model: Model,
        tokenizer: PreTrainedTokenizerBase | None = None,
        objective: ObjectiveConfig | None = None,
        keeps: bool = True,
    ) -> None:
        self.name, self._model, self._objective, self.keeps = name, model, objective, keeps
        if tokenizer is not None:
            vars(model)["tokenizer"] = tokenizer  # before its first use
        self._fingerprint = tokenizer_fingerprint(model.tokenizer)

    def uncached(self) -> "LocalSubject":
        """The same model, of which everything is computed again, to be timed."""
        return LocalSubject(self.name, self._model, None, self._objective, keeps=False)

    @property
    def model(self) -> Model:
        """The model, whose weights this object loads and frees."""
        return self._model

    @property
    def head(self) -> Head:
        """What the model ends in."""
        return self._model.head

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the chat template of the training."""
        return self._model.tokenizer

    @cached_property
    def identity(self) -> str | None:
        """The hash of the weights, of how they are stored, and of the tokenizer; None if nothing is kept."""
        if not self.keeps:
            return None
        return model_digest(self._model, self._fingerprint, self._objective)

    def losses(
        self,
        objective: ObjectiveConfig,
        table: TokenTable,
        tokens_per_batch: int = TOKENS,
        done: Callable[[int], None] = lambda count: None,
    ) -> RowLosses:
        """The objective's loss of each row, packed as in training.

        Args:
            objective: computes it.
            table: the rows.
            tokens_per_batch: the most tokens in a batch.
            done: called with the number of rows whose loss is known, as it grows.

        Returns:
            The losses.

        Raises:
            UserError: the model cannot be loaded, or a user's objective fails.
        """
        is_ours = not OBJECTIVES.is_users(objective.kind)  # users change their code
        asked = ["figures", objective.model_dump(mode="json"), tokens_per_batch]
        cache = ResultCache(self.identity if is_ours else None, asked)
        parts: list[RowLosses] = []
        size = len(table) if objective.compares_rows else LOSS_ROWS
        for start in range(0, len(table), size):
            rows = range(start, min(start + size, len(table)))
            key = digest_of([row_digest(table, row) for row in rows])  # rows of a batch, so kept together
            if key not in cache:
                model = self._plain()
                found = held_out_losses(model, objective.build(), table, rows, tokens_per_batch)
                others = {name: values.tolist() for name, values in found.others.items()}
                cache.add({key: [found.sums.tolist(), found.counts.tolist(), others]})
            sums, counts, others = cache[key]
            arrays = {name: np.array(values, np.float64) for name, values in others.items()}
            parts.append(RowLosses(np.array(sums, np.float64), np.array(counts, np.int64), arrays))
            done(rows.stop)
        return RowLosses.joined(parts)

    def predictions(self, objective: ObjectiveConfig, prepared: Prepared, tokens_per_batch: int) -> Predictions:
        """What a head that does not write text predicts for every held-out row.

        If the objective has a classifier of vectors and the model has none (the base), one is fitted on the model's
        vectors of the training rows.

        Args:
            objective: whose head it is.
            prepared: the rows.
            tokens_per_batch: the most tokens in a batch.

        Returns:
            The predictions, with the targets.

        Raises:
            UserError: the model cannot be loaded, or a user's head fails.
        """
        head, table, model = objective.head, prepared.held_out, self._plain()
        classifier = self._model.reference.classifier() or objective.build().fit_classifier(
            lambda: row_vectors(head, model, prepared.train, tokens_per_batch)
        )
        targets = [head.targets(table.targets_of(row)) for row in range(len(table))]
        fitted = head if classifier is None else head.with_classifier(classifier)
        return Predictions(row_outputs(fitted, model, table, tokens_per_batch), targets, head.labels)

    def answers(
        self, chats: Sequence[Chat], sampling: Sampling, done: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """As `Subject.answers`. What is known already is not computed again.

        Raises:
            UserError: the model does not write text, or a chat cannot be rendered or is too long.
        """
        report = done or (lambda count: None)
        cache = ResultCache(self.identity, ["answers", asdict(sampling)])
        keys = [chat_digest(chat, number, sampling) for number, chat in enumerate(chats)]
        missing = {key: number for number, key in enumerate(keys) if key not in cache}
        if len(missing) < len(chats):
            report(len(chats) - len(missing))
        if missing:
            writings = {key: self._begin(chats[number], sampling, number) for key, number in missing.items()}
            kept = KeptAnswers(writings, cache)

            def progress(count: int) -> None:
                kept.add_ended(ANSWERS)
                report(len(chats) - len(missing) + count)

            try:
                self.generator().engine.run([writing.request for writing in writings.values()], progress)
            finally:  # also if it is interrupted
                kept.add_ended(1)
        return [Answer(**cache[key]) for key in keys]

    def scores(self, prompts: Sequence[str | Chat] | None, texts: Sequence[str]) -> list[Score]:
        """As `Subject.scores`. What is known already is not computed again.

        Raises:
            UserError: the model does not write text or is an encoder–decoder, or a text cannot be rendered or is too
                long.
        """
        self._model.require("generate")
        chats = None if prompts is None else [as_chat(prompt) for prompt in prompts]
        cache = ResultCache(self.identity, "scores")
        keys = [digest_of([None if chats is None else list(chats[number]), text]) for number, text in enumerate(texts)]
        missing = list({key: number for number, key in enumerate(keys) if key not in cache}.values())
        for start in range(0, len(missing), SCORES):
            part = missing[start : start + SCORES]
            asked = None if chats is None else [chats[number] for number in part]
            found = self._scores(asked, [texts[number] for number in part])
            cache.add({keys[number]: score_values(score) for number, score in zip(part, found, strict=True)})
        return [score_from(cache[key]) for key in keys]

    def _scores(self, chats: Sequence[Chat] | None, texts: Sequence[str]) -> list[Score]:
        """What is not in the cache."""
        self.generator()
        if chats is None:
            return self._model.score(texts)
        if all(len(chat) == 1 for chat in chats):
            return self._model.score([str(chat[0]["content"]) for chat in chats], texts)
        return self._answer_scores(chats, texts)

    def timings(self, chats: Sequence[Chat], sampling: Sampling, concurrent: int) -> list[Timing]:
        """As `Subject.timings`.

        Raises:
            UserError: the model does not write text, or a chat cannot be rendered or is too long.
        """
        engine = self.generator().engine
        return timed(engine, [self._begin(chat, sampling, number) for number, chat in enumerate(chats)], concurrent)

    def generator(self) -> Generator:
        """The model in the engine. If its weights are in memory already, they are used, and changed in place.

        Raises:
            UserError: the model does not write text, or cannot be loaded.
        """
        model, loaded = self._model, vars(self._model)
        model.require("generate")
        if "generator" not in loaded:
            plain = loaded.pop("model", None)
            loaded["generator"] = Generator.of(
                model.reference, model.dtype, model.device, model.concurrent, loaded=plain, tokenizer=model.tokenizer
            )
        return model.generator

    def close(self) -> None:
        """Free the weights. They are loaded again if they are needed again."""
        for name in ("model", "generator"):
            vars(self._model).pop(name, None)
        gc.collect()
        release_freed_memory()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _plain(self) -> PreTrainedModel:
        """The model of transformers, which computes packed rows."""
        loaded = vars(self._model)
        if "model" not in loaded:
            loaded.pop("generator", None)
            model = self._model.model
            if self._objective is not None:
                self._objective.initialize_head(model)
            use_document_attention(plain_model(model))
        return self._model.model

    def _begin(self, chat: Chat, sampling: Sampling, number: int) -> Writing:
        generator = self.generator()
        try:
            return generator.begin(generator.ids(generator.prompt_of(chat)), sampling, number)
        except UnusableError as error:
            raise UserError(f"{self.name}: a chat cannot be rendered: {error}.") from None

    def _answer_scores(self, chats: Sequence[Chat], texts: Sequence[str]) -> list[Score]:
        """The log-probabilities of answers to chats of several turns."""
        generator, rows = self.generator(), []
        if generator.model.config.is_encoder_decoder:
            raise UserError(f"{self.name} is an encoder–decoder, and log-probabilities are of decoders only.")
        for chat, text in zip(chats, texts, strict=True):
            example = Example(SOURCE, messages=(*chat, {"role": "assistant", "content": text}))
            try:
                rows += generator.renderer.tokenize_many(generator.renderer.render(example, "last"))
            except UnusableError as error:
                raise UserError(f"{self.name}: a chat cannot be rendered: {error}.") from None
        return scores_of(generator, rows)
