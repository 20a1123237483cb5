"""Every field of a recipe's `data` section does what its documentation says: which rows, tokens and split."""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bytewise import byte_tokenizer
from settings_coverage import shows

from tunesmith.config.pipeline import Pipeline
from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Source
from tunesmith.data.examples import held_out_examples
from tunesmith.data.prepare import Prepared, prepare
from tunesmith.data.show import show
from tunesmith.data.tokens import TokenTable
from tunesmith.engine.batch_plan import BatchPlan
from tunesmith.errors import UserError
from tunesmith.models.load import load_tokenizer
from tunesmith.training.trainer import Trainer

TOKENIZER = byte_tokenizer()


def chat(question: str, answer: str) -> str:
    """A question and its answer in ChatML."""
    return f"<|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n{answer}<|im_end|>"


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


def loss_mask_of(question: str, answer: str) -> list[bool]:
    """True for the answer and its end token, False for the prompt."""
    count = len(ids_of(f"{answer}<|im_end|>"))
    return [False] * (len(ids_of(chat(question, answer))) - count) + [True] * count


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
    """The token tables of a recipe with these values in `data`; relative paths start at the test's directory."""
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
    ("paths", "numbers"),
    [
        pytest.param("b.jsonl", [3, 4], id="a file"),
        pytest.param(["b.jsonl", "a.jsonl"], [3, 4, 1, 2], id="files in the given order"),
        pytest.param("*.jsonl", [1, 2, 3, 4], id="a glob, sorted"),
        pytest.param("deeper", [5, 6, 7], id="a directory with its subdirectories"),
        pytest.param(["deeper/more/d.csv", "a.jsonl"], [7, 1, 2], id="files of several kinds"),
    ],
)
def test_train_selects_the_training_rows(paths: Any, numbers: list[int], prepared: Prepare) -> None:
    write(Path("b.jsonl"), pairs(3, 4))
    write(Path("a.jsonl"), pairs(1, 2))
    write(Path("deeper/c.jsonl"), pairs(5, 6))
    write(Path("deeper/more/d.csv"), ["question,answer", "q7,a7"])
    found = prepared(train=paths)
    assert texts(found.train) == [chat(f"q{number}", f"a{number}") for number in numbers]
    assert [found.train[row][0].tolist() for row in range(len(numbers))] == [
        ids_of(chat(f"q{number}", f"a{number}")) for number in numbers
    ]
    assert [found.train[row][1].tolist() for row in range(len(numbers))] == [
        loss_mask_of(f"q{number}", f"a{number}") for number in numbers
    ]


def share_of(question: str) -> float:
    """The hash, in [0, 1), of a row with this first user turn."""
    key = json.dumps([{"role": "user", "content": question}], sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


@shows("data.held_out")
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.9])
def test_held_out_is_a_share_by_the_hash_of_the_question(share: float, prepared: Prepare) -> None:
    all_questions = [f"question {number}" for number in range(120)]
    rows = [{"question": question, "answer": f"a{index}"} for index, question in enumerate(all_questions)]
    write(Path("rows.jsonl"), rows)
    found = prepared(held_out=share)
    assert questions(found.held_out) == [question for question in all_questions if share_of(question) < share]
    assert questions(found.train) == [question for question in all_questions if share_of(question) >= share]
    assert found.report.held_out_rows == len(found.held_out)


@shows("data.held_out")
def test_rows_of_held_out_paths_are_held_out_and_all_training_rows_are_kept(prepared: Prepare) -> None:
    write(Path("rows.jsonl"), pairs(*range(30)))
    write(Path("other.jsonl"), pairs(50, 51))
    write(Path("more.csv"), ["question,answer", "q60,a60"])
    found = prepared(held_out=["other.jsonl", "more.csv"])
    assert questions(found.held_out) == ["q50", "q51", "q60"]
    assert questions(found.train) == [f"q{number}" for number in range(30)]
    assert questions(prepared(held_out="other.jsonl").held_out) == ["q50", "q51"]


@shows("data.folds", "data.fold")
@pytest.mark.parametrize(("folds", "number"), [(3, 1), (3, 3), (4, 2)])
def test_a_fold_holds_out_every_nth_row_by_its_hash(folds: int, number: int, prepared: Prepare) -> None:
    all_questions = [f"question {number}" for number in range(22)]
    write(Path("rows.jsonl"), [{"question": question, "answer": "a"} for question in all_questions])
    held_out = sorted(all_questions, key=share_of)[number - 1 :: folds]
    found = prepared(held_out=0.05, folds=folds, fold=number)
    assert questions(found.held_out) == [question for question in all_questions if question in held_out]
    assert questions(found.train) == [question for question in all_questions if question not in held_out]
    last = prepared(held_out=0.05, folds=folds)
    assert (questions(last.train), len(last.held_out)) == (all_questions, 0), "the last run trains on all rows"


