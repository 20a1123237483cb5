"""Fixtures: a tiny model and tokenizer, created for the session from real classes and real files, without network.

What is slow to import is imported where it is used: pytest-xdist's main process reads this file before it starts the
workers, and runs no test.
"""

import gc
import json
import logging
import os
from collections.abc import Callable, Hashable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

PLANNER = Path(__file__).parent / "planner"

CACHES = count()
"""Numbers of the tests' caches."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Before the first test is imported, in the processes that run tests."""
    if session.config.getoption("dist", "no") == "no":
        gc.disable()  # while a million objects are created that stay
        from hypothesis import HealthCheck, settings

        from tunesmith.models.peft_import import import_peft

        # A busy machine is no reason to fail. `make test-all` draws hypothesis' usual number of examples.
        examples = 25 if session.config.getoption("markexpr") else 100
        checks = [HealthCheck.too_slow]
        settings.register_profile("untimed", deadline=None, suppress_health_check=checks, max_examples=examples)
        settings.load_profile("untimed")
        import_peft()  # without bitsandbytes, which takes seconds


def pytest_collection_finish() -> None:
    """All tests are imported. The first collection need not scan what was."""
    from tunesmith.garbage_collection import freeze

    freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def one_thread_each() -> None:
    """Parallel workers, and the processes that they start, would compete for cores; tests of threads set two."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(1)
        threadpool_limits(1)  # for libraries that are loaded; the variables are for those that are not yet
        os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True, scope="module")
def quick_garbage_collection() -> None:
    """Leave what is imported out of garbage collections: a million objects, half a second each time."""
    from tunesmith.garbage_collection import freeze

    gc.collect()
    freeze()


@pytest.fixture(autouse=True)
def own_log_handlers() -> Iterator[None]:
    """A command that a test runs leaves no log handler, whose stream is closed, to a server of another test."""
    logger = logging.getLogger("tunesmith")
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers = handlers
    if logger.level != level:  # setting it takes a look at each logger of the process
        logger.setLevel(level)


@pytest.fixture(autouse=True, scope="session")
def counts_waiting() -> Iterator[Callable[[], dict[int, float] | None]]:
    """For every run the machine is idle, so that none warns that it is busy. Yields the function that really counts."""
    from tunesmith.planner import processor_time

    counts = processor_time.waited_by_thread
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor_time, "waited_by_thread", dict)
        yield counts


@pytest.fixture(scope="session")
def simulated_steps() -> dict[Hashable, Any]:
    """Of all tests of a process, by what they depend on."""
    return {}


@pytest.fixture(autouse=True, scope="module")
def each_step_simulated_once(request: pytest.FixtureRequest, simulated_steps: dict[Hashable, Any]) -> Iterator[None]:
    """A step is simulated once for all tests, but for each one of the planner's."""
    from repeated_plans import once

    from tunesmith.planner.step import Simulator

    with pytest.MonkeyPatch.context() as patch:
        if PLANNER not in request.path.parents:
            patch.setattr(Simulator, "step", once(Simulator.step, simulated_steps))
        yield


@pytest.fixture(autouse=True, scope="module")
def one_pass_timed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Before a run, its largest batch is timed once instead of five times, but in the planner's tests."""
    from tunesmith.planner import measure

    with pytest.MonkeyPatch.context() as patch:
        if PLANNER not in request.path.parents:
            patch.setattr(measure, "MOST", 1)
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a two-layer Llama with random weights and a byte tokenizer."""
    import torch
    from bytewise import byte_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

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
    import torch
    from families import config_of
    from matrix import word_tokenizer
    from transformers import AutoModel, AutoModelForSequenceClassification

    from tunesmith.heads.sentence_transformers_format import write_steps

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
