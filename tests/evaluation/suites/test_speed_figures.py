"""The figures of speed and memory, on given times and sizes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from given_subject import Context, Given, values

from tunesmith.evaluation.suites import quantization
from tunesmith.evaluation.suites.latency import level_figures, prompts
from tunesmith.evaluation.suites.quantization import Quantization
from tunesmith.subjects.subject import Timing


def test_the_figures_of_a_level_are_percentiles_and_a_mean() -> None:
    found = level_figures([Timing(float(n), 2.0 * (n + 1), 8) for n in range(101)], 8, 32)
    assert list(found) == ["first_token_p50_8x32", "first_token_p95_8x32", "first_token_p99_8x32",
                           "tokens_per_second_8x32"]  # fmt: skip
    median, late, latest, speed = found.values()
    assert (median.value, late.value, latest.value) == (50, 95, 99)
    assert speed.value == pytest.approx(sum(4 / (n + 1) for n in range(101)) / 101)
    assert [figure.is_compared for figure in found.values()] == [True, False, False, True]
    assert [(figure.better, figure.unit) for figure in (median, speed)] == [
        ("lower", "seconds"), ("higher", "tokens/s"),
    ]  # fmt: skip
    assert (median.title, speed.title) == ("first token, p50; 8 at once, 32 words", "speed; 8 at once, 32 words")
    assert late.explanation == "seconds until 95 % of the answers have begun"
    assert speed.explanation == "tokens of an answer, divided by the time until its end"
    assert median.units[:2] == ["8 at once, 32 words, answer 1", "8 at once, 32 words, answer 2"]
    assert median.of(torch.tensor([3, 3]).numpy()) == 3


def test_prompts_have_so_many_words_and_begin_with_a_number_of_their_own() -> None:
    assert prompts(2, 12, 3) == [
        [{"role": "user", "content": f"{words}. Tell a story with these words."}]
        for words in ("249523 market garden harbor quiet market", "635017 river rocket paper music planet")
    ]
    assert prompts(1, 12, 3) != prompts(1, 12, 4)


def form(name: str = "model@int8", writes: bool = True) -> Given:
    """A form of a model that has 12 MB of weights in the engine, and 24 bytes without it."""
    subject: Any = Given()
    head, generator = SimpleNamespace(generates_text=writes), SimpleNamespace(weight_bytes=12_000_000)
    subject.model = SimpleNamespace(name=name, head=head, generator=generator, model=torch.nn.Linear(2, 2))
    given: Given = subject
    return given


def test_a_form_has_its_memory_and_the_speed_of_answers_one_by_one() -> None:
    for count, asked in ((None, 8), (3, 3), (9, 8)):
        subject, kept = form(), Context(count=count)
        found = Quantization("int8").measure(subject, kept.context)
        assert values(found) == {"memory": 12.0, "tokens_per_second": 4.0}
        assert [(len(texts), most, at_once) for texts, most, at_once in subject.timed] == [(1, 64, 1), (asked, 64, 1)]
        assert subject.timed[0][0] == subject.timed[1][0][:1]
        assert subject.timed[1][0] == [str(chat[0]["content"]) for chat in prompts(asked, 32, seed=0)]
        assert kept.progress == [("quantization", 0, asked), ("quantization", asked, asked)]
        memory, speed = found["memory"], found["tokens_per_second"]
        assert (memory.better, memory.unit, memory.is_compared, memory.units) == ("lower", "MB", False, ["weights"])
        assert (speed.better, speed.unit, speed.title) == ("higher", "tokens/s", "speed")
        assert memory.title == "memory"
        assert memory.explanation == "of the weights, as they are loaded; of a GGUF file its size"
        assert speed.explanation.endswith("one answer at a time; of a GGUF file in llama.cpp")
        assert speed.units == [f"answer {number}" for number in range(1, asked + 1)]
    assert Quantization.most_rows == 8


def test_a_form_that_writes_no_text_has_its_memory_only() -> None:
    subject = form(writes=False)
    found = Quantization("int8").measure(subject, Context().context)
    assert values(found) == {"memory": pytest.approx(24e-6)}
    assert quantization._timings(subject, prompts(1, 12, 0)) == []
    assert subject.timed == []


def test_a_gguf_file_has_its_size_and_without_llama_cpp_no_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"x" * 5000)
    monkeypatch.setattr(quantization, "library_file", lambda: None)
    subject = form(str(tmp_path / "model.gguf"))
    found = Quantization("gguf:q8_0").measure(subject, Context(count=2).context)
    assert values(found) == {"memory": 0.005}
    assert subject.timed == []
