"""Every field of a recipe's `data` section does what its documentation says: which rows, which tokens, which side."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bytewise import byte_tokenizer
from effects import shows

from tunesmith.config.pipeline import Pipeline
from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import Prepared, held_out_examples, prepare
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.errors import UserError
from tunesmith.models.load import load_tokenizer

TOKENIZER = byte_tokenizer()


def chat(question: str, answer: str) -> str:
    """As ChatML has it."""
    return f"<|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n{answer}<|im_end|>"


def ids_of(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return found


def loss_mask_of(question: str, answer: str) -> list[bool]:
    """The answer and its end are learnt, what stands before is not."""
    loss_mask = len(ids_of(f"{answer}<|im_end|>"))
    return [False] * (len(ids_of(chat(question, answer))) - loss_mask) + [True] * loss_mask


def pairs(*numbers: int) -> list[dict[str, str]]:
    return [{"question": f"q{number}", "answer": f"a{number}"} for number in numbers]


def write(file: Path, rows: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


Prepare = Callable[..., Prepared]


@pytest.fixture
def prepared(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """The tables of a recipe with these values in its data section; relative paths are below the test's directory."""
    monkeypatch.chdir(tmp_path)

    def make(objective: Any = "instruction", seed: int = 0, **data: Any) -> Prepared:
        values = {"train": "rows.jsonl", "held_out": 0.0, **data}
        train = {"steps": 1, "seed": seed}
        recipe = Recipe.load({"base": str(tiny_model), "data": values, "objective": objective, "train": train})
        return prepare(recipe, load_tokenizer(recipe.base))

    return make


def texts(table: TokenTable) -> list[str]:
    return [TOKENIZER.decode(table[row][0]) for row in range(len(table))]


def questions(table: TokenTable) -> list[str]:
    return [text.split("user\n")[1].split("<|im_end|>")[0] for text in texts(table)]


# Which rows


@shows("data.train")
@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        pytest.param("b.jsonl", [3, 4], id="a file"),
        pytest.param(["b.jsonl", "a.jsonl"], [3, 4, 1, 2], id="files in the order given"),
        pytest.param("*.jsonl", [1, 2, 3, 4], id="a glob, sorted"),
        pytest.param("deeper", [5, 6, 7], id="a directory and what is below it"),
        pytest.param(["deeper/more/d.csv", "a.jsonl"], [7, 1, 2], id="files of several kinds"),
    ],
)
def test_train_names_the_rows_that_are_learnt(given: Any, numbers: list[int], prepared: Prepare) -> None:
    write(Path("b.jsonl"), pairs(3, 4))
    write(Path("a.jsonl"), pairs(1, 2))
    write(Path("deeper/c.jsonl"), pairs(5, 6))
    write(Path("deeper/more/d.csv"), ["question,answer", "q7,a7"])
    found = prepared(train=given)
    assert texts(found.train) == [chat(f"q{number}", f"a{number}") for number in numbers]
    assert [found.train[row][0].tolist() for row in range(len(numbers))] == [
        ids_of(chat(f"q{number}", f"a{number}")) for number in numbers
    ]
    assert [found.train[row][1].tolist() for row in range(len(numbers))] == [
        loss_mask_of(f"q{number}", f"a{number}") for number in numbers
    ]


def share_of(question: str) -> float:
    """Where in [0, 1) the row stands whose first user turn this is."""
    said = json.dumps([{"role": "user", "content": question}], sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big") / 2**64


@shows("data.held_out")
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.9])
def test_held_out_is_a_share_by_the_hash_of_what_is_asked(share: float, prepared: Prepare) -> None:
    asked = [f"question {number}" for number in range(120)]
    write(Path("rows.jsonl"), [{"question": each, "answer": f"a{at}"} for at, each in enumerate(asked)])
    found = prepared(held_out=share)
    assert questions(found.held_out) == [each for each in asked if share_of(each) < share]
    assert questions(found.train) == [each for each in asked if share_of(each) >= share]
    assert found.report.held_out_rows == len(found.held_out)


@shows("data.held_out")
def test_held_out_paths_are_all_held_out_and_the_training_rows_all_learnt(prepared: Prepare) -> None:
    write(Path("rows.jsonl"), pairs(*range(30)))
    write(Path("other.jsonl"), pairs(50, 51))
    write(Path("more.csv"), ["question,answer", "q60,a60"])
    found = prepared(held_out=["other.jsonl", "more.csv"])
    assert questions(found.held_out) == ["q50", "q51", "q60"]
    assert questions(found.train) == [f"q{number}" for number in range(30)]
    assert questions(prepared(held_out="other.jsonl").held_out) == ["q50", "q51"]