@shows("data.folds", "data.fold")
def test_folds_are_one_run_each_and_one_on_all_rows() -> None:
    data = {"train": "rows.jsonl", "folds": 3}
    pipeline = Pipeline.load({"data": data})
    assert pipeline is not None
    assert [recipe.data.fold for recipe in pipeline.recipes] == [1, 2, 3, None]
    assert Pipeline.load({"data": {**data, "fold": 2}}) is None
    assert Pipeline.load({"data": {"train": "rows.jsonl"}}) is None


@shows("data.folds")
def test_more_folds_than_rows_are_refused(prepared: Prepare) -> None:
    write(Path("rows.jsonl"), pairs(1, 2, 1))
    with pytest.raises(UserError, match=r"data\.folds: 3 is more than the number of distinct rows"):
        prepared(held_out=0.05, folds=3, fold=3)


@shows("data.held_out", "data.folds", "data.fold")
def test_held_out_examples_are_the_rows_of_the_held_out_table(
    prepared: Prepare, tiny_model: Path, tmp_path: Path
) -> None:
    write(Path("rows.jsonl"), pairs(*range(40)))
    write(Path("other.jsonl"), pairs(50, 51))
    for data in ({"held_out": 0.3}, {"held_out": ["other.jsonl"]}, {"held_out": 0.05, "folds": 4, "fold": 3}):
        table = prepared(**data).held_out
        values = {"train": "rows.jsonl", "held_out": 0.0, **data}
        rows = held_out_examples(Recipe.load({"base": str(tiny_model), "data": values}).data, ())
        assert [row.messages[0]["content"] for row in rows if row.messages] == questions(table)
        assert len(rows) > 1


# Which parts of a row


BOTH = {"instruction": "I", "output": "O", "question": "Q", "answer": "A", "text": "T", "frage": "F"}


@shows("data.format", "data.columns")
@pytest.mark.parametrize(
    ("objective", "data", "text"),
    [
        pytest.param("instruction", {}, chat("I", "O"), id="detected from the columns, the first format that fits"),
        pytest.param("instruction", {"format": "alpaca"}, chat("I", "O"), id="alpaca"),
        pytest.param("instruction", {"format": "question_answer"}, chat("Q", "A"), id="question_answer"),
        pytest.param("text", {"format": "text"}, "T<|endoftext|>", id="text"),
        pytest.param("instruction", {"columns": {"question": "frage"}}, chat("F", "A"), id="another column"),
        pytest.param(
            "instruction", {"columns": {"question": "text", "answer": "frage"}}, chat("T", "F"), id="two columns"
        ),
        pytest.param(
            "instruction",
            {"format": "alpaca", "columns": {"instruction": "Q2", "output": "frage", "input": "A2"}},
            chat("two\nthree", "F"),
            id="columns of a given format",
        ),
        pytest.param("text", {"format": "text", "columns": {"text": "frage"}}, "F<|endoftext|>", id="a column of text"),
    ],
)
def test_format_and_columns_select_the_columns_of_question_and_answer(
    objective: str, data: dict[str, Any], text: str, prepared: Prepare
) -> None:
    write(Path("rows.jsonl"), [{**BOTH, "Q2": "two", "A2": "three"}])
    if data.get("columns", {}).get("question") == "frage":
        write(Path("rows.jsonl"), [{"frage": "F", "answer": "A"}])
    found = prepared(objective, **data)
    assert texts(found.train) == [text]
    assert found.report.format == data.get("format", "question_answer" if data.get("columns") else "alpaca")


LONG_QUESTION, LONG_ANSWER = "q" * 20, "".join(chr(65 + number % 26) for number in range(60))
FULL_IDS = ids_of(chat(LONG_QUESTION, LONG_ANSWER))
FULL_MASK = loss_mask_of(LONG_QUESTION, LONG_ANSWER)


def pieces(limit: int) -> list[tuple[list[int], list[bool]]]:
    """Each starts with the last token of the previous one, which has no loss again; pieces without loss tokens are left
    out."""
    kept = []
    for start in range(0, len(FULL_IDS) - 1, limit - 1):
        mask = [False, *FULL_MASK[start + 1 : start + limit]]
        if any(mask):
            kept.append((FULL_IDS[start : start + limit], mask))
    return kept


