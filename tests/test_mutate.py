"""Mutation testing makes single changes in executed code, and makes every kind of them."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from mutants import Sample, adopt_orphans, end_descendants, equivalents, runs_at_import, table
from mutate import changes, mutants_of

ROOT = Path(__file__).parents[1] / "src" / "tunesmith"
SOURCES = sorted(ROOT.rglob("*.py"))


def mutations_of(line: str) -> set[str]:
    """All mutations of a line in a function."""
    source = f"def f(a, b, c):\n    {line}\n"
    sources = [mutant.apply(source) for mutant in mutants_of(source, "x.py") if changes(mutant, source)]
    return {text.removeprefix("def f(a, b, c):\n    ").removesuffix("\n") for text in sources}


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
def test_each_kind_of_mutation_is_made(line: str, expected: set[str]) -> None:
    assert expected <= mutations_of(line)


@pytest.mark.parametrize(
    "line",
    ['"""A docstring."""', "c: int | None", "raise_with('two words')", 'c = f"{a} tokens"', "assert a"],
)
def test_docstrings_annotations_messages_and_asserts_are_not_mutated(line: str) -> None:
    assert mutations_of(line) <= {"pass"}


def test_checks_of_equal_lengths_and_the_order_of_a_maximum_are_not_mutated() -> None:
    assert mutations_of("c = zip(a, b, strict=True)") <= {"c = zip(b, a, strict=True)", "pass"}
    assert mutations_of("c = max(a, b)") <= {"c = min(a, b)", "pass"}


def test_a_mutation_changes_only_its_own_lines() -> None:
    file = SOURCES[len(SOURCES) // 2]
    source = file.read_text(encoding="utf-8")
    for mutant in mutants_of(source, file.name)[::25]:
        before, after = source.splitlines(), mutant.apply(source).splitlines()
        first, last = mutant.line - 1, mutant.end[0]
        assert after[:first] == before[:first]
        assert after[len(after) - (len(before) - last) :] == before[last:]


@pytest.mark.long
def test_every_listed_equivalent_is_a_mutation_of_the_present_source() -> None:
    for key in equivalents():
        file, before, after = key.split(" | ", 2)
        source = (ROOT / file).read_text(encoding="utf-8")
        lines = source.splitlines()
        numbers = {number for number, line in enumerate(lines, 1) if line.strip() == before}
        assert numbers, f"{file} has no line {before}"
        found = [mutant for mutant in mutants_of(source, file) if mutant.line in numbers and changes(mutant, source)]
        made = {mutant.apply(source).splitlines()[mutant.line - 1].strip() for mutant in found}
        assert after in made, f"{file}: {after}"


def test_lines_outside_of_functions_run_at_import() -> None:
    source = "A = 1\n@cache\ndef f(\n    a=2,\n):\n    b = 3\n    return b\nclass C:\n    d = 4\n"
    assert [line for line in range(1, 10) if runs_at_import(source, line)] == [1, 2, 3, 4, 5, 8, 9]


def test_rows_of_the_table_are_read_back_and_summed() -> None:
    rows = [Sample("ops", 1415, "2026-11-28, seed 2", 23, 6, 16), Sample("data", 2976, "2026-11-29, seed 5", 40, 0, 36)]
    written = table(rows).splitlines()
    assert [Sample.read(line) for line in written[2:4]] == rows[::-1]
    assert written[4] == "| all | 4,391 |  | 63 | 6 | 52 | 91% [81%, 96%] |"
    assert written[3].endswith("| 23 | 6 | 16 | 94% [73%, 99%] |")


@pytest.mark.skipif(sys.platform != "linux", reason="adopting orphans is Linux's")
def test_what_a_bug_left_running_is_ended_also_in_a_session_of_its_own(tmp_path: Path) -> None:
    number = tmp_path / "number"
    process = os.fork()
    if process == 0:
        adopt_orphans()
        subprocess.run(["sh", "-c", f"setsid sleep 300 & echo $! > {number}"], check=True)
        end_descendants()
        os._exit(0)
    os.waitpid(process, 0)
    assert not psutil.pid_exists(int(number.read_text()))
