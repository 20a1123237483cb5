"""The rules on ranges from published experiments."""

from tunesmith.comparing.prior_choice import PriorChoice, choose_by_priors
from tunesmith.comparing.priors import Study, differences

COSTS = {"prompt": 1.0, "few_shot": 2.0, "retrieval": 3.0, "tuned": 4.0}


def study(paper: str, **points: float) -> Study:
    return Study(paper, "a source", "a setting", ("facts",), points, "paper")


def chosen(*studies: Study, ways: tuple[str, ...] = ("retrieval", "tuned")) -> PriorChoice:
    return choose_by_priors(ways, studies, COSTS, 5.0)


def test_differences_are_taken_within_a_study_and_range_over_studies() -> None:
    studies = [study("a", plain=10, tuned=20), study("b", plain=50, tuned=45), study("c", plain=1, retrieval=99)]
    assert differences("plain", "tuned", studies) == (-5, 10)
    assert differences("tuned", "retrieval", studies) is None


def test_a_way_that_another_beats_in_every_study_is_behind_and_not_chosen() -> None:
    choice = chosen(study("a", plain=10, retrieval=60, tuned=20), study("b", plain=10, retrieval=40, tuned=34))
    assert choice.behind == {"tuned": ("retrieval", (6, 40))}
    assert choice.way == "retrieval"


def test_a_way_that_is_sometimes_within_the_margin_is_not_behind() -> None:
    choice = chosen(study("a", plain=10, retrieval=60, tuned=20), study("b", plain=10, retrieval=40, tuned=36))
    assert choice.behind == {}
    assert choice.pool == ("retrieval",)


def test_two_papers_that_agree_are_clear_and_one_paper_is_not() -> None:
    first, second = study("a", plain=10, retrieval=60, tuned=20), study("b", plain=10, retrieval=40, tuned=30)
    assert chosen(first, second).is_clear
    assert not chosen(first, study("a", plain=10, retrieval=40, tuned=30)).is_clear
    assert not chosen(first, second, ways=("prompt", "retrieval", "tuned")).is_clear  # no figure for prompt


def test_of_ways_within_the_margin_the_least_costly_one_is_chosen() -> None:
    studies = study("a", plain=10, retrieval=60, tuned=64), study("b", plain=10, retrieval=50, tuned=54)
    assert chosen(*studies).pool == ("retrieval", "tuned")
    assert chosen(*studies).way == "retrieval"
    assert choose_by_priors(("retrieval", "tuned"), studies, {**COSTS, "tuned": 0.5}, 5.0).way == "tuned"


def test_ways_that_no_study_compares_are_compared_by_their_gains_over_the_plain_model() -> None:
    apart = study("a", plain=10, retrieval=60), study("b", plain=10, tuned=20)
    assert chosen(*apart).pool == ("retrieval",)
    assert chosen(*apart).behind == {}  # different studies show nobody to be behind
    wide = study("a", plain=10, retrieval=60), study("a", plain=10, retrieval=12), study("b", plain=10, tuned=20)
    assert (chosen(*wide).is_within, chosen(*wide).pool) == (False, ("retrieval", "tuned"))


def test_without_any_figure_the_way_of_least_effort_is_chosen() -> None:
    choice = chosen(ways=("few_shot", "prompt"))
    assert (choice.way, choice.is_clear, choice.unknown) == ("few_shot", False, ("few_shot", "prompt"))