@shows("data.folds", "data.fold")
@pytest.mark.parametrize(("folds", "number"), [(3, 1), (3, 3), (4, 2)])
def test_a_fold_holds_every_so_manyth_row_out_by_its_hash(folds: int, number: int, prepared: Prepare) -> None:
    asked = [f"question {number}" for number in range(22)]
    write(Path("rows.jsonl"), [{"question": each, "answer": "a"} for each in asked])
    held_out = sorted(asked, key=share_of)[number - 1 :: folds]
    found = prepared(held_out=0.05, folds=folds, fold=number)
    assert questions(found.held_out) == [each for each in asked if each in held_out]
    assert questions(found.train) == [each for each in asked if each not in held_out]
    whole = prepared(held_out=0.05, folds=folds)
    assert (questions(whole.train), len(whole.held_out)) == (asked, 0), "without a number it learns all of them"


@shows("data.folds", "data.fold")
def test_folds_are_so_many_runs_and_one_on_all_rows_and_a_fold_is_a_single_run() -> None:
    data = {"train": "rows.jsonl", "folds": 3}
    chain = Pipeline.load({"data": data})
    assert chain is not None
    assert [recipe.data.fold for recipe in chain.recipes] == [1, 2, 3, None]
    assert Pipeline.load({"data": {**data, "fold": 2}}) is None
    assert Pipeline.load({"data": {"train": "rows.jsonl"}}) is None


@shows("data.folds")
def test_more_folds_than_rows_are_refused(prepared: Prepare) -> None:
    write(Path("rows.jsonl"), pairs(1, 2, 1))
    with pytest.raises(UserError, match=r"data\.folds: 3 parts are more than there are different rows"):
        prepared(held_out=0.05, folds=3, fold=3)


@shows("data.held_out", "data.folds", "data.fold")
def test_the_held_out_rows_themselves_are_those_of_the_held_out_table(
    prepared: Prepare, tiny_model: Path, tmp_path: Path
) -> None:
    write(Path("rows.jsonl"), pairs(*range(40)))
    write(Path("other.jsonl"), pairs(50, 51))
    for data in ({"held_out": 0.3}, {"held_out": ["other.jsonl"]}, {"held_out": 0.05, "folds": 4, "fold": 3}):
        table = prepared(**data).held_out
        values = {"train": "rows.jsonl", "held_out": 0.0, **data}
        rows = held_out_examples(Recipe.load({"base": str(tiny_model), "data": values}))
        assert [row.messages[0]["content"] for row in rows if row.messages] == questions(table)
        assert len(rows) > 1


# What of a row


BOTH = {"instruction": "I", "output": "O", "question": "Q", "answer": "A", "text": "T", "frage": "F"}


@shows("data.format", "data.columns")
@pytest.mark.parametrize(
    ("objective", "data", "text"),
    [
        pytest.param("instruction", {}, chat("I", "O"), id="told by the columns, the first form that fits"),
        pytest.param("instruction", {"format": "alpaca"}, chat("I", "O"), id="alpaca"),
        pytest.param("instruction", {"format": "question_answer"}, chat("Q", "A"), id="question_answer"),
        pytest.param("text", {"format": "text"}, "T<|endoftext|>", id="text"),
        pytest.param(
            "instruction", {"columns": {"question": "frage"}}, chat("F", "A"), id="a column in another's place"
        ),
        pytest.param(
            "instruction", {"columns": {"question": "text", "answer": "frage"}}, chat("T", "F"), id="two columns"
        ),
        pytest.param(
            "instruction",
            {"format": "alpaca", "columns": {"instruction": "Q2", "output": "frage", "input": "A2"}},
            chat("two\nthree", "F"),
            id="columns of a named form",
        ),
        pytest.param("text", {"format": "text", "columns": {"text": "frage"}}, "F<|endoftext|>", id="a column of text"),
    ],
)
def test_form_and_columns_say_which_columns_are_asked_answered_and_read(
    objective: str, data: dict[str, Any], text: str, prepared: Prepare
) -> None:
    write(Path("rows.jsonl"), [{**BOTH, "Q2": "two", "A2": "three"}])
    if data.get("columns", {}).get("question") == "frage":
        write(Path("rows.jsonl"), [{"frage": "F", "answer": "A"}])
    found = prepared(objective, **data)
    assert texts(found.train) == [text]
    assert found.report.format == data.get("format", "question_answer" if data.get("columns") else "alpaca")


LONG_QUESTION, LONG_ANSWER = "q" * 20, "".join(chr(65 + number % 26) for number in range(60))
WHOLE = ids_of(chat(LONG_QUESTION, LONG_ANSWER))
MARKS = loss_mask_of(LONG_QUESTION, LONG_ANSWER)


