"""Rows that a tokenizer takes apart into bytes are marked; those in a script that it knows are not."""

import json
from pathlib import Path

import pytest

from tunesmith.checks.driver import check_data
from tunesmith.checks.split_tokens import split_ids
from tunesmith.config.recipe import Recipe


class Vocabulary:
    """The part of a tokenizer that is looked at."""

    def __init__(self, tokens: list[str], unknown: int | None = None) -> None:
        self._tokens = tokens
        self.unk_token_id = unknown

    def get_vocab(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self._tokens)}


@pytest.mark.parametrize(
    ("tokens", "unknown", "ids"),
    [
        (["a", "Ġthe", "Ã", "Ģ", "é", "Ãł"], None, [2, 3, 4]),  # é stands for the byte 0xE9
        (["<unk>", "a", "<0x41>", "<0xE3>", "é", "▁the"], 0, [0, 3]),
        (["[UNK]", "a", "é", "##s"], 0, [0]),
    ],
)
def test_unknown_tokens_and_single_bytes_are_told_from_letters(
    tokens: list[str], unknown: int | None, ids: list[int]
) -> None:
    assert split_ids(Vocabulary(tokens, unknown)).tolist() == ids


def test_rows_in_a_script_that_the_base_does_not_know_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    answers = ["It is behind the house, near the old bridge.", "それは家の後ろ、古い橋の近くにあります。"]
    rows = [{"question": f"Where is number {n}?", "answer": answer} for n, answer in enumerate(answers)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = Recipe.load({"base": "embedded", "data": {"train": "rows.jsonl", "held_out": 0.0}})
    (mark,) = check_data(recipe, only=["unknown_tokens"])["unknown_tokens"].marks
    assert mark.source.row == 2
    assert "of its tokens are unknown or single bytes" in mark.detail
