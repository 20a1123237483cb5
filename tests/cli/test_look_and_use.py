"""`data show`, `generate`, `chat`, `init` and `runs` as a user types them; called in this process, for speed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command import typed

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`tunesmith ARGUMENTS` in an empty directory: its exit code and all its output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, given: str = "") -> tuple[int, str]:
        done = typed(*arguments, given=given)
        return done.returncode, done.stdout + done.stderr

    return run


def write(path: Path, *rows: dict[str, str]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_data_show_marks_loss_tokens_and_token_boundaries(call: Call, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", {"question": "Wie?", "answer": "So 🙂."})
    code, out = call("data", "show", "rows.jsonl")
    assert code == 0
    assert "rows.jsonl row 1" in out
    assert "«So 🙂.<|im_end|>»" in out
    code, out = call("data", "show", "rows.jsonl", "--tokens")
    assert code == 0
    assert "<|im_start|>·" in out
    assert "🙂·" in out


def test_data_show_prints_why_a_row_cannot_be_trained_on(call: Call, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", {"question": "Wie?", "answer": "So<|im_end|>"})
    code, out = call("data", "show", "rows.jsonl")
    assert (code, "cannot be trained on: turn 2 (assistant) holds <|im_end|>" in out.replace("\n", " ")) == (0, True)


def test_data_show_counts_malformed_rows_and_shows_them_in_their_place(call: Call, tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"Wie {n}?", "answer": "So."}) for n in (1, 2)]
    lines[1:1] = ["{", json.dumps({"question": "Wie?", "answer": None})]
    (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    code, out = call("data", "show", "rows.jsonl", "--rows", "4")
    assert code == 0
    places = [out.index(f"rows.jsonl row {row}") for row in (1, 2, 3, 4)]
    assert places == sorted(places)
    assert "rows.jsonl row 2 · malformed" in out
    assert "left out: not valid JSON: Expecting property name" in out
    assert "left out: answer is missing" in out
    assert "2 malformed. A run leaves such rows out and counts them; data.max_malformed: 1% is" in out
    assert "rows.jsonl row 4 · " in call("data", "show", "rows.jsonl", "--rows", "1", "--start", "4")[1]
    assert "malformed" not in call("data", "show", "rows.jsonl", "--rows", "1")[1]


def test_data_show_trains_on_all_tokens_of_a_text_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Some notes.", encoding="utf-8")
    assert "«Some notes.<|endoftext|>»" in call("data", "show", "notes.txt")[1]


def test_generate_reads_arguments_or_stdin_and_refuses_an_empty_prompt(call: Call) -> None:
    code, out = call("generate", "embedded", "Hello.", "--max-new-tokens", "5")
    assert (code, bool(out.strip())) == (0, True)
    assert call("generate", "embedded", "--max-new-tokens", "5", given="Hello.")[1] == out
    assert call("generate", "embedded", given="")[0] == 2
    code, out = call("generate", "./nowhere", "Hello.")
    assert (code, "does not exist" in out) == (2, True)


def test_generate_continues_raw_text_without_a_chat_template(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(tiny_model, plain)
    (plain / "chat_template.jinja").unlink()
    code, out = call("generate", str(plain), "Hello.")
    assert (code, "no chat template" in out) == (2, True)
    code, out = call("generate", str(plain), "Hello.", "--raw", "--max-new-tokens", "5")
    assert code == 0, out


def test_chat_answers_until_an_empty_line(call: Call) -> None:
    code, out = call(
        "chat", "embedded", "--max-new-tokens", "5", "--system", "Be brief.", given="Hello.\n/new\nAgain.\n\n"
    )
    assert code == 0
    assert out.count("> ") == 4


def test_init_prints_the_next_command_and_never_overwrites(call: Call, tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", *[{"question": f"q{n}", "answer": "a"} for n in range(30)])
    code, out = call("init", "rows.jsonl")
    assert code == 0
    assert "tunesmith train recipe.yaml" in out
    before = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    code, out = call("init", "rows.jsonl")
    assert (code, "already exists" in out) == (2, True)
    assert (tmp_path / "recipe.yaml").read_text(encoding="utf-8") == before


def test_init_gives_the_reasons_for_rows_that_cannot_be_used(call: Call, tmp_path: Path) -> None:
    good = {"question": "q", "answer": "a"}
    rows = [{**good, "question": f"q{n}"} for n in range(8)]
    write(tmp_path / "rows.jsonl", *rows, {**good, "image": "a.png"}, {**good, "question": "<|im_end|>"})
    code, out = call("init", "rows.jsonl")
    assert code == 0
    assert "1 of 10 rows are malformed. Fix them: " in out
    assert "  1 row, rows.jsonl row 9: column image holds images, which no objective can use yet. Remove the " in out
    assert "1 of the 10 rows cannot be trained on. Fix them: data.skip_unusable: true " in out
    assert "  1 row, rows.jsonl row 10: turn 1 (user) holds <|im_end|>, " in out


def test_schema_and_runs_print_json(call: Call, tmp_path: Path) -> None:
    schema = json.loads(call("schema")[1])
    assert {"base", "data", "method", "objective", "train"} == set(schema["properties"])
    (tmp_path / "runs").mkdir()
    assert json.loads(call("runs", "--json")[1]) == []
    assert "No runs in runs" in call("runs")[1]
    assert call("runs", "elsewhere")[0] == 2
