"""Every option of `tunesmith data split`, `balance`, `sample` and `diff` does what its help says."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command import typed
from curated import read, sentence, write
from scripted_server import scripted
from settings_coverage import shows

from tunesmith.curation.verdicts import digest_of_line


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": sentence(n), "label": "a" if n < 40 else "b", "day": n, "who": n // 4} for n in range(60)]
    write(tmp_path / "rows.jsonl", rows)
    return tmp_path


def data(*arguments: Any, code: int = 0) -> str:
    done = typed("data", *map(str, arguments))
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def days(file: str) -> list[int]:
    return [row["day"] for row in read(Path(file))]


@shows("tunesmith data split sources", "tunesmith data split --output", "tunesmith data split --held-out",
       "tunesmith data split --test", "tunesmith data split --seed")  # fmt: skip
def test_split_writes_the_shares_that_are_asked_for(here: Path) -> None:
    out = data("split", "rows.jsonl", "--output", "a", "--held-out", 0.3, "--test", 0.3)
    counts = {name: len(days(f"a/{name}.jsonl")) for name in ("train", "held_out", "test")}
    assert sum(counts.values()) == 60
    assert all(8 <= counts[name] <= 30 for name in ("held_out", "test"))
    assert f"a/held_out.jsonl  {counts['held_out']} rows ({counts['held_out'] / 60:.1%})" in out
    data("split", "rows.jsonl", "--output", "b", "--held-out", 0.3, "--test", 0.3, "--seed", 1)
    assert days("a/test.jsonl") != days("b/test.jsonl")
    (here / "recipe.yaml").write_text("data: {train: rows.jsonl, format: text}\nobjective: {kind: text}\n")
    data("split", "recipe.yaml", "--output", "c", "--held-out", 0.3, "--test", 0.3)
    assert days("c/test.jsonl") == days("a/test.jsonl")
    assert "a already exists. Choose another path." in data("split", "rows.jsonl", "--output", "a", code=2)


@shows("tunesmith data split --stratify", "tunesmith data split --group", "tunesmith data split --time",
       "tunesmith data split --near-duplicates")  # fmt: skip
def test_split_by_class_group_time_and_likeness(here: Path) -> None:
    out = data("split", "rows.jsonl", "--output", "a", "--stratify", "label")
    assert Counter(row["label"] for row in read(Path("a/held_out.jsonl"))) == {"a": 4, "b": 2}
    assert "a          36          4" in out
    data("split", "rows.jsonl", "--output", "b", "--group", "who", "--held-out", 0.3)
    assert set(Counter(day // 4 for day in days("b/held_out.jsonl")).values()) == {4}
    data("split", "rows.jsonl", "--output", "c", "--time", "day")
    assert days("c/held_out.jsonl") == [54, 55, 56, 57, 58, 59]
    alike = [{"text": f"{sentence(n // 2, 40)} {'now' * (n % 2)}", "label": "a", "day": n} for n in range(60)]
    write(here / "alike.jsonl", alike)
    for option, separated in (("--near-duplicates", False), ("--no-near-duplicates", True)):
        data("split", "alike.jsonl", "--output", option.strip("-"), "--held-out", 0.5, option)
        halves = Counter(day // 2 for day in days(f"{option.strip('-')}/train.jsonl"))
        assert (1 in halves.values()) == separated


@shows("tunesmith data balance sources", "tunesmith data balance --output", "tunesmith data balance --by",
       "tunesmith data balance --to", "tunesmith data balance --most-copies",
       "tunesmith data balance --seed")  # fmt: skip
def test_balance_writes_as_many_rows_of_each_class(here: Path) -> None:
    out = data("balance", "rows.jsonl", "--output", "a.jsonl", "--to", "largest")
    assert Counter(row["label"] for row in read(Path("a.jsonl"))) == {"a": 40, "b": 40}
    assert "b           20      40                  20" in out
    out = data("balance", "rows.jsonl", "--output", "b.jsonl", "--by", "who", "--to", 9, "--most-copies", 2)
    assert set(Counter(day // 4 for day in days("b.jsonl")).values()) == {8}
    assert "15 classes have fewer than 9 rows" in out
    data("balance", "rows.jsonl", "--output", "c.jsonl", "--to", 3)
    data("balance", "rows.jsonl", "--output", "d.jsonl", "--to", 3, "--seed", 1)
    assert days("c.jsonl") != days("d.jsonl")


@shows("tunesmith data sample rows", "tunesmith data sample sources", "tunesmith data sample --output",
       "tunesmith data sample --stratify", "tunesmith data sample --seed")  # fmt: skip
def test_sample_draws_rows(here: Path) -> None:
    assert "Wrote a.jsonl: 6 of 60 rows." in data("sample", 6, "rows.jsonl", "--output", "a.jsonl")
    data("sample", 6, "rows.jsonl", "--output", "b.jsonl", "--seed", 1)
    assert len(set(days("a.jsonl"))) == 6
    assert days("a.jsonl") != days("b.jsonl")
    data("sample", 6, "rows.jsonl", "--output", "c.jsonl", "--stratify", "label")
    assert Counter(row["label"] for row in read(Path("c.jsonl"))) == {"a": 4, "b": 2}


@shows("tunesmith data sample --worst")
def test_sample_takes_the_worst_rows(here: Path) -> None:
    rows = read(here / "rows.jsonl")
    rows[7]["text"] += " ann@web.de"
    write(here / "worse.jsonl", rows)
    assert "the worst 1 of" in data("sample", 1, "worse.jsonl", "--output", "worst.jsonl", "--worst")
    assert read(Path("worst.jsonl")) == [rows[7]]
    asked = ("sample", 1, "worse.jsonl", "--output", "other.jsonl", "--worst", "--stratify", "label")
    assert "no use for --stratify" in data(*asked, code=2)


@shows("tunesmith data diff a", "tunesmith data diff b", "tunesmith data diff --key", "tunesmith data diff --output",
       "tunesmith data diff --json")  # fmt: skip
def test_diff_compares_two_files(here: Path) -> None:
    rows = read(here / "rows.jsonl")
    rows[3]["text"] = "Nothing alike."
    write(here / "new.jsonl", [*rows[1:], {"text": "New.", "label": "c", "day": 99}])
    out = data("diff", "rows.jsonl", "new.jsonl", "--output", "diff.jsonl")
    assert "60 rows in A, 60 in B: 58 unchanged, 0 changed, 2 removed, 2 added." in out
    assert Counter(line["change"] for line in read(Path("diff.jsonl"))) == {"removed": 2, "added": 2}
    found = json.loads(data("diff", "rows.jsonl", "new.jsonl", "--key", "day", "--json"))
    assert [(each["a"]["row"], each["b"]["row"], each["columns"]) for each in found["changed"]] == [(4, 3, ["text"])]
    assert found["labels"] == {"a": [40, 39], "b": [20, 20], "c": [0, 1]}
    assert "is compared with itself" in data("diff", "new.jsonl", "new.jsonl", code=2)


@shows("tunesmith data clean sources", "tunesmith data clean --output", "tunesmith data clean --do",
       "tunesmith data clean --against", "tunesmith data clean --verdicts",
       "tunesmith data clean --keep-secrets", "tunesmith data clean --seed",
       "tunesmith data restore cleaned", "tunesmith data restore --output")  # fmt: skip
def test_clean_writes_what_is_left_and_restore_undoes_it(here: Path) -> None:
    rows = read(here / "rows.jsonl")
    rows[5]["text"] += " Mail to anna.beck@firma.de."
    rows.append(rows[7])
    write(here / "dirty.jsonl", rows)
    out = data("clean", "dirty.jsonl", "--output", "a.jsonl")
    assert "Wrote a.jsonl: 60 of 61 rows (59 kept, 1 masked, 1 dropped)." in out
    assert " exact_duplicates        1      1   dropped" in out
    assert "The ledger leaves out what 1 rows with personal data or secrets were" in out
    assert "1 rows stay masked" in data("restore", "a.jsonl", "--output", "back.jsonl")
    data("clean", "dirty.jsonl", "--output", "b.jsonl", "--keep-secrets", "--seed", "other")
    assert read(Path("a.jsonl"))[5] != read(Path("b.jsonl"))[5]
    assert "byte for byte" in data("restore", "b.jsonl", "--output", "same.jsonl")
    assert Path("same.jsonl").read_bytes() == Path("dirty.jsonl").read_bytes()
    verdict = {"row": digest_of_line(json.dumps(rows[0]).encode()), "verdict": "drop", "reviewer": "anna"}
    write(here / "verdicts.jsonl", [verdict])
    out = data("clean", "dirty.jsonl", "--output", "c.jsonl", "--do", "exact_duplicates=keep", "--do",
               "personal_data=drop", "--verdicts", "verdicts.jsonl")  # fmt: skip
    assert "Wrote c.jsonl: 59 of 61 rows (2 dropped, 59 kept)." in out
    assert "verdicts: 1 drop" in out
    write(here / "test.jsonl", rows[20:23])
    data("clean", "dirty.jsonl", "--output", "e.jsonl", "--against", "test.jsonl")
    assert not {20, 21, 22} & set(days("e.jsonl"))
    assert "--do nothing: write CHECK=ACTION" in data(
        "clean", "dirty.jsonl", "--output", "d.jsonl", "--do", "nothing", code=2
    )


@shows("tunesmith data review file", "tunesmith data review --output", "tunesmith data review --label",
       "tunesmith data review --reviewer")  # fmt: skip
def test_review_asks_for_one_key_a_row(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def review(*arguments: str, keys: str) -> tuple[int, str]:
        done = typed("data", "review", "few.jsonl", *arguments, given=keys)
        return done.returncode, done.stdout + done.stderr

    monkeypatch.setenv("LOGNAME", "anna")
    write(here / "few.jsonl", read(here / "rows.jsonl")[:3])
    code, out = review("--label", "a", "--label", "c", keys="k 2\n")
    assert code == 0
    assert "1 of 3 · few.jsonl row 1" in out
    assert "k keep   d drop   1 a   2 c   s skip" in out
    assert "anna has verdicts on 2 of 3 rows; now: 1 keep, 1 label." in out
    assert [(row["reviewer"], row.get("label")) for row in read(Path("few.jsonl.verdicts.jsonl"))] == [
        ("anna", None), ("anna", "c"),
    ]  # fmt: skip
    out = review(keys="d")[1]
    assert "3 of 3" in out
    assert "anna has verdicts on 3 of 3 rows; now: 1 drop." in out
    review("--reviewer", "bert", "--output", "other.jsonl", keys="dd")
    assert [row["reviewer"] for row in read(Path("other.jsonl"))] == ["bert", "bert"]
    code, out = review("--reviewer", "carl", keys="x")
    assert (code, "stdin: 'x' is none of k, d, s and q" in out) == (2, True)


@shows("tunesmith data select rows", "tunesmith data select sources", "tunesmith data select --output",
       "tunesmith data select --by", "tunesmith data select --model", "tunesmith data select --seed")  # fmt: skip
def test_select_chooses_rows(here: Path, tiny_model: Path) -> None:
    rows = [{"question": f"What is {sentence(n, 4)}?", "answer": f"{sentence(n + 50, 6)}."} for n in range(8)]
    write(here / "chats.jsonl", rows)
    assert "Wrote a.jsonl: 4 of 8 rows." in data("select", 4, "chats.jsonl", "--output", "a.jsonl")
    chosen = [read(Path("a.jsonl"))]
    options = [("--by", "quality"), ("--by", "random"), ("--by", "random", "--seed", 1),
               ("--by", "difficulty", "--model", tiny_model)]  # fmt: skip
    for number, each in enumerate(options):
        data("select", 4, "chats.jsonl", "--output", f"{number}.jsonl", *each)
        chosen.append(read(Path(f"{number}.jsonl")))
    assert len({json.dumps(each) for each in chosen}) >= 4
    err = data("select", 4, "chats.jsonl", "--output", "b.jsonl", "--model", "nowhere", code=2)
    assert "nowhere" in err


@shows("tunesmith data augment sources", "tunesmith data augment --output", "tunesmith data augment --template",
       "tunesmith data augment --model", "tunesmith data augment --language", "tunesmith data augment --back-to",
       "tunesmith data augment --share", "tunesmith data augment --seed")  # fmt: skip
def test_augment_adds_marked_rows(here: Path) -> None:
    def made(file: str) -> list[dict[str, Any]]:
        return [row for row in read(Path(file)) if "synthetic" in row]

    out = data("augment", "rows.jsonl", "--output", "a.jsonl", "--template", "Hello. {prompt}", "--share", 0.1)
    assert "Wrote a.jsonl: 66 rows, 6 of them synthetic (9%)." in out
    assert all(row["text"].startswith("Hello. ") for row in made("a.jsonl"))
    data("augment", "rows.jsonl", "--output", "b.jsonl", "--template", "Hello. {prompt}", "--share", 0.1, "--seed", 1)
    assert made("a.jsonl") != made("b.jsonl")
    with scripted(lambda body: f"{body['messages'][-1]['content']}"[::-1]) as server:
        data("augment", "rows.jsonl", "--output", "c.jsonl", "--model", server.url, "--share", 0.02)
        data("augment", "rows.jsonl", "--output", "d.jsonl", "--model", server.url, "--share", 0.02,
             "--language", "Danish", "--back-to", "Dutch")  # fmt: skip
    asked = " ".join(str(body["messages"][-1]["content"]) for body in server.asked)
    assert all(part in asked for part in ("in other words", "into Danish.", "into Dutch."))