@shows("data.max_length", "data.overflow")
@pytest.mark.parametrize("limit", [len(FULL_IDS) - 1, 76, 64])
@pytest.mark.parametrize("overflow", ["auto", "refuse", "truncate", "split", "drop"])
def test_rows_over_max_length_are_refused_truncated_split_or_dropped(
    overflow: str, limit: int, prepared: Prepare
) -> None:
    write(Path("rows.jsonl"), [*pairs(1), {"question": LONG_QUESTION, "answer": LONG_ANSWER}])
    if overflow in ("auto", "refuse"):
        with pytest.raises(
            UserError, match=rf"longer than data.max_length \({limit} .*row 2 \({len(FULL_IDS)} tokens\)"
        ):
            prepared(max_length=limit, overflow=overflow)
        return
    found = prepared(max_length=limit, overflow=overflow)
    first, *rest = [(ids.tolist(), mask.tolist()) for ids, mask in found.train]
    assert first == (ids_of(chat("q1", "a1")), loss_mask_of("q1", "a1"))
    assert rest == {"truncate": [(FULL_IDS[:limit], FULL_MASK[:limit])], "split": pieces(limit), "drop": []}[overflow]
    counts = (found.report.truncated, found.report.split, found.report.dropped)
    assert counts == {"truncate": (1, 0, 0), "split": (0, 1, 0), "drop": (0, 0, 1)}[overflow]
    assert found.report.longest == len(FULL_IDS)


@shows("data.max_length", "data.overflow")
@pytest.mark.parametrize("overflow", ["auto", "refuse", "truncate", "split", "drop"])
def test_a_row_of_exactly_max_length_is_kept_and_raw_text_is_split_by_default(overflow: str, prepared: Prepare) -> None:
    write(Path("rows.jsonl"), [{"question": LONG_QUESTION, "answer": LONG_ANSWER}])
    found = prepared(max_length=len(FULL_IDS), overflow=overflow)
    assert [(ids.tolist(), mask.tolist()) for ids, mask in found.train] == [(FULL_IDS, FULL_MASK)]
    Path("book.txt").write_text("abcdefghijklmnopqrst", encoding="utf-8")
    assert texts(prepared("text", train="book.txt", max_length=9).train) == [
        "abcdefghi",
        "ijklmnopq",
        "qrst<|endoftext|>",
    ]


# Malformed and unusable rows


@shows("data.max_malformed")
@pytest.mark.parametrize(("share", "refused"), [(0.0, True), (0.19, True), (0.2, False), (0.5, False), (None, True)])
def test_data_are_refused_above_max_malformed(share: float | None, refused: bool, prepared: Prepare) -> None:
    write(Path("rows.jsonl"), [*pairs(1, 2, 3, 4), "{", *pairs(5), '{"question": 1, "answer": "a"}', *pairs(6, 7, 8)])
    data = {} if share is None else {"max_malformed": share}
    if refused:
        with pytest.raises(UserError, match=rf"2 of 10 rows are malformed.*\({share or 0.01 * (share is None):.0%}\)"):
            prepared(**data)
    else:
        found = prepared(**data)
        assert questions(found.train) == [f"q{number}" for number in range(1, 9)]
        assert (found.report.malformed, found.report.rows) == (2, 10)
        assert [reason.split(":")[0] for reason in found.report.malformed_rows] == [
            "rows.jsonl row 5",
            "rows.jsonl row 7",
        ]


@shows("data.max_malformed")
def test_one_malformed_row_of_a_hundred_is_accepted_by_default(prepared: Prepare) -> None:
    write(Path("rows.jsonl"), [*pairs(*range(99)), "{"])
    assert prepared().report.malformed == 1
    write(Path("rows.jsonl"), [*pairs(*range(98)), "{"])
    with pytest.raises(UserError, match=r"1 of 99 rows are malformed, more than data.max_malformed \(1%\) allows"):
        prepared()


@shows("data.skip_unusable")
def test_skip_unusable_leaves_out_rows_that_the_template_cannot_render(prepared: Prepare) -> None:
    rows = [*pairs(1), {"question": "q2", "answer": "<|im_end|>"}, *pairs(3), {"question": "<|pad|>", "answer": "a"}]
    write(Path("rows.jsonl"), rows)
    for data in ({}, {"skip_unusable": False}):
        with pytest.raises(UserError, match=r"2 of 4 rows cannot be trained on"):
            prepared(**data)
    found = prepared(skip_unusable=True)
    assert questions(found.train) == ["q1", "q3"]
    assert found.report.unusable == 2
    assert [reason.split(":")[0] for reason in found.report.unusable_rows] == ["rows.jsonl row 2", "rows.jsonl row 4"]


