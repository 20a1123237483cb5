"""A split never separates what belongs together, writes rows as they were, and depends on seed and content alone."""

import gzip
import json
import random
from collections import Counter
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from curated import read, sentence, write
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from tunesmith.checks.near_runs import jaccard
from tunesmith.checks.shingles import shingled
from tunesmith.checks.sketch import normalized
from tunesmith.curation.split import Split, data_split
from tunesmith.curation.units import NearGroups, units
from tunesmith.errors import UserError
from tunesmith.file_hash import file_sha256


def sides(split: Split) -> dict[str, str]:
    """The side of each text."""
    return {row["text"]: side for side, path in split.files.items() for row in read(path)}


def test_every_row_is_in_one_file_with_the_bytes_that_it_had(tmp_path: Path) -> None:
    lines = [b'{"text":  "%s", "label": 1}\n' % sentence(n).encode() for n in range(40)]
    lines[3] = '{"text": "weiß", "label": 0, "more": [1.0, 1e3]}\r\n'.encode()
    content = b"\xef\xbb\xbf" + b"".join(lines[:20]) + b"\n" + b"".join(lines[20:]).rstrip(b"\n")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(content))
    found = data_split(tmp_path / "rows.jsonl.gz", tmp_path / "out", held_out=0.3, test=0.2)
    written = [line for path in found.files.values() for line in path.read_bytes().splitlines(keepends=True)]
    assert sorted(written) == sorted(lines)
    assert list(found.rows) == ["train", "held_out", "test"]
    origin = json.loads((tmp_path / "out" / "split.origin.json").read_text())
    assert origin["inputs"] == {str(tmp_path / "rows.jsonl.gz"): file_sha256(tmp_path / "rows.jsonl.gz")}
    assert origin["outputs"]["test.jsonl"] == {
        "rows": found.rows["test"], "sha256": file_sha256(found.files["test"])
    }  # fmt: skip


def test_other_formats_are_written_as_json_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f'"{sentence(n)}, {n}",{n % 2}\n' for n in range(30)))
    found = data_split(tmp_path / "rows.csv", tmp_path / "out", held_out=0.3)
    assert {row["text"] for path in found.files.values() for row in read(path)} == {
        f"{sentence(n)}, {n}" for n in range(30)
    }


def test_a_row_keeps_its_side_when_the_file_grows(tmp_path: Path) -> None:
    rows = [{"text": sentence(n), "label": n % 3} for n in range(120)]
    small = sides(data_split(write(tmp_path / "small.jsonl", rows[:60]), tmp_path / "a", held_out=0.3))
    large = sides(data_split(write(tmp_path / "large.jsonl", rows[::-1]), tmp_path / "b", held_out=0.3))
    assert small.items() <= large.items()
    other = sides(data_split(tmp_path / "large.jsonl", tmp_path / "c", held_out=0.3, seed=1))
    assert large != other
    assert 18 <= Counter(large.values())["held_out"] <= 54


def test_near_duplicates_never_straddle(tmp_path: Path) -> None:
    """Chains too: of texts in a row, each like the next, none is separated."""
    rows = []
    for n in range(25):
        words = sentence(n, 60).split()
        for step in range(4):
            words[step * 9] = f"changed{n}"
            rows.append({"text": " ".join(words), "label": n})
    random.Random(0).shuffle(rows)
    path = write(tmp_path / "rows.jsonl", rows)
    found = data_split(path, tmp_path / "out", held_out=0.4)
    placed = [(sides(found)[row["text"]], shingled([normalized(row["text"])]).shingles) for row in rows]
    for (one, first), (other, second) in combinations(placed, 2):
        assert one == other or jaccard(first, second) < 0.8
    assert (found.together, found.largest) == (100, 4)
    apart = sides(data_split(path, tmp_path / "apart", held_out=0.4, near_duplicates=False))
    assert len({(row["label"], apart[row["text"]]) for row in rows}) > 25


EDITS = st.sampled_from(("same input", "a word of the input", "another short input", "as the one before", "none"))


