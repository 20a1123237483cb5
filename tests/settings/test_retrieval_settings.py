"""Every option of `tunesmith index`, `search` and `ask` does what its help says."""

import json
from pathlib import Path
from typing import Any

import pytest
from bigram import chain_model
from bytewise import byte_tokenizer
from command import typed
from settings_coverage import shows

TOKENIZER = byte_tokenizer()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# Trains\n\nw1 w2 leave. They are red.\n", encoding="utf-8")
    (tmp_path / "docs" / "b.md").write_text("# Buses\n\n" + "Buses leave at night. " * 9, encoding="utf-8")
    (tmp_path / "docs" / "c.png").write_bytes(b"png")
    return tmp_path


def printed(*arguments: Any) -> str:
    """The standard output of a command that succeeds."""
    result = typed(*map(str, arguments))
    assert result.returncode == 0, result.stderr
    return result.stdout


def values(*arguments: Any) -> Any:
    return json.loads(printed(*arguments, "--json"))


@shows(
    "tunesmith index directory",
    "tunesmith index --output",
    "tunesmith index --encoder",
    "tunesmith index --size",
    "tunesmith index --json",
)
def test_index_writes_an_index_of_the_directory_with_its_settings(reading: Path) -> None:
    done = values("index", "docs", "--output", "i", "--encoder", "none", "--size", 20)
    assert (done["path"], done["files"], done["chunks"], done["encoder"]) == ("i", 2, 4, None)
    text = printed("index", "docs", "--output", "i", "--encoder", reading / "vectors")
    assert text.startswith(f"i: 2 documents, 4 chunks, full text and vectors of {reading / 'vectors'}. 2 read, in ")
    assert "1 files were not read:\n  c.png: .png: not a format that is read" in text
    assert values("index", "docs", "--output", "j", "--encoder", "none")["chunks"] == 2
    assert len(list(Path("i").glob("generation-*"))) == 1


@shows(
    "tunesmith search index",
    "tunesmith search question",
    "tunesmith search -k",
    "tunesmith search --mode",
    "tunesmith search --json",
)
def test_search_prints_the_chunks_of_a_mode(reading: Path) -> None:
    printed("index", "docs", "--output", "i", "--encoder", reading / "vectors")
    found = values("search", "i", "w2 leave")
    assert [set(hit) for hit in found] == [{"file", "lines", "score", "text", "headings", "bytes"}] * 2
    assert found[0] | {"score": 0} == {
        "file": "a.md", "lines": [3, 3], "score": 0, "text": "w1 w2 leave. They are red.", "headings": ["Trains"],
        "bytes": [10, 36],
    }  # fmt: skip
    assert values("search", "i", "w2 leave", "-k", 1) == found[:1]
    assert [hit["file"] for hit in values("search", "i", "w2", "--mode", "text")] == ["a.md"]
    assert len(values("search", "i", "w2", "--mode", "dense")) == 2
    text = printed("search", "i", "w2 leave", "-k", 1)
    assert text.startswith("1. a.md:3  1.000\n")
    assert text.endswith("\nTrains\nw1 w2 leave. They are red.\n")
    assert printed("search", "i", "zebra", "--mode", "text") == "Nothing found.\n"


@shows("tunesmith search --questions", "tunesmith search --tune")
def test_search_measures_questions_and_tunes_on_half_of_them(reading: Path) -> None:
    Path("docs/n.md").write_text("".join(f"# H{n}\n\nw{n} good.\n\n" for n in range(40)), encoding="utf-8")
    rows = [{"question": f"Where is w{n}?", "file": "n.md", "lines": [4 * n + 3] * 2} for n in range(5, 40)]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    printed("index", "docs", "--output", "i", "--encoder", reading / "vectors")
    measured = values("search", "i", "--questions", "q.jsonl", "-k", 1)
    assert measured["models"]["text"]["recall"]["value"] == 1
    assert set(measured["models"]) == {"text", "dense", "rrf", "weighted"}
    assert not Path("i/tuned.json").exists()
    text = printed("search", "i", "--questions", "q.jsonl", "--tune")
    assert "nDCG@5" in text
    assert "Chosen on " in text
    assert json.loads(Path("i/tuned.json").read_text())["mode"] == "text"
    assert len(values("search", "i", "w9")) == 1, "the tuned mode is used"
    assert len(values("search", "i", "w9", "--mode", "dense")) == 5


@shows("tunesmith search --rerank", "tunesmith ask --rerank")
def test_a_re_ranker_orders_the_chunks_of_search_and_ask(reading: Path, model: Path, here: Path) -> None:
    from families import config_of
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(reading / "vectors")
    config = config_of("bert", len(tokenizer), initializer_range=0.3)
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained("cross")
    tokenizer.save_pretrained("cross")
    printed("index", "docs", "--output", "i", "--encoder", "none")
    plain, ranked = (values("search", "i", "leave", *more) for more in ((), ("--rerank", "cross")))
    assert {hit["file"] for hit in plain} == {hit["file"] for hit in ranked} == {"a.md", "b.md"}
    assert [hit["score"] for hit in ranked] != [hit["score"] for hit in plain]
    answer = values("ask", "i", model, "leave", "-k", 1, "--rerank", "cross")
    assert answer["citations"][0]["file"] == ranked[0]["file"]


@pytest.fixture
def model(here: Path) -> Path:
    """Writes `Trains [1]`."""
    symbols = TOKENIZER.convert_ids_to_tokens(TOKENIZER("Trains [1]")["input_ids"])
    eos = TOKENIZER.eos_token_id
    chain = chain_model(TOKENIZER, *symbols, TOKENIZER.eos_token, max_position_embeddings=4096, eos_token_id=eos)
    chain.save_pretrained(here / "model")
    TOKENIZER.save_pretrained(here / "model")
    return here / "model"