def pieces(limit: int) -> list[tuple[list[int], list[bool]]]:
    """Each begins with the last token of the one before, which is not learnt again; those without anything to learn
    are left out."""
    found = []
    for start in range(0, len(WHOLE) - 1, limit - 1):
        marks = [False, *MARKS[start + 1 : start + limit]]
        if any(marks):
            found.append((WHOLE[start : start + limit], marks))
    return found


@shows("data.max_length", "data.overflow")
@pytest.mark.parametrize("limit", [len(WHOLE) - 1, 76, 64])
@pytest.mark.parametrize("overflow", ["auto", "refuse", "truncate", "split", "drop"])
def test_over_long_rows_are_refused_truncated_split_or_dropped(overflow: str, limit: int, prepared: Prepare) -> None:
    write(Path("rows.jsonl"), [*pairs(1), {"question": LONG_QUESTION, "answer": LONG_ANSWER}])
    if overflow in ("auto", "refuse"):
        with pytest.raises(UserError, match=rf"longer than data.max_length \({limit} .*row 2 \({len(WHOLE)} tokens\)"):
            prepared(max_length=limit, overflow=overflow)
        return
    found = prepared(max_length=limit, overflow=overflow)
    first, *rest = [(ids.tolist(), marks.tolist()) for ids, marks in found.train]
    assert first == (ids_of(chat("q1", "a1")), loss_mask_of("q1", "a1"))
    assert rest == {"truncate": [(WHOLE[:limit], MARKS[:limit])], "split": pieces(limit), "drop": []}[overflow]
    counts = (found.report.truncated, found.report.split, found.report.dropped)
    assert counts == {"truncate": (1, 0, 0), "split": (0, 1, 0), "drop": (0, 0, 1)}[overflow]
    assert found.report.longest == len(WHOLE)


@shows("data.max_length", "data.overflow")
@pytest.mark.parametrize("overflow", ["auto", "refuse", "truncate", "split", "drop"])
def test_a_row_of_just_max_length_is_kept_whole_and_raw_text_is_split_unasked(overflow: str, prepared: Prepare) -> None:
    write(Path("rows.jsonl"), [{"question": LONG_QUESTION, "answer": LONG_ANSWER}])
    found = prepared(max_length=len(WHOLE), overflow=overflow)
    assert [(ids.tolist(), marks.tolist()) for ids, marks in found.train] == [(WHOLE, MARKS)]
    Path("book.txt").write_text("abcdefghijklmnopqrst", encoding="utf-8")
    assert texts(prepared("text", train="book.txt", max_length=9).train) == [
        "abcdefghi",
        "ijklmnopq",
        "qrst<|endoftext|>",
    ]


# What is forgiven


@shows("data.max_malformed")
@pytest.mark.parametrize(("share", "refused"), [(0.0, True), (0.19, True), (0.2, False), (0.5, False), (None, True)])
def test_max_malformed_is_the_share_of_bad_rows_above_which_data_are_refused(
    share: float | None, refused: bool, prepared: Prepare
) -> None:
    write(Path("rows.jsonl"), [*pairs(1, 2, 3, 4), "{", *pairs(5), '{"question": 1, "answer": "a"}', *pairs(6, 7, 8)])
    data = {} if share is None else {"max_malformed": share}
    if refused:
        with pytest.raises(UserError, match=rf"2 of 10 rows are malformed.*\({share or 0.01 * (share is None):.0%}\)"):
            prepared(**data)
    else:
        found = prepared(**data)
        assert questions(found.train) == [f"q{number}" for number in range(1, 9)]
        assert (found.report.malformed, found.report.rows) == (2, 10)
        assert [each.split(":")[0] for each in found.report.malformed_rows] == ["rows.jsonl row 5", "rows.jsonl row 7"]


@shows("data.max_malformed")
def test_one_bad_row_of_a_hundred_is_forgiven_unasked(prepared: Prepare) -> None:
    write(Path("rows.jsonl"), [*pairs(*range(99)), "{"])
    assert prepared().report.malformed == 1
    write(Path("rows.jsonl"), [*pairs(*range(98)), "{"])
    with pytest.raises(UserError, match=r"1 of 99 rows are malformed, more than data.max_malformed \(1%\) allows"):
        prepared()