# Packing, replay and cache


@shows("data.pack")
def test_pack_puts_many_rows_into_a_batch_and_without_it_each_is_alone(prepared: Prepare, tiny_model: Path) -> None:
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
def test_replay_adds_random_rows_until_they_reach_replay_share(
    share: float | None, seed: int, prepared: Prepare
) -> None:
    write(Path("rows.jsonl"), pairs(*range(20)))
    lines = [{"text": f"General sentence {number} " + "so " * (number % 5)} for number in range(60)]
    write(Path("general.jsonl"), lines)
    plain = prepared(cache=False)
    pool = prepared("text", train="general.jsonl", cache=False).train
    options = {} if share is None else {"replay_share": share}
    found = prepared(seed=seed, replay="general.jsonl", **options)
    count = len(plain.train)
    assert texts(found.train)[:count] == texts(plain.train)
    target = len(plain.train.ids) * (share or 0.1) / (1 - (share or 0.1))
    order = np.random.default_rng([seed, zlib.crc32(b"replay")]).permutation(60)
    taken = next(number for number in range(1, 61) if sum(pool.lengths[order[:number]]) >= target)
    assert texts(found.train)[count:] == [f"{lines[index]['text']}<|endoftext|>" for index in order[:taken]]
    assert all(mask.all() for _, mask in list(found.train)[count:]), "every token of raw text has a loss"
    replayed = int(pool.lengths[order[:taken]].sum())
    general = found.report.sources[1]
    assert (general.name, general.available, general.drawn, general.tokens) == ("replay", 60, taken, replayed)
    assert (found.report.rows, found.report.examples) == (80, 20 + taken)
    assert found.report.tokens == len(found.train.ids)


@shows("data.replay")
def test_a_step_counts_the_loss_tokens_of_replayed_rows(prepared: Prepare, tiny_model: Path) -> None:
    write(Path("rows.jsonl"), pairs(*range(20)))
    write(Path("general.jsonl"), [{"text": f"General sentence {number}"} for number in range(60)])
    data = {"train": "rows.jsonl", "held_out": 0, "replay": "general.jsonl", "replay_share": 0.4}
    with Trainer({"base": str(tiny_model), "data": data, "train": {"epochs": 1, "tokens_per_step": 300}}) as trainer:
        table, counted = trainer.rows, []
        trainer.loop.events.subscribe(lambda event: counted.append(event.get("loss_tokens_by_source")))
        by_hand = []
        for batches in trainer:
            own = [table[row][1][1:].sum() for rows in batches for row in rows if "general" in str(table.source(row))]
            by_hand.append(int(sum(own)))
            trainer.step()
    assert [count["replay"] for count in counted if count is not None] == by_hand
    assert sum(by_hand) > 0


@shows("data.replay")
def test_replayed_chats_have_their_own_format_and_the_objectives_loss_mask(prepared: Prepare) -> None:
    write(Path("rows.jsonl"), [{"frage": f"q{number}", "antwort": f"a{number}"} for number in range(8)])
    turns = [{"role": "user", "content": "earlier"}, {"role": "assistant", "content": "reply"}]
    write(Path("chats.jsonl"), [{"messages": turns}])
    columns = {"question": "frage", "answer": "antwort"}
    found = prepared(format="question_answer", columns=columns, replay="chats.jsonl", replay_share=0.05)
    assert texts(found.train)[8:] == [chat("earlier", "reply")]
    assert found.train[8][1].tolist() == loss_mask_of("earlier", "reply")
    assert prepared(format="question_answer", columns=columns).report.sources == (), "the default is no replay"


# The mix


def mix_of(prepared: Prepare, seed: int = 0, **sources: dict[str, Any]) -> Prepared:
    """Three sources: 20 chats, 12 chats with other columns, 60 lines of text."""
    write(Path("rows.jsonl"), pairs(*range(20)))
    write(Path("others.jsonl"), [{"frage": f"f{number}", "antwort": f"g{number}"} for number in range(12)])
    write(Path("general.jsonl"), [{"text": f"General sentence {number}"} for number in range(60)])
    files = {"task": "rows.jsonl", "others": "others.jsonl", "general": "general.jsonl"}
    columns = {"others": {"columns": {"question": "frage", "answer": "antwort"}}}
    mix = {name: {"paths": files[name], **columns.get(name, {}), **own} for name, own in sources.items()}
    return prepared(train=[], mix=mix, seed=seed)