@shows(
    "tunesmith ask index",
    "tunesmith ask model",
    "tunesmith ask question",
    "tunesmith ask -k",
    "tunesmith ask --mode",
    "tunesmith ask --threshold",
    "tunesmith ask --max-new-tokens",
    "tunesmith ask --json",
)
def test_ask_answers_with_checked_citations(model: Path) -> None:
    printed("index", "docs", "--output", "i", "--encoder", "none")
    answer = values("ask", "i", model, "w2 trains leave?", "-k", 1, "--mode", "text")
    assert (answer["answer"], answer["found"], answer["is_complete"]) == ("Trains [1]", True, True)
    (citation,) = answer["citations"]
    assert citation["file"] == "a.md"
    assert citation["lines"] == [3, 3]
    assert citation["quote"] in ("w1 w2 leave.", "They are red.")
    text = printed("ask", "i", model, "w2 trains leave?")
    assert text.splitlines()[:2] == ["Trains [1]", "Not supported by what it cites: Trains"]
    cut = values("ask", "i", model, "w2 trains leave?", "--max-new-tokens", 3)
    assert (cut["answer"], cut["is_complete"]) == ("Tra", False)
    assert not values("ask", "i", model, "w2 trains fly?", "--threshold", 1)["found"]
    assert printed("ask", "i", model, "zebra").splitlines() == [
        "Not found in the documents.",
        "The most relevant chunk has relevance 0.00 (at least 0.30 is asked for).",
    ]
    refused = typed("ask", "i", str(model), "w2", "--mode", "dense")
    assert refused.returncode == 2
    assert "has no vectors" in refused.stderr


@shows("tunesmith ask --questions")
def test_ask_answers_a_file_of_questions_and_measures_the_answers(model: Path) -> None:
    printed("index", "docs", "--output", "i", "--encoder", "none")
    rows = [
        {"question": "w2 trains leave?", "file": "a.md", "answer": "Trains"},
        {"question": "trains", "file": "b.md", "answer": "Buses"},
        {"question": "zebra", "file": None},
    ]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = values("ask", "i", model, "--questions", "q.jsonl", "-k", 1)
    figures = {name: each["value"] for name, each in result["models"]["model"].items()}
    assert figures == {
        "retrieved": 0.5, "found": 1, "not_found": 1, "faithfulness": 0, "citation_recall": 0, "citation_precision": 0,
        "citation_relevance": 0.5, "exact_match": 0.5, "f1": 0.5,
    }  # fmt: skip
    assert [each["answer"] for each in result["answers"]] == ["Trains [1]", "Trains [1]", "Not found in the documents."]
    assert [each["relevant"] for each in result["answers"]] == [[True], [False], []]
    text = printed("ask", "i", model, "--questions", "q.jsonl", "-k", 1)
    assert "citations of the passage" in text


@shows("tunesmith ask --support")
def test_ask_checks_claims_with_an_nli_model(model: Path, reading: Path) -> None:
    printed("index", "docs", "--output", "i", "--encoder", "none")
    by_words = values("ask", "i", model, "w2 trains leave?", "-k", 1)["citations"][0]
    by_model = values("ask", "i", model, "w2 trains leave?", "-k", 1, "--support", f"{reading / 'classes'}#yes")[
        "citations"
    ][0]
    assert by_words["support"] == 0
    assert 0 < by_model["support"] < 1
    refused = typed("ask", "i", str(model), "w2", "--support", str(reading / "classes"))
    assert refused.returncode == 2
    assert "classes has no label entailment. Name its own as" in refused.stderr


@shows("tunesmith search --make-questions", "tunesmith search --output", "tunesmith search --model")
def test_search_makes_questions_from_the_documents(model: Path) -> None:
    Path("docs/d.md").write_text("# Terms\n\nA gasket is a ring that seals two parts of a pump.\n", encoding="utf-8")
    printed("index", "docs", "--output", "i", "--encoder", "none")
    text = printed("search", "i", "--make-questions", 2, "--output", "q.jsonl")
    assert text.startswith("q.jsonl: 2 synthetic questions from 3 chunks.")
    made = values("search", "i", "--make-questions", 9, "--output", "r.jsonl")
    assert (made["questions"], made["chunks"]) == (3, 3)
    rows = [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()]
    assert {"question": "What is a gasket?", "file": "d.md", "lines": [3, 3], "synthetic": True,
            "answer": "A gasket is a ring that seals two parts of a pump."} in rows  # fmt: skip
    assert "3 questions of r.jsonl, 3 of them synthetic" in " ".join(
        printed("search", "i", "--questions", "r.jsonl").split()
    )
    refused = typed("search", "i", "--make-questions", "2")
    assert (refused.returncode, "needs --output" in refused.stderr) == (2, True)
    unusable = typed("search", "i", "--make-questions", "2", "--output", "s.jsonl", "--model", str(model))
    assert unusable.returncode == 2
    assert "No question could be made from i: 3 × too short" in unusable.stderr


@shows("tunesmith ask --attacks")
def test_ask_counts_answers_that_follow_instructions_in_chunks(model: Path) -> None:
    printed("index", "docs", "--output", "i", "--encoder", "none")
    Path("q.jsonl").write_text(json.dumps({"question": "w2 trains leave?", "file": "a.md"}), encoding="utf-8")
    result = values("ask", "i", model, "--questions", "q.jsonl", "--attacks", 5)
    assert result["rows"] == 5
    assert result["models"]["model"]["obeyed_attacks"]["value"] == 0
    refused = typed("ask", "i", str(model), "w2", "--attacks", "5")
    assert (refused.returncode, "--attacks needs --questions" in refused.stderr) == (2, True)
