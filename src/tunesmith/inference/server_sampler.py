"""Samples from a server of vLLM or of `tunesmith serve`, which gets the adapter in training before each phase."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.objective import SamplingServer
from tunesmith.data.render import Renderer
from tunesmith.errors import UserError
from tunesmith.inference.adapter_on_server import AdapterOnServer
from tunesmith.inference.generate import end_tokens
from tunesmith.inference.openai_client import OpenAIClient, RefusedError
from tunesmith.inference.sampling import Sampling, stream_seed
from tunesmith.models.prompts import plain_model
from tunesmith.objectives.rollouts import Completion

MOST_REQUESTS = 64
"""At the same time."""

MOST_ANSWERS = 64
"""Of one request."""

MOST_WAITING = 512
"""Answers that are asked for at the same time: as many as `tunesmith serve` lets wait."""

PROBE = "Is 3 + 4 = 7? Straße, 12,5 µm; naïve 漢字 🙂\n\tEnd."
"""A text that tokenizers split differently."""


class ServerSampler:
    """Samples as `Sampler` does, elsewhere.

    Args:
        model: in training, with LoRA applied.
        tokenizer: with the chat template of the training.
        settings: of the server.
        directory: of the run.

    Raises:
        UserError: the server cannot load such an adapter while it runs, does not answer, or does not report what is
            needed.
    """

    pages = 0
    """Of a cache in this process: none."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: SamplingServer, directory: Path
    ) -> None:
        self.tokenizer = tokenizer
        self.stops = frozenset(end_tokens(plain_model(model), Renderer(tokenizer)))
        self._client = OpenAIClient.of(settings.server)
        self._adapter = AdapterOnServer(model, self._client, settings.folder, directory)
        self._check_server()
        self._adapter.drop_leftovers()

    def sample(self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], sampling: Sampling) -> list[Completion]:
        """Continue each prompt, with the weights as they are now. Arguments are those of `Sampler.sample`.

        Returns:
            One for each prompt. If the server computes what this machine computes, they have the same random numbers as
            those of `Sampler`.

        Raises:
            UserError: the server does not answer, refuses, or leaves something out.
        """
        name = self._adapter.sent()
        parts = list(_parts(prompts, numbers, 1 if sampling.temperature == 0 else MOST_ANSWERS))
        found = self._all(
            [
                {
                    "model": name,
                    "prompt": list(prompts[start]),
                    "n": end - start,
                    "max_tokens": sampling.max_new_tokens,
                    "temperature": sampling.temperature,
                    "seed": stream_seed(sampling.seed, numbers[start]),
                    "stop_token_ids": sorted(self.stops),
                    "logprobs": 1,
                    "return_token_ids": True,
                    **NOTHING_LEFT_OUT,
                }
                for start, end in parts
            ]
        )
        return [
            self._completion(choice, prompts[start])
            for (start, end), reply in zip(parts, found, strict=True)
            for choice in self._choices(reply, end - start)
        ]

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """log p of each completion's tokens, in nats, with the weights as they are now.

        Args:
            rows: prompt and completion, as ids.

        Raises:
            UserError: as `sample`.
        """
        name = self._adapter.sent()
        found = self._all(
            [
                {
                    "model": name,
                    "prompt": [*prompt, *completion],
                    "max_tokens": 1,  # vLLM writes one anyway
                    "temperature": 0,
                    "logprobs": 1,
                    "echo": True,
                }
                for prompt, completion in rows
            ]
        )
        scores = []
        for (prompt, completion), reply in zip(rows, found, strict=True):
            (choice,) = self._choices(reply, 1)
            logs = self._log_probs(choice)[len(prompt) : len(prompt) + len(completion)]
            scores.append(self._numbers(logs, len(completion)))
        return scores

    def end(self) -> None:
        """Have the server forget the adapter, and remove its files."""
        self._adapter.end()

    def _check_server(self) -> None:
        """Refuse a server of another tokenizer, or that does not report ids and log-probabilities."""
        asked = {"prompt": PROBE, "max_tokens": 1, "temperature": 0, "logprobs": 1, "return_token_ids": True}
        (choice,) = self._choices(self._client.call("completions", **asked), 1)
        ids = choice.get("prompt_token_ids")
        if ids is None or choice.get("token_ids") is None:
            raise UserError(
                f"{self._client.url} does not return token ids, which training needs. vLLM from version 0.10.2 on and "
                "tunesmith serve do."
            )
        own = [self.tokenizer(PROBE, add_special_tokens=special)["input_ids"] for special in (True, False)]
        if ids not in own:
            raise UserError(
                f"{self._client.url} has another tokenizer: {self._client.model} splits a text into other tokens than "
                "the model in training does. Serve the same base."
            )
        self._numbers(self._log_probs(choice), len(choice["token_ids"]))

    def _all(self, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The replies to requests for completions."""
        answers = max((body.get("n", 1) for body in bodies), default=1)
        with ThreadPoolExecutor(min(MOST_REQUESTS, MOST_WAITING // answers)) as pool:
            try:
                return list(pool.map(self._complete, bodies))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._client.call("completions", **body)
        except RefusedError as error:
            if error.code == 404:
                raise UserError(
                    f"{self._client.url} no longer has the adapter in training: {error.why.rstrip('.')}. If it was "
                    "restarted, resume the run."
                ) from None
            raise

    def _choices(self, reply: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """The choices of a reply, in order."""
        choices = sorted(reply.get("choices") or [], key=lambda each: each["index"])
        if len(choices) != count:
            raise UserError(f"{self._client.url} returned {len(choices)} completions where {count} were asked for.")
        return choices

    def _completion(self, choice: dict[str, Any], prompt: Sequence[int]) -> Completion:
        tokens = choice.get("token_ids")
        if not tokens or choice.get("prompt_token_ids") != list(prompt):
            raise UserError(f"{self._client.url} did not continue a prompt as it was sent, token by token.")
        if choice["finish_reason"] not in ("stop", "length"):
            raise UserError(f"{self._client.url} did not complete a completion: {choice['finish_reason']}.")
        is_truncated = choice["finish_reason"] == "length"
        text = tokens if is_truncated else tokens[:-1]
        return Completion(
            tokens,
            self._numbers(self._log_probs(choice), len(tokens)),
            self.tokenizer.decode(text, skip_special_tokens=True),
            is_truncated,
        )

    def _log_probs(self, choice: dict[str, Any]) -> list[Any]:
        return (choice.get("logprobs") or {}).get("token_logprobs") or []

    def _numbers(self, logs: list[Any], count: int) -> list[float]:
        """Log-probabilities, one for each token."""
        if len(logs) != count or None in logs:
            raise UserError(
                f"{self._client.url} does not return the log-probability of each token, which training needs."
            )
        return logs


NOTHING_LEFT_OUT = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""What keeps the defaults in the model's `generation_config.json`, which servers take, from changing the policy."""


def _parts(prompts: Sequence[Sequence[int]], numbers: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Where runs of the same prompt with consecutive numbers start and end; `most` is the longest."""
    start = 0
    for end in range(1, len(prompts) + 1):
        goes_on = end < len(prompts) and end - start < most and numbers[end] == numbers[end - 1] + 1
        if not (goes_on and list(prompts[end]) == list(prompts[start])):
            yield start, end
            start = end
