"""The bugs that mutation testing puts into the source are single changes of running code, and each kind is made."""

from pathlib import Path

import pytest
from mutate import changes, mutants_of

SOURCES = sorted((Path(__file__).parents[1] / "src" / "tunesmith").rglob("*.py"))


def made_of(line: str) -> set[str]:
    """What becomes of a line within a function."""
    source = f"def f(a, b, c):\n    {line}\n"
    changed = [mutant.apply(source) for mutant in mutants_of(source, "x.py") if changes(mutant, source)]
    return {text.removeprefix("def f(a, b, c):\n    ").removesuffix("\n") for text in changed}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("if a < b: c()", {"if a <= b: c()", "if not (a < b): c()", "if a < b: pass"}),
        ("a.b = a is not None", {"a.b = a is None", "pass"}),
        ("c = a - b * 2", {"c = a + b * 2", "c = a - b / 2", "c = a - b * 3"}),
        ("c = a and b or a", {"c = a or b or a", "c = a and b and a"}),
        ("c = not a", {"c = a"}),
        ("c = -a", {"c = a"}),
        ("c = (a, True, 0.5, 'mean')", {"c = (a, False, 0.5, 'mean')", "c = (a, True, 1.0, 'mean')"}),
        ("c = a(b, c)", {"c = a(c, b)"}),
        ("c = a(b, k=b)", {"c = a(b)"}),
        ("c = a(k=b, m=c)", {"c = a(m=c)", "c = a(k=b)"}),
        ("c = min(a)", {"c = max(a)"}),
        ("a += b", {"pass"}),
        ("return a", {"return None"}),
        ("for a in b: continue", {"for a in b: break"}),
        ("raise a", {"pass"}),
        ("c = a if b else c", {"c = a if not (b) else c"}),
    ],
)
def test_each_kind_of_bug_is_made(line: str, expected: set[str]) -> None:
    assert expected <= made_of(line)


@pytest.mark.parametrize(
    "line",
    ['"""A docstring."""', "c: int | None", "raise_with('two words')", 'c = f"{a} tokens"', "assert a"],
)
def test_what_is_no_place_for_a_bug_is_left_alone(line: str) -> None:
    assert made_of(line) <= {"pass"}


def test_a_bug_is_one_change_and_the_rest_of_the_file_stays() -> None:
    file = SOURCES[len(SOURCES) // 2]
    source = file.read_text(encoding="utf-8")
    for mutant in mutants_of(source, file.name)[::25]:
        before, after = source.splitlines(), mutant.apply(source).splitlines()
        first, last = mutant.line - 1, mutant.end[0]
        assert after[:first] == before[:first]
        assert after[len(after) - (len(before) - last) :] == before[last:]
