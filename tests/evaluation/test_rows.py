"""What models are evaluated on: questions, expected answers with and without reasoning, and names of rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunesmith.data.example import Example, Source
from tunesmith.data.reasoning import final_answer
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.evaluation.figures import answer_figures
from tunesmith.evaluation.rows import EvaluationRows, Task, spread, task_of, units_of
from tunesmith.metrics import METRICS
from tunesmith.subjects.subject import Answer


def example(answer: dict[str, Any], *earlier: dict[str, Any]) -> Example:
    question = {"role": "user", "content": "Why?"}
    return Example(Source("rows.jsonl", 3), messages=(*earlier, question, {"role": "assistant", **answer}))


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "So.", "reasoning_content": "Well …"},
        {"content": "<think>\nWell …\n</think>\n\nSo."},
    ],
)
def test_reasoning_is_told_from_the_expected_answer_wherever_the_row_has_it(answer: dict[str, Any]) -> None:
    task = task_of(example(answer))
    assert (task.expected, task.reasoning, task.source) == ("So.", "Well …", "rows.jsonl row 3")
    assert task.chat == ({"role": "user", "content": "Why?"},)


def test_the_last_answer_is_expected_and_what_is_before_it_is_the_question() -> None:
    earlier = ({"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."})
    task = task_of(example({"content": "So."}, *earlier))
    assert [turn["content"] for turn in task.chat] == ["Who?", "I.", "Why?"]
    assert (task.expected, task.reasoning) == ("So.", "")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So.", "So."),
        (" So. ", "So."),
        ("<think>\nWell …\n</think>\n\nSo.", "So."),
        ("<think></think>So.", "So."),
        ("<think>\nWell …", ""),
        ("It is <think>.", "It is <think>."),
    ],
)
def test_only_what_follows_the_reasoning_is_scored(text: str, answer: str) -> None:
    assert final_answer(text) == answer
    task = Task(({"role": "user", "content": "Why?"},), "So.", "row 1", "Well …")
    exact = answer_figures([Answer(text)], [task], METRICS)["exact_match"].value
    assert exact == (answer == "So.")


def test_pieces_of_a_row_have_names_of_their_own() -> None:
    sources = [Source("a", 1), Source("a", 2), Source("a", 2), Source("b", 2), Source("a", 2)]
    table = TokenTable.build([([1, 2], [False, True], source) for source in sources])  # type: ignore[misc]
    assert units_of(table) == ["a row 1", "a row 2", "a row 2, part 2", "b row 2", "a row 2, part 3"]


def test_files_of_chats_and_of_raw_text_are_told_apart(tmp_path: Path) -> None:
    chats, texts = tmp_path / "chats.jsonl", tmp_path / "texts.jsonl"
    chats.write_text(json.dumps({"question": "Why?", "answer": "So."}) + "\n", encoding="utf-8")
    texts.write_text(json.dumps({"text": "It is so."}) + "\n", encoding="utf-8")
    for file, kind, tasks in ((chats, "instruction", 1), (texts, "text", 0)):
        rows = EvaluationRows.of_files([str(file)])
        assert (rows.objective.kind, rows.origin, len(rows.tasks(None))) == (kind, f"rows of {file.name}", tasks)


def test_rows_are_evenly_spaced() -> None:
    assert spread(9, 3) == [0, 4, 8]
    assert spread(2, 5) == [0, 1]
    assert spread(9, 0) == []


def test_rows_of_a_run_on_prompts_are_refused_with_what_to_do(tmp_path: Path) -> None:
    recipe = {"base": "base", "data": {"train": "rows.jsonl"}, "objective": {"kind": "grpo", "rewards": ["exact"]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with pytest.raises(UserError, match=r"learned from prompts.* tunesmith evaluate .* --data FILE"):
        EvaluationRows.of_run(tmp_path)
