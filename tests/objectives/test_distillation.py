"""Distillation: a student learns a teacher's distribution, or the answers that the teacher generates for a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import make_bases, word_tokenizer
from torch.nn import functional
from transformers import AutoModelForCausalLM
from writing import answers

import tunesmith
from tunesmith.config.recipe import Recipe
from tunesmith.data.batch import collate
from tunesmith.data.prepare import prepare
from tunesmith.errors import UserError
from tunesmith.evaluation.answering import answer
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.sampling import Sampling
from tunesmith.models.attention import use_document_attention
from tunesmith.models.forward import CHUNK
from tunesmith.models.load import load_model, load_tokenizer
from tunesmith.ops.divergence import distillation_loss

CPU = torch.device("cpu")


@given(
    rows=st.integers(1, 9),
    vocabulary=st.sampled_from([2, 7, 64]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_distillation_loss_equals_hintons_formula(
    rows: int, vocabulary: int, temperature: float, share: float, seed: int
) -> None:
    torch.manual_seed(seed)
    student, teacher = torch.randn(2, rows, vocabulary, dtype=torch.float64)
    labels = torch.randint(vocabulary, (rows,))
    expected = 0.0
    for s, t, label in zip(student, teacher, labels, strict=True):
        p, q = torch.softmax(t / temperature, -1), torch.softmax(s / temperature, -1)
        expected += (1 - share) * temperature**2 * (p * (p / q).log()).sum() - share * torch.softmax(s, -1)[label].log()
    torch.testing.assert_close(distillation_loss(student, teacher, labels, temperature, share), expected)


@pytest.fixture
def teacher_directory(tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path) -> Path:
    """A teacher that was trained on the rows."""
    recipe = {
        "base": str(tiny_model),
        "data": {"train": str(write_rows()), "held_out": 0.0},
        "method": "full",
        "train": {"steps": 60, "tokens_per_step": 1024, "learning_rate": 1e-2, "precision": "fp32"},
    }
    return tunesmith.train(recipe, tmp_path / "teacher").directory


def student_of(tiny_model: Path, rows: Path, teacher: Path, **objective: Any) -> dict[str, Any]:
    return {
        "base": str(tiny_model),
        "data": {"train": str(rows), "held_out": 0.2, "cache": False},
        "method": "full",
        "objective": {"kind": "distillation", "teacher": str(teacher), **objective},
        "train": {"steps": 60, "tokens_per_step": 1024, "learning_rate": 1e-2, "precision": "fp32"},
    }


@pytest.mark.long
def test_student_learns_its_teachers_answers_from_probabilities_alone(
    teacher_directory: Path, tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = student_of(tiny_model, write_rows(), teacher_directory)
    run = tunesmith.train(recipe, tmp_path / "run")
    question = [({"role": "user", "content": "What is 7 + 7?"},)]
    generated = []
    for name in (teacher_directory, run.directory):
        reference = ModelReference.find(str(name))
        generated += answers(
            reference.model(torch.float32, CPU), reference.tokenizer(), question, Sampling(max_new_tokens=30)
        )
    assert generated[0] == generated[1]
    assert generated[1].startswith("It is")
    result = tunesmith.evaluate(run.directory, rows=2, max_new_tokens=4)
    assert result["models"]["tuned"]["loss"]["value"] < result["models"]["base"]["loss"]["value"] - 1


def test_loss_and_gradient_on_packed_rows_equal_those_of_full_logits(
    teacher_directory: Path, tiny_model: Path, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.load(student_of(tiny_model, write_rows(), teacher_directory, temperature=2.0, label_weight=0.25))
    table = prepare(recipe, load_tokenizer(recipe.base)).train
    model = load_model(recipe.base, torch.float32)
    use_document_attention(model)
    teacher = ModelReference.find(recipe.objective.teacher)
    objective = recipe.objective.build([teacher.packing_model(model.dtype, model.device)])
    batch = collate(table, range(5))
    monkeypatch.setattr("tunesmith.models.forward.CHUNK", 16)
    assert batch.loss_tokens > 16 < CHUNK
    ours = objective.loss(model, batch)
    ours.backward()
    plain, teacher = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_model, teacher_directory / "model"))
    expected = torch.zeros(())
    for row in range(5):
        ids, loss_mask = (torch.tensor(array) for array in table[row])
        with torch.no_grad():
            teacher_logits = teacher(input_ids=ids[None].long()).logits[0, :-1][loss_mask[1:]]
        logits = plain(input_ids=ids[None].long()).logits[0, :-1][loss_mask[1:]]
        expected = expected + distillation_loss(logits, teacher_logits, ids[1:][loss_mask[1:]].long(), 2.0, 0.25)
    expected.backward()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    for (name, own), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-3, atol=1e-3, msg=name)
    assert objective.losses(model, batch).sum() == pytest.approx(
        functional.cross_entropy(*_logits(plain, table), reduction="sum").item(), rel=1e-4
    )


def _logits(model: Any, table: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (loss tokens, vocabulary) and labels (loss tokens,) of the first five rows."""
    rows = [(torch.tensor(ids).long(), torch.tensor(loss_mask)) for ids, loss_mask in (table[row] for row in range(5))]
    logits = torch.cat([model(input_ids=ids[None]).logits[0, :-1][loss_mask[1:]] for ids, loss_mask in rows])
    labels = torch.cat([ids[1:][loss_mask[1:]] for ids, loss_mask in rows])
    return logits, labels


