"""Generation with transformers' own caches, for families whose attention or state cannot be paged: encoder–decoders,
state spaces, models with position biases. Prompts are padded to the longest of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.errors import UserError
from tunesmith.inference.request import Request, run_all
from tunesmith.inference.sampling import Scores, adjusted, random_stream, transformers_options
from tunesmith.models.attention import use_cached_attention
from tunesmith.models.prompts import plain_model, virtual_tokens

BATCH = 32
"""Prompts in one batch."""


class PaddedEngine:
    """Args:
    model: any that generates text.
    tokenizer: of the model.

    Attributes:
        on_tokens: called each time that the answers of a batch have a new token each.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self._tokenizer = model, tokenizer
        use_cached_attention(plain_model(model))
        positions = getattr(model.config, "max_position_embeddings", None)
        self.room = None if positions is None else positions - virtual_tokens(model)
        self.running = 0
        self.on_tokens: Callable[[], None] = lambda: None
        self._waiting: list[Request] = []

    @property
    def is_idle(self) -> bool:
        return not self._waiting

    @property
    def waiting(self) -> int:
        """Requests that no batch has had yet."""
        return len(self._waiting)

    def run(self, requests: Sequence[Request], done: Callable[[int], None] = lambda count: None) -> None:
        """Answer or score the requests. As `Engine.run`, except for adapters.

        Raises:
            UserError: a prompt is as long as the model's context, or longer with its completion.
        """
        try:
            run_all(self, requests, done)
        finally:
            self._waiting.clear()

    def submit(self, request: Request) -> None:
        """Add a request to the queue.

        Raises:
            UserError: as `run`.
        """
        request.refuse_wrong(self.room, self.model.config.get_text_config().vocab_size)
        if request.sampling.beams > 1 and not self.model.config.is_encoder_decoder:
            raise UserError("Beam search is for encoder–decoders. Sample several answers instead.")
        self._waiting.append(request)

    def step(self) -> list[Request]:
        """Answer a batch: the shortest of those that wait with the settings of the first. Returns what has ended."""
        ended = [request for request in self._waiting if request.finish]
        others = [request for request in self._waiting if not request.finish]
        same_settings = [each for each in others if _same_settings(each, others[0])] if others else []
        batch = sorted(same_settings, key=lambda each: len(each.prompt))[:BATCH]
        self._waiting = [request for request in others if request not in batch]
        self.running = len(batch)
        try:
            self._compute(batch)
        except Exception as exception:
            for request in batch:
                request.cancel(exception)
            raise
        finally:
            self.running = 0
        return ended + batch

    def abandon(self, exception: Exception) -> None:
        """End every request, since a step has failed.

        Args:
            exception: that of the step.
        """
        for request in self._waiting:
            request.cancel(exception)
        self._waiting.clear()

    def _compute(self, batch: Sequence[Request]) -> None:
        answers = [request for request in batch if request.completion is None]
        for request in batch:
            if request.completion is not None:
                self._score(request, request.completion)
        if answers:
            torch.manual_seed(random_stream(answers[0].sampling.seed, answers[0].number).initial_seed())
            self._answer(answers)

    @torch.no_grad()
    def _score(self, request: Request, completion: Sequence[int]) -> None:
        """Score the completion of a decoder's request, without padding."""
        ids = torch.tensor([[*request.prompt, *completion[:-1]]], device=self.model.device)
        logits = self.model(input_ids=ids, use_cache=False).logits[0]  # also of virtual tokens
        scores = Scores.of(logits[len(logits) - len(completion) :].float())
        logs = scores.logits - scores.totals[:, None]
        request.tokens = list(completion)
        request.log_probabilities = logs[torch.arange(len(completion)), torch.tensor(completion)].tolist()
        if request.sampling.top_logprobs:
            request.alternatives = scores.likeliest(request.sampling.top_logprobs)
        request.finish = "length"

    @torch.no_grad()  # not inference_mode: some of PEFT's methods keep tensors from the forward pass
    def _answer(self, batch: Sequence[Request]) -> None:
        encoder_decoder = self.model.config.is_encoder_decoder
        longest = max(len(request.prompt) for request in batch)
        options = transformers_options(batch[0].sampling)
        if self.room is not None:  # a decoder of its own has its own positions
            options["max_new_tokens"] = min(options["max_new_tokens"], self.room - (0 if encoder_decoder else longest))
        stops = sorted(set().union(*(request.stops for request in batch)))
        pad = self._tokenizer.pad_token_id
        pad = min(stops, default=0) if pad is None else pad
        ids = torch.full((len(batch), longest), pad)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            length = len(request.prompt)
            columns = slice(0, length) if encoder_decoder else slice(longest - length, longest)
            ids[row, columns] = torch.tensor(request.prompt)
            mask[row, columns] = 1
        first = 1 if encoder_decoder else longest
        recorder = _Recorder(batch, first, self.on_tokens)
        beams = options.get("num_beams", 1)
        out = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            eos_token_id=stops or None,
            pad_token_id=pad,
            logits_processor=[recorder] if beams == 1 else None,
            **options,
        )
        if beams == 1:
            recorder.record(out)
        else:
            recorder.replay(self.model, ids.to(self.model.device), mask.to(self.model.device), out)
        for request in batch:
            request.finish = request.finish or "length"


def _same_settings(one: Request, other: Request) -> bool:
    """Whether both are scored, or answered with the same settings."""
    return (one.completion is None) == (other.completion is None) and one.sampling == other.sampling


class _Recorder(LogitsProcessor):
    """Records each answer's tokens with their log-probabilities, applies the settings that transformers lacks, and ends
    answers.

    Args:
        batch: the requests, in the order of the rows.
        first: the column of the first new token.
        on_tokens: called after each token.
    """

    def __init__(self, batch: Sequence[Request], first: int, on_tokens: Callable[[], None]) -> None:
        self._batch, self._first, self._on_tokens = batch, first, on_tokens
        self._logs: Tensor | None = None

    def record(self, ids: Tensor) -> None:
        """Record the tokens that were chosen last; `ids`: (rows, tokens)."""
        if self._logs is None or ids.shape[1] <= self._first:
            return
        for row, (request, token) in enumerate(zip(self._batch, ids[:, -1].tolist(), strict=True)):
            if request.finish:
                continue
            request.take(token, float(self._logs[row, token]))
        self._on_tokens()

    def replay(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, out: Tensor) -> None:
        """Record the answers that beam search found (rows, tokens), with log p from one more pass over them."""
        logits = model(input_ids=ids, attention_mask=mask, decoder_input_ids=out[:, :-1]).logits
        for column in range(self._first, out.shape[1]):
            self._logs = torch.log_softmax(logits[:, column - 1].float(), -1)
            self.record(out[:, : column + 1])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.record(input_ids)
        self._logs = torch.log_softmax(scores.float(), -1)
        rows = []
        for request, row in zip(self._batch, scores, strict=True):
            if request.finish and request.stops:  # nothing but its end may follow
                row = torch.full_like(row, float("-inf")).index_fill(0, torch.tensor([min(request.stops)]), 0.0)
            others = replace(request.sampling, repetition_penalty=1.0)  # transformers applies that one
            row = adjusted(row, others, request.prompt, request.tokens)
            if request.constraint is not None and not request.finish:
                row = row.masked_fill(~request.constraint.allowed(), float("-inf"))
            rows.append(row)
        return torch.stack(rows)