def of_source(found: Prepared, number: int) -> list[str]:
    """The texts of the rows of one source."""
    ends = np.cumsum((0, *found.train.source_rows))
    return texts(found.train)[ends[number] : ends[number + 1]]


@shows("data.mix.paths", "data.mix.columns", "data.mix.format")
def test_sources_of_a_mix_have_their_own_paths_columns_and_formats(prepared: Prepare) -> None:
    found = mix_of(prepared, task={}, others={"format": "question_answer"}, general={})
    assert of_source(found, 0) == [chat(f"q{number}", f"a{number}") for number in range(20)]
    assert of_source(found, 1) == [chat(f"f{number}", f"g{number}") for number in range(12)]
    assert of_source(found, 2) == [f"General sentence {number}<|endoftext|>" for number in range(60)]
    assert [mask.all() for _, mask in found.train] == [False] * 32 + [True] * 60, "raw text has a loss on all tokens"
    assert found.report.format == "question_answer, text"
    with pytest.raises(UserError, match="sharegpt"):
        mix_of(prepared, task={}, others={"format": "sharegpt"})


def test_rows_of_a_mix_are_shown_source_by_source(prepared: Prepare, tiny_model: Path) -> None:
    mix_of(prepared, task={}, general={})
    mix = {"task": {"paths": "rows.jsonl"}, "general": {"paths": "general.jsonl"}}
    recipe = Recipe.load({"base": str(tiny_model), "data": {"mix": mix}})
    shown = list(show(recipe, load_tokenizer(recipe.base), rows=2, start=20))
    assert [each.source for each in shown] == ["rows.jsonl row 20", "general.jsonl row 1"]
    assert shown[1].loss_tokens == shown[1].tokens, "raw text has a loss on all tokens"


@shows("data.mix.share")
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_share_is_of_all_training_tokens_and_the_other_sources_are_whole(share: float, prepared: Prepare) -> None:
    found = mix_of(prepared, task={}, others={}, general={"share": share})
    task, others, general = found.report.sources
    assert (task.drawn, others.drawn) == (20, 12)
    assert general.tokens / len(found.train.ids) == pytest.approx(share, abs=0.02)
    assert len(set(of_source(found, 2))) == general.drawn, "no row twice"


@shows("data.mix.share", "data.mix.epochs")
def test_with_shares_for_all_the_mix_is_as_large_as_epochs_allow(prepared: Prepare) -> None:
    found = mix_of(prepared, task={"share": 0.5}, general={"share": 0.5})
    assert found.report.sources[0].drawn == 20, "the smaller source is used up"
    assert found.report.sources[0].tokens == pytest.approx(found.report.sources[1].tokens, rel=0.1)
    twice = mix_of(prepared, task={"share": 0.5, "epochs": 2}, general={"share": 0.5})
    assert (twice.report.sources[0].drawn, twice.report.sources[0].most_often) == (40, 2)
    assert sorted(of_source(twice, 0)) == sorted(of_source(found, 0) * 2)


@shows("data.mix.epochs")
@pytest.mark.parametrize(("epochs", "drawn", "most_often"), [(0.25, 5, 1), (1, 20, 1), (2.5, 50, 3)])
def test_epochs_draw_each_row_so_often(epochs: float, drawn: int, most_often: int, prepared: Prepare) -> None:
    found = mix_of(prepared, task={"epochs": epochs}, others={})
    task, others = found.report.sources
    assert (task.available, task.drawn, task.most_often, others.drawn) == (20, drawn, most_often, 12)
    counts = Counter(of_source(found, 0)).values()
    assert max(counts) == most_often
    assert max(counts) - min(counts) <= 1 or epochs < 1
    other_seed = mix_of(prepared, seed=1, task={"epochs": epochs}, others={})
    assert (of_source(other_seed, 0) == of_source(found, 0)) == (epochs == 1), "the seed decides which"


@shows("data.mix.max_rows")
def test_max_rows_caps_a_source_before_it_is_repeated(prepared: Prepare) -> None:
    found = mix_of(prepared, task={"max_rows": 5, "epochs": 2}, others={})
    assert set(Counter(of_source(found, 0)).values()) == {2}
    assert found.report.sources[0].drawn == 10
    with_general = mix_of(prepared, task={"max_rows": 5, "epochs": 2}, general={})
    assert of_source(with_general, 0) == of_source(found, 0), "other sources do not change which are drawn"