@shows("data.skip_unusable")
def test_skip_unusable_leaves_rows_out_that_the_template_cannot_show(prepared: Prepare) -> None:
    rows = [*pairs(1), {"question": "q2", "answer": "<|im_end|>"}, *pairs(3), {"question": "<|pad|>", "answer": "a"}]
    write(Path("rows.jsonl"), rows)
    for data in ({}, {"skip_unusable": False}):
        with pytest.raises(UserError, match=r"2 of 4 rows cannot be learnt from"):
            prepared(**data)
    found = prepared(skip_unusable=True)
    assert questions(found.train) == ["q1", "q3"]
    assert found.report.unusable == 2
    assert [each.split(":")[0] for each in found.report.unusable_rows] == ["rows.jsonl row 2", "rows.jsonl row 4"]


# How they are laid out, repeated and kept


@shows("data.pack")
def test_pack_lays_many_rows_into_one_batch_and_without_it_each_goes_alone(prepared: Prepare, tiny_model: Path) -> None:
    write(Path("rows.jsonl"), pairs(*range(6)))
    table = prepared().train
    (length,) = set(table.lengths.tolist())
    train = {"steps": 1, "tokens_per_step": 3 * length, "tokens_per_batch": 2 * length, "shuffle": False}
    for data, steps in (
        ({}, [[[0, 1], [2, 3]], [[4, 5]]]),
        ({"pack": True}, [[[0, 1], [2, 3]], [[4, 5]]]),
        ({"pack": False}, [[[0], [1], [2]], [[3], [4], [5]]]),
    ):
        values = {"base": str(tiny_model), "data": {"train": "rows.jsonl", **data}, "train": train}
        batches = BatchPlan.of(Recipe.load(values), table).layout(True).batches
        assert batches.epoch(0) == steps
        assert [batches.step(index) for index in range(3)] == [*steps, steps[0]]


@shows("data.replay", "data.replay_share")
@pytest.mark.parametrize(("share", "seed"), [(None, 0), (0.25, 0), (0.6, 7)])
def test_replay_adds_rows_drawn_by_the_seed_until_their_tokens_make_up_the_share(
    share: float | None, seed: int, prepared: Prepare
) -> None:
    write(Path("rows.jsonl"), pairs(*range(20)))
    lines = [{"text": f"General sentence {number} " + "so " * (number % 5)} for number in range(60)]
    write(Path("general.jsonl"), lines)
    plain = prepared(cache=False)
    pool = prepared("text", train="general.jsonl", cache=False).train
    given = {} if share is None else {"replay_share": share}
    found = prepared(seed=seed, replay="general.jsonl", **given)
    count = len(plain.train)
    assert texts(found.train)[:count] == texts(plain.train)
    wanted = len(plain.train.ids) * (share or 0.1) / (1 - (share or 0.1))
    order = np.random.default_rng(seed).permutation(60)
    taken = next(number for number in range(1, 61) if sum(pool.lengths[order[:number]]) >= wanted)
    assert texts(found.train)[count:] == [f"{lines[place]['text']}<|endoftext|>" for place in order[:taken]]
    assert all(marks.all() for _, marks in list(found.train)[count:]), "raw text is learnt whole"
    replayed = int(pool.lengths[order[:taken]].sum())
    report = found.report
    assert (report.replay_rows, report.replayed, report.replayed_tokens) == (60, taken, replayed)
    assert (report.rows, report.examples, report.tokens) == (20, 20 + taken, len(found.train.ids))


@shows("data.replay")
def test_replayed_chats_are_learnt_as_the_objective_learns_and_read_in_a_form_of_their_own(prepared: Prepare) -> None:
    write(Path("rows.jsonl"), [{"frage": f"q{number}", "antwort": f"a{number}"} for number in range(8)])
    turns = [{"role": "user", "content": "earlier"}, {"role": "assistant", "content": "reply"}]
    write(Path("chats.jsonl"), [{"messages": turns}])
    columns = {"question": "frage", "answer": "antwort"}
    found = prepared(format="question_answer", columns=columns, replay="chats.jsonl", replay_share=0.05)
    assert texts(found.train)[8:] == [chat("earlier", "reply")]
    assert found.train[8][1].tolist() == loss_mask_of("earlier", "reply")
    assert prepared(format="question_answer", columns=columns).report.replayed == 0, "none is the default"


@shows("data.cache")
def test_cache_keeps_the_tokens_for_the_next_run_and_without_it_nothing_is_written_or_read(
    prepared: Prepare, tmp_path: Path
) -> None:
    write(Path("rows.jsonl"), pairs(*range(5)))
    directory = tmp_path / "cache"
    assert not prepared(cache=False).report.cached
    assert not directory.exists()
    first, second = prepared(), prepared(cache=True)
    assert (first.report.cached, second.report.cached) == (False, True)
    assert len(list((directory / "tokens").iterdir())) == 1
    assert second.train.ids.tolist() == first.train.ids.tolist()
    assert not prepared(cache=False).report.cached
