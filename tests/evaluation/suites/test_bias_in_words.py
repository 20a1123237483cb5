"""Terms of groups and the suite `bias`, word for word, on given answers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from given_subject import Context, Given, task, values

from tunesmith.errors import UserError
from tunesmith.evaluation.rows import Task
from tunesmith.evaluation.suites.bias import Bias, Pair, read_pairs, stereotypes, swapped_task
from tunesmith.evaluation.suites.group_terms import Group, groups
from tunesmith.evaluation.suites.toxicity import ToxicityClassifier
from tunesmith.inference.sampling import Sampling

# Groups

SWAPPED = [
    ("gender", "He cut himself: a man, men, boys, Mr. Hill", "She cut herself: a woman, women, girls, Ms. Hill"),
    ("gender", "a brother, an uncle, an actor, sir", "a sister, an aunt, an actress, madam"),
    ("gender", "John, James, Michael, David, Robert", "Mary, Emily, Sarah, Anna, Laura"),
    ("gender", "It is his. It is his?", "It is hers. It is hers?"),
    ("gender", "him", "her"),
    ("ethnicity", "Emily, Greg, Brad, Anne, Smith, Müller", "Lakisha, Jamal, Darnell, Aisha, Hernandez, Yilmaz"),
    ("ethnicity", "a white man, a German lady, French adults", "a black man, a Turkish lady, Algerian adults"),
    ("religion", "A Christian priest, churches and Christianity", "A Muslim imam, mosques and Islam"),
    ("age", "a young woman, younger people, a teenager", "an old woman, elderly people, a retiree"),
    ("age", "teenagers and young colleagues", "retirees and old colleagues"),
]


@pytest.mark.parametrize(("name", "text", "other"), SWAPPED)
def test_the_terms_of_each_group_are_swapped_both_ways(name: str, text: str, other: str) -> None:
    group = groups()[name]
    assert group.swapped(text) == other
    if name != "gender":
        assert group.swapped(other) == text
    assert (group.side(text), group.side(other)) == (0, 1)


def test_groups_have_names_for_their_sides() -> None:
    assert {name: group.sides for name, group in groups().items()} == {
        "gender": ("men", "women"),
        "ethnicity": ("majority", "minority"),
        "religion": ("christians", "muslims"),
        "age": ("young", "old"),
    }
    assert [name for name, group in groups().items() if group.pronouns] == ["gender"]
    for word, side in {"his": 0, "him": 0, "her": 1, "hers": 1}.items():
        assert groups()["gender"].side(f"Is it {word}?") == side
    plain = Group(("one", "two"), [("tea", "ale")])
    assert plain.side("his and hers") is None
    assert plain.swapped("A TEA, a Tea, a TEA, an ale, 1 tea, steam") == "AN ALE, an Ale, an ALE, a tea, 1 ale, steam"
    assert Group(("one", "two"), [("tea", "euro")]).swapped("a tea") == "a euro"
    assert Group(("one", "two"), [("tea", "tea set"), ("cup", "mug")]).swapped("a cup, a tea set") == "a mug, a tea"


@pytest.mark.parametrize("word", ["again", "about", "when", "yesterday", "home", "in", "a", "who"])
def test_before_a_word_that_begins_no_noun_her_is_him(word: str) -> None:
    assert groups()["gender"].swapped(f"We saw her {word}") == f"We saw him {word}"
    assert groups()["gender"].swapped(f"It is his {word.upper()}") == f"It is hers {word.upper()}"
    assert groups()["gender"].swapped("her2 her  car, her 2, her.") == "her2 his  car, him 2, him."


# Bias


def test_pairs_that_cannot_be_read_are_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    with pytest.raises(UserError) as raised:
        read_pairs(file)
    assert str(raised.value) == f"{file} cannot be read as CrowS-Pairs: No such file or directory."
    file.write_bytes(b"sent_more\xff")
    with pytest.raises(UserError, match=r"cannot be read as CrowS-Pairs: .*codec can't decode"):
        read_pairs(file)
    file.write_text("sent_more,sent_less,bias_type\na,b,c\na,b\n", encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_pairs(file)
    columns = "its columns are sent_more, sent_less, bias_type, and others."
    assert str(raised.value) == f"{file} is not a file of CrowS-Pairs: {columns}"
    file.write_text('sent_more,sent_less,bias_type\n"ä\nb",b,c\n' + "a,b,c\n" * 999, encoding="utf-8")
    pairs = read_pairs(file)
    assert (pairs[0], pairs[-1].source) == (Pair("ä\nb", "b", "c", "pairs.csv row 1"), "pairs.csv row 1,000")


def test_gaps_by_several_groups_are_counted_in_one_progress_and_titled() -> None:
    tasks = [task(1, "Is he in?", "he"), task(2, "The church and the young man and she and he")]
    kept = Context(tasks)
    subject = Given(lambda text: "<think>she</think>he" if "he" in text.split() else "Yes.")
    found = Bias().measure(subject, kept.context)
    assert kept.progress == [("bias", 4, 8), ("bias", 6, 8), ("bias", 8, 8)]
    assert set(found) == {
        "gap_gender", "gender_men", "gender_women", "gap_religion", "religion_christians", "religion_muslims",
        "gap_age", "age_young", "age_old",
    }  # fmt: skip
    assert found["gap_gender"].title == "gap by gender"
    assert found["gap_gender"].better == found["gap_age"].better == "lower"
    assert found["gap_gender"].explanation == (
        "difference between the scores of a prompt and of the same prompt with another group named (gender)"
    )
    assert found["gender_men"].title.endswith(": men named")
    assert found["gender_women"].title.endswith(": women named")
    assert (found["gender_men"].value, found["gender_women"].value, found["gap_gender"].value) == (1.0, 0.0, 0.5)
    assert found["gender_men"].better == "higher"
    texts, sampling = subject.asked[0]
    assert texts == [
        "Is he in?", "The church and the young man and she and he", "Is she in?",
        "The church and the young woman and he and she",
    ]  # fmt: skip
    assert sampling == Sampling(16)
    both = Bias().measure(Given(), Context([task(1, "he and she")]).context)
    assert set(both) == {"gap_gender"}, "no question names one side only"


def test_the_sides_of_a_question_are_of_its_whole_chat_without_calls_of_tools() -> None:
    call = {"role": "assistant", "content": None}
    chat = ({"role": "system", "content": "You help him."}, call, {"role": "user", "content": "Is she in?"})
    found = Bias().measure(Given(), Context([Task(chat, "Yes.", "row 1")]).context)
    assert set(found) == {"gap_gender"}
    assert swapped_task(Task(chat, "He.", "row 1"), groups()["gender"]).expected == "She."


def test_stereotypes_are_titled_by_kind() -> None:
    pairs = [Pair("a", "b", "race-color", "row 1")]
    found = stereotypes(Given(log_prob=lambda _: -1.0), pairs)
    assert [figure.title for figure in found.values()] == ["stereotype preferred", "stereotype preferred: race-color"]
    assert {figure.explanation for figure in found.values()} == {
        "pairs in which the more stereotypical sentence is the likelier one (CrowS-Pairs); 50 %: no preference"
    }
    assert {figure.unit for figure in found.values()} == {"share"}


class Labeling:
    """Gives each text the label `rude` if it has an x, and always the label `short`."""

    name = "labeling"

    def classify(self, texts: list[str]) -> list[Any]:
        assert all(text.strip() for text in texts)
        return [[SimpleNamespace(label="short"), SimpleNamespace(label="rude" if "x" in text else "kind")]
                for text in texts]  # fmt: skip


def toxicity() -> ToxicityClassifier:
    return ToxicityClassifier(Labeling(), "rude", "it errs")  # type: ignore[arg-type]


def test_an_answer_is_toxic_if_one_of_its_labels_is() -> None:
    found = toxicity().share(["x", " ", "a", "xx"], ["1", "2", "3", "4"])
    assert found.values is not None
    assert found.values.tolist() == [1, 0, 0, 1]
    assert (found.title, found.better, found.unit) == ("toxic answers", "lower", "share")
    assert found.units == ["1", "2", "3", "4"]
    assert found.explanation == "answers that labeling classifies as rude; it errs"
    assert toxicity().share(["", "\n"], ["1", "2"]).value == 0


def test_toxicity_is_of_answers_to_all_questions_and_needs_some() -> None:
    suite = Bias()
    suite._toxicity = toxicity()
    subject = Given(lambda text: "<think>x</think>a" if text == "1?" else "x")
    found = suite.measure(subject, Context([task(1, "1?"), task(2, "2?")]).context)
    assert values(found) == {"toxicity": 0.5}
    assert found["toxicity"].units == ["row 1", "row 2"]
    assert subject.asked == [(["1?", "2?"], Sampling(16))]
    with pytest.raises(UserError) as raised:
        suite.measure(subject, Context().context)
    assert str(raised.value) == (
        "The suite bias found no question that names a group of people. Name a file of CrowS-Pairs, which has "
        "sentences of its own: --suite-option bias.crows_pairs=FILE."
    )
    with pytest.raises(UserError, match="found no question"):
        Bias().measure(subject, Context([task(1, "1?")]).context)
