"""Samples from a model in training, on the generation engine: the same modules and weights, and no copy of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.data.render import Renderer
from tunesmith.inference.adapter_kinds import Adapter, VirtualTokens
from tunesmith.inference.engine import Engine
from tunesmith.inference.generate import end_tokens
from tunesmith.inference.memory import CONCURRENT, free_bytes, generation_memory
from tunesmith.inference.padded_engine import PaddedEngine
from tunesmith.inference.paged_model import PagedModel, model_in_training
from tunesmith.inference.pages import pages_for
from tunesmith.inference.request import Request
from tunesmith.inference.sampling import Sampling
from tunesmith.models.attention import packs
from tunesmith.models.prompts import has_prompt, plain_model
from tunesmith.objectives.rollouts import Completion

VIRTUAL_TOKENS = "in training"
"""The name in the engine of the virtual tokens that PEFT puts before a text."""


class Sampler:
    """The engine's caches are in memory only while it samples. What a text began with is computed anew each time,
    because the weights have changed.

    Args:
        model: in training, with the method applied.
        tokenizer: with the chat template of the training.
        pages: of the cache; 0: as many as the requests can use and the memory at the first call allows. The schedule of
            the requests follows from it, so that a resumed run needs the same number for the same bits.
        concurrent: the most sequences at the same time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pages: int = 0,
        concurrent: int = CONCURRENT,
    ) -> None:
        self.model, self.tokenizer, self.pages, self.concurrent = model, tokenizer, pages, concurrent
        self.stops = frozenset(end_tokens(plain_model(model), Renderer(tokenizer)))
        self._paged: PagedModel | None = None
        if packs(plain_model(model)):
            with self._evaluating():
                self._paged = model_in_training(model)
        if self._paged is not None:
            self._paged.allocate(0)

    @property
    def is_paged(self) -> bool:
        """Whether the model is computed over paged caches, rather than in padded batches with transformers' own."""
        return self._paged is not None

    def sample(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], sampling: Sampling) -> list[Completion]:
        """Continue each prompt.

        Args:
            prompts: as ids.
            numbers: of each prompt's own stream of random numbers, by which it is sampled whatever the others are.
            sampling: how tokens are chosen.

        Returns:
            One for each prompt.

        Raises:
            UserError: a prompt is as long as the model's context.
        """
        requests = [
            Request(prompt, sampling, self.stops, number) for prompt, number in zip(prompts, numbers, strict=True)
        ]
        self._run(requests)
        return [self._completion(request) for request in requests]

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """log p of each completion's tokens, in nats, computed as `sample` computes them.

        Args:
            rows: prompt and completion, as ids.

        Raises:
            UserError: a row is longer than the model's context.
        """
        requests = [Request(prompt, completion=completion) for prompt, completion in rows]
        self._run(requests)
        return [request.log_probabilities for request in requests]

    def end(self) -> None:
        """Nothing: the caches are freed after each call."""

    def _run(self, requests: Sequence[Request]) -> None:
        with self._evaluating():
            if self._paged is None:
                with self._own_attention():
                    PaddedEngine(self.model, self.tokenizer).run(requests)
                return
            try:
                self._engine(requests).run(requests)
            finally:
                self._paged.allocate(0)

    def _engine(self, requests: Sequence[Request]) -> Engine:
        """An engine with an empty cache."""
        paged = self._paged
        assert paged is not None
        adapter = self._virtual_tokens()
        count = 0 if adapter is None else adapter.virtual.count
        most = max(len(each.prompt) + each.sampling.max_new_tokens + len(each.completion or ()) for each in requests)
        useful = min(self.concurrent, len(requests)) * pages_for(count + most)
        page = paged.bytes_per_page()
        if not self.pages:
            on_gpu = paged.device.type == "cuda"
            free = generation_memory(paged.model, page, free_bytes(paged.device), on_gpu=on_gpu).cache
            self.pages = max(pages_for(count + most), free // page)
        engine = Engine(paged, self.concurrent, cache_bytes=min(useful, self.pages) * page, cuda_graphs=False)
        if adapter is not None:
            engine.adapters.put(VIRTUAL_TOKENS, adapter)
            for request in requests:
                request.adapter = VIRTUAL_TOKENS
        return engine

    @torch.no_grad()
    def _virtual_tokens(self) -> Adapter | None:
        """What PEFT puts before a text at present; None: nothing."""
        if not has_prompt(self.model):
            return None
        prompt = self.model.get_prompt(1)
        if isinstance(prompt, Tensor):
            return Adapter(VIRTUAL_TOKENS, virtual=VirtualTokens(prompt.shape[1], embeddings=prompt[0].detach()))
        parts = tuple((layer.keys.detach(), layer.values.detach()) for layer in prompt.layers)
        return Adapter(VIRTUAL_TOKENS, virtual=VirtualTokens(parts[0][0].shape[2], keys_and_values=parts))

    def _completion(self, request: Request) -> Completion:
        ended = [] if request.end is None else [request.end]
        return Completion(
            [*request.tokens, *(token for token, _ in ended)],
            [*request.log_probabilities, *(log for _, log in ended)],
            self.tokenizer.decode(request.tokens, skip_special_tokens=True),
            is_truncated=not ended,
        )

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Within the block, the model is in evaluation mode; PyTorch's own random numbers are as before afterwards."""
        modes = [(module, module.training) for module in self.model.modules()]
        on_gpu = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(on_gpu):
            self.model.eval()
            try:
                yield
            finally:
                for module, training in modes:
                    module.training = training

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        """Within the block, the padded engine may set the family's own attention."""
        plain: Any = plain_model(self.model)
        before = plain.config._attn_implementation
        try:
            yield
        finally:
            if plain.config._attn_implementation != before:
                plain.set_attn_implementation(before)
