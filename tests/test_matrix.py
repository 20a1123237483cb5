"""Methods × precisions × families: a covering selection of the matrix in docs/matrix.md."""

from pathlib import Path

import pytest
from matrix import (
    EVERY_FAMILY,
    FAMILIES,
    LIKE,
    METHODS,
    REASONS,
    WEIGHTS,
    Cell,
    attempt,
    cells,
    covering,
    covering_families,
    covering_objectives,
    fewest,
    make_bases,
    own_methods,
    values_of,
    write_data,
)

from tunesmith.config.registry import OBJECTIVES


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bases")
    make_bases(directory, EVERY_FAMILY)
    write_data(directory)
    return directory


COVERING = list(dict.fromkeys([*covering(), *covering_families(), *covering_objectives()]))
QUICK = set(fewest(COVERING))


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, marks=() if cell in QUICK else pytest.mark.long, id=cell.key.replace(" | ", "-"))
        for cell in COVERING
    ],
)
def test_a_cell_trains_saves_resumes_reloads_and_merges_or_is_refused(cell: Cell, bases: Path) -> None:
    outcome = attempt(cell, bases)
    assert outcome.failed is None, outcome.failed
    if outcome.refused is not None:
        assert any(reason in outcome.refused for reason in REASONS), f"refused without a reason: {outcome.refused}"


def test_the_selection_covers_all_methods_precisions_families_and_objectives() -> None:
    chosen = covering()
    assert {cell.name for cell in chosen} == {cell.name for cell in cells()}
    assert {(cell.weights, cell.family) for cell in chosen} == {(w, f) for w in WEIGHTS for f in FAMILIES}
    assert {cell.method["kind"] for cell in chosen} == set(METHODS)
    covered = {(cell.objective, cell.method["kind"]) for cell in covering_objectives()}
    own = {method["kind"] for method in own_methods()}
    assert covered == {(name, kind) for name in OBJECTIVES if name not in ("instruction", "seq2seq") for kind in own}


def test_the_quick_selection_has_every_value_of_every_choice() -> None:
    assert {value for cell in QUICK for value in values_of(cell)} == {v for cell in COVERING for v in values_of(cell)}
    assert {cell.method["kind"] for cell in QUICK} == set(METHODS)
    assert {LIKE.get(cell.objective, cell.objective) for cell in QUICK} == set(OBJECTIVES) - set(LIKE)
    assert {cell.weights for cell in QUICK} == set(WEIGHTS)


def test_the_page_has_a_row_for_every_method_and_no_failed_cell() -> None:
    page = (Path(__file__).parents[1] / "docs" / "matrix.md").read_text(encoding="utf-8")
    for name in dict.fromkeys(cell.name for cell in cells()):
        assert f"| `{name}` |" in page, f"{name} is not in docs/matrix.md: run make matrix"
    for family in EVERY_FAMILY:
        assert f"| {family} |" in page, f"{family} is not in docs/matrix.md: run make matrix"
    for name in OBJECTIVES:
        shown = f"| {name} |" in page or name in ("instruction", "seq2seq")
        assert shown, f"{name} is not in docs/matrix.md"
    assert ": fails" not in page
