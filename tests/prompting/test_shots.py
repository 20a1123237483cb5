"""Which rows are few-shot examples: similar, representative or random ones, never the question itself."""

from collections import Counter
from itertools import combinations
from math import log

import numpy as np
import pytest

from tunesmith import UserError
from tunesmith.data.example import Example, Source
from tunesmith.prompting.prompt import Prompt, example_of
from tunesmith.prompting.shots import Shots
from tunesmith.prompting.similarity import WordSimilarity, representatives
from tunesmith.retrieval.full_text import K1, B

QUESTIONS = [
    "How do I reset my password?",
    "Where is my invoice?",
    "How do I reset my phone, and then my password?",
    "Can I change my plan?",
    "Is there a phone number?",
    "When is my invoice sent?",
    "How do I delete my account?",
]


def rows_of(questions: list[str]) -> list[Example]:
    return [example_of(question, f"Answer {n}.", Source("rows", n)) for n, question in enumerate(questions)]


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def questions_of(shots: list[Example]) -> list[str]:
    return [str(shot.messages[0]["content"]) for shot in shots if shot.messages]


def words(text: str) -> list[str]:
    return text.lower().replace("?", "").replace(",", "").split()


def bm25(question: str, texts: list[str]) -> list[float]:
    """Lucene's formula, word by word."""
    mean = sum(len(words(text)) for text in texts) / len(texts)
    found = []
    for text in texts:
        counts, score = Counter(words(text)), 0.0
        for word in words(question):
            having = sum(word in words(each) for each in texts)
            rarity = log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            norm = K1 * (1 - B + B * len(words(text)) / mean)
            score += rarity * counts[word] / (counts[word] + norm)
        found.append(score)
    return found


@pytest.mark.parametrize("question", ["reset the password of my phone", "invoice my invoice", "plan"])
def test_similar_examples_are_the_most_similar_ones_by_brute_force_the_best_last(question: str) -> None:
    scores = bm25(question, QUESTIONS)
    assert WordSimilarity(QUESTIONS).to(question) == pytest.approx(scores, rel=1e-5)
    best = sorted(range(len(QUESTIONS)), key=lambda index: (-scores[index], index))[:3]
    shots = Shots(rows_of(QUESTIONS), 3, "similar")
    assert questions_of(shots.for_chat(chat(question))) == [QUESTIONS[index] for index in reversed(best)]


@pytest.mark.parametrize("choose", ["random", "similar", "diverse"])
def test_a_row_with_the_chats_own_question_is_never_shown(choose: str) -> None:
    shots = Shots(rows_of(QUESTIONS), 3, choose)
    for question in QUESTIONS:
        for typed in (question, question.upper().replace("?", " !")):
            found = questions_of(shots.for_chat(chat(typed)))
            assert len(found) == 3
            assert question not in found


def test_random_examples_are_the_same_for_every_chat_and_depend_on_the_seed() -> None:
    def found(seed: int, question: str) -> list[str]:
        return questions_of(Shots(rows_of(QUESTIONS), 3, "random", seed).for_chat(chat(question)))

    assert found(0, "x") == found(0, "y")
    draws = Counter(question for seed in range(300) for question in found(seed, "x"))
    assert set(draws) == set(QUESTIONS)
    assert all(90 < count < 170 for count in draws.values()), "each row in 3 of 7 draws"


def test_diverse_examples_are_the_greedy_optimum_of_facility_location() -> None:
    vectors = np.abs(np.random.default_rng(0).normal(size=(12, 5)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = (vectors @ vectors.T).astype(np.float32)

    def covered(chosen: tuple[int, ...]) -> float:
        return float(alike[:, list(chosen)].max(1).sum())

    plain: tuple[int, ...] = ()
    for _ in range(4):
        plain = (*plain, max((n for n in range(12) if n not in plain), key=lambda n: covered((*plain, n))))
    assert tuple(representatives(alike, 4)) == plain
    best = max(covered(each) for each in combinations(range(12), 4))
    assert covered(plain) >= 0.63 * best
    assert representatives(alike, 99)[:4] == list(plain)


def test_diverse_examples_take_one_row_of_each_kind() -> None:
    kinds = ["how reset password {n}", "where is invoice {n}", "delete account now {n}"]
    questions = [kind.format(n=n) for n in range(5) for kind in kinds]
    found = questions_of(Shots(rows_of(questions), 3, "diverse").for_chat(chat("x")))
    assert {question.split()[0] for question in found} == {"how", "where", "delete"}


def test_rows_without_a_plain_question_are_left_out_and_repeats_too_with_counts() -> None:
    source = Source("rows", 1)
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    rows = [
        *rows_of(["One?", "Two?", "one"]),
        Example(source, text="raw"),
        Example(source, messages=({"role": "user", "content": "Three?"}, call)),
        Example(source, messages=({"role": "assistant", "content": "Hello."},)),
    ]
    shots = Shots(rows, 5, "random")
    assert (questions_of(shots.for_chat(chat("x"))), shots.left_out, shots.repeated) == (["One?", "Two?"], 3, 1)
    with pytest.raises(UserError, match="there is no example to show"):
        Shots(rows[3:], 1, "random")


def test_an_example_is_a_rows_first_question_without_system_turn_and_reasoning() -> None:
    turns = (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\na"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "a2"},
    )
    (shot,) = Shots([Example(Source("rows", 1), messages=turns)], 1, "similar").for_chat(chat("x"))
    assert shot.messages == ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


def test_pairs_of_a_prompt_that_are_all_shown_stay_in_their_order() -> None:
    prompt = Prompt().with_given(rows_of(QUESTIONS))
    shots = Shots.of(prompt)
    assert shots is not None
    assert questions_of(shots.for_chat(chat("x"))) == QUESTIONS
    assert Shots.of(Prompt()) is None


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(UserError, match="choose: best is not one of random, similar, diverse"):
        Shots(rows_of(QUESTIONS), 1, "best")
