"""Every option of `tunesmith data check`, and `data.checks` of a recipe, do what their documentation says."""

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from command import typed
from settings_coverage import shows

import tunesmith
from tunesmith.errors import UserError
from tunesmith.training.trainer import Trainer

LONG = "The river ends in the sea, after many bends. " * 200


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = [("Where does it end?", "In the sea."), ("Where does it end?", "In the lake."), ("Why?", ""), ("How?", LONG)]
    write("rows.jsonl", [*rows, *rows[:1]])
    write("other.jsonl", [("HOW?", "So.")])


def write(path: str, rows: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows]
    Path(path).write_text("".join(lines), encoding="utf-8")


def run(*arguments: str) -> CompletedProcess[str]:
    return typed("data", "check", *arguments)


def checks(*arguments: str) -> dict[str, list[int]]:
    printed = json.loads(run("rows.jsonl", "--json", *arguments).stdout)
    return {check["name"]: [row["row"] for row in check["rows"]] for check in printed["checks"]}


@shows("tunesmith data check paths", "tunesmith data check --json", "tunesmith data check --only")
def test_only_the_named_checks_of_the_named_file_run() -> None:
    assert checks("--only", "exact_duplicates, malformed") == {"malformed": [3], "exact_duplicates": [5]}


def test_a_named_check_that_does_not_run_says_what_it_needs() -> None:
    asked = ("rows.jsonl", "--only", "malformed,leakage,unusable,label_imbalance")
    found = " ".join(run(*asked).stdout.split())
    assert (
        "Not run: leakage (needs --against FILE, or a recipe that holds rows out); unusable (needs --base NAME, or a "
        "recipe); label_imbalance (needs rows with labels)."
    ) in found
    assert "Not run: unusable (needs --base NAME, or a recipe)." in run(*asked, "--json").stderr


def test_the_next_commands_name_what_was_asked_for_and_can_be_pasted() -> None:
    write("held out.jsonl", [("HOW?", "So.")])
    found = run("rows.jsonl", "--against", "held out.jsonl", "--only", "leakage,malformed").stdout
    assert found.startswith("5 rows in rows.jsonl")
    options = "--against 'held out.jsonl'"
    assert f"  tunesmith data check rows.jsonl {options} --only leakage,malformed --rows 20\n" in found
    assert f"  tunesmith data clean rows.jsonl {options} --output clean.jsonl\n" in found


@shows("tunesmith data check --skip")
def test_skipped_checks_do_not_run() -> None:
    assert set(checks()) - set(checks("--skip", "malformed,contradictions")) == {"malformed", "contradictions"}


@shows("tunesmith data check --against")
def test_rows_of_other_files_are_leaks() -> None:
    assert checks("--against", "other.jsonl", "--only", "leakage") == {"leakage": [4]}


@shows("tunesmith data check --base")
def test_a_base_tells_which_rows_are_too_long() -> None:
    assert checks("--base", "embedded", "--only", "over_max_length") == {"over_max_length": [4]}
    assert "over_max_length" not in checks()


