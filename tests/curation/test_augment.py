"""Synthetic rows are marked, come from rows that are there, are checked, and no more than asked for."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from curated import read, sentence, write
from scripted_server import Body, Scripted, scripted

from tunesmith.curation.augment import data_augment
from tunesmith.errors import UserError


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"Where is {sentence(n, 9)}?", "answer": f"By the {sentence(n + 99)}."} for n in range(12)]
    return write(tmp_path / "rows.jsonl", rows)


def answer(body: Body) -> str:
    """Reverses the words after the instruction; a text that has `river` comes back as it is."""
    text = str(body["messages"][-1]["content"]).partition("\n\n")[2]
    return text if "river" in text else " ".join(reversed(text.split()))


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted(answer) as found:
        yield found


def synthetic(path: Path) -> list[dict[str, Any]]:
    return [row for row in read(path) if "synthetic" in row]


def test_templates_are_put_around_prompts_up_to_the_share(rows: Path, tmp_path: Path) -> None:
    found = data_augment(rows, tmp_path / "out.jsonl", templates=["Please: {prompt}", "{prompt} Thanks!"], share=0.25)
    assert (found.rows, found.synthetic) == (12, 4)
    assert (tmp_path / "out.jsonl").read_bytes().startswith(rows.read_bytes())
    originals = {f"{rows.name} row {n}": row for n, row in enumerate(read(rows), 1)}
    for row in synthetic(found.file):
        parent = originals[row["synthetic"]["parent"]]
        assert row["question"] == row["synthetic"]["template"].replace("{prompt}", parent["question"])
        assert row["answer"] == parent["answer"]
    assert len(Counter(row["synthetic"]["template"] for row in synthetic(found.file))) == 2
    assert len({row["synthetic"]["parent"] for row in synthetic(found.file)}) == 4
    other = data_augment(rows, tmp_path / "b.jsonl", templates=["Please: {prompt}"], share=0.25, seed=1)
    assert synthetic(other.file) != synthetic(found.file)


def test_a_model_paraphrases_and_what_it_repeats_is_left_out(rows: Path, server: Scripted, tmp_path: Path) -> None:
    same = sum("river" in row["question"] for row in read(rows))
    assert 0 < same < 12
    found = data_augment(rows, tmp_path / "out.jsonl", model=server.url, share=0.49)
    assert found.synthetic == min(12 - same, 11)
    assert sum(found.left_out.values()) == same
    assert set(found.left_out) == {"the model wrote nothing new"}
    assert all(row["synthetic"]["model"] == server.url for row in synthetic(found.file))
    asked = len(server.asked)
    again = data_augment(rows, tmp_path / "again.jsonl", model=server.url, share=0.49)
    assert len(server.asked) == asked, "what was written is kept"
    assert again.file.read_bytes() == found.file.read_bytes()


def test_back_translation_asks_twice(rows: Path, server: Scripted, tmp_path: Path) -> None:
    found = data_augment(rows, tmp_path / "out.jsonl", model=server.url, language="Danish", back_to="German", share=0.1)
    contents = [str(body["messages"][-1]["content"]) for body in server.asked]
    assert sum("into Danish." in content for content in contents) == 12
    assert sum("into German." in content for content in contents) == 12
    assert found.synthetic <= 1


def test_chats_change_their_last_question_and_raw_text_has_none(rows: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "Yes, a."},
             {"role": "user", "content": "And b?"}, {"role": "assistant", "content": "Also b, yes."}]  # fmt: skip
    found = data_augment(
        write(tmp_path / "chat.jsonl", [{"messages": turns}]),
        tmp_path / "a.jsonl",
        templates=["{prompt} Hm."],
        share=0.5,
    )
    (row,) = synthetic(found.file)
    assert [turn["content"] for turn in row["messages"]] == ["a?", "Yes, a.", "And b? Hm.", "Also b, yes."]
    raw = data_augment(
        write(tmp_path / "raw.jsonl", [{"text": "Raw."}]), tmp_path / "b.jsonl", templates=["{prompt}!"], share=0.5
    )
    assert (raw.synthetic, sum(raw.left_out.values())) == (0, 1)


def test_what_is_not_said_is_refused(rows: Path, tmp_path: Path) -> None:
    for options, message in (
        ({}, "Nothing says how to reword"),
        ({"templates": ["Hello"]}, "has no {prompt}"),
        ({"templates": ["{prompt}"], "share": 1.0}, "is no share"),
        ({"templates": ["{prompt}"], "language": "Danish"}, "--language needs a --model"),
    ):
        with pytest.raises(UserError, match=message):
            data_augment(rows, tmp_path / "out.jsonl", **options)  # type: ignore[arg-type]
    assert json.loads(rows.read_text().splitlines()[0])
