"""A model of this process under evaluation: what is computed once is not computed again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.evaluation.compare import evaluate
from tunesmith.inference.model import Model
from tunesmith.metrics import Metric
from tunesmith.statistics import intervals
from tunesmith.statistics.measured import Measured
from tunesmith.subjects.local_subject import LocalSubject
from tunesmith.subjects.subject import Chat

TEXTS = ["one", "two and three", "four"]
CHATS: list[Chat] = [
    [{"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    [{"role": "user", "content": "b"}],
]


@pytest.mark.parametrize("prompts", [None, ["x", "y", "z"], CHATS])
def test_scores_are_kept_and_only_new_texts_are_computed(
    prompts: Sequence[str | Chat] | None, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    computed: list[int] = []
    scores = LocalSubject._scores

    def counting(subject: LocalSubject, chats: Any, texts: Sequence[str]) -> Any:
        computed.append(len(texts))
        return scores(subject, chats, texts)

    monkeypatch.setattr(LocalSubject, "_scores", counting)

    def some(count: int, keeps: bool = True) -> list[Any]:
        subject = LocalSubject("tiny", Model(tiny_model), keeps=keeps)
        return subject.scores(None if prompts is None else prompts[:count], TEXTS[:count])

    expected = some(3, keeps=False)
    assert not list(tmp_path.glob("evaluation/*"))
    assert len(some(2)) == 2
    for _ in range(2):
        for one, other in zip(expected, some(3), strict=True):
            assert one.tokens == other.tokens
            assert np.array_equal(one.log_probabilities, other.log_probabilities)
    assert computed == [3, 2, 1]


def test_metrics_and_intervals_of_an_evaluation_are_computed_once(
    tiny_model: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    estimate = intervals.estimate

    def counting(measured: Measured) -> Any:
        drawn.append(measured.title)
        return estimate(measured)

    monkeypatch.setattr(intervals, "estimate", counting)
    scored: list[str] = []

    def brief(answer: str, expected: str) -> float:
        scored.append(expected)
        return float(len(answer) < 9)

    metrics = {"brief": Metric("brief", "short answers", brief)}
    emitted: list[Any] = []
    rows = write_rows(4)
    found = evaluate(tiny_model, 3, 4, subscribers=[emitted.append], metrics=metrics, data=rows, cache=False)
    assert sorted(drawn) == ["brief", "loss", "perplexity"]
    assert len(scored) == 3
    shown = {
        name: each["value"]
        for event in emitted
        if event["event"] == "figures"
        for name, each in event["figures"].items()
    }
    assert shown == {name: each["value"] for name, each in found["models"]["llama"].items()}
