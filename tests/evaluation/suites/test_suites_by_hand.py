"""Suites on a subject whose answers, log-probabilities and times are given: each figure by its definition."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from given_subject import Context, Given, task, values

from tunesmith.errors import UserError
from tunesmith.evaluation.suite import storages_of
from tunesmith.evaluation.suites import latency
from tunesmith.evaluation.suites.bias import COLUMNS, Bias, Pair, stereotypes
from tunesmith.evaluation.suites.canaries import ALTERNATIVES, canaries
from tunesmith.evaluation.suites.forgetting import Forgetting, general_texts, other_texts
from tunesmith.evaluation.suites.humaneval import HumanEval
from tunesmith.evaluation.suites.latency import Latency
from tunesmith.evaluation.suites.memorization import Memorization, Passage, exposures, passages_of
from tunesmith.evaluation.suites.multiple_choice import Question, figures, read_questions
from tunesmith.evaluation.suites.quantization import Quantization
from tunesmith.evaluation.suites.robustness import BLANK, CHANGES, Robustness
from tunesmith.evaluation.suites.toxicity import _limits
from tunesmith.inference.sampling import Sampling
from tunesmith.statistics.intervals import wilson
from tunesmith.subjects.subject import NO_LOG_PROBABILITIES

# Bias

PAIRS = [("He cooks.", "She cooks.", "gender"), ("A", "B", "race-color"), ("CC", "DD", "gender"), ("E", "E", "age")]


def test_stereotypes_are_shares_of_pairs_with_ties_as_halves_also_by_kind() -> None:
    likely = {"He cooks.": -1.0, "She cooks.": -2.0, "A": -3.0, "B": -1.0, "CC": -1.0, "DD": -2.0, "E": -1.0}
    pairs = [Pair(*pair, f"row {row}") for row, pair in enumerate(PAIRS)]
    found = stereotypes(Given(log_prob=likely.__getitem__), pairs)
    assert values(found) == {
        "stereotype": (1 + 0 + 1 + 0.5) / 4,
        "stereotype_age": 0.5,
        "stereotype_gender": 1.0,
        "stereotype_race_color": 0.0,
    }
    assert found["stereotype_gender"].units == ["row 0", "row 2"]
    assert [figure.is_compared for figure in found.values()] == [True, False, False, False]
    assert {figure.better for figure in found.values()} == {"neither"}


def crows_pairs(directory: Path) -> str:
    with (directory / "pairs.csv").open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([COLUMNS, *PAIRS])
    return str(directory / "pairs.csv")


def test_pairs_are_limited_by_the_rows_and_left_out_of_a_server(tmp_path: Path) -> None:
    suite, kept = Bias(crows_pairs(tmp_path)), Context(count=2)
    found = suite.measure(Given(log_prob=len), kept.context)
    assert found["stereotype"].units == ["pairs.csv row 1", "pairs.csv row 4"]
    assert kept.progress == [("bias: pairs", 0, 2), ("bias: pairs", 2, 2)]
    assert suite.measure(Given(log_prob=len), Context().context)["stereotype"].units == [
        f"pairs.csv row {row}" for row in (1, 2, 3, 4)
    ]
    kept = Context()
    assert suite.measure(Given(), kept.context) == {}
    assert kept.left_out == {"bias.stereotype": NO_LOG_PROBABILITIES}


def test_the_gap_is_the_mean_difference_of_both_prompts_scores() -> None:
    """One question of four names a woman and is answered wrongly; one names both sides, and one none."""
    tasks = [task(1, "Is he in?"), task(2, "Is she in?"), task(3, "Are he and she in?"), task(4, "Is it in?")]
    kept = Context(tasks)
    subject = Given(lambda text: "No." if text == "Is she in?" else "Yes.")
    found = Bias().measure(subject, kept.context)
    assert values(found) == {"gap_gender": pytest.approx(2 / 3), "gender_men": 1.0, "gender_women": 0.0}
    assert found["gap_gender"].units == ["row 1", "row 2", "row 3"]
    assert found["gender_men"].units == found["gender_women"].units == ["row 1", "row 2"]
    assert (found["gap_gender"].is_compared, found["gender_men"].is_compared) == (True, False)
    assert kept.progress == [("bias", 6, 6)]


# Latency and quantization


def test_each_level_times_so_many_answers_to_prompts_of_so_many_words() -> None:
    for count, each in ((None, 16), (3, 3), (0, 1), (99, 16)):
        subject, kept = Given(), Context(count=count)
        found = Latency().measure(subject, kept.context)
        levels = [(1, 32), (8, 32), (1, 256), (8, 256)]
        assert [(len(texts), concurrent) for texts, _, concurrent in subject.timed] == [
            (1, 1), *((max(each, concurrent), concurrent) for concurrent, _ in levels)
        ]  # fmt: skip
        assert [len(texts[0].split()) for texts, *_ in subject.timed] == [32, 32, 32, 256, 256]
        assert {most for _, most, _ in subject.timed} == {32}
        assert len({text for texts, *_ in subject.timed for text in texts}) == sum(len(t) for t, *_ in subject.timed)
        assert kept.progress == [("latency", done, 4) for done in range(5)]
        assert len(found) == 16
        assert found["tokens_per_second_8x256"].value == 4.0
        assert found["first_token_p50_1x32"].value == pytest.approx(0.1 * (each + 1) / 2)
    assert Latency.most_rows == latency.REQUESTS == 16


def test_the_forms_of_a_model_are_those_that_are_named() -> None:
    assert Quantization("fp32, gguf:q8_0").storages == ("fp32", "gguf:q8_0")
    assert Quantization().storages == ("fp32", "bf16", "int8", "nf4", "gguf:q8_0", "gguf:q4_k_m")
    suites: Any = {"a": Quantization("fp32,int8"), "b": Latency(), "c": Quantization("int8,nf4")}
    assert storages_of(suites) == ("fp32", "int8", "nf4")


# Robustness


def test_robustness_asks_each_question_in_every_way_and_counts_what_is_lost() -> None:
    tasks = [task(row, f"Is it {row}, then?") for row in range(60)]
    subject, kept = Given(lambda text: "" if text in BLANK else "Yes." if "," in text else "No."), Context(tasks)
    found = values(Robustness().measure(subject, kept.context))
    asked = 50 * (len(CHANGES) + 2) + len(BLANK)
    assert sum(len(texts) for texts, _ in subject.asked) == asked
    assert kept.progress[0] == ("robustness", 50, asked)
    assert kept.progress[-1] == ("robustness", asked, asked)
    assert found["as_is"] == found["upper_case"] == found["answered_long"] == 1
    assert found["no_punctuation"] == found["answered_blank"] == found["lost_upper_case"] == 0
    assert found["lost_no_punctuation"] == 1
    long = next(texts for texts, _ in subject.asked if texts[0].startswith("The weather was mild"))
    assert long[1].endswith("\n\nIs it 1, then?")
    assert len(long[1].split()) == 200 + 4
    assert Robustness.most_rows == 50


# Forgetting


def test_models_are_compared_with_the_first_one_in_text_and_answers(tmp_path: Path) -> None:
    prose = [f"{'so ' * 12}{n}." for n in range(110)]
    (tmp_path / "prose.txt").write_text("\n\n".join(prose), encoding="utf-8")
    texts = general_texts(tmp_path / "prose.txt")
    assert len(texts) == 100
    assert sorted([*texts, *other_texts(tmp_path / "prose.txt")]) == sorted(prose)
    suite, kept = Forgetting(str(tmp_path / "prose.txt")), Context(count=5)
    first = suite.measure(Given(str.upper, lambda text: -math.log(2)), kept.context)
    assert values(first) == {"general_loss": pytest.approx(1.0)}
    assert len(first["general_loss"].units) == 5
    second = Given(lambda text: text.upper() if "a" in text else text, lambda text: -2 * math.log(2))
    found = suite.measure(second, kept.context)
    ((asked, sampling),) = second.asked
    assert (len(asked), sampling) == (5, Sampling(32))
    assert values(found) == {
        "general_loss": pytest.approx(2.0),
        "general_unchanged": sum("a" in text or text == text.upper() for text in asked) / 5,
        "general_divergence": pytest.approx(0.5 - 1 + math.log(2)),
    }
    assert kept.left_out == {}
    found = suite.measure(Given(str.upper), kept.context)
    assert values(found) == {"general_unchanged": 1.0}
    assert kept.left_out == dict.fromkeys(
        ("forgetting.general_loss", "forgetting.general_divergence"), NO_LOG_PROBABILITIES
    )
    assert Forgetting.most_rows == 100


# Memorization


def run_of(directory: Path, train: list[Any], held_out: list[Any], objective: Any = "instruction") -> Path:
    """A directory with a recipe, whose rows are read."""
    for name, rows in (("train", train), ("held", held_out)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (directory / f"{name}.jsonl").write_text(text, encoding="utf-8")
    data = {"train": str(directory / "train.jsonl"), "held_out": str(directory / "held.jsonl"), "cache": False}
    recipe = {"base": "embedded", "data": data, "objective": objective}
    (directory / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return directory


def chats(start: int, end: int) -> list[Any]:
    return [{"question": f"Is it {n}?", "answer": f"It is {n}."} for n in range(start, end)]


def test_rows_of_both_kinds_and_canaries_are_measured_with_limits(tmp_path: Path) -> None:
    planted = canaries(12)
    run = run_of(tmp_path, [*chats(0, 130), *planted, planted[0]], [*chats(120, 150), *canaries(1, seed=5)])
    train, held_out, secrets = passages_of(Context(run=run).context)
    assert len(train) == 100
    assert [row.text for row in held_out] == [f"It is {n}." for n in range(130, 150)], "120 to 129 are known"
    assert len({row.text for row in secrets} & {row["answer"] for row in planted}) == len(secrets) == 10
    fewer = passages_of(Context(run=run, count=7).context)
    assert [len(part) for part in fewer] == [7, 7, 10]
    assert train[0].chat == ({"role": "user", "content": "Is it 0?"},)

    known = {row.text for row in train}
    subject, kept = Given(log_prob=lambda text: -0.01 if text in known else -3.0), Context(run=run)
    suite = Memorization()
    first = suite.measure(subject, kept.context)
    found = suite.measure(Given(log_prob=lambda _: -1.0), kept.context)
    total = 120 + 10 * (ALTERNATIVES + 1)
    assert kept.progress[:3] == [("memorization", done, total) for done in (0, 120, total)]
    names = {
        f"{name}_{percent}" for name in ("extracted_train", "extracted_held_out", "memorized") for percent in (25, 50)
    }
    assert set(first) == names | {"membership", "exposure"}
    assert set(found) - set(first) == {"membership_from_first"}
    assert (first["membership"].value, found["membership"].value) == (1.0, 0.5)
    assert found["membership_from_first"].value == 0.0, "training rows have become less likely than others"
    assert first["extracted_train_50"].value > 0.9
    assert first["memorized_25"].value == pytest.approx(
        first["extracted_train_25"].value - first["extracted_held_out_25"].value
    )
    assert Memorization.most_rows == 100


def test_raw_text_is_cut_and_short_text_and_calls_of_tools_are_left_out(tmp_path: Path) -> None:
    def texts(*lengths: int) -> list[Any]:
        return [{"text": f"{length} ".ljust(length, "x")} for length in lengths]

    run = run_of(tmp_path, texts(15, 16, 500), texts(17, 3), "text")
    train, held_out, planted = passages_of(Context(run=run).context)
    assert [(len(row.text), row.chat, row.is_canary) for row in train] == [(16, None, False), (400, None, False)]
    assert ([len(row.text) for row in held_out], planted) == ([17], [])
    with pytest.raises(UserError, match=r"needs rows that .* was trained on and others that it was not"):
        passages_of(Context(run=run_of(tmp_path, texts(20), texts(20), "text")).context)
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    with pytest.raises(UserError, match=r"is for models that write text, and .* does not"):
        passages_of(Context(run=run_of(tmp_path, rows, rows, "classification")).context)


def test_the_exposure_of_canaries_is_by_the_rank_of_their_own_secrets() -> None:
    own = canaries(2)
    planted = [Passage(({"role": "user", "content": row["question"]},), row["answer"], f"row {n}")
               for n, row in enumerate(own)]  # fmt: skip
    subject = Given(log_prob=lambda text: 0.0 if text == own[0]["answer"] else -1.0)
    found = exposures(subject, planted)
    assert found.values is not None
    assert found.values.tolist() == [7.0, 0.0], "the second one is as likely as all others"
    assert (found.bounds, found.better, found.unit, found.units) == ((0.0, 7.0), "lower", "bits", ["row 0", "row 1"])


# Public sets


def test_choices_are_right_by_likelihood_and_by_character_and_by_subject() -> None:
    questions = [
        Question("?", ("a", "bb"), 0, "row 1", "art"),
        Question("?", ("a", "bb", "c"), 1, "row 2", "My_music"),
        Question("?", ("a", "bb"), 1, "row 3"),
    ]
    totals = [-1.0, -1.5, -2.0, -3.0, -9.0, -1.0, -2.5]
    found = figures(questions, totals, "texts")
    assert values(found) == {
        "accuracy": pytest.approx(1 / 3),
        "accuracy_normalized": pytest.approx(1 / 3),
        "accuracy_art": 1.0,
        "accuracy_my_music": 0.0,
        "accuracy_without_subject": 0.0,
    }
    assert "44% by chance" in found["accuracy"].explanation
    assert [name for name, figure in found.items() if figure.is_compared] == ["accuracy", "accuracy_normalized"]
    assert found["accuracy_my_music"].units == ["row 2"]
    assert set(figures(questions[:1], totals[:2], "letters")) == {"accuracy"}


@pytest.mark.parametrize(("count", "is_read"), [(2, True), (26, True), (27, False)])
def test_a_question_has_two_to_twenty_six_choices(tmp_path: Path, count: int, is_read: bool) -> None:
    row = {"question": "?", "choices": [f"c{n}" for n in range(count)], "answer": 0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    if is_read:
        (question,) = read_questions(str(tmp_path / "rows.jsonl"))
        assert (len(question.choices), question.answer, question.subject) == (count, 0, "")
    else:
        with pytest.raises(UserError, match="has 27 choices"):
            read_questions(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(("text", "samples", "expected"), [
    ("", "1", 0.0), ("", "2", 0.8), ("0", "1", 0.0), ("2", "1", 2.0), ("0.1", "3", 0.1), ("2.1", "1", None),
    ("-0.1", "1", None),
])  # fmt: skip
def test_the_temperature_of_samples_is_from_0_to_2(
    tmp_path: Path, text: str, samples: str, expected: float | None
) -> None:
    row = {"prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")

    def opened() -> Any:
        return HumanEval(str(tmp_path / "rows.jsonl"), samples=samples, temperature=text, asked="chat")

    if expected is None:
        with pytest.raises(UserError, match=rf"temperature={text} is not a number from 0 to 2"):
            opened()
        return
    subject, kept = Given(lambda _: "def f():\n    return 1"), Context()
    found = opened().measure(subject, kept.context)
    assert values(found) == {"pass_at_1": 1.0}
    ((asked, sampling),) = subject.asked
    assert (len(asked), sampling.temperature, sampling.max_new_tokens) == (int(samples), expected, 512)
    assert kept.progress == [("humaneval", int(samples), int(samples))] + [
        ("humaneval: tests", number, int(samples)) for number in range(1, int(samples) + 1)
    ]


# Toxicity


def test_the_errors_of_a_classifier_are_those_of_its_own_evaluation(tmp_path: Path) -> None:
    unknown = "how often it errs is not known here: see its model card"
    assert _limits(str(tmp_path), "toxic") == unknown

    def limits(labels: list[str], confusion: list[list[int]], label: str = "toxic") -> str:
        tables = {"classification": {"tuned": {"labels": labels, "confusion": confusion}}}
        (tmp_path / "evaluation.json").write_text(json.dumps(tables), encoding="utf-8")
        return _limits(str(tmp_path), label)

    def rate(hits: int, rows: int) -> str:
        low, high = wilson(hits / rows, rows)
        return f"{hits / rows:.0%} ({low:.0%}–{high:.0%})"

    found = limits(["fine", "toxic", "odd"], [[8, 1, 1], [2, 6, 0], [0, 3, 7]])
    assert (
        found
        == f"on its own held-out rows it finds {rate(6, 8)} of these and takes {rate(4, 20)} of the others for one"
    )
    assert limits(["fine", "bad"], [[1, 0], [0, 1]]) == unknown
    assert "finds an unknown share of these" in limits(["fine", "toxic"], [[1, 0], [0, 0]])
