"""Fixtures: a tiny model and tokenizer, created for the session from real classes and real files, without network."""

import gc
import json
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from bytewise import byte_tokenizer
from families import config_of
from hypothesis import HealthCheck, settings
from matrix import word_tokenizer
from threadpoolctl import threadpool_limits
from transformers import AutoModel, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from tunesmith.garbage_collection import freeze
from tunesmith.heads.sentence_transformers_format import write_steps
from tunesmith.planner import processor_time

# A busy machine is no reason to fail.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

CACHES = count()
"""Numbers of the tests' caches."""


@pytest.fixture(autouse=True, scope="session")
def one_thread_each() -> None:
    """Parallel workers, and the processes that they start, would compete for cores; tests of threads set two."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        threadpool_limits(1)  # for libraries that are loaded; the variables are for those that are not yet
        os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True, scope="module")
def quick_garbage_collection() -> None:
    """Leave what is imported out of garbage collections: a million objects, half a second each time."""
    gc.collect()
    freeze()


@pytest.fixture(autouse=True, scope="session")
def counts_waiting() -> Iterator[Callable[[], dict[int, float] | None]]:
    """For every run the machine is idle, so that none warns that it is busy. Yields the function that really counts."""
    counts = processor_time.waited_by_thread
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor_time, "waited_by_thread", dict)
        yield counts


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a two-layer Llama with random weights and a byte tokenizer."""
    directory = tmp_path_factory.mktemp("tiny") / "llama"
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`classes`, a classifier in transformers' format, and `vectors`, an embedding model in sentence-transformers'."""
    directory = tmp_path_factory.mktemp("reading")
    tokenizer = word_tokenizer()
    config = config_of("bert", len(tokenizer), initializer_range=0.3)
    config.num_labels = 3
    config.id2label, config.label2id = {0: "no", 1: "perhaps", 2: "yes"}, {"no": 0, "perhaps": 1, "yes": 2}
    torch.manual_seed(2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory / "classes")
    AutoModel.from_config(config).save_pretrained(directory / "vectors")
    for name in ("classes", "vectors"):
        tokenizer.save_pretrained(directory / name)
    write_steps(directory / "vectors", "mean", True, config.hidden_size, 64)
    return directory


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write question–answer rows as JSONL and return the file."""

    def write(count: int = 60, name: str = "rows.jsonl") -> Path:
        file = tmp_path / name
        rows = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}, of course."} for n in range(count)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test reads the cache of another test or of the user. A directory of the test's own is not made for this."""
    if "tmp_path" in request.fixturenames:
        directory = request.getfixturevalue("tmp_path") / "cache"
    else:
        directory = tmp_path_factory.getbasetemp() / "caches" / str(next(CACHES))
    monkeypatch.setenv("TUNESMITH_CACHE", str(directory))
