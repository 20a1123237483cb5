"""A file of questions gets a model's answers, row by row, also where the run was killed or the rows come in parts."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bigram import chain_model, letters_model
from bytewise import byte_tokenizer
from families import config_of
from transformers import AutoModel

import tunesmith.evaluation.answering
from tunesmith.ending import Ending
from tunesmith.errors import UserError
from tunesmith.evaluation.answering import QUESTIONS, answer
from tunesmith.models.generate import Sampling, answers
from tunesmith.models.sentence import write_steps

TOKENIZER = byte_tokenizer()
SAMPLING = Sampling(max_new_tokens=6, temperature=1.0, repetition_penalty=1.3, seed=7)


@pytest.fixture(scope="module")
def letters() -> Any:
    return letters_model()


@pytest.fixture(scope="module")
def model(letters: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("model")
    letters.save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return str(directory)


@pytest.fixture(autouse=True)
def in_twos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are answered and written two at a time, so that few rows make several parts."""
    monkeypatch.setattr(tunesmith.evaluation.answering, "ROWS", 2)


def written(file: Path, rows: Sequence[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


ASKED = [f"Why {n}?" for n in range(5)]


def in_parts(letters: Any, asked: Sequence[str]) -> list[str]:
    """What the rows get: each part with a seed of its own, that of its first row."""
    found: list[str] = []
    for start in range(0, len(asked), 2):
        chats = [[user(each)] for each in asked[start : start + 2]]
        found += answers(letters, TOKENIZER, chats, replace(SAMPLING, seed=SAMPLING.seed + start), 32)
    return found


def test_rows_get_their_answers_in_order_part_by_part_with_a_seed_each(
    model: str, letters: Any, tmp_path: Path
) -> None:
    told: list[dict[str, Any]] = []
    source = written(tmp_path / "asked.jsonl", [{"question": each} for each in ASKED])
    done = answer(model, source, tmp_path / "out.jsonl", SAMPLING, subscribers=[told.append])
    wanted = in_parts(letters, ASKED)
    assert read(done.path) == [{"question": q, "answer": a} for q, a in zip(ASKED, wanted, strict=True)]
    assert len(set(wanted)) == 5
    assert (done.path, done.rows, done.empty) == (tmp_path / "out.jsonl", 5, 0)
    progress = {"event": "progress", "what": "answers", "total": 5}
    assert told == [{**progress, "done": count} for count in (0, 2, 4, 5)]
    assert sorted(each.name for each in tmp_path.glob("*out*")) == ["out.jsonl"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_killed_run_goes_on_behind_its_last_whole_part_to_the_same_file(
    parts: int, model: str, tmp_path: Path
) -> None:
    source = written(tmp_path / "asked.jsonl", [{"question": each} for each in ASKED])
    whole = answer(model, source, tmp_path / "whole.jsonl", SAMPLING)

    def kill(event: dict[str, Any]) -> None:
        if event["done"] == 2 * parts:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(model, source, tmp_path / "out.jsonl", SAMPLING, subscribers=[kill])
    assert not (tmp_path / "out.jsonl").exists()
    partial = tmp_path / ".out.jsonl.partial"
    about, *lines = partial.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * parts
    assert json.loads(about)["model"] == model
    assert json.loads(about)["sampling"] == asdict(SAMPLING)
    with partial.open("a", encoding="utf-8") as file:
        file.write('{"question": "Why 2?", "ans')  # a line that was cut while it was written
    told: list[int] = []
    again = answer(
        model, source, tmp_path / "out.jsonl", SAMPLING, subscribers=[lambda event: told.append(event["done"])]
    )
    assert told[0] == 2 * parts
    assert again.path.read_text(encoding="utf-8") == whole.path.read_text(encoding="utf-8")
    assert (again.rows, again.empty) == (5, 0)
    assert not partial.exists()


def test_what_another_run_left_is_neither_used_nor_lost(model: str, tmp_path: Path) -> None:
    source = written(tmp_path / "asked.jsonl", [{"question": each} for each in ASKED])

    def kill(event: dict[str, Any]) -> None:
        if event["done"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(model, source, tmp_path / "out.jsonl", SAMPLING, subscribers=[kill])
    partial = tmp_path / ".out.jsonl.partial"
    left = partial.read_text(encoding="utf-8")
    others = written(tmp_path / "others.jsonl", [{"question": each} for each in (*ASKED[:4], "Why 5?")])
    for rows, sampling in ((others, SAMPLING), (source, replace(SAMPLING, seed=8))):
        with pytest.raises(UserError, match=r"out.jsonl.partial holds answers of another run .* Remove it, or name"):
            answer(model, rows, tmp_path / "out.jsonl", sampling)
        assert partial.read_text(encoding="utf-8") == left


def test_rows_to_which_nothing_is_said_are_left_out_and_counted_also_over_a_kill(tmp_path: Path) -> None:
    chain_model(TOKENIZER, "<|im_end|>").save_pretrained(tmp_path / "mute")
    TOKENIZER.save_pretrained(tmp_path / "mute")
    source = written(tmp_path / "asked.jsonl", [{"question": each} for each in ASKED])

    def kill(event: dict[str, Any]) -> None:
        if event["done"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(str(tmp_path / "mute"), source, tmp_path / "out.jsonl", SAMPLING, subscribers=[kill])
    partial = tmp_path / ".out.jsonl.partial"
    lines = partial.read_text(encoding="utf-8").splitlines()
    assert lines[1:] == ["{}"] * 4
    kept = json.dumps({"question": "Why 1?", "answer": "So."})
    partial.write_text("\n".join([lines[0], "{}", kept, "{}"]) + "\n", encoding="utf-8")
    done = answer(str(tmp_path / "mute"), source, tmp_path / "out.jsonl", SAMPLING)
    assert (done.rows, done.empty) == (1, 4)
    assert read(done.path) == [{"question": "Why 1?", "answer": "So."}]


def test_rows_of_every_form_are_asked_their_last_question_without_their_own_answer(
    model: str, letters: Any, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [user("One?"), said("Yes."), user("Two?"), said("gone")]},
        {"messages": [{"role": "system", "content": "Be brief."}, user("Three?")]},
        {"conversations": [{"from": "human", "value": "Four?"}, {"from": "gpt", "value": "gone"}]},
        {"instruction": "Add.", "input": "3 + 3", "output": "gone"},
        {"question": "Five?", "context": "It rains."},
    ]
    wanted = [
        [user("One?"), said("Yes."), user("Two?")],
        [{"role": "system", "content": "Be brief."}, user("Three?")],
        [user("Four?")],
        [user("Add.\n3 + 3")],
    ]
    source = written(tmp_path / "asked.jsonl", rows)
    found = [row["messages"] for row in read(answer(model, source, tmp_path / "out.jsonl", SAMPLING).path)]
    assert [turns[:-1] for turns in found[:4]] == wanted
    assert "It rains." in found[4][0]["content"]
    assert all(turns[-1]["role"] == "assistant" and len(turns[-1]["content"]) == 6 for turns in found)
    first = answers(letters, TOKENIZER, wanted[:2], SAMPLING, 32)
    assert [turns[-1]["content"] for turns in found[:2]] == first


@pytest.mark.parametrize("column", [*QUESTIONS, "Question", "PROMPT"])
def test_every_column_that_asks_is_asked_without_a_column_that_answers(column: str, model: str, tmp_path: Path) -> None:
    source = written(tmp_path / "asked.jsonl", [{"id": 3, column: "Why?", "answer": None}, {"id": 4, column: "Who?"}])
    found = read(answer(model, source, tmp_path / "out.jsonl", replace(SAMPLING, max_new_tokens=1)).path)
    assert [row["question"] for row in found] == ["Why?", "Who?"]


@pytest.mark.parametrize(
    ("row", "said_of_it"),
    [
        ("{not json", r"asked.jsonl.*(1|2).*Mend it, so that every row gets its answer"),
        ({"text": "Nothing is asked."}, "asked.jsonl row 2 asks nothing: it is raw text"),
        ({"title": "Why?"}, "no known form has the columns title"),
        ({"question": "Why?", "answer": ""}, "asked.jsonl row 2 asks nothing: the answer is empty"),
        (
            {"messages": [user("Hi"), said("Yes.")], "tools": [{"type": "function", "function": {"name": "f"}}]},
            "asked.jsonl row 2 has tools to call, which are not called here",
        ),
    ],
)
def test_a_row_that_cannot_be_answered_is_refused_by_its_place_and_nothing_is_written(
    row: Any, said_of_it: str, model: str, tmp_path: Path
) -> None:
    source = written(tmp_path / "asked.jsonl", [{"question": "Why?"}, row])
    with pytest.raises(UserError, match=said_of_it):
        answer(model, source, tmp_path / "out.jsonl", SAMPLING)
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".out*"))


def test_a_model_that_writes_nothing_and_a_file_that_is_there_are_refused(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = config_of("bert", len(TOKENIZER))
    AutoModel.from_config(config).save_pretrained(tmp_path / "vectors")
    TOKENIZER.save_pretrained(tmp_path / "vectors")
    write_steps(tmp_path / "vectors", Ending("vectors"), config.hidden_size, 64, None)
    source = written(tmp_path / "asked.jsonl", [{"question": "Why?"}])
    with pytest.raises(UserError, match=r"vectors writes no text, so it answers nothing\. Name a model that does"):
        answer(str(tmp_path / "vectors"), source, tmp_path / "out.jsonl")
    before = source.read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"asked\.jsonl is there already\. Name a file that is not"):
        answer(model, source, source, SAMPLING)
    assert source.read_text(encoding="utf-8") == before
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        answer(model, source, tmp_path / "no" / "out.jsonl", SAMPLING)
