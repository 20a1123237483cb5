"""A reward model on a server, through vLLM's pooling API, which `tunesmith serve` has too.

https://docs.vllm.ai/en/latest/models/pooling_models/reward/
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from tunesmith.data.example import Message
from tunesmith.errors import UserError
from tunesmith.inference.openai_client import OpenAIClient, RefusedError

Read = str | list[Message]
"""What a reward model reads: a text, or a chat that ends with the answer."""

PATH = "/pooling"

FIELDS = {
    "task": "classify",  # one score for a chat, not one for each token
    "use_activation": False,  # the score itself, not its sigmoid or softmax
    "truncate_prompt_tokens": -1,  # to the model's context
}

PROBES = ("It is nine o'clock.", "I do not know.")

NO_MODEL = "Serve a reward model, with tunesmith serve RUN or vllm serve MODEL --runner pooling"


class RewardServer:
    """Scores texts and chats by a model on a server.

    Args:
        client: of the server.
        concurrent: the most requests at the same time. A request has one text, since vLLM takes one chat in each; the
            server makes batches of what it is asked at the same time.
    """

    def __init__(self, client: OpenAIClient, concurrent: int) -> None:
        self._client, self._concurrent = client, concurrent

    def check(self, reads_chats: bool) -> None:
        """Refuse a server that does not score.

        Args:
            reads_chats: whether it is to read chats, not texts.

        Raises:
            UserError: it does not answer, has no such model, or returns something else than a finite score.
        """
        question = {"role": "user", "content": "What time is it?"}
        chats: list[Read] = [[question, {"role": "assistant", "content": answer}] for answer in PROBES]
        scores = self.scores(chats if reads_chats else PROBES)
        if all(score == 1 for score in scores):
            raise UserError(
                f"{self._client.url} gives the score 1 to different answers, as the softmax of one output does. Use "
                "vLLM 0.11.1 or newer."
            )

    def scores(self, reads: Sequence[Read]) -> list[float]:
        """The score of each text or chat.

        Args:
            reads: texts or chats.

        Raises:
            UserError: the server does not answer, refuses, or returns something else than a finite score.
        """
        self._client.model  # noqa: B018  # asked for once, not by each thread
        with ThreadPoolExecutor(self._concurrent) as pool:
            try:
                return list(pool.map(self._score, reads))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _score(self, read: Read) -> float:
        asked = {"input" if isinstance(read, str) else "messages": read}
        try:
            reply = self._client.call(PATH, **asked, **FIELDS)
        except RefusedError as error:
            raise self._explained(error) from None
        data = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(data, list) or len(data) != 1 or not isinstance(data[0], dict):
            count = len(data) if isinstance(data, list) else "no"
            raise UserError(f"{self._client.url} returned {count} scores for one text. {NO_MODEL}.")
        return self._number(data[0].get("data"))

    def _number(self, score: Any) -> float:
        """A finite score, which may be in lists of one value."""
        while isinstance(score, list) and len(score) == 1:
            (score,) = score
        if isinstance(score, list):
            raise UserError(
                f"{self._client.url} returned {len(score)} values for one text, so {self._client.model} is no reward "
                f"model with one output. {NO_MODEL}."
            )
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise UserError(f"{self._client.url} returned the score {score!r}, which is no finite number.")
        return float(score)

    def _explained(self, error: RefusedError) -> UserError:
        """The refusal; of a name or a path that is not there, which one it is."""
        if error.code != 404:
            return error
        names: list[str] = []
        with suppress(UserError):
            names = [str(each["id"]) for each in self._client.call("models").get("data") or []]
        if names and self._client.model not in names:
            return UserError(
                f"{self._client.url} has no model {self._client.model}. It has {', '.join(names)}: name one as "
                f"{self._client.url}#{names[0]}."
            )
        return UserError(f"{self._client.url} has no {PATH}, so it serves no reward model. {NO_MODEL}.")
