"""From files to token tables: refused rows, counts, and the cache."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Source
from tunesmith.data.prepare import prepare
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.models.load import load_tokenizer


def recipe_for(model: Path, train: Path, **data: Any) -> Recipe:
    values = {"base": str(model), "data": {"train": str(train), "held_out": 0.0, **data}, "train": {"steps": 1}}
    if train.suffix == ".txt":
        values["objective"] = {"kind": "text"}
    return Recipe.load(values)


def prepared(recipe: Recipe) -> Any:
    return prepare(recipe, load_tokenizer(recipe.base))


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def pair(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer}


def test_unusable_rows_are_refused_by_file_and_row(tiny_model: Path, tmp_path: Path) -> None:
    """Guards against https://github.com/unslothai/unsloth/issues/2900."""
    rows = write(tmp_path / "rows.jsonl", pair("a", "b"), pair("a", "<|im_end|>"), pair("c", "d"))
    with pytest.raises(UserError, match=r"1 of 3 rows cannot be trained on.*\n.*rows.jsonl row 2: .*<\|im_end\|>"):
        prepared(recipe_for(tiny_model, rows))
    report = prepared(recipe_for(tiny_model, rows, skip_unusable=True)).report
    assert (report.rows, report.examples, report.unusable) == (3, 2, 1)


def test_malformed_rows_are_counted_named_and_refused_above_the_share(tiny_model: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", *[pair(f"q{n}", "a") for n in range(9)], '{"question": ')
    with pytest.raises(UserError, match=r"1 of 10 rows are malformed.*\n.*rows.jsonl row 10: not valid JSON"):
        prepared(recipe_for(tiny_model, rows))
    report = prepared(recipe_for(tiny_model, rows, max_malformed=0.2)).report
    assert (report.rows, report.malformed, report.examples) == (10, 1, 9)
    assert (
        report.malformed_rows[0].startswith(f"{rows}" if rows.is_absolute() else "rows.jsonl")
        or "row 10" in report.malformed_rows[0]
    )


def test_long_examples_are_refused_with_their_rows_by_default(tiny_model: Path, tmp_path: Path) -> None:
    """Guards against https://github.com/huggingface/trl/issues/2400."""
    rows = write(tmp_path / "rows.jsonl", pair("short", "yes"), pair("long", "no " * 60))
    with pytest.raises(UserError, match=r"1 of 2 examples are longer than data.max_length \(100 tokens\): .*row 2 \("):
        prepared(recipe_for(tiny_model, rows, max_length=100))
    truncated = prepared(recipe_for(tiny_model, rows, max_length=100, overflow="truncate"))
    assert truncated.report.truncated == 1
    assert sorted(truncated.train.lengths)[1] == 100
    dropped = prepared(recipe_for(tiny_model, rows, max_length=100, overflow="drop")).report
    assert (dropped.dropped, dropped.examples) == (1, 1)


def test_split_pieces_predict_every_token_exactly_once(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("All happy families are alike; " * 20, encoding="utf-8")
    full = prepared(recipe_for(tiny_model, tmp_path / "book.txt", max_length=2048))
    pieces = prepared(recipe_for(tiny_model, tmp_path / "book.txt", max_length=64))
    assert pieces.report.split == 1
    assert max(pieces.train.lengths) <= 64
    ids, _ = full.train[0]
    predicted = [ids[0]]
    for row in range(len(pieces.train)):
        piece, loss_mask = pieces.train[row]
        predicted += [token for token, has_loss in zip(piece[1:], loss_mask[1:], strict=True) if has_loss]
    assert predicted == list(ids)


def test_truncation_that_leaves_no_loss_token_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Guards against https://github.com/huggingface/trl/issues/6320."""
    rows = write(tmp_path / "rows.jsonl", pair("q " * 100, "answer"))
    with pytest.raises(UserError, match="no loss token left"):
        prepared(recipe_for(tiny_model, rows, max_length=64, overflow="truncate"))


def test_a_grown_file_keeps_its_held_out_rows(tiny_model: Path, tmp_path: Path) -> None:
    def held_out(count: int) -> set[int]:
        rows = write(tmp_path / "rows.jsonl", *[pair(f"question {n}", f"answer {n}") for n in range(count)])
        return set(prepared(recipe_for(tiny_model, rows, held_out=0.2)).held_out.row.tolist())

    before, after = held_out(100), held_out(200)
    assert before
    assert before == {row for row in after if row <= 100}


def change_rows(directory: Path, recipe: dict[str, Any]) -> None:
    write(directory / "rows.jsonl", pair("a", "other"))


def change_template(directory: Path, recipe: dict[str, Any]) -> None:
    file = directory / "model" / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("<|im_start|>", "<|im_start|>the "), encoding="utf-8")


def change_tokenizer(directory: Path, recipe: dict[str, Any]) -> None:
    file = directory / "model" / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer), encoding="utf-8")


def change_loss_mask(directory: Path, recipe: dict[str, Any]) -> None:
    recipe["objective"] = {"kind": "instruction", "learn": "all"}


def change_length(directory: Path, recipe: dict[str, Any]) -> None:
    recipe["data"]["max_length"] = 500


