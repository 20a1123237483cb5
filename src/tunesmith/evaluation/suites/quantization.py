"""Quantization: one model in several forms, side by side: what each loses, how much memory it takes, how fast it is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tunesmith.evaluation.llama_server import llama_server
from tunesmith.evaluation.subjects import refuse_unknown_storage
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.latency import prompts
from tunesmith.exporting.gguf_quantizer import library_file
from tunesmith.inference.model import Model
from tunesmith.inference.openai_client import OpenAIClient
from tunesmith.inference.sampling import Sampling
from tunesmith.modules.weight_bytes import weight_bytes
from tunesmith.statistics.measured import Measured, mean_of
from tunesmith.subjects.served_subject import ServedSubject
from tunesmith.subjects.subject import Chat, Subject, Timing

KINDS = "fp32,bf16,int8,nf4,gguf:q8_0,gguf:q4_k_m"

REQUESTS = 8
"""Answers that are timed, at most, one after another."""

WORDS = 32
"""Of a prompt."""

ANSWER = 64
"""The most tokens of an answer."""

CONTEXT = 1024
"""Tokens of a prompt and its answer, at most, in llama.cpp."""

MEGABYTE = 10**6


class Quantization:
    """Makes forms of the only model under evaluation the models of the evaluation, and adds their memory and speed.

    Args:
        kinds: of the forms, separated by commas, the one that the others are compared with first.

    Attributes:
        storages: the kinds.

    Raises:
        UserError: there is no such kind.
    """

    most_rows = REQUESTS

    def __init__(self, kinds: str = KINDS) -> None:
        self.storages = tuple(kind.strip() for kind in kinds.split(","))
        for storage in self.storages:
            refuse_unknown_storage(f"quantization.kinds: {kinds}", storage)

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """As `Suite.measure`.

        Args:
            subject: a form of the model.
            context: of the evaluation; its `count` limits the answers that are timed.

        Returns:
            `memory`; for models that write text also `tokens_per_second`, of a GGUF file if llama.cpp is installed.

        Raises:
            UserError: the model cannot be loaded, or llama.cpp cannot load its file.
        """
        model = subject.model
        assert model is not None  # forms are of models of this machine
        chats = prompts(min(REQUESTS, context.count or REQUESTS), WORDS, seed=0)
        context.progress("quantization", 0, len(chats))
        file = Path(model.name) if model.name.endswith(".gguf") else None
        timings = _timings(subject, chats) if file is None else _timings_in_llama_cpp(subject, file, chats)
        figures = {"memory": _memory(_loaded_bytes(model) if file is None else file.stat().st_size)}
        context.progress("quantization", len(chats), len(chats))
        return figures if not timings else figures | {"tokens_per_second": _speed(timings)}


def _loaded_bytes(model: Model) -> int:
    """Of the weights of a model that is loaded."""
    return model.generator.weight_bytes if model.head.generates_text else weight_bytes(model.model)


def _timings(subject: Subject, chats: Sequence[Chat]) -> list[Timing]:
    """In Tunesmith's engine; none of a model that writes no text."""
    assert subject.model is not None
    if not subject.model.head.generates_text:
        return []
    sampling = Sampling(ANSWER)
    subject.timings(chats[:1], sampling, 1)  # the first answer compiles and fills caches
    return subject.timings(chats, sampling, 1)


def _timings_in_llama_cpp(subject: Subject, file: Path, chats: Sequence[Chat]) -> list[Timing]:
    """In llama.cpp; none if it is not installed."""
    if library_file() is None:
        return []
    subject.close()  # the file is in memory once
    with llama_server(file, CONTEXT, torch.get_num_threads()) as address:
        served = ServedSubject(subject.name, OpenAIClient(address), 1)
        served.timings(chats[:1], Sampling(ANSWER), 1)
        return served.timings(chats, Sampling(ANSWER), 1)


def _memory(size: int) -> Measured:
    """It is counted and not sampled, so it is not tested."""
    figure = mean_of(
        [size / MEGABYTE], ["weights"], "memory", "of the weights, as they are loaded; of a GGUF file its size",
        "lower", "MB",
    )  # fmt: skip
    return replace(figure, is_compared=False)


def _speed(timings: Sequence[Timing]) -> Measured:
    return mean_of(
        [timing.tokens / timing.total for timing in timings],
        [f"answer {number}" for number in range(1, len(timings) + 1)],
        "speed",
        "tokens of an answer, divided by the time until its end, one answer at a time; of a GGUF file in llama.cpp",
        "higher",
        "tokens/s",
    )
