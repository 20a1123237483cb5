"""Cleaning tells the fate of every row, and restoring gives back the same bytes."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from curated import read, sentence, write

from tunesmith.curation.clean import Cleaned, data_clean
from tunesmith.curation.restore import data_restore
from tunesmith.curation.sample import data_sample
from tunesmith.curation.verdicts import digest_of_line
from tunesmith.data.read import read as data_read
from tunesmith.errors import UserError
from tunesmith.file_hash import file_sha256

IBAN = "DE89 3704 0044 0532 0130 00"


def chat(number: int, answer: str | None = None) -> dict[str, Any]:
    return {"question": f"What about {sentence(number)}?", "answer": answer or f"{sentence(number + 500, 20)}."}


def entries(cleaned: Cleaned) -> list[dict[str, Any]]:
    return [line for line in read(cleaned.ledger) if "fate" in line]


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    """Eight rows: 2 repeats 1, 4 is malformed, 6 is not UTF-8, 7 has an IBAN, 8 is empty."""
    lines = [json.dumps(chat(number)).encode() for number in range(8)]
    lines[1] = lines[0].replace(b": ", b":")
    lines[3] = b'{"question": "cut'
    lines[5] = b'{"question": "\xff", "answer": "x"}'
    lines[6] = json.dumps(chat(6, f"Pay to {IBAN}, please.")).encode()
    lines[7] = json.dumps({"question": "Why?", "answer": " "}).encode()
    path = tmp_path / "dirty.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + b"\n".join([*lines[:2], b"", b"  ", *lines[2:5]]) + b"\r\n" + b"\n".join(lines[5:])
    )
    return path


def test_every_row_has_a_fate_and_its_reason(dirty: Path, tmp_path: Path) -> None:
    found = data_clean(dirty, tmp_path / "clean.jsonl")
    fates = {entry["row"]: entry["fate"] for entry in entries(found)}
    assert fates == {
        1: "kept", 2: "dropped", 5: "kept", 6: "dropped", 7: "kept", 8: "dropped", 9: "masked", 10: "dropped",
    }  # fmt: skip
    assert found.fates == Counter(fates.values())
    assert (found.read, found.written, found.hidden) == (8, 4, 1)
    why = {entry["row"]: entry.get("why", []) for entry in entries(found)}
    assert why[2][0].startswith("exact_duplicates: the same as ")
    assert why[6][0].startswith("malformed: not valid JSON")
    assert why[10][0].startswith("malformed: ")
    lines = dirty.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True)
    kept = found.file.read_bytes().splitlines(keepends=True)
    assert kept[:3] == [lines[0], lines[4], lines[6]], "rows that are not changed are written as they were"
    assert kept[2].endswith(b"\r\n")
    assert {done.check: (done.action, done.marked, done.rows) for done in found.done if done.marked} == {
        "malformed": ("drop", 3, 3), "exact_duplicates": ("drop", 1, 1), "personal_data": ("mask", 1, 1),
    }  # fmt: skip


def test_restoring_gives_the_same_bytes(dirty: Path, tmp_path: Path) -> None:
    data_clean(dirty, tmp_path / "clean.jsonl", keep_secrets=True)
    found = data_restore(tmp_path / "clean.jsonl", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == dirty.read_bytes()
    assert (found.exact, found.rows, found.masked, found.missing) == ([tmp_path / "again.jsonl"], 8, 0, 0)


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n \n"])
def test_what_follows_the_last_row_is_restored(ending: bytes, tmp_path: Path) -> None:
    for name, number in (("one.jsonl", 0), ("two.jsonl.gz", 5)):
        content = b"\n".join(json.dumps(chat(number + each % 3)).encode() for each in range(4)) + ending
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    data_clean([tmp_path / "one.jsonl", tmp_path / "two.jsonl.gz"], tmp_path / "clean.jsonl")
    assert len(read(tmp_path / "clean.jsonl")) == 6
    found = data_restore(tmp_path / "clean.jsonl", tmp_path / "again")
    assert found.exact == [tmp_path / "again" / "one.jsonl", tmp_path / "again" / "two.jsonl"]
    assert (tmp_path / "again" / "one.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert (tmp_path / "again" / "two.jsonl").read_bytes() == content


def test_other_formats_are_restored_as_lines_with_all_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('question,answer,id\n"a, b?",Yes.,1\n"a, b?",Yes.,2\nc?,No.,3\n')
    data_clean(tmp_path / "rows.csv", tmp_path / "clean.jsonl")
    assert [row["id"] for row in read(tmp_path / "clean.jsonl")] == ["1", "3"]
    found = data_restore(tmp_path / "clean.jsonl", tmp_path / "again.jsonl")
    assert [row["id"] for row in read(tmp_path / "again.jsonl")] == ["1", "2", "3"]
    assert found.exact == []


def test_secrets_are_masked_consistently_and_not_in_the_ledger(tmp_path: Path) -> None:
    rows = [chat(n, f"{sentence(n)}. Write to anna.beck@firma{n % 2}.de.") for n in range(4)] + [chat(9)]
    rows.append(rows[0])
    found = data_clean(write(tmp_path / "rows.jsonl", rows), tmp_path / "clean.jsonl")
    for path in (found.file, found.ledger):
        assert "anna.beck" not in path.read_text()
    addresses = [row["answer"].split("Write to ")[1] for row in read(found.file)[:4]]
    assert addresses[0] == addresses[2] != addresses[1] == addresses[3]
    assert found.hidden == 5
    back = data_restore(found.file, tmp_path / "again.jsonl")
    assert (back.exact, back.rows, back.masked) == ([], 6, 5)
    assert [row["question"] for row in read(tmp_path / "again.jsonl")] == [row["question"] for row in rows]
    assert read(tmp_path / "again.jsonl")[5] == read(found.file)[0], "the dropped copy comes back masked"
    other = data_clean(tmp_path / "rows.jsonl", tmp_path / "other.jsonl", seed=1)
    assert read(other.file)[0] != read(found.file)[0]
    kept = data_clean(tmp_path / "rows.jsonl", tmp_path / "kept.jsonl", keep_secrets=True)
    assert "anna.beck" in kept.ledger.read_text()


def test_positions_in_a_text_do_not_shift(tmp_path: Path) -> None:
    rows = [
        {"text": f"Mail anna.beck@firma.de in {place}.", "entities": [{"start": 28, "end": 33, "label": "place"}]}
        for place in ("Paris", "Rome!")
    ]
    rows.append({"text": "Nobody is in Paris.", "entities": []})
    found = data_clean(write(tmp_path / "rows.jsonl", rows), tmp_path / "clean.jsonl")
    assert [entry["fate"] for entry in entries(found)] == ["dropped", "dropped", "kept"]


def test_a_duplicate_takes_the_place_of_a_row_that_is_dropped(tmp_path: Path) -> None:
    rows = [chat(1), chat(2), {**chat(1), "id": 3}, {**chat(1), "id": 4}]
    source = write(tmp_path / "rows.jsonl", rows)
    verdict = {"row": digest_of_line(json.dumps(rows[0]).encode()), "verdict": "drop", "reviewer": "anna"}
    write(tmp_path / "verdicts.jsonl", [verdict])
    found = data_clean(source, tmp_path / "clean.jsonl", verdicts=[tmp_path / "verdicts.jsonl"])
    assert [row.get("id") for row in read(found.file)] == [None, 3]
    assert [entry["fate"] for entry in entries(found)] == ["dropped", "kept", "kept", "dropped"]


def test_a_copy_of_a_near_duplicate_is_dropped_with_it(tmp_path: Path) -> None:
    long = {"question": "What is told here?", "answer": f"{sentence(1, 60)}."}
    near = {**long, "answer": f"{sentence(1, 60)} indeed."}
    found = data_clean(write(tmp_path / "rows.jsonl", [long, near, near, long, near]), tmp_path / "clean.jsonl")
    assert read(found.file) == [long]
    assert [entry["fate"] for entry in entries(found)] == ["kept", *["dropped"] * 4]


def test_verdicts_keep_drop_and_relabel(tmp_path: Path) -> None:
    rows = [{"sentence": sentence(n), "intent": n % 2, "id": n} for n in range(5)]
    rows[3] |= {"sentence": rows[1]["sentence"]}
    source = write(tmp_path / "rows.jsonl", rows)
    said = [(0, "drop", None), (2, "label", "7"), (3, "keep", None)]
    lines = [
        {"row": digest_of_line(json.dumps(rows[n]).encode()), "verdict": kind, "reviewer": "anna",
         **({"label": label} if label else {})}
        for n, kind, label in said
    ]  # fmt: skip
    write(tmp_path / "verdicts.jsonl", [*lines[:2], {**lines[2], "verdict": "drop"}, lines[2]])
    found = data_clean(source, tmp_path / "clean.jsonl", verdicts=[tmp_path / "verdicts.jsonl"])
    assert [(row["id"], row["intent"]) for row in read(found.file)] == [(1, 1), (2, 7), (3, 1), (4, 0)]
    assert found.verdicts == {"drop": 1, "label": 1, "keep": 1}
    assert entries(found)[2]["why"] == ["verdict of anna: label"]
    data_restore(found.file, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == source.read_bytes()
    write(tmp_path / "bert.jsonl", [{**lines[0], "reviewer": "bert", "verdict": "keep"}])
    with pytest.raises(UserError, match="anna and bert disagree about"):
        data_clean(source, tmp_path / "no.jsonl", verdicts=[tmp_path / "verdicts.jsonl", tmp_path / "bert.jsonl"])
    write(tmp_path / "odd.jsonl", [{"row": "x", "verdict": "label"}])
    with pytest.raises(UserError, match=r"odd.jsonl row 1 is no verdict"):
        data_clean(source, tmp_path / "no.jsonl", verdicts=[tmp_path / "odd.jsonl"])


def test_actions_are_as_asked_for_and_others_are_refused(dirty: Path, tmp_path: Path) -> None:
    found = data_clean(dirty, tmp_path / "a.jsonl", actions={"exact_duplicates": "keep", "personal_data": "drop"})
    assert [entry["fate"] for entry in entries(found)][:2] == ["kept", "kept"]
    assert entries(found)[6]["fate"] == "dropped"
    assert IBAN not in found.ledger.read_text()
    for actions, message in (
        ({"exact_duplicate": "drop"}, "Did you mean exact_duplicates?"),
        ({"exact_duplicates": "mask"}, "exact_duplicates: mask is not one of drop, keep"),
        ({"malformed": "keep"}, "malformed: keep is not one of drop"),
    ):
        with pytest.raises(UserError, match=message):
            data_clean(dirty, tmp_path / "b.jsonl", actions=actions)
    assert not (tmp_path / "b.jsonl").exists()


def test_nothing_is_written_if_nothing_would_be_left_or_something_is_there(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", [chat(1), {"question": "?", "answer": ""}])
    verdict = {"row": digest_of_line(json.dumps(chat(1)).encode()), "verdict": "drop"}
    with pytest.raises(UserError, match=r"No row would be left of 2\."):
        data_clean(source, tmp_path / "out.jsonl", verdicts=[write(tmp_path / "v.jsonl", [verdict])])
    alone = write(tmp_path / "alone.jsonl", [chat(1)])
    with pytest.raises(UserError, match=r"left of 1\. leakage drops 1: .* check, or use --do leakage=keep\."):
        data_clean(alone, tmp_path / "out.jsonl", against=[source])
    broken = write(tmp_path / "broken.jsonl", [["a", "list"]])
    with pytest.raises(UserError, match=r"malformed drops 1: look at them with tunesmith data check\.$"):
        data_clean(broken, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    (tmp_path / "out.jsonl.ledger.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"out.jsonl.ledger.jsonl already exists"):
        data_clean(source, tmp_path / "out.jsonl")


def test_the_ledger_names_the_fingerprints_of_all_that_was_read(dirty: Path, tmp_path: Path) -> None:
    others, verdicts = tmp_path / "held.jsonl", tmp_path / "verdicts.jsonl"
    write(others, [chat(100)])
    write(verdicts, [{"row": "0" * 32, "verdict": "keep", "reviewer": "anna"}])
    found = data_clean(dirty, tmp_path / "clean.jsonl", against=[others], verdicts=[verdicts])
    settings = read(found.ledger)[0]["settings"]
    assert settings["against"] == {str(others): file_sha256(others)}
    assert settings["verdicts"] == {str(verdicts): file_sha256(verdicts)}


def test_the_same_rows_give_the_same_bytes(dirty: Path, tmp_path: Path) -> None:
    one, other = (data_clean(dirty, tmp_path / name) for name in ("one.jsonl", "other.jsonl"))
    assert one.file.read_bytes() == other.file.read_bytes()
    assert one.ledger.read_bytes() == other.ledger.read_bytes()


def test_a_file_that_was_edited_or_has_no_ledger_is_not_restored(dirty: Path, tmp_path: Path) -> None:
    found = data_clean(dirty, tmp_path / "clean.jsonl")
    found.file.write_bytes(found.file.read_bytes() + b"{}\n")
    with pytest.raises(UserError, match="is not as it was when its ledger was written"):
        data_restore(found.file, tmp_path / "again.jsonl")
    with pytest.raises(UserError, match=r"dirty.jsonl.ledger.jsonl cannot be read"):
        data_restore(dirty, tmp_path / "again.jsonl")
    found.ledger.write_text(found.ledger.read_text().splitlines()[0])
    with pytest.raises(UserError, match="is no ledger that tunesmith data clean wrote, or its end is missing"):
        data_restore(found.file, tmp_path / "again.jsonl")


def test_a_directory_of_cleaned_files_is_read_without_their_ledgers(dirty: Path, tmp_path: Path) -> None:
    found = data_clean(dirty, tmp_path / "cleaned" / "clean.jsonl")
    data_sample(found.file, 2, tmp_path / "cleaned" / "sample.jsonl")
    assert len(list(tmp_path.glob("cleaned/*.js*"))) == 4
    for path in (tmp_path / "cleaned", f"{tmp_path}/cleaned/*.json*"):
        rows = list(data_read([str(path)], tmp_path))
        assert {Path(row.source.file).name for row in rows} == {"clean.jsonl", "sample.jsonl"}