@pytest.mark.parametrize("change", [change_rows, change_template, change_tokenizer, change_loss_mask, change_length])
def test_any_change_of_what_decides_the_tokens_misses_the_cache(
    change: Callable[[Path, dict[str, Any]], None], tiny_model: Path, tmp_path: Path
) -> None:
    """Guards against https://github.com/MakazhanAlpamys/Soup/issues/876."""
    import shutil

    shutil.copytree(tiny_model, tmp_path / "model")
    write(tmp_path / "rows.jsonl", pair("a", "b"))
    recipe: dict[str, Any] = {
        "base": str(tmp_path / "model"),
        "data": {"train": str(tmp_path / "rows.jsonl"), "held_out": 0.0},
        "train": {"steps": 1},
    }
    assert not prepared(Recipe.load(recipe)).report.cached
    assert prepared(Recipe.load(recipe)).report.cached
    change(tmp_path, recipe)
    fresh = prepared(Recipe.load({**recipe, "data": {**recipe["data"], "cache": False}}))
    again = prepared(Recipe.load(recipe))
    assert not again.report.cached
    assert again.train.ids.tolist() == fresh.train.ids.tolist()
    assert again.train.loss_mask.tolist() == fresh.train.loss_mask.tolist()


def test_changes_that_do_not_affect_the_tokens_hit_the_cache(tiny_model: Path, write_rows: Callable[..., Path]) -> None:
    rows = write_rows()
    prepared(recipe_for(tiny_model, rows))
    values = recipe_for(tiny_model, rows, pack=False).model_dump(mode="json")
    values["train"] |= {"learning_rate": 0.5, "seed": 7}
    assert prepared(Recipe.load(values)).report.cached


def test_a_large_table_is_kept_in_a_file_and_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    rows = [
        (generator.integers(0, 99, n).astype(np.int32), generator.random(n) < 0.5, Source(f"f{n % 3}", n))
        for n in generator.integers(1, 30, 40).tolist()
    ]
    small = TokenTable.build(rows)
    monkeypatch.setattr("tunesmith.data.tokens.SPOOL", 100)
    spooled = TokenTable.build(rows)
    assert isinstance(spooled.ids, np.memmap)
    assert not isinstance(small.ids, np.memmap)
    for name in ("ids", "loss_mask", "offsets", "file", "row"):
        np.testing.assert_array_equal(getattr(spooled, name), getattr(small, name))
    assert [str(spooled.source(row)) for row in range(40)] == [str(source) for _, _, source in rows]
    assert small.loss_tokens == sum(int(loss_mask[1:].sum()) for _, loss_mask, _ in rows)


def test_concatenated_documents_are_cut_without_losing_a_token_or_source(tiny_model: Path, tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("ab" * (number + 3), encoding="utf-8")
    separate = recipe_for(tiny_model, tmp_path / "0.txt")
    paths = [str(tmp_path / f"{number}.txt") for number in range(5)]
    data = separate.data.model_copy(update={"train": paths, "max_length": 8})
    separate = separate.model_copy(update={"data": data})
    joined = separate.model_copy(update={"objective": separate.objective.model_copy(update={"concatenate": True})})
    long = separate.model_copy(update={"data": data.model_copy(update={"max_length": 512})})
    stream = prepared(long).train
    prepared_joined = prepared(joined)
    table = prepared_joined.train
    assert np.concatenate([table[0][0], *(table[row][0][1:] for row in range(1, len(table)))]).tolist() == list(
        stream.ids
    )
    assert all(len(table[row][0]) == 8 for row in range(len(table) - 1))
    assert table.loss_tokens == len(stream.ids) - 1, "every token except the first is predicted, also across documents"
    assert prepared_joined.report.joined == len(table)
    starts = [0, *np.cumsum([7] * (len(table) - 1))]
    rows = [int(np.searchsorted(stream.offsets, start, side="right")) - 1 for start in starts]
    assert [table.source(piece) for piece in range(len(table))] == [stream.source(row) for row in rows]


def test_replayed_rows_make_up_their_share_and_raw_text_has_loss_everywhere(tiny_model: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", *[pair(f"question {n}", f"answer {n}") for n in range(50)])
    text = tmp_path / "general.txt"
    text.write_text(
        "\n\n".join(f"A general sentence of number {n}, long enough." for n in range(200)), encoding="utf-8"
    )
    plain = prepared(recipe_for(tiny_model, rows)).train
    recipe = recipe_for(tiny_model, rows, replay=str(text), replay_share=0.25, max_length=64)
    replayed = prepared(recipe)
    added = [row for row in range(len(replayed.train)) if replayed.train.source(row).file.endswith("general.txt")]
    tokens = sum(len(replayed.train[row][0]) for row in added)
    assert len(replayed.train) == len(plain) + len(added)
    assert tokens / len(replayed.train.ids) == pytest.approx(0.25, abs=0.02)
    task, general = replayed.report.sources
    assert (task.drawn, general.drawn, general.tokens) == (len(plain), len(added), tokens)
    assert all(replayed.train[row][1][1:].all() for row in added)
    again = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 1})})
    assert prepared(again).train.ids.tolist() != replayed.train.ids.tolist(), "another seed draws others, cached or not"
    with pytest.raises(UserError, match=r"data.replay holds .* tokens, and data.replay_share: 0.9 needs"):
        prepared(recipe_for(tiny_model, rows, replay=str(text), replay_share=0.9, max_length=64))


def test_replay_is_refused_for_objectives_that_generate_no_text(tiny_model: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", pair("a", "b"))
    with pytest.raises(
        UserError, match=r"data\.replay needs a decoder that writes text, not objective: classification"
    ):
        Recipe.load(
            {"data": {"train": str(rows), "replay": str(rows)}, "objective": "classification", "base": str(tiny_model)}
        )
