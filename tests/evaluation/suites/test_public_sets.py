"""Forms of public test sets for files at hand: multiple choice, GSM8K, HumanEval."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from bigram import letters_model
from bytewise import byte_tokenizer
from evaluated import written
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import Body, scripted
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.raw_text import RawText
from tunesmith.evaluation.subjects import SubjectName, open_subject
from tunesmith.evaluation.suite import open_suites
from tunesmith.evaluation.suites.bias import Pair, read_pairs
from tunesmith.evaluation.suites.humaneval import pass_at_k
from tunesmith.evaluation.suites.multiple_choice import (
    Question,
    continuations,
    introduction,
    read_questions,
    rendered,
)
from tunesmith.inference.engine import Engine
from tunesmith.inference.sampling import Sampling

TOKENIZER = byte_tokenizer()
ROWS = [
    {"question": "Which comes after a?", "choices": ["b", "the whole rest of them"], "answer": 0},
    {"question": "Which is a vowel?", "choices": ["x", "yes, e is one", "t"], "answer": 1},
    {"question": "What is red?", "choices": ["grass and leaves", "a ruby", "sky", "milk"], "answer": 1},
    {"question": "Which is hot?", "choices": ["ice", "fire"], "answer": 1},
]


pytestmark = pytest.mark.usefixtures("here")


def measured(model: Any, suite: str, **options: str) -> dict[str, float]:
    """The figures of a suite that is measured alone."""
    found = evaluate(str(model), 0, suites=[suite], suite_options={suite: options})
    (figures,) = found["models"].values()
    return {name.partition(".")[2]: figure["value"] for name, figure in figures.items()}


def log_probability(model: Any, text: str, continuation: str) -> float:
    """By transformers, in fp32."""
    before, ids = (TOKENIZER(each)["input_ids"] for each in (text, text + continuation))
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
    return sum(float(logs[at - 1, ids[at]]) for at in range(len(before), len(ids)))


# Multiple choice


def test_the_likeliest_choice_and_the_likeliest_by_character_are_the_answers(tiny_model: Path) -> None:
    found = measured(f"{tiny_model}@fp32", "multiple_choice", file=written("rows.jsonl", ROWS))
    model, right, normalized = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), [], []
    for row in ROWS:
        prompt = f"Question: {row['question']}\nAnswer:"
        logs = torch.tensor([log_probability(model, prompt, f" {choice}") for choice in row["choices"]])
        right.append(int(logs.argmax()) == row["answer"])
        by_length = logs / torch.tensor([len(choice) for choice in row["choices"]])
        normalized.append(int(by_length.argmax()) == row["answer"])
    assert found == {"accuracy": sum(right) / 4, "accuracy_normalized": sum(normalized) / 4}
    assert right != normalized


def test_letters_are_scored_after_examples_of_the_same_subject(tiny_model: Path) -> None:
    rows = [{**row, "subject": subject} for row, subject in zip(ROWS, ["art", "art", "cook_ing", "art"], strict=True)]
    options = {"file": written("rows.jsonl", rows), "examples": "rows.jsonl", "few_shot": "1", "scored": "letters"}
    found = measured(f"{tiny_model}@fp32", "multiple_choice", **options)
    model, right = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), []
    listed = ["A. b\nB. the whole rest of them\n", "A. x\nB. yes, e is one\nC. t\n"]
    listed += ["A. grass and leaves\nB. a ruby\nC. sky\nD. milk\n", "A. ice\nB. fire\n"]
    for row, choices in zip(rows, listed, strict=True):
        first, about, letter = (2, "cook ing", "B") if row["subject"] == "cook_ing" else (0, "art", "A")
        prompt = (
            f"The following are multiple choice questions (with answers) about {about}.\n\n"
            f"{rows[first]['question']}\n{listed[first]}Answer: {letter}\n\n{row['question']}\n{choices}Answer:"
        )
        logs = [log_probability(model, prompt, f" {each}") for each in "ABCD"[: choices.count("\n")]]
        right.append(logs.index(max(logs)) == row["answer"])
    by_subject = {"accuracy_art": (right[0] + right[1] + right[3]) / 3, "accuracy_cook_ing": float(right[2])}
    assert found == {"accuracy": sum(right) / 4, **by_subject}


@pytest.mark.parametrize("scored", ["texts", "letters"])
def test_choices_answer_a_chat_where_the_model_has_a_template(scored: str, tiny_model: Path) -> None:
    options = {"file": written("rows.jsonl", ROWS), "scored": scored, "asked": "chat"}
    found = measured(f"{tiny_model}@fp32", "multiple_choice", **options)
    model, right = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), []
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for row in ROWS:
        choices = row["choices"] if scored == "texts" else "ABCD"[: len(row["choices"])]
        prompt = f"Question: {row['question']}\nAnswer:"
        if scored == "letters":
            listed = "".join(f"{letter}. {choice}\n" for letter, choice in zip(choices, row["choices"], strict=True))
            intro = "The following are multiple choice questions (with answers).\n\n"
            prompt = f"{intro}{row['question']}\n{listed}Answer:"
        turns = [{"role": "user", "content": prompt}]
        chat = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        logs = [log_probability(model, chat, choice) for choice in choices]
        right.append(logs.index(max(logs)) == row["answer"])
    assert found["accuracy"] == sum(right) / 4


def test_a_question_is_worded_by_what_is_scored_after_it() -> None:
    question = Question(" Which is hot? ", ("ice", "fire"), 1, "row 1", "high_school_physics")
    assert introduction(question, "texts") == ""
    assert rendered(question, "texts") == "Question:  Which is hot? \nAnswer:"
    assert continuations(question, "texts") == [" ice", " fire"]
    about = "The following are multiple choice questions (with answers) about high school physics.\n\n"
    assert introduction(question, "letters") == about
    assert rendered(question, "letters") == "Which is hot?\nA. ice\nB. fire\nAnswer:"
    assert continuations(question, "letters") == [" A", " B"]


def test_pairs_of_sentences_are_read_as_crows_pairs_are_published(here: Path) -> None:
    file = here / "pairs.csv"
    file.write_text(
        ",sent_more,sent_less,stereo_antistereo,bias_type\n"
        '0,"They are old, and slow.","They are young, and slow.",stereo,age\n'
        "1,More,Less,antistereo,gender\n",
        encoding="utf-8",
    )
    assert read_pairs(file) == [
        Pair("They are old, and slow.", "They are young, and slow.", "age", "pairs.csv row 1"),
        Pair("More", "Less", "gender", "pairs.csv row 2"),
    ]
    for text in ("", "sent_more,sent_less\na,b\n"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="is not a file of CrowS-Pairs: its columns are sent_more, sent_less"):
            read_pairs(file)


def test_choices_are_scored_once_and_come_from_the_cache_again(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written("rows.jsonl", ROWS)
    first = measured(tiny_model, "multiple_choice", file=file)
    monkeypatch.delattr(Engine, "submit")
    assert measured(tiny_model, "multiple_choice", file=file) == first


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mmlu.csv", '"Is ""it"", or not?",no,yes,maybe,C\n'),
        ("named.csv", 'question,choices,answer\n"Is ""it"", or not?","[""no"", ""yes"", ""maybe""]",2\n'),
        ("arc.jsonl", {"choices": {"text": ["no", "yes", "maybe"], "label": ["1", "2", "3"]}, "answerKey": "3"}),
        ("letter.jsonl", {"choices": ["no", "yes", "maybe"], "answer": "C"}),
        ("text.jsonl", {"choices": ["no", "yes", "maybe"], "answer": "maybe"}),
        ("index.jsonl", {"choices": ["no", "yes", "maybe"], "answer": "2"}),
    ],
)
def test_questions_are_read_as_they_are_published(name: str, text: str | dict[str, Any]) -> None:
    if isinstance(text, dict):
        text = json.dumps({"question": 'Is "it", or not?', **text}) + "\n"
    Path(name).write_text(text, encoding="utf-8")
    (question,) = read_questions(name)
    assert (question.text, question.choices, question.answer) == ('Is "it", or not?', ("no", "yes", "maybe"), 2)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"question": "x", "choices": ["a", "b"], "answer": 2},
            "rows.jsonl row 1: the answer 2 is none of the choices",
        ),
        ({"question": "x", "choices": ["a", "b"], "answer": "C"}, "the answer C is none of the choices"),
        ({"question": "x", "choices": ["a"], "answer": 0}, "row 1 has 1 choices. A question has 2 to 26"),
        ({"question": "x", "choices": ["a", ""], "answer": 0}, "none of them empty"),
        ({"question": "x", "choices": 3, "answer": 0}, "row 1: choices is not a list of texts"),
        ({"question": "x", "choices": "a, b", "answer": 0}, "row 1: choices is not a list of texts in JSON"),
        ({"choices": ["a", "b"], "answer": 0}, "row 1 has no question. A row has question, choices"),
    ],
)
def test_a_question_without_a_right_choice_is_refused(row: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_questions(written("rows.jsonl", [row]))


@pytest.mark.parametrize(
    ("suite", "options", "says"),
    [
        ("multiple_choice", {}, "The suite multiple_choice needs a file: --suite-option multiple_choice.file=FILE"),
        ("multiple_choice", {"scored": "words"}, "scored=words is not one of texts and letters"),
        ("multiple_choice", {"asked": "twice"}, "multiple_choice.asked=twice is not one of raw and chat"),
        ("multiple_choice", {"few_shot": "2"}, "few_shot needs examples: --suite-option multiple_choice.examples=FILE"),
        ("multiple_choice", {"few_shot": "two"}, "few_shot=two is not a whole number from 0 on"),
        ("multiple_choice", {"file": "none.csv"}, "none.csv: no such file"),
        ("gsm8k", {}, "The suite gsm8k needs a file"),
        ("gsm8k", {"few_shot": "2"}, "few_shot needs examples: --suite-option gsm8k.examples=FILE"),
        ("gsm8k", {"file": "rows.jsonl"}, "rows.jsonl row 1: the answer has no number"),
        ("humaneval", {}, "The suite humaneval needs a file"),
        ("humaneval", {"k": "1,5"}, "humaneval.k=5 needs as many samples"),
        ("humaneval", {"k": "0"}, "humaneval.k=0 is not a whole number from 1 on"),
        ("humaneval", {"asked": "twice"}, "asked=twice is not one of raw and chat"),
        ("humaneval", {"temperature": "hot"}, "temperature=hot is not a number from 0 to 2"),
        ("humaneval", {"temperature": "0", "samples": "2"}, "temperature=0 is not a number above 0 to 2"),
        ("humaneval", {"file": "rows.jsonl"}, "row 1 has no prompt. A row has prompt, test, entry_point"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(suite: str, options: dict[str, str], says: str) -> None:
    written("rows.jsonl", [{"question": "x", "answer": "y"}])
    with pytest.raises(UserError, match=says):
        open_suites([suite], {suite: options})


# GSM8K


def test_gsm8k_compares_the_last_number_after_worked_examples() -> None:
    answers = {"a": "So\n#### 1,200", "b": "It is 7.", "c": "#### 9", "d": "I do not know."}
    problems = [
        {"question": each, "answer": f"…\n#### {right}"} for each, right in zip("abcd", (1200, 7, 8, 1), strict=True)
    ]
    solved = [{"question": f"example {n}", "answer": f"#### {n}"} for n in range(3)]
    options = {"file": written("test.jsonl", problems), "examples": written("train.jsonl", solved), "few_shot": "2"}

    def reply(body: Body) -> str:
        return answers[body["messages"][-1]["content"]]

    with scripted(reply) as server:
        found = measured(server.url, "gsm8k", **options)
    assert found == {"right": 0.5, "right_after_mark": 0.25}
    before = [turn["content"] for turn in server.asked[0]["messages"][:-1]]
    assert before == ["example 0", "#### 0", "example 1", "#### 1"]
    assert {body["max_completion_tokens"] for body in server.asked} == {400}


# HumanEval

ADD = {
    "task_id": "add/1",
    "prompt": 'import math\n\ndef add(a, b):\n    """The sum."""\n',
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    "entry_point": "add",
}
HALF = {**ADD, "task_id": "half/1", "prompt": "import math\n\ndef half(a):\n    ''''''\n", "entry_point": "half"} | {
    "test": "def check(candidate):\n    assert candidate(5) == 2\n"
}


@given(st.integers(1, 7), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_sample_that_passes(samples: int, data: Any) -> None:
    passed, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    subsets = list(combinations([True] * passed + [False] * (samples - passed), k))
    assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_functions_that_a_chat_model_writes_are_run_against_their_tests() -> None:
    replies = {
        "add": ["```python\ndef add(a, b):\n    return a + b\n```", "def add(a, b):\n    return a - b"],
        "half": ["```\ndef half(a):\n    return math.floor(a / 2)\n```", "No."],
    }

    def reply(body: Body) -> str:
        name = "add" if "def add(" in body["messages"][-1]["content"] else "half"
        return replies[name][body["seed"] % 2]

    options = {"file": written("rows.jsonl", [ADD, HALF]), "asked": "chat", "samples": "4", "k": "1, 2"}
    with scripted(reply) as server:
        found = measured(server.url, "humaneval", **options)
    assert found == {"pass_at_1": 0.5, "pass_at_2": pytest.approx(5 / 6)}  # of 4 samples, 2 pass
    assert {body["temperature"] for body in server.asked} == {0.8}


def test_the_beginning_of_a_function_is_continued_as_it_is(here: Path) -> None:
    writes_letters_only = letters_model(max_position_embeddings=1024)  # here into a comment
    writes_letters_only.save_pretrained(here / "model")
    TOKENIZER.save_pretrained(here / "model")
    beginning = "def one():\n    return 1\n#"
    rows = [
        {"prompt": beginning, "test": f"def check(f):\n    assert f() == {n}\n", "entry_point": "one"} for n in (1, 2)
    ]
    assert measured(here / "model", "humaneval", file=written("rows.jsonl", rows)) == {"pass_at_1": 0.5}
    raw = RawText(open_subject(SubjectName.parse("model"), "model"))
    (text,) = raw.written([beginning], [Sampling(8)])
    pairs = [raw.pair(beginning, each) for each in (text, text[:-1] + "!", "")]
    assert [each.is_greedy for each in raw.scores(pairs)] == [True, False, True]


def test_suites_of_raw_text_leave_servers_out() -> None:
    files = {
        "multiple_choice": {"file": written("choices.jsonl", ROWS)},
        "humaneval": {"file": written("functions.jsonl", [ADD])},
    }
    with scripted(lambda body: "x") as server:
        found = evaluate(server.url, 0, suites=list(files), suite_options=files)
    assert list(found["models"].values()) == [{}]
    assert not server.asked