def test_teacher_with_another_vocabulary_is_refused_with_an_alternative(
    tiny_model: Path, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    make_bases(tmp_path, ["gpt2"])
    word_tokenizer().save_pretrained(tmp_path / "gpt2")
    recipe = student_of(tiny_model, write_rows(), tmp_path / "gpt2")
    with pytest.raises(
        UserError,
        match=r"different vocabulary from the student.*Train on the teacher's answers instead: tunesmith answer",
    ):
        tunesmith.train(recipe, tmp_path / "run")


def test_answer_writes_every_answer_and_resumes_after_an_interruption(teacher_directory: Path, tmp_path: Path) -> None:
    source = tmp_path / "questions.jsonl"
    rows: list[dict[str, Any]] = [{"question": f"What is {n} + {n}?"} for n in range(4)]
    rows += [{"question": "What is 9 + 9?", "answer": "I will not say."}]
    rows += [{"messages": [{"role": "user", "content": "What is 3 + 3?"}]}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    complete = answer(str(teacher_directory), source, tmp_path / "complete.jsonl", Sampling(max_new_tokens=30))
    assert (complete.rows, complete.empty) == (6, 0)
    answered = [json.loads(line) for line in complete.path.read_text(encoding="utf-8").splitlines()]
    assert [row["question"] for row in answered] == [
        row.get("question") or row["messages"][0]["content"] for row in rows
    ]
    assert all(row["answer"].startswith("It is") for row in answered)

    lines = complete.path.read_text(encoding="utf-8").splitlines(True)
    partial = tmp_path / ".again.jsonl.partial"

    def kill(event: dict[str, Any]) -> None:
        if event["done"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer(
            str(teacher_directory), source, tmp_path / "again.jsonl", Sampling(max_new_tokens=30), subscribers=[kill]
        )
    header = partial.read_text(encoding="utf-8").split("\n")[0] + "\n"
    cut = json.dumps({"question": "a line\u2028 that continues", "answer": "yes"}, ensure_ascii=False)
    partial.write_text(header + "".join(lines[:2]) + cut + "\n" + lines[3][:20], encoding="utf-8")
    events: list[Any] = []
    again = answer(
        str(teacher_directory),
        source,
        tmp_path / "again.jsonl",
        Sampling(max_new_tokens=30),
        subscribers=[events.append],
    )
    assert events[0]["done"] == 3, "three complete lines, and one that was cut off"
    partial.write_text(again.path.read_text(encoding="utf-8").replace(cut, lines[2].strip()), encoding="utf-8")
    partial.replace(again.path)
    assert again.path.read_text(encoding="utf-8") == complete.path.read_text(encoding="utf-8")
    assert not list(tmp_path.glob(".again*"))

    with pytest.raises(UserError, match="exists already"):
        answer(str(teacher_directory), source, complete.path)
    (tmp_path / ".other.jsonl.partial").write_text(json.dumps({"model": "x", "rows": 6}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="has answers from another run"):
        answer(str(teacher_directory), source, tmp_path / "other.jsonl")
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        answer(str(teacher_directory), source, tmp_path / "nowhere" / "other.jsonl")
    more = [{"id": 7, "question": "What is 3 + 3?"}, {"instruction": "Add.", "input": "3 + 3", "system": "Be brief."}]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more), encoding="utf-8")
    chats = answer(
        str(teacher_directory), tmp_path / "more.jsonl", tmp_path / "chats.jsonl", Sampling(max_new_tokens=4)
    )
    turns = [json.loads(line)["messages"] for line in chats.path.read_text(encoding="utf-8").splitlines()]
    assert [[turn["role"] for turn in chat] for chat in turns] == [
        ["user", "assistant"],
        ["system", "user", "assistant"],
    ]
    (tmp_path / "odd.jsonl").write_text('{"text": "Nothing is asked."}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"odd.jsonl row 1 has no question: it is raw text"):
        answer(str(teacher_directory), tmp_path / "odd.jsonl", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
