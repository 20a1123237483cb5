"""`/v1/embeddings` and `/v1/classify`: for models that end in a vector, a class, a value or tags."""

import base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tunesmith.errors import UserError
from tunesmith.heads.prediction import Prediction, room_for_text
from tunesmith.serving.bodies import ClassifyBody, EmbeddingBody
from tunesmith.serving.errors import ApiError
from tunesmith.serving.service import Service, Target, reserve, unless_gone

R = TypeVar("R")

GROUP = 8
"""Texts that are computed without looking whether the client is still there."""


class Vectors:
    """Computes something for each text.

    Args:
        service: of the model.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def embeddings(self, request: Request) -> Response:
        """`/v1/embeddings`."""
        service = self._service
        body, target = await service.asked(request, EmbeddingBody)
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors, tokens = await unless_gone(
            request, self._each(target, texts, lambda group: list(service.model.embed(group)))
        )
        as_base64 = body.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(each) if as_base64 else each.tolist()}
            for index, each in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": target.model, "usage": usage})

    async def classify(self, request: Request) -> Response:
        """`/v1/classify`: the labels of each text with their probabilities, or its value."""
        service = self._service
        body, target = await service.asked(request, ClassifyBody)
        texts = [body.input] if isinstance(body.input, str) else body.input
        found, tokens = await unless_gone(request, self._each(target, texts, service.model.classify))
        value = "probability" if service.model.head.has_probabilities else "value"
        data = [
            {"object": "classification", "index": index, "labels": [_label(each, value) for each in predictions]}
            for index, predictions in enumerate(found)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": target.model, "usage": usage})

    async def _each(
        self, target: Target, texts: Sequence[str], compute: Callable[[list[str]], Sequence[R]]
    ) -> tuple[list[R], int]:
        """The result for each text, and the number of tokens of all.

        Raises:
            ApiError: a text is empty or too long, the model does something else, or the key's tokens are used up.
        """
        self._service.refuse_full(1)
        tokens = await self._service.prepare(partial(self._count, texts))
        reserve(target.client, tokens)
        results: list[R] = []
        for start in range(0, len(texts), GROUP):
            group = list(texts[start : start + GROUP])
            try:
                results += await self._service.thread.call(partial(compute, group))
            except UserError as error:
                raise ApiError(400, str(error)) from None
        self._service.metrics.prompt_tokens.labels(target.model).inc(tokens)
        return results, tokens

    def _count(self, texts: Sequence[str]) -> int:
        model, total = self._service.model, 0
        room = room_for_text(model.model)
        for index, text in enumerate(texts):
            tokens = len(model.tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"])
            if not text.strip():
                raise ApiError(400, f"input {index} is empty. Give it some text.", "input")
            if room is not None and tokens > room:
                message = f"input {index} has {tokens:,} tokens, and the model reads at most {room:,}. Shorten it."
                raise ApiError(400, message, "input", "context_length_exceeded")
            total += tokens
        return total


def _base64(vector: np.ndarray[Any, np.dtype[np.float32]]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _label(prediction: Prediction, value: str) -> dict[str, Any]:
    words = {"text": prediction.words} if prediction.words else {}
    return {"label": prediction.label, **words, value: prediction.value}
