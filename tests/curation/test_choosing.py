"""Balancing and sampling write the numbers of rows that they say, of the rows that the seed chooses."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from curated import read, sentence, write

from tunesmith.curation.balance import data_balance
from tunesmith.curation.diff import data_diff
from tunesmith.curation.sample import data_sample
from tunesmith.errors import UserError

COUNTS = {"a": 40, "b": 9, "c": 2}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    labels = [label for label, count in COUNTS.items() for _ in range(count)]
    random.Random(0).shuffle(labels)
    return write(
        tmp_path / "rows.jsonl", [{"text": sentence(n), "label": label, "n": n} for n, label in enumerate(labels)]
    )


def counted(path: Path) -> dict[str, int]:
    return dict(Counter(row["label"] for row in read(path)))


@pytest.mark.parametrize(
    ("to", "most_copies", "after"),
    [
        ("smallest", 4, {"a": 2, "b": 2, "c": 2}),
        ("median", 4, {"a": 9, "b": 9, "c": 8}),
        ("largest", 100, {"a": 40, "b": 40, "c": 40}),
        (20, 1, {"a": 20, "b": 9, "c": 2}),
    ],
)
def test_classes_are_brought_to_a_size(
    to: int | str, most_copies: int, after: dict[str, int], rows: Path, tmp_path: Path
) -> None:
    found = data_balance(rows, tmp_path / "out.jsonl", to=to, most_copies=most_copies)  # type: ignore[arg-type]
    assert counted(found.file) == found.after == after
    assert found.before == COUNTS
    copies = Counter(row["n"] for row in read(found.file))
    assert max(copies.values()) <= most_copies
    per_class = {label: [copies[row["n"]] for row in read(rows) if row["label"] == label] for label in COUNTS}
    for label, each in per_class.items():
        if after[label] >= COUNTS[label]:
            assert max(each) - min(each) <= 1, "all rows are repeated equally often"
        assert found.different[label] == sum(count > 0 for count in each)


def test_the_seed_chooses_the_rows_and_the_same_one_writes_the_same_bytes(rows: Path, tmp_path: Path) -> None:
    files = [data_balance(rows, tmp_path / f"{n}.jsonl", to=5, seed=seed).file for n, seed in enumerate((0, 0, 1))]
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    origins = [json.loads((tmp_path / f"{n}.jsonl.origin.json").read_text()) for n in range(3)]
    assert origins[0]["outputs"]["0.jsonl"] == origins[1]["outputs"]["1.jsonl"]
    assert origins[2]["settings"] == {"by": "label", "to": 5, "most_copies": 4, "seed": 1}


def test_a_column_of_texts_is_no_class(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.curation.balance.MANY", 50)
    with pytest.raises(UserError, match="text has 51 different values, so it is no class"):
        data_balance(rows, tmp_path / "out.jsonl", by="text")
    with pytest.raises(UserError, match="huge is neither a number of rows nor one of smallest, median, largest"):
        data_balance(rows, tmp_path / "out.jsonl", to="huge")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_sample_has_different_rows_in_the_order_of_the_file(rows: Path, tmp_path: Path) -> None:
    found = data_sample(rows, 10, tmp_path / "out.jsonl")
    numbers = [row["n"] for row in read(found.file)]
    assert (found.rows, found.read, sorted(set(numbers))) == (10, 51, numbers)
    other = data_sample(rows, 10, tmp_path / "other.jsonl", seed=1)
    assert numbers != [row["n"] for row in read(other.file)]
    assert data_sample(rows, 99, tmp_path / "all.jsonl").file.read_bytes() == rows.read_bytes()


def test_a_stratified_sample_has_each_class_in_proportion_and_at_least_once(rows: Path, tmp_path: Path) -> None:
    found = data_sample(rows, 12, tmp_path / "out.jsonl", stratify="label")
    assert counted(found.file) == found.classes == {"a": 9, "b": 2, "c": 1}


def test_a_difference_finds_rows_wherever_they_are(tmp_path: Path) -> None:
    before = [{"text": sentence(n, 30), "label": "ab"[n % 2], "id": n} for n in range(30)]
    after = [dict(row) for row in before]
    after[2]["label"] = "b"
    after[5]["text"] += " and more"
    del after[20]
    after.append({"text": "Something else entirely, and new.", "label": "c", "id": 99})
    random.Random(0).shuffle(after)
    a, b = write(tmp_path / "a.jsonl", before), write(tmp_path / "b.jsonl", after)
    found = data_diff(a, b, tmp_path / "diff.jsonl")
    assert (found.rows, found.unchanged) == ((30, 30), 27)
    assert [source.row for source in found.removed] == [21]
    assert [after[source.row - 1]["id"] for source in found.added] == [99]
    changed = {before[each.a.row - 1]["id"]: (each.columns, each.similarity) for each in found.changed}
    assert changed[2] == (("label",), None)
    assert changed[5][0] == ("text",)
    assert 0.9 < (changed[5][1] or 0) < 1
    assert found.relabeled == {("a", "b"): 1}
    assert found.labels == {"a": (15, 13), "b": (15, 16), "c": (0, 1)}
    written = read(tmp_path / "diff.jsonl")
    assert Counter(line["change"] for line in written) == {"changed": 2, "removed": 1, "added": 1}
    assert all(line["before"] == before[int(line["a"].split()[-1]) - 1] for line in written if "before" in line)
    by_key = data_diff(a, b, key="id")
    assert {before[each.a.row - 1]["id"] for each in by_key.changed} == {2, 5}
    assert all(each.similarity is None for each in by_key.changed)


def test_repeated_rows_are_matched_one_by_one(tmp_path: Path) -> None:
    row = {"text": sentence(0), "label": 1}
    a, b = write(tmp_path / "a.jsonl", [row] * 3), write(tmp_path / "b.jsonl", [row] * 5)
    found = data_diff(a, b)
    assert (found.unchanged, len(found.added), len(found.removed)) == (3, 2, 0)
