"""Token tables: offsets, sources, targets and loss tokens of rows; and the counts of the data pipeline."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.config.recipe import Recipe
from tunesmith.data import prepare as preparing
from tunesmith.data import tokenize, tokens
from tunesmith.data.example import Source
from tunesmith.data.examples import DETECT_ROWS
from tunesmith.data.prepare import prepare, resolve
from tunesmith.data.tokens import TableBuilder, TokenTable
from tunesmith.errors import UserError
from tunesmith.models.load import load_tokenizer

Row = tuple[Any, ...]


def row(ids: list[int], loss_mask: list[int], file: str, number: int, *targets: tuple[float, ...]) -> Row:
    marks = np.zeros(len(ids), np.bool_)
    marks[loss_mask] = True
    return np.array(ids, np.int32), marks, Source(file, number), *targets


LABELED = [row([5, 6], [1], "a", 3, (1.0, 2.0)), row([7], [0], "b", 1, (4.0,)), row([8, 9, 10], [0, 2], "a", 9, ())]
MORE = [row([1], [0], "c", 2, (6.0,)), row([2, 3], [1], "b", 5, (7.0, 8.0))]
PLAIN = [row([5, 6], [0, 1], "a", 3), row([7], [0], "b", 1), row([8, 9, 10], [1], "a", 9), row([11, 12], [0], "a", 10)]


def rows_of(table: TokenTable) -> list[Any]:
    return [
        (ids.tolist(), np.flatnonzero(loss_mask).tolist(), source, *targets)
        for ids, loss_mask, source, *targets in table.rows()
    ]


def as_rows(rows: list[Row]) -> list[Any]:
    return [
        (ids.tolist(), np.flatnonzero(loss_mask).tolist(), source, *targets)
        for ids, loss_mask, source, *targets in rows
    ]


@pytest.mark.parametrize("rows", [LABELED, PLAIN, []], ids=["labeled", "plain", "none"])
@pytest.mark.parametrize("spool", [1, 2, 4, 10**6])
def test_a_table_returns_the_rows_it_was_built_from(
    rows: list[Row], spool: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "SPOOL", spool)
    table = TokenTable.build(rows)
    assert rows_of(table) == as_rows(rows)
    assert len(table) == len(rows)
    assert table.offsets.tolist() == [0, *np.cumsum([len(each[0]) for each in rows]).tolist()]
    assert table.lengths.tolist() == [len(each[0]) for each in rows]
    assert table.files == tuple(dict.fromkeys(each[2].file for each in rows))
    kinds = (table.ids.dtype, table.loss_mask.dtype, table.offsets.dtype, table.file.dtype, table.row.dtype)
    assert kinds == (np.int32, np.bool_, np.int64, np.int32, np.int64)
    assert isinstance(table.ids, np.memmap) == (bool(rows) and spool <= len(table.ids))
    assert [(ids.tolist(), loss_mask.tolist()) for ids, loss_mask in table] == [
        (each[0].tolist(), each[1].tolist()) for each in rows
    ]


@pytest.mark.parametrize("spool", [3, 10**6])
def test_extending_with_tables_gives_the_table_of_all_rows(spool: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "SPOOL", spool)
    for first, second in ((LABELED, MORE), (PLAIN, PLAIN[::-1]), ([], PLAIN)):
        builder = TableBuilder()
        for part in (first, second):
            builder.extend(TokenTable.build(part))
        builder.add(*second[0])
        table = builder.table()
        assert rows_of(table) == as_rows([*first, *second, second[0]])
        targets = [value for each in (*first, *second, second[0]) for value in (each[3] if len(each) > 3 else ())]
        if targets:
            assert table.targets is not None
            assert table.target_offsets is not None
            assert table.targets.tolist() == targets
            assert table.targets.dtype == np.float32
        else:
            assert table.targets is table.target_offsets is None


def test_loss_tokens_count_predicted_tokens_labels_or_compared_rows() -> None:
    assert TokenTable.build(PLAIN).loss_tokens == 2, "no token comes before a row's first token"
    assert TokenTable.build(LABELED).loss_tokens == 4
    compared = [row([5, 6, 7], [0, 2], "a", 1, ()), row([5, 6, 7], [1, 2], "a", 2, ())]
    assert TokenTable.build(compared).loss_tokens == 2
    assert TokenTable.build([]).loss_tokens == 0
    assert TokenTable.build([row([], [], "a", 1), row([5, 6], [0, 1], "a", 2)]).loss_tokens == 1


# Counts of the data pipeline


def prepared(base: Path, file: Path, content: str, objective: Any = "instruction", **data: Any) -> Any:
    file.write_text(content, encoding="utf-8")
    values = {"train": str(file), "held_out": 0.0, "cache": False, **data}
    recipe = Recipe.load({"base": str(base), "data": values, "objective": objective})
    return prepare(recipe, load_tokenizer(recipe.base))


def qa(*numbers: int) -> str:
    return "".join(f'{{"question": "question {n}", "answer": "{"a" * (n % 7 + 1)}"}}\n' for n in numbers)


def test_the_report_counts_rows_tokens_and_both_sides(tiny_model: Path, tmp_path: Path) -> None:
    content = qa(*range(30)) + "{\n" + '{"question": "a", "answer": "<|pad|>"}\n'
    result = prepared(tiny_model, tmp_path / "rows.jsonl", content, held_out=0.4, max_malformed=0.1, skip_unusable=True)
    report, train, held_out = result.report, result.train, result.held_out
    assert (report.format, report.rows, report.malformed, report.unusable) == ("question_answer", 32, 1, 1)
    assert (report.examples, report.held_out_rows) == (len(train), len(held_out))
    assert len(train) + len(held_out) == 30
    assert len(held_out) > 3
    assert (report.tokens, report.loss_tokens) == (len(train.ids), int(train.loss_mask.sum()))
    assert (report.held_out_tokens, report.held_out_loss_tokens) == (len(held_out.ids), int(held_out.loss_mask.sum()))
    assert report.longest == max(*train.lengths, *held_out.lengths)
    assert (report.separate_turns, report.sources) == (0, ())
    assert report.cached is False


@pytest.mark.parametrize(
    ("lengths", "bins"),
    [
        ([1, 2, 2, 16], {1: 1, 2: 2, 16: 1}),
        ([2, 3, 17], {2: 1, 4: 1, 18: 1}),
        ([1, 32, 33], {4: 1, 32: 1, 36: 1}),
        ([64 * 16], {1024: 1}),
        ([64 * 16 + 1], {128 * 9: 1}),
        ([1024 * 16 + 1], {4096 * 5: 1}),
        ([65536 * 17], {65536 * 17: 1}),
        ([0, 1], {1: 2}),
    ],
)
def test_lengths_are_counted_in_at_most_sixteen_round_bins(lengths: list[int], bins: dict[int, int]) -> None:
    histogram = preparing._histogram(np.array(lengths, np.int64))
    assert {upper: count for upper, count in histogram if count} == bins
    width = histogram[0][0]
    assert [upper for upper, _ in histogram] == [width * (index + 1) for index in range(len(histogram))]
    assert len(histogram) <= 16 or width == 65536
    assert all(isinstance(count, int) for _, count in histogram)


def test_up_to_five_bad_rows_are_shown_and_the_rest_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        prepared(tiny_model, tmp_path / "rows.jsonl", qa(1) + "{\n" * 7)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("7 of 8 rows are malformed, more than data.max_malformed (1%) allows.")
    assert [line.split(": ")[0].split(" ")[-1] for line in lines[1:6]] == ["2", "3", "4", "5", "6"]
    assert lines[6:] == ["  and 2 more"]
    with pytest.raises(UserError) as error:
        prepared(tiny_model, tmp_path / "rows.jsonl", qa(1) + "{\n" * 5)
    assert "more\n" not in str(error.value)
    assert not str(error.value).endswith("more")
    bad = '{"question": "a", "answer": "<|pad|>"}\n'
    with pytest.raises(UserError) as error:
        prepared(tiny_model, tmp_path / "rows.jsonl", qa(1) + bad * 7)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("7 of 8 rows cannot be trained on.")
    assert [line.split(": ")[0].split(" ")[-1] for line in lines[1:6]] == ["2", "3", "4", "5", "6"]
    assert lines[6:] == ["  and 2 more"]
    with pytest.raises(UserError) as error:
        prepared(tiny_model, tmp_path / "rows.jsonl", qa(1) + bad * 5)
    assert not str(error.value).endswith("more")
    (tmp_path / "other.jsonl").write_text(qa(2) + "{\n" * 3)
    result = prepared(
        tiny_model,
        tmp_path / "rows.jsonl",
        qa(1) + "{\n" * 3,
        held_out=[str(tmp_path / "other.jsonl")],
        max_malformed=1,
    )
    assert (result.report.rows, result.report.malformed, len(result.report.malformed_rows)) == (8, 6, 5)
    assert [each.split("/")[-1].split(":")[0] for each in result.report.malformed_rows] == [
        *(f"rows.jsonl row {number}" for number in (2, 3, 4)),
        *(f"other.jsonl row {number}" for number in (2, 3)),
    ]


def test_no_training_rows_left_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^No training example is left\. Give more rows, or lower data\.held_out\.$"):
        prepared(tiny_model, tmp_path / "rows.jsonl", qa(*range(6)), max_length=8, overflow="drop")


def test_the_format_is_detected_from_the_first_hundred_rows_only(tiny_model: Path, tmp_path: Path) -> None:
    assert DETECT_ROWS == 100
    other = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    with pytest.raises(UserError, match="The rows have several formats"):
        prepared(tiny_model, tmp_path / "rows.jsonl", qa(*range(99)) + other)
    result = prepared(tiny_model, tmp_path / "rows.jsonl", qa(*range(100)) + other)
    assert (result.report.format, result.report.malformed, len(result.train)) == ("question_answer", 1, 100)


def test_turns_that_the_template_rewrites_become_separate_rows(tiny_model: Path, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}|"
        "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('#')[-1] }}"
        "{% else %}{{ m.content }}{% endif %}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant|{% endif %}"
    )
    turns = [("user", "a"), ("assistant", "why#b"), ("user", "c"), ("assistant", "how#d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    file = tmp_path / "rows.jsonl"
    import json

    file.write_text(json.dumps({"messages": messages}) + "\n")
    base = {"path": str(tiny_model), "chat_template": str(template)}
    recipe = Recipe.load({"base": base, "data": {"train": str(file), "held_out": 0.0, "cache": False}})
    result = prepare(recipe, load_tokenizer(recipe.base))
    tokenizer = load_tokenizer(recipe.base)
    texts = [tokenizer.decode(ids[marks]) for ids, marks in result.train]
    assert texts == ["why#b<|im_end|>", "how#d<|im_end|>"]
    assert (result.report.rows, result.report.examples, result.report.separate_turns) == (1, 2, 1)
    assert result.train.row.tolist() == [1, 1]


def test_classes_come_from_the_training_rows_unless_the_recipe_names_them(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "label": "y"}\n{"text": "b", "label": "x"}\n{"text": "c", "label": "y"}\n')
    data = {"train": str(file), "held_out": 0.0, "cache": False}
    recipe = Recipe.load({"base": str(tiny_model), "data": data, "objective": "classification"})
    assert resolve(recipe).objective.labels == ["x", "y"]  # type: ignore[attr-defined]
    assert recipe.objective.labels is None  # type: ignore[attr-defined]
    result = prepare(recipe, load_tokenizer(recipe.base)).train
    assert result.targets is not None
    assert result.targets.tolist() == [1.0, 0.0, 1.0]
    named = {"kind": "classification", "labels": ["y", "x", "z"]}
    recipe = Recipe.load({"base": str(tiny_model), "data": data, "objective": named})
    result = prepare(recipe, load_tokenizer(recipe.base)).train
    assert result.targets is not None
    assert result.targets.tolist() == [0.0, 1.0, 0.0]


def test_chunks_are_full_except_the_last_and_in_order() -> None:
    size = tokenize.ROWS
    chunks = list(tokenize._chunks(iter(range(2 * size + 3))))  # type: ignore[arg-type]
    assert [len(chunk) for chunk in chunks] == [size, size, 3]
    assert [each for chunk in chunks for each in chunk] == list(range(2 * size + 3))
    assert list(tokenize._chunks(iter(()))) == []
    assert tokenize.ROWS_ALONE % size == 0
