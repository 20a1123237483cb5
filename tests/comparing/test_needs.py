"""What a row needs: facts that only documents hold, a form that only examples show, both, or neither."""

from collections.abc import Sequence

import pytest

from tunesmith.comparing.needs import Passages, content_words, needs_facts, needs_of
from tunesmith.evaluation.rows import Task

CHUNK = "The link is sent to your address and is valid for one hour."


def task(question: str, expected: str, source: str = "rows.jsonl row 1") -> Task:
    return Task(({"role": "user", "content": question},), expected, source)


def passages(*chunks: str, rows: Sequence[str] = ()) -> Passages:
    return Passages(lambda asked: chunks, [content_words(row) for row in rows])


@pytest.mark.parametrize(
    ("expected", "chunks", "rows", "needs"),
    [
        ("It is valid for one hour.", [CHUNK], [], True),
        ("It is valid for one hour.", ["Nothing of that."], [], False),
        ("It is valid for one hour.", [], [], False),
        ("It is valid for one hour.", [CHUNK], ["Codes are valid for one hour."], False),  # examples say it too
        ("It is valid for one hour.", ["valid", "one hour"], [], False),  # half in each of two chunks
        ("How long is the link?", [CHUNK], [], False),  # nothing that the question does not say
    ],
    ids=["in a chunk", "in no chunk", "no chunks", "also in a row", "not in a single chunk", "nothing new"],
)
def test_facts_stand_in_one_chunk_and_in_no_training_row(
    expected: str, chunks: list[str], rows: list[str], needs: bool
) -> None:
    assert needs_facts(task("How long is the link?", expected), passages(*chunks, rows=rows)) is needs


def test_numbers_are_words_and_common_words_are_not() -> None:
    assert content_words("The code is 4711, not 12!") == {"code", "4711", "12"}


JSON = [f'{{"name": "f{n}", "type": "object", "required": ["a{n}"]}}' for n in range(30)]
PROSE = [f"Sure, here is what the function number {n} does when you call it." for n in range(30)]


def test_a_form_is_needed_where_the_plain_answer_does_not_look_like_the_expected_ones() -> None:
    tasks = [task("f", "x", f"row {n}") for n in range(4)]
    plain = [PROSE[0], JSON[0], PROSE[1], JSON[1]]
    found = needs_of(tasks, None, plain, PROSE[2:], JSON[2:])
    assert list(found.values()) == ["form", "neither", "form", "neither"]


def test_no_form_is_needed_where_plain_answers_look_as_expected_or_rows_are_too_few() -> None:
    tasks = [task("f", "x", f"row {n}") for n in range(2)]
    assert set(needs_of(tasks, None, JSON[:2], JSON[2:16], JSON[16:]).values()) == {"neither"}
    assert set(needs_of(tasks, None, PROSE[:2], PROSE[2:8], JSON).values()) == {"neither"}


def test_both_are_needed_where_a_fact_has_a_form() -> None:
    asked = task("How long is the link?", "It is valid for one hour.")
    found = needs_of([asked], passages(CHUNK), [PROSE[0]], PROSE[1:], JSON)
    assert found == {asked.source: "both"}
