"""`answer`: every question of a file gets an answer, also in several parts and after an interruption."""

import hashlib
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
from writing import answers

import tunesmith.evaluation.answering
from tunesmith.errors import UserError
from tunesmith.evaluation.answering import answer
from tunesmith.evaluation.questions import ANSWERS, QUESTIONS
from tunesmith.heads.sentence_transformers_format import write_steps
from tunesmith.inference.sampling import Sampling
from tunesmith.prompting.prompt import Prompt

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
    """Answer and write two rows at a time, so that a few rows make several parts."""
    monkeypatch.setattr(tunesmith.evaluation.answering, "ROWS", 2)


def write_rows(file: Path, rows: Sequence[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


WHY_QUESTIONS = [f"Why {n}?" for n in range(5)]


def answers_in_parts(letters: Any, questions: Sequence[str]) -> list[str]:
    """The expected answers: each part is sampled with its own seed, which depends on the index of its first row."""
    expected: list[str] = []
    for start in range(0, len(questions), 2):
        chats = [[user(question)] for question in questions[start : start + 2]]
        expected += answers(letters, TOKENIZER, chats, replace(SAMPLING, seed=SAMPLING.seed + start), 32)
    return expected


def test_rows_are_answered_in_order_with_one_seed_per_part(model: str, letters: Any, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    source = write_rows(tmp_path / "questions.jsonl", [{"question": question} for question in WHY_QUESTIONS])
    done = answer(model, source, tmp_path / "out.jsonl", SAMPLING, subscribers=[events.append])
    expected = answers_in_parts(letters, WHY_QUESTIONS)
    assert read(done.path) == [{"question": q, "answer": a} for q, a in zip(WHY_QUESTIONS, expected, strict=True)]
    assert len(set(expected)) == 5
    assert (done.path, done.rows, done.empty) == (tmp_path / "out.jsonl", 5, 0)
    progress = {"event": "progress", "what": "answers", "total": 5}
    assert events == [{**progress, "done": count} for count in (0, 2, 4, 5)]
    assert sorted(file.name for file in tmp_path.glob("*out*")) == ["out.jsonl"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("parts", [1, 2])
def test_interrupted_answer_resumes_after_the_last_complete_part(parts: int, model: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "questions.jsonl", [{"question": question} for question in WHY_QUESTIONS])
    complete = answer(model, source, tmp_path / "complete.jsonl", SAMPLING)

    def kill(event: dict[str, Any]) -> None:
        if event["done"] == 2 * parts:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(model, source, tmp_path / "out.jsonl", SAMPLING, subscribers=[kill])
    assert not (tmp_path / "out.jsonl").exists()
    partial = tmp_path / ".out.jsonl.partial"
    header, *lines = partial.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * parts
    assert json.loads(header)["model"] == model
    assert json.loads(header)["sampling"] == json.loads(json.dumps(asdict(SAMPLING)))
    with partial.open("a", encoding="utf-8") as file:
        file.write('{"question": "Why 2?", "ans')  # a line that was cut off while it was written
    progress: list[int] = []
    again = answer(
        model, source, tmp_path / "out.jsonl", SAMPLING, subscribers=[lambda event: progress.append(event["done"])]
    )
    assert progress[0] == 2 * parts
    assert again.path.read_text(encoding="utf-8") == complete.path.read_text(encoding="utf-8")
    assert (again.rows, again.empty) == (5, 0)
    assert not partial.exists()


def test_two_processes_never_write_one_file_of_answers(model: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "questions.jsonl", [{"question": question} for question in WHY_QUESTIONS])
    refused: list[int] = []

    def start_again(event: dict[str, Any]) -> None:
        with pytest.raises(UserError, match=r"out\.jsonl is being written by process .* another output path"):
            answer(model, source, tmp_path / "out.jsonl", SAMPLING)
        refused.append(event["done"])

    assert answer(model, source, tmp_path / "out.jsonl", SAMPLING, subscribers=[start_again]).rows == 5
    assert refused == [0, 2, 4, 5]
    with pytest.raises(UserError, match=r"nowhere/out\.jsonl cannot be written: No such file"):
        answer(model, source, tmp_path / "nowhere" / "out.jsonl", SAMPLING)


def test_partial_file_of_another_run_is_refused_and_kept(model: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "questions.jsonl", [{"question": question} for question in WHY_QUESTIONS])

    def kill(event: dict[str, Any]) -> None:
        if event["done"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(model, source, tmp_path / "out.jsonl", SAMPLING, subscribers=[kill])
    partial = tmp_path / ".out.jsonl.partial"
    before = partial.read_text(encoding="utf-8")
    others = write_rows(
        tmp_path / "others.jsonl", [{"question": question} for question in (*WHY_QUESTIONS[:4], "Why 5?")]
    )
    for rows, sampling in ((others, SAMPLING), (source, replace(SAMPLING, seed=8))):
        with pytest.raises(UserError, match=r"out.jsonl.partial has answers from another run .* Remove it, or use"):
            answer(model, rows, tmp_path / "out.jsonl", sampling)
        assert partial.read_text(encoding="utf-8") == before


def test_a_partial_file_knows_its_prompt_its_cache_and_its_rows(model: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "questions.jsonl", [{"question": "Why?"}])
    prompt = Prompt(system="Be brief.")

    def kill(event: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    headers = []
    for asked in ({}, {"prompt": prompt}):
        with pytest.raises(KeyboardInterrupt):
            answer(model, source, tmp_path / "out.jsonl", SAMPLING, subscribers=[kill], **asked)  # type: ignore[arg-type]
        (header,) = (tmp_path / ".out.jsonl.partial").read_text(encoding="utf-8").splitlines()
        headers.append(json.loads(header))
        (tmp_path / ".out.jsonl.partial").unlink()
    plain, prompted = headers
    chats = json.dumps([[user("Why?")]], sort_keys=True)
    assert plain == {
        "model": model, "sampling": json.loads(json.dumps(asdict(SAMPLING))), "cache": "auto",
        "rows": hashlib.sha256(chats.encode()).hexdigest(),
    }  # fmt: skip
    assert prompted == {**plain, "prompt": prompt.version}
    done = answer(model, source, tmp_path / "out.jsonl", SAMPLING, prompt=prompt)
    assert (done.rows, done.note) == (1, None), "the whole prompt has room"
    assert list(read(done.path)[0]) == ["question", "answer"], "the prompt is not in the output"


def test_empty_answers_are_left_out_and_counted_also_after_an_interruption(tmp_path: Path) -> None:
    chain_model(TOKENIZER, "<|im_end|>").save_pretrained(tmp_path / "mute")
    TOKENIZER.save_pretrained(tmp_path / "mute")
    source = write_rows(tmp_path / "questions.jsonl", [{"question": question} for question in WHY_QUESTIONS])

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


def test_every_chat_format_is_answered_without_the_rows_own_answer(model: str, letters: Any, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [user("One?"), assistant("Yes."), user("Two?"), assistant("gone")]},
        {"messages": [{"role": "system", "content": "Be brief."}, user("Three?")]},
        {"conversations": [{"from": "human", "value": "Four?"}, {"from": "gpt", "value": "gone"}]},
        {"instruction": "Add.", "input": "3 + 3", "output": "gone"},
        {"question": "Five?", "context": "It rains."},
    ]
    expected = [
        [user("One?"), assistant("Yes."), user("Two?")],
        [{"role": "system", "content": "Be brief."}, user("Three?")],
        [user("Four?")],
        [user("Add.\n3 + 3")],
    ]
    source = write_rows(tmp_path / "questions.jsonl", rows)
    chats = [row["messages"] for row in read(answer(model, source, tmp_path / "out.jsonl", SAMPLING).path)]
    assert [turns[:-1] for turns in chats[:4]] == expected
    assert "It rains." in chats[4][0]["content"]
    assert all(turns[-1]["role"] == "assistant" and len(turns[-1]["content"]) == 6 for turns in chats)
    first = answers(letters, TOKENIZER, expected[:2], SAMPLING, 32)
    assert [turns[-1]["content"] for turns in chats[:2]] == first


@pytest.mark.parametrize("column", [*QUESTIONS, "Question", "PROMPT"])
def test_every_question_column_is_found_in_rows_without_an_answer(column: str, model: str, tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "questions.jsonl", [{"id": 3, column: "Why?", "answer": None}, {"id": 4, column: "Who?"}]
    )
    rows = read(answer(model, source, tmp_path / "out.jsonl", replace(SAMPLING, max_new_tokens=1)).path)
    assert [row["question"] for row in rows] == ["Why?", "Who?"]


@pytest.mark.parametrize("column", sorted(ANSWERS - {"messages", "conversations"}))
def test_a_row_with_an_empty_answer_in_any_answer_column_is_refused(column: str, model: str, tmp_path: Path) -> None:
    source = write_rows(
        tmp_path / "questions.jsonl", [{"question": "Who?", "answer": "I."}, {"question": "Why?", column: ""}]
    )
    with pytest.raises(UserError, match=r"questions\.jsonl"):
        answer(model, source, tmp_path / "out.jsonl", SAMPLING)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", r"questions.jsonl.*(1|2).*Fix it: every row must have a question"),
        ({"text": "Nothing is asked."}, "questions.jsonl row 2 has no question: it is raw text"),
        ({"title": "Why?"}, "no known format has the columns title"),
        (
            {"question": "Why?", "image": "a.png"},
            "questions.jsonl row 2: column image holds images, which no objective",
        ),
        ({"question": "Why?", "answer": ""}, "questions.jsonl row 2 has no question: the answer is empty"),
        (
            {"messages": [user("Hi"), assistant("Yes.")], "tools": [{"type": "function", "function": {"name": "f"}}]},
            "questions.jsonl row 2 has tools, and answers here do not call tools",
        ),
    ],
)
def test_row_that_cannot_be_answered_is_named_and_nothing_is_written(
    row: Any, message: str, model: str, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "questions.jsonl", [{"question": "Why?"}, row])
    with pytest.raises(UserError, match=message):
        answer(model, source, tmp_path / "out.jsonl", SAMPLING)
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".out*"))


def test_model_without_text_generation_and_existing_output_are_refused(model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = config_of("bert", len(TOKENIZER))
    AutoModel.from_config(config).save_pretrained(tmp_path / "vectors")
    TOKENIZER.save_pretrained(tmp_path / "vectors")
    write_steps(tmp_path / "vectors", "mean", True, config.hidden_size, 64)
    source = write_rows(tmp_path / "questions.jsonl", [{"question": "Why?"}])
    with pytest.raises(
        UserError, match=r"vectors does not generate text, so it cannot answer\. Use a causal language model"
    ):
        answer(str(tmp_path / "vectors"), source, tmp_path / "out.jsonl")
    before = source.read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"questions\.jsonl exists already\. Use another output path"):
        answer(model, source, source, SAMPLING)
    assert source.read_text(encoding="utf-8") == before
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        answer(model, source, tmp_path / "no" / "out.jsonl", SAMPLING)
