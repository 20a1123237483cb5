"""Answers to a file of questions: what is measured, and that nothing is computed twice."""

import json
from pathlib import Path
from typing import Any

import pytest
from bigram import chain_model
from bytewise import byte_tokenizer

import tunesmith
from tunesmith.metrics.contradiction import Inference
from tunesmith.retrieval import ask_questions as module
from tunesmith.retrieval.ask import Asker
from tunesmith.retrieval.ask_questions import answer_figures, ask_questions
from tunesmith.retrieval.questions import Question, Target
from tunesmith.retrieval.support import by_inference

TOKENIZER = byte_tokenizer()


def record(grounded: list[bool], cited: list[list[bool]], relevant: list[bool]) -> dict[str, Any]:
    """An answer whose claims cite chunks 1, 2, … with or without support."""
    citations = [{"number": n, "supports": each} for row in cited for n, each in enumerate(row, 1)]
    return {
        "found": bool(cited), "answer": "Trains. [1]", "claims": [{"supported": any(row)} for row in cited],
        "citations": citations, "grounded": grounded, "relevant": relevant,
    }  # fmt: skip


def test_claims_and_citations_are_counted_over_all_answers() -> None:
    there, nowhere = (Target("a.md"),), ()
    rows = [Question("a", "1", there, "trains"), Question("b", "2", there), Question("c", "3", nowhere)]
    records = [
        record([True, True, False], [[True], [False, False], [False]], [True, False]),
        record([], [], [False]),
        record([True], [[True]], []),
    ]
    records[2]["relevant"] = [False]
    figures = {name: figure.value for name, figure in answer_figures(rows, records).items()}
    assert figures == {
        "retrieved": 1 / 2, "found": 1 / 2, "not_found": 0, "faithfulness": 3 / 4, "citation_recall": 2 / 4,
        "citation_precision": 2 / 5, "citation_relevance": 3 / 4, "exact_match": 1, "f1": 1,
    }  # fmt: skip
    _, (low, high) = answer_figures(rows[2:], records[2:])["faithfulness"].estimate
    assert (low, high) == pytest.approx((0.207, 1), abs=0.001), "one answer proves little"
    assert set(answer_figures(rows[2:], records[2:])) == {"not_found", "faithfulness", "citation_recall",
                                                          "citation_precision"}  # fmt: skip


def test_what_was_answered_before_a_kill_is_not_answered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("Trains leave at noon.", encoding="utf-8")
    tunesmith.index(tmp_path / "docs", tmp_path / "i", "none")
    symbols = TOKENIZER.convert_ids_to_tokens(TOKENIZER("Trains [1]")["input_ids"])
    eos = TOKENIZER.eos_token_id
    chain = chain_model(TOKENIZER, *symbols, TOKENIZER.eos_token, max_position_embeddings=4096, eos_token_id=eos)
    chain.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    rows = [{"question": f"When do trains leave {word}?", "file": "a.md"} for word in ("a", "b", "c", "a")]
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    monkeypatch.setattr(module, "TOGETHER", 1)
    own, asked = Asker.answers, []

    def dying(self: Asker, questions: list[str], injected: list[str]) -> Any:
        asked.extend(questions)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return own(self, questions, injected)

    monkeypatch.setattr(Asker, "answers", dying)
    with pytest.raises(KeyboardInterrupt):
        ask_questions(tmp_path / "i", tmp_path / "model", file)
    events: list[dict[str, Any]] = []
    result = ask_questions(tmp_path / "i", tmp_path / "model", file, subscribers=[events.append])
    assert asked[2:] == [rows[1]["question"], rows[2]["question"]]
    assert [each["answer"] for each in result["answers"]] == ["Trains [1]"] * 4
    assert [event["done"] for event in events] == [0, 1, 2]
    ask_questions(tmp_path / "i", tmp_path / "model", file, k=1)
    assert len(asked) == 7, "other settings ask again, each text once"


def test_support_by_inference_is_the_probability_of_the_label(reading: Path) -> None:
    support = by_inference(f"{reading / 'classes'}#yes")
    found = support("good film", ["w1 w2 good", "bad"])
    model = Inference.open(str(reading / "classes"), "yes")
    assert found == pytest.approx(model.probabilities(["w1 w2 good", "bad"], ["good film"] * 2))
    assert all(0 < each < 1 for each in found)
    assert support("good film", []) == []