@shows("data.mix.held_out")
def test_no_row_of_a_source_with_held_out_off_is_held_out(prepared: Prepare) -> None:
    write(Path("rows.jsonl"), pairs(*range(40)))
    write(Path("more.jsonl"), pairs(*range(100, 140)))
    mix = {"task": {"paths": "rows.jsonl"}, "more": {"paths": "more.jsonl", "held_out": False}}
    found = prepared(train=[], mix=mix, held_out=0.3)
    held = questions(found.held_out)
    assert held
    assert all(int(question[1:]) < 40 for question in held)
    assert found.train.source_rows == (40 - len(held), 40)
    both = prepared(train=[], mix={name: {**source, "held_out": True} for name, source in mix.items()}, held_out=0.3)
    assert any(int(question[1:]) >= 100 for question in questions(both.held_out))
    recipe = Recipe.load({"data": {"mix": mix, "held_out": 0.3}})
    contents = [example.messages[0]["content"] for example in held_out_examples(recipe.data, ()) if example.messages]
    assert contents == held


@shows("data.mix.overflow")
def test_long_rows_of_a_source_follow_its_own_overflow(prepared: Prepare) -> None:
    write(Path("rows.jsonl"), pairs(1, 2))
    write(Path("long.jsonl"), [{"text": "word " * 40}])
    task = {"paths": "rows.jsonl"}

    def rows(**own: str) -> tuple[int, ...]:
        mix = {"task": task, "long": {"paths": "long.jsonl", **own}}
        return prepared(train=[], mix=mix, max_length=64).train.source_rows

    assert rows()[1] > 1, "raw text is split"
    assert rows(overflow="truncate") == (2, 1)
    with pytest.raises(UserError, match=r"longer than data\.max_length"):
        rows(overflow="refuse")


@shows("data.mix.share", "data.mix.epochs")
def test_a_share_that_cannot_be_met_names_the_source_and_its_field(prepared: Prepare) -> None:
    with pytest.raises(UserError, match=r"^data.mix.others holds .* data.mix.others.share: 0.9 needs .* lower"):
        mix_of(prepared, task={}, others={"share": 0.9})
    for shares, message in (((0.5, 0.4), "add up to 0.9, not to 1"), ((0.6, 0.6), "add up to 1.2")):
        with pytest.raises(UserError, match=message):
            mix_of(prepared, task={"share": shares[0]}, others={"share": shares[1]})
    with pytest.raises(UserError, match=r"data.mix.task.epoch is not a field. Did you mean data.mix.task.epochs"):
        mix_of(prepared, task={"epoch": 3})


@shows("data.order")
def test_order_is_as_drawn_by_length_or_by_source(tiny_model: Path, tmp_path: Path) -> None:
    table = replace(
        TokenTable.build(
            (np.arange(length, dtype=np.int32), np.ones(length, bool), Source("a", number))
            for number, length in enumerate((9, 4, 7, 3, 8, 5), 1)
        ),
        source_rows=(2, 4),
    )

    def rows(order: str, shuffle: bool = True, epoch: int = 0) -> list[int]:
        mix = {"a": {"paths": "a.jsonl"}, "b": {"paths": "b.jsonl"}}
        train = {"shuffle": shuffle, "tokens_per_step": 10, "tokens_per_batch": 10}
        recipe = Recipe.load({"base": str(tiny_model), "data": {"mix": mix, "order": order}, "train": train})
        batches = BatchPlan.of(recipe, table).layout(True).batches
        return [row for step in batches.epoch(epoch) for batch in step for row in batch]

    assert rows("by_length") == rows("by_length", epoch=1) == [3, 1, 5, 2, 4, 0]
    assert rows("by_source", shuffle=False) == [0, 1, 2, 3, 4, 5]
    in_turn = [rows("by_source", epoch=epoch) for epoch in range(8)]
    assert all(set(order[:2]) == {0, 1} for order in in_turn)
    assert len(set(map(tuple, in_turn))) > 1, "each source in an order of its own"
    assert any(set(rows("as_drawn", epoch=epoch)[:2]) != {0, 1} for epoch in range(4))
    with pytest.raises(UserError, match="by_source needs several sources"):
        Recipe.load({"data": {"train": "a.jsonl", "order": "by_source"}})


@shows("data.cache")
def test_cache_keeps_tokens_for_the_next_run_and_off_reads_and_writes_nothing(
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
