"""How public test sets are read and asked, word for word, and their figures on given answers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluated import written
from given_subject import Context, Given, values

from tunesmith.data.example import Malformed, Source
from tunesmith.errors import UserError
from tunesmith.evaluation.suites.gsm8k import Gsm8k, read_problems
from tunesmith.evaluation.suites.gsm8k import Problem as WordProblem
from tunesmith.evaluation.suites.multiple_choice import MultipleChoice, Question, figures, read_questions
from tunesmith.evaluation.suites.question_rows import _checked, chosen, delimited, rows_with, whole_number
from tunesmith.inference.sampling import Sampling
from tunesmith.subjects.subject import NO_LOG_PROBABILITIES

pytestmark = pytest.mark.usefixtures("here")


# Rows


def test_rows_have_their_columns_and_say_where_they_are(here: Path) -> None:
    file = written("rows.jsonl", [{"a": "x", "b": 0}, {"a": "y", "b": ""}])
    assert rows_with(written("good.jsonl", [{"a": "x", "b": 0}]), ["a", "b"], "set.file") == [
        ({"a": "x", "b": 0}, "good.jsonl row 1")
    ]
    with pytest.raises(UserError) as raised:
        rows_with(file, ["a", "b"], "set.file")
    assert str(raised.value) == "rows.jsonl row 2 has no b. A row has a, b."
    with pytest.raises(UserError) as raised:
        rows_with("", ["a"], "set.file")
    assert str(raised.value) == "The suite set needs a file: --suite-option set.file=FILE."
    (here / "bad.jsonl").write_text("{\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^bad.jsonl row 1: .*\.$"):
        rows_with("bad.jsonl", ["a"], "set.file")
    with pytest.raises(UserError, match=r"^f row 1: it is broken\.$"):
        _checked(Malformed(Source("f", 1), "it is broken"), ["a"])
    with pytest.raises(UserError, match="f row 1 has no a"):
        _checked(SimpleNamespace(values="text", source=Source("f", 1)), ["a"])


def test_records_of_a_csv_file_are_numbered_by_line_and_empty_ones_left_out(here: Path) -> None:
    (here / "rows.csv").write_text('\ufeffa,"b\nc"\r\n\r\nd\n', encoding="utf-8", newline="")
    assert list(delimited(here / "rows.csv")) == [
        (["a", "b\nc"], Source("rows.csv", 1)),
        (["d"], Source("rows.csv", 3)),
    ]
    with pytest.raises(UserError) as raised:
        list(delimited(here / "none.csv"))
    assert str(raised.value) == f"{here / 'none.csv'} cannot be read: No such file or directory."
    (here / "rows.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"rows.csv cannot be read: .*utf-8.* codec can't decode"):
        list(delimited(here / "rows.csv"))


def test_whole_numbers_of_options_and_evenly_spaced_rows() -> None:
    assert (whole_number("a.b", "0"), whole_number("a.b", "12", 12)) == (0, 12)
    for text, least in (("-1", 0), ("1.5", 0), ("", 0), ("11", 12)):
        with pytest.raises(UserError) as raised:
            whole_number("a.b", text, least)
        assert str(raised.value) == f"--suite-option a.b={text} is not a whole number from {least} on."
    assert chosen("abcde", None) == list("abcde")
    assert chosen("abcde", 3) == ["a", "c", "e"]
    assert chosen("abcde", 0) == []


# Multiple choice

ART = {"question": " Who? ", "choices": ["me", "you"], "answer": 1, "subject": "fine_art"}


def test_examples_of_the_same_subject_are_solved_before_a_question() -> None:
    solved = [{**ART, "question": f"E{n}?", "answer": n % 2} for n in range(3)]
    examples = written("examples.jsonl", [{**ART, "subject": "law"}, *solved])
    file = written("rows.jsonl", [ART])
    (question,) = read_questions(file)
    texts = MultipleChoice(file, examples, "2")
    assert texts._prompt(question) == (
        "Question: E0?\nAnswer: me\n\nQuestion: E1?\nAnswer: you\n\nQuestion:  Who? \nAnswer:"
    )
    letters = MultipleChoice(file, examples, "1", "letters")
    assert letters._prompt(question) == (
        "The following are multiple choice questions (with answers) about fine art.\n\n"
        "E0?\nA. me\nB. you\nAnswer: A\n\nWho?\nA. me\nB. you\nAnswer:"
    )
    assert MultipleChoice(file, "no such file")._prompt(question) == "Question:  Who? \nAnswer:"
    raw: Any = SimpleNamespace(generator=SimpleNamespace(prompt_of=lambda chat: chat))
    assert texts._asked_of(raw, "p") == "p"
    chat: Any = MultipleChoice(file, asked="chat")._asked_of(raw, "p")
    assert chat == [{"role": "user", "content": "p"}]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scored": "words"}, "--suite-option multiple_choice.scored=words is not one of texts and letters."),
        ({"asked": "twice"}, "--suite-option multiple_choice.asked=twice is not one of raw and chat."),
        (
            {"few_shot": "1"},
            "multiple_choice.few_shot needs examples: --suite-option multiple_choice.examples=FILE.",
        ),
        ({"few_shot": "x"}, "--suite-option multiple_choice.few_shot=x is not a whole number from 0 on."),
        ({"file": ""}, "The suite multiple_choice needs a file: --suite-option multiple_choice.file=FILE."),
    ],
)
def test_options_of_choices_are_known_values(options: dict[str, str], says: str) -> None:
    file = written("rows.jsonl", [ART])
    MultipleChoice(file, scored="texts", asked="raw")
    MultipleChoice(file, scored="letters", asked="chat")
    with pytest.raises(UserError) as raised:
        MultipleChoice(**{"file": file} | options)
    assert str(raised.value) == says


def test_a_server_has_no_figures_of_choices() -> None:
    kept = Context()
    assert MultipleChoice(written("rows.jsonl", [ART])).measure(Given(), kept.context) == {}
    assert kept.left_out == {"multiple_choice": NO_LOG_PROBABILITIES}


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"choices": ["2", "1", "0"], "answer": 0}, 0),  # a number is an index
        ({"choices": ["2", "1", "0"], "answer": "0"}, 2),  # and a text is first a label, then a choice
        ({"choices": ["B", "A"], "answer": "A"}, 0),
        ({"choices": ["x", "y"], "answer": "1"}, 1),
        ({"choices": [3, 4], "answer": "4"}, 1),
        ({"choices": {"text": ["x", "y"], "label": [7, 8]}, "answer": 8}, 1),
        ({"choices": {"text": ["x", "y"], "label": ["7", "8"]}, "answerKey": "7"}, 0),
        ({"choices": ["x", "y"], "answer": "B", "answerKey": "A"}, 1),
        ({"choices": '["x", "y"]', "answer": "B"}, 1),
    ],
)
def test_an_answer_is_an_index_a_label_or_a_text(row: dict[str, Any], answer: int) -> None:
    (question,) = read_questions(written("rows.jsonl", [{"question": 5, **row}]))
    assert (question.text, question.answer, question.source, question.subject) == ("5", answer, "rows.jsonl row 1", "")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"choices": ["x", "y"], "answer": -1}, "row 1: the answer -1 is none of the choices. Write the "
         "index from 0 on, the letter, or the text."),
        ({"choices": ["x", "y"]}, "the answer None is none of the choices"),
        ({"choices": {"text": ["x", "y"]}, "answer": 0}, "row 1: choices is not a list of texts."),
        ({"choices": {"label": ["A", "B"]}, "answer": 0}, "row 1: choices is not a list of texts."),
        ({"choices": {"text": ["x", "y"], "label": ["1", "2", "3"]}, "answer": "3"}, "the answer 3 is none"),
        ({"choices": ["x"], "answer": 0}, "row 1 has 1 choices. A question has 2 to 26, none of them empty."),
    ],
)  # fmt: skip
def test_a_row_without_a_right_choice_says_why(row: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as raised:
        read_questions(written("rows.jsonl", [{"question": "?", **row}]))
    assert says in str(raised.value)


def test_a_csv_file_is_mmlus_unless_its_columns_have_names(here: Path) -> None:
    (here / "mmlu.CSV").write_text("Who?,me,you, B \nWhat?,this,that,A\n", encoding="utf-8")
    assert read_questions("mmlu.CSV") == [
        Question("Who?", ("me", "you"), 1, "mmlu.CSV row 1"),
        Question("What?", ("this", "that"), 0, "mmlu.CSV row 2"),
    ]
    (here / "one.csv").write_text("question\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"one.csv row 1 has 0 choices"):
        read_questions("one.csv")
    (here / "empty.csv").write_text("", encoding="utf-8")
    assert read_questions("empty.csv") == []
    (here / "named.csv").write_text('answer,question,choices,subject\nB,Who?,"[""me"", ""you""]",art\n', "utf-8")
    assert read_questions("named.csv") == [Question("Who?", ("me", "you"), 1, "named.csv row 1", "art")]


def test_figures_of_choices_have_titles_and_texts_are_also_normalized() -> None:
    questions = [
        Question("?", ("a", "bbbb"), 1, "row 1", "fine_art"),
        Question("?", ("a", "b"), 0, "row 2", "Law of_X"),
    ]
    found = figures(questions, [-1.0, -2.0, -1.0, -2.0], "texts")
    assert values(found) == {
        "accuracy": 0.5, "accuracy_normalized": 1.0, "accuracy_fine_art": 0.0, "accuracy_law_of_x": 1.0,
    }  # fmt: skip
    assert [figure.title for figure in found.values()] == [
        "multiple choice right", "multiple choice right, normalized", "multiple choice right: Law of X",
        "multiple choice right: fine art",
    ]  # fmt: skip
    assert found["accuracy"].explanation == "questions whose right choice is the likeliest one; 50% by chance"
    assert found["accuracy"].units == found["accuracy_normalized"].units == ["row 1", "row 2"]
    assert {(figure.better, figure.unit) for figure in found.values()} == {("higher", "share")}
    assert list(figures(questions[:1] * 2, [-1.0, -2.0] * 2, "letters")) == ["accuracy"]


# GSM8K


def test_word_problems_are_right_by_their_last_number() -> None:
    rows = [{"question": f"q{n}", "answer": f"#### {n}"} for n in range(5)]
    file = written("rows.jsonl", rows)
    assert read_problems(file)[1] == WordProblem("q1", "#### 1", "rows.jsonl row 2")
    answers = {"q0": "<think>#### 0</think>0", "q2": "<think>1</think>2 #### 2", "q4": "#### 3"}
    subject, kept = Given(answers.__getitem__), Context(count=3)
    found = Gsm8k(file, "no such file").measure(subject, kept.context)
    assert values(found) == {"right": pytest.approx(2 / 3), "right_after_mark": pytest.approx(1 / 3)}
    assert subject.asked == [(["q0", "q2", "q4"], Sampling(400))]
    assert kept.progress == [("gsm8k", 3, 3)]
    right, after = found["right"], found["right_after_mark"]
    assert right.units == after.units == ["rows.jsonl row 1", "rows.jsonl row 3", "rows.jsonl row 5"]
    assert (right.title, right.is_compared, right.better) == ("GSM8K right", True, "higher")
    assert (after.title, after.is_compared, after.better) == ("GSM8K right after ####", False, "higher")
    assert right.explanation == "problems whose answer has the right number last"
    assert after.explanation == "the same, of answers with #### before it"
    with pytest.raises(UserError) as raised:
        read_problems(written("bad.jsonl", [{"question": "q", "answer": "none"}]))
    assert str(raised.value) == "bad.jsonl row 1: the answer has no number. Write it last, or after ####."


def test_solved_problems_are_turns_before_each_and_longer_answers_stay_so() -> None:
    file = written("rows.jsonl", [{"question": f"q{n}", "answer": f"{n}"} for n in range(3)])
    chats: list[Any] = []

    class Keeping(Given):
        def answers(self, given: Any, sampling: Sampling, done: Any = None) -> Any:
            chats.append(([*given], sampling.max_new_tokens))
            return super().answers(given, sampling, done)

    kept = Context(count=1)
    context = SimpleNamespace(count=1, sampling=Sampling(500), progress=kept.context.progress)
    Gsm8k(file, file, "1").measure(Keeping(), context)  # type: ignore[arg-type]
    before = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "0"}]
    assert chats == [([[*before, {"role": "user", "content": "q0"}]], 500)]
    with pytest.raises(UserError) as raised:
        Gsm8k(file, few_shot="1")
    assert str(raised.value) == "gsm8k.few_shot needs examples: --suite-option gsm8k.examples=FILE."