@shows("tunesmith data check --encoder")
def test_an_encoder_finds_rows_that_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNESMITH_CACHE")  # the encoder may be there
    texts = ["How can I reset my password?", "My cat sleeps all day.", "How do I reset my password?"]
    Path("texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    result = run("texts.jsonl", "--json", "--encoder", "all-minilm-l6-v2", "--no-cache")
    found = {check["name"]: [row["row"] for row in check["rows"]] for check in json.loads(result.stdout)["checks"]}
    assert found["semantic_duplicates"] == [3]
    assert "semantic_duplicates" not in checks()


@shows("tunesmith data check --toxicity")
def test_a_classifier_finds_toxic_texts() -> None:
    import torch
    from bytewise import byte_tokenizer
    from families import config_of
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = config_of("llama", len(tokenizer), pad_token_id=tokenizer.pad_token_id, initializer_range=0.2)
    config.id2label, config.label2id = {0: "fine", 1: "toxic"}, {"fine": 0, "toxic": 1}
    AutoModelForSequenceClassification.from_config(config).save_pretrained("classifier")
    tokenizer.save_pretrained("classifier")
    texts = [f"{word} {word}." for word in ("Good", "Bad", "Zebra", "quick", "0123", "x", "Mountain air", "!?")]
    Path("talk.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    labels = [each.label for (each,) in tunesmith.load("classifier").classify(texts)]
    assert {*labels} == {"fine", "toxic"}
    for label in ("toxic", "fine"):
        result = run("talk.jsonl", "--json", "--toxicity", f"classifier#{label}", "--no-cache")
        found = {check["name"]: [row["row"] for row in check["rows"]] for check in json.loads(result.stdout)["checks"]}
        assert found["toxicity"] == [row for row, each in enumerate(labels, 1) if each == label]
    assert "toxicity" not in checks()


@shows("tunesmith data check --model")
def test_a_model_looks_for_answers_that_do_not_belong(tiny_model: Path) -> None:
    assert "unrelated_answers" in checks("--model", str(tiny_model))
    assert "unrelated_answers" not in checks()
    refused = run("rows.jsonl", "--only", "unrelated_answers")
    assert (refused.returncode, "name it with --model NAME" in refused.stderr) == (2, True)


def test_contradictions_are_shown_as_pairs_without_personal_data() -> None:
    write("pair.jsonl", [("Who?", "Ask ann.lee@corp-mail.com for it."), ("Who?", "Nobody.")])
    lines = [line.strip() for line in run("pair.jsonl").stdout.splitlines()]
    first = lines.index("≠ Ask person280936884029@example.com for it.")
    assert lines[first - 2 : first] == ["row 2 another answer to the same input as row 1", "Nobody."]


@shows("tunesmith data check --rows")
def test_as_many_rows_are_listed_as_asked_and_all_are_counted() -> None:
    result = run("rows.jsonl", "--json", "--only", "contradictions", "--rows", "0")
    (check,) = json.loads(result.stdout)["checks"]
    assert (check["count"], check["rows"]) == (1, [])
    assert "contradictions: 0 of 1 rows are listed" in result.stderr


@shows("tunesmith data check --cache")
def test_the_cache_is_used_unless_told_otherwise() -> None:
    assert "known from before" not in run("rows.jsonl").stdout
    assert "known from before" in run("rows.jsonl").stdout
    assert "known from before" not in run("rows.jsonl", "--no-cache").stdout


@shows("tunesmith data check --strict")
def test_strict_turns_errors_into_an_returncode() -> None:
    assert run("rows.jsonl", "--only", "malformed", "--strict").returncode == 3
    assert run("rows.jsonl", "--only", "contradictions", "--strict").returncode == 0


@shows("tunesmith data check --checks")
def test_checks_lists_their_names() -> None:
    listed = run("--checks").stdout
    assert all(name in listed for name in ("near_duplicates", "leakage", "suspicious_labels"))


@shows("data.checks")
def test_a_run_is_refused_for_errors_and_warned_of_the_rest(tiny_model: Path) -> None:
    def start(wanted: Any) -> list[str]:
        data = {"train": "rows.jsonl", "held_out": 0.0, "max_malformed": 1.0, "overflow": "drop", "checks": wanted}
        recipe = {"base": str(tiny_model), "data": data, "method": "lora", "train": {"steps": 1}}
        events: list[dict[str, Any]] = []
        with Trainer(recipe, "run", subscribers=[events.append]):
            return [event["message"] for event in events if event["event"] == "warning"]

    with pytest.raises(UserError, match=r"data.checks: 1 row would do harm.*\n.*rows.jsonl row 3: the answer is empty"):
        start(True)
    assert not Path("run").exists()
    assert any("contradictions: 1 row (rows.jsonl row 2" in message for message in start(["contradictions"]))
