"""What the server counts, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """The label `model` is the name that a client asked for: the model's, or an adapter's.

    Args:
        waiting: how many requests wait.
        running: how many are being computed.
    """

    def __init__(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        label, registry = ["model"], self._registry
        for name, text, function in (
            ("tunesmith_requests_waiting", "Answers that wait for room: the queue.", waiting),
            ("tunesmith_requests_running", "Answers that are being written: the batch.", running),
        ):
            Gauge(name, text, registry=registry).set_function(function)
        self.open_answers = Gauge(
            "tunesmith_open_answers", "Answers that wait or are being written.", label, registry=registry
        )
        self.requests = Counter(
            "tunesmith_requests",
            "Requests by what came of them; those for no model that is here have an empty one.",
            [*label, "endpoint", "status"],
            registry=registry,
        )
        self.prompt_tokens = Counter("tunesmith_prompt_tokens", "Tokens of prompts.", label, registry=registry)
        self.cached_tokens = Counter("tunesmith_cached_tokens", "Of these, from the cache.", label, registry=registry)
        self.answer_tokens = Counter("tunesmith_answer_tokens", "Tokens of answers.", label, registry=registry)
        self.first_token = Histogram(
            "tunesmith_first_token_seconds", "From a request to its first token.", label, registry=registry,
            buckets=SECONDS,
        )  # fmt: skip
        self.per_token = Histogram(
            "tunesmith_token_seconds", "Between two tokens of an answer, on average.", label, registry=registry,
            buckets=SECONDS,
        )  # fmt: skip

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
