"""What a model and its form are compared on, and the limits of the comparison."""

import json
from pathlib import Path

import numpy as np
import pytest
from bytewise import CHATML, byte_tokenizer

from tunesmith.data.render import Renderer
from tunesmith.inference.openai_client import error_message
from tunesmith.proving import material as module
from tunesmith.proving.http import bucketed_divergence
from tunesmith.proving.limits import EIGHT_BITS, EXACT, FEWER_BITS, FOUR_BITS, Kind, kind_of
from tunesmith.proving.material import QUESTIONS, material
from tunesmith.proving.parity import beside
from tunesmith.proving.reader import agreement


def renderer(template: str | None = CHATML) -> Renderer:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return Renderer(tokenizer)


def test_without_a_run_or_a_file_questions_are_asked_and_chats_of_every_kind() -> None:
    found = material("no run", renderer(), 3)
    assert found.origin == "built-in questions"
    assert (len(found.rows), len(found.tasks), found.unusable) == (3, 3, 0)
    asked = dict(QUESTIONS)
    for task in found.tasks:
        assert task.chat[-1]["content"] in asked
    names = [chat.name for chat in found.chats]
    assert names[3:] + list(found.not_rendered) == [chat.name for chat in module.EDGE_CHATS]
    assert found.not_rendered == ["a tool", "a call of a tool and its result"]
    assert found.texts == []
    every = material("no run", renderer(), 100)
    assert [task.chat[-1]["content"] for task in every.tasks] == list(asked)


def test_without_a_chat_template_texts_are_compared() -> None:
    found = material("no run", renderer(None), 100)
    assert found.texts == [" ".join(pair) for pair in QUESTIONS]
    assert (found.tasks, found.chats, found.not_rendered) == ([], [], [])
    for row, text in zip(found.rows, found.texts, strict=True):
        assert byte_tokenizer().decode(row.ids, skip_special_tokens=True) == text
        assert row.marks.tolist() == list(range(1, len(row.ids)))


def test_a_row_ends_at_its_last_loss_token_within_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = material("no run", renderer(), 1).rows[0]
    assert len(whole.ids) == whole.marks[-1] + 1
    monkeypatch.setattr(module, "LONGEST", int(whole.marks[2]) + 1)
    cut = material("no run", renderer(), 1).rows[0]
    assert cut.marks.tolist() == whole.marks[:3].tolist()
    assert cut.ids.tolist() == whole.ids[: whole.marks[2] + 1].tolist()


def test_rows_that_the_template_rejects_are_counted(tmp_path: Path) -> None:
    rejects = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    rows = [{"messages": turns}, {"messages": [{"role": "system", "content": "Be brief."}, *turns]}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = material("no run", renderer(rejects + CHATML), 5, str(file))
    assert (found.origin, len(found.rows), len(found.tasks), found.unusable) == (str(file), 1, 1, 1)
    assert found.not_rendered == [
        "a system turn",
        "several turns after a system turn",
        "a tool",
        "a call of a tool and its result",
    ]
    assert material("no run", renderer(), 5, str(file)).unusable == 0


@pytest.mark.parametrize(
    ("bits", "kind"), [(14.0, EXACT), (13.9, EIGHT_BITS), (7.0, EIGHT_BITS), (6.9, FOUR_BITS), (4.0, FOUR_BITS)]
)
def test_a_kind_begins_at_its_bits(bits: float, kind: Kind) -> None:
    assert kind_of(bits) is kind
    assert kind_of(3.9) is FEWER_BITS


def test_a_padded_vocabulary_is_cut_to_the_others_size() -> None:
    scores = np.random.default_rng(0).normal(size=(70, 5)).astype(np.float32)
    padded = np.concatenate([scores, np.full((70, 3), 50, np.float32)], 1)
    targets = (np.arange(70) % 5).astype(np.int32)
    for found in (agreement(scores, padded, targets), agreement(padded, scores, targets)):
        assert (found.positions, found.same) == (70, 70)
        assert found.divergence == pytest.approx(0, abs=1e-9)
        assert found.losses[0] == pytest.approx(found.losses[1])


def test_what_neither_model_finds_likely_adds_nothing_to_the_divergence() -> None:
    assert bucketed_divergence({1: 1.0, 2: 0.0}, {1: 0.0, 2: -50.0}) == pytest.approx(0, abs=1e-9)
    assert bucketed_divergence({1: 0.5}, {1: np.log(0.25)}) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no"}}', "no"),
        (b'{"error": "no"}', '{"error": "no"}'),
        (b"[1]", "[1]"),
        (b"\xff" + b"x" * 300, "\ufffd" + "x" * 199),
    ],
)
def test_a_servers_error_is_its_message_or_how_it_begins(body: bytes, message: str) -> None:
    assert error_message(body) == message


def test_the_figures_are_beside_a_file_and_in_a_directory(tmp_path: Path) -> None:
    assert beside(tmp_path) == tmp_path / "parity.json"
    assert beside(tmp_path / "m.gguf") == tmp_path / "m.parity.json"
