"""A suggested recipe loads, fits the rows it was made from, and has a comment for each value."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tunesmith.config.recipe import Recipe
from tunesmith.config.suggestion import suggest
from tunesmith.errors import UserError

ROWS: dict[str, Any] = {
    "messages": {"messages": [{"role": "user", "content": "Hi {n}"}, {"role": "assistant", "content": "Hello {n}"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi {n}"}, {"from": "gpt", "value": "Hello {n}"}]},
    "alpaca": {"instruction": "Greet {n}", "input": "", "output": "Hello {n}"},
    "prompt_completion": {"prompt": "Hi {n}", "completion": "Hello {n}"},
    "question_answer": {"question": "Who is {n}?", "answer": "Guest {n}"},
    "text": {"text": "Guest {n} came in and sat down."},
}


@pytest.mark.parametrize("format", ROWS)
def test_the_suggested_recipe_loads_and_fits_the_rows(format: str, tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps(ROWS[format]).replace("{n}", str(n)) + "\n" for n in range(400)), encoding="utf-8"
    )
    text, seen = suggest([str(rows)], str(tiny_model))
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert (seen.format, seen.rows) == (format, 400)
    assert recipe.objective.kind == ("text" if format == "text" else "instruction")
    assert recipe.data.max_length >= seen.lengths.max()
    assert 20 <= recipe.train.steps <= 2000
    assert 0.01 <= recipe.data.held_out <= 0.2
    assert all("#" in line or ":" in line for line in text.splitlines() if line)


def test_rows_over_the_suggested_max_length_are_counted_in_a_comment(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"question": "short?", "answer": "yes"}] * 300 + [{"question": "long?", "answer": "so " * 2000}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text, _ = suggest([str(tmp_path / "rows.jsonl")], str(tiny_model))
    assert "max_length: 256" in text
    assert "1 of 301 sampled rows are longer" in text
    assert "overflow: drop" in text


def test_rows_that_cannot_be_used_are_counted_by_reason_with_the_first_of_each(
    tiny_model: Path, tmp_path: Path
) -> None:
    tool = {"type": "function", "function": {"name": "add_{n}", "parameters": {}}}
    rows = [ROWS["messages"], {**ROWS["messages"], "tools": [tool]}] * 3
    rows += [{"messages": [*ROWS["messages"]["messages"][:1], {"role": "assistant", "content": ""}]}]
    rows += [{**ROWS["messages"], "images": ["{n}.png"]}] * 2
    lines = (json.dumps(row).replace("{n}", str(number)) + "\n" for number, row in enumerate(rows, 1))
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    text, seen = suggest([str(tmp_path / "rows.jsonl")], str(tiny_model))
    assert (seen.malformed, seen.unusable, seen.sampled) == (3, 3, 9)
    assert [(each.rows, each.first.row) for each in seen.malformed_reasons] == [(2, 8), (1, 7)]
    assert "column images holds images" in str(seen.malformed_reasons[0])
    (tools,) = map(str, seen.unusable_reasons)
    assert re.fullmatch(
        r"3 rows, the first is \S*rows\.jsonl row 2: the chat template does not support tools \(add_2\)\. Use a .*",
        tools,
    )
    assert "skip_unusable: true" in text


def test_data_without_a_usable_row_are_refused_with_the_first_reason(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": ""}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"rows.jsonl row 1: the answer is empty"):
        suggest([str(tmp_path / "rows.jsonl")], str(tiny_model))
