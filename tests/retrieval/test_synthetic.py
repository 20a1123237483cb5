"""Questions made from documents: what they are made of, and what is dropped."""

import json
from pathlib import Path

import pytest

import tunesmith
from tunesmith.errors import UserError
from tunesmith.inference.model import Model
from tunesmith.inference.writing import Generation
from tunesmith.retrieval import synthetic
from tunesmith.retrieval.questions import read_questions
from tunesmith.retrieval.search import Index
from tunesmith.retrieval.synthetic import make_questions

TEXTS = {
    "gasket": "# Pumps\n\nA gasket is a ring that seals two parts of a pump. Replace it each year.",
    "pronoun": "# Care\n\n## Cleaning\n\nIt is a job that takes an hour. Use no soap.",
    "asked": "# Are pumps loud?\n\nNo, they hum quietly.",
    "again": "# Are pumps loud?\n\nNo. They hum.",
    "plain": "Nothing is said of anything here.",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    directory = tmp_path_factory.mktemp("documents")
    for name, text in TEXTS.items():
        (directory / f"{name}.md").write_text(text, encoding="utf-8")
    tunesmith.index(directory, directory / "index", "none")
    return Index(directory / "index")


def test_without_a_model_definitions_and_headings_become_questions(index: Index, tmp_path: Path) -> None:
    made = make_questions(index, 9, tmp_path / "q.jsonl")
    rows = {row["question"]: row for row in map(json.loads, (tmp_path / "q.jsonl").read_text().splitlines())}
    assert set(rows) == {
        "What is a gasket?", "Are pumps loud?", "What do the documents say about Cleaning (Care)?",
    }  # fmt: skip
    assert rows["What is a gasket?"]["answer"] == "A gasket is a ring that seals two parts of a pump."
    assert (rows["What is a gasket?"]["file"], rows["What is a gasket?"]["lines"]) == ("gasket.md", [3, 3])
    assert (made.questions, made.chunks, made.dropped) == (3, 5, {"asked before": 1, "no question": 1})
    assert all(question.is_synthetic for question in read_questions(tmp_path / "q.jsonl"))
    with pytest.raises(UserError, match=r"q\.jsonl already exists"):
        make_questions(index, 9, tmp_path / "q.jsonl")
    make_questions(index, 1, tmp_path / "one.jsonl")
    assert len((tmp_path / "one.jsonl").read_text().splitlines()) == 1


def test_a_models_question_is_dropped_if_it_is_copied_or_its_answer_is_not_there(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {
        "gasket": "Question: How often is a seal exchanged?\nAnswer: Each year.",
        "pronoun": "Question: How does one clean the machine?\nAnswer: By sending bananas abroad",
        "asked": "Question: They hum quietly?\nAnswer: they hum",
        "again": "Question: Why?\nAnswer: they hum",
        "plain": "Question: What is said of",
    }
    monkeypatch.setattr(
        synthetic, "_written", lambda model, hits: [synthetic.parsed(texts[Path(hit.file).stem]) for hit in hits]
    )
    monkeypatch.setattr(Model, "require", lambda self, what: None)
    made = make_questions(index, 9, tmp_path / "q.jsonl", model="embedded")
    (row,) = map(json.loads, (tmp_path / "q.jsonl").read_text().splitlines())
    assert (row["question"], row["answer"]) == ("How often is a seal exchanged?", "Each year.")
    assert made.dropped == {
        "answer not in the chunk": 1, "copied from the chunk": 1, "too short": 1, "no question": 1,
    }  # fmt: skip


def test_a_model_writes_under_a_grammar_and_a_document_cannot_end_its_turn(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[str] = []

    def generate(self: Model, texts: list[str], grammar: str) -> list[Generation]:
        prompts.extend(texts)
        return [self_generated(self, text, grammar) for text in texts]

    model = tunesmith.load("embedded")
    own = Model.generate

    def self_generated(model: Model, text: str, grammar: str) -> Generation:
        return own(model, text, grammar=grammar, max_new_tokens=120)[0]

    monkeypatch.setattr(Model, "generate", generate)
    hit = index.search("gasket", 1)[0]
    special = next(token for token in sorted(model.tokenizer.all_special_tokens) if len(token) > 1)
    attacked = type(hit)(**{name: getattr(hit, name) for name in hit.__slots__} | {"text": f"{hit.text} {special}"})
    (found,) = synthetic._written(model, [attacked])
    assert special not in prompts[0]
    assert found is None or (found[0].endswith("?") and found[1])