@settings(max_examples=15, deadline=None)
@given(st.lists(EDITS, min_size=20, max_size=40), st.sampled_from(("", "group", "time", "stratify")), st.integers(0, 9))
def test_nothing_in_one_file_is_nearly_in_another_whatever_decides(edits: list[str], by: str, seed: int) -> None:
    """By inputs, and by inputs and answers together, as the check of leakage sees them; groups are not separated."""
    rows: list[dict[str, Any]] = []
    for n, edit in enumerate(edits):
        question, answer = sentence(100 * seed + n, 20), sentence(5000 + 100 * seed + n, 60)
        if rows and edit != "none":
            like = rows[-1] if edit == "as the one before" else rows[n // 2]
            question, answer = str(like["question"]), str(like["answer"] if edit != "same input" else answer)
            if edit in ("a word of the input", "as the one before"):
                question = question[: question.rindex(" ")] + f" changed{n}"
            elif edit == "another short input":
                question = f"Why {n}?"
        rows.append({"question": question, "answer": answer, "group": n % 13, "time": n, "stratify": n % 2})
    with TemporaryDirectory() as directory:
        path, asked = write(Path(directory) / "rows.jsonl", rows), {by: by} if by else {}
        try:
            split = data_split(path, Path(directory) / "out", held_out=0.3, **asked)  # type: ignore[arg-type]
        except UserError:  # all of them belong together
            reject()
        one, other = (read(split.files[side]) for side in ("train", "held_out"))
    assert len(one) + len(other) == len(rows)
    for columns in (("question",), ("question", "answer")):
        first, second = (
            [shingled([normalized(" ".join(row[each] for each in columns))]).shingles for row in side]
            for side in (one, other)
        )
        assert not any(jaccard(a, b) >= 0.8 for a in first for b in second)
    if by == "group":
        assert not {row["group"] for row in one} & {row["group"] for row in other}


def test_each_class_has_its_share_on_each_side(tmp_path: Path) -> None:
    rows = [{"text": sentence(n), "label": "rare" if n % 10 == 0 else "common"} for n in range(200)]
    found = data_split(write(tmp_path / "rows.jsonl", rows), tmp_path / "out", held_out=0.2, test=0.1, stratify="label")
    assert found.classes == {
        "rare": {"train": 14, "held_out": 4, "test": 2},
        "common": {"train": 126, "held_out": 36, "test": 18},
    }


def test_a_split_by_time_holds_the_latest_rows_out(tmp_path: Path) -> None:
    rows = [{"text": sentence(n), "label": 0, "day": f"2026-{1 + n // 28:02}-{1 + n % 28:02}"} for n in range(100)]
    rows.append({"text": sentence(3), "label": 1, "day": "2027-01-01"})  # the input of an early row
    random.Random(1).shuffle(rows)
    found = data_split(write(tmp_path / "rows.jsonl", rows), tmp_path / "out", held_out=0.2, test=0.1, time="day")
    days = {side: sorted(row["day"] for row in read(path)) for side, path in found.files.items()}
    assert days["train"].pop() == "2027-01-01"
    assert days["train"][-1] < days["held_out"][0] <= days["held_out"][-1] < days["test"][0]
    assert found.rows == {"train": 71, "held_out": 20, "test": 10}
    rows[0]["day"] = "tomorrow"
    with pytest.raises(UserError, match=r"rows.jsonl row 1: day 'tomorrow' is neither a number nor a date"):
        data_split(write(tmp_path / "rows.jsonl", rows), tmp_path / "again", time="day")


@pytest.mark.parametrize("stratify", [None, "label"])
def test_rows_of_one_group_are_on_one_side(stratify: str | None, tmp_path: Path) -> None:
    rows = [{"text": sentence(n), "label": n % 2, "customer": n // 5} for n in range(200)]
    found = data_split(
        write(tmp_path / "rows.jsonl", rows), tmp_path / "out", held_out=0.25, group="customer", stratify=stratify
    )
    by_text = sides(found)
    assert len({(row["customer"], by_text[row["text"]]) for row in rows}) == 40
    assert found.largest == 5
    if stratify:
        assert found.rows["held_out"] == 50


def test_what_cannot_be_split_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    same = write(tmp_path / "same.jsonl", [{"text": sentence(0), "label": n} for n in range(9)])
    with pytest.raises(UserError, match=r"No row would be in (train|held_out).jsonl: of 9 rows, up to 9 belong"):
        data_split(same, tmp_path / "out")
    with pytest.raises(UserError, match="shares that leave rows to train on"):
        data_split(same, tmp_path / "out", held_out=0.6, test=0.4)
    with pytest.raises(UserError, match=r"row 1 has no column 'labl'; it has text, label. Did you mean label"):
        data_split(same, tmp_path / "out", stratify="labl")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="already exists"):
        data_split(same, tmp_path / "out")


def test_malformed_rows_are_left_out_and_named(tmp_path: Path) -> None:
    rows: list[Any] = [{"text": sentence(n), "label": 0} for n in range(30)]
    rows[4] = {"text": " ", "label": 0}
    found = data_split(write(tmp_path / "rows.jsonl", rows), tmp_path / "out", held_out=0.3)
    assert sum(found.rows.values()) == 29
    assert [str(reason).split("rows.jsonl")[1] for reason in found.malformed] == [" row 5: the text is empty"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_units_are_the_connected_rows(keys: list[tuple[int, int, int]]) -> None:
    import numpy as np

    found = units([np.array(column) for column in zip(*keys, strict=True)])
    reached = {row: {row} for row in range(len(keys))}
    for _ in keys:
        for row, others in reached.items():
            reached[row] = {
                other
                for other in range(len(keys))
                if any(a == b for each in others for a, b in zip(keys[each], keys[other], strict=True))
            } | others
    for row, others in reached.items():
        assert {other for other in range(len(keys)) if found[other] == found[row]} == others


def test_texts_that_differ_in_case_and_white_space_alone_are_one_group(tmp_path: Path) -> None:
    with NearGroups(tmp_path / "near") as near:
        for text in ("a b c d", "A b  c d", "a, b c d!", "e f g h", "", " "):
            near.add(text)
        groups = near.groups().tolist()
    assert groups[0] == groups[1] == groups[2]
    assert groups[4] == groups[5]
    assert len(set(groups)) == 3
    with NearGroups(tmp_path / "none") as near:
        assert near.groups().tolist() == []
