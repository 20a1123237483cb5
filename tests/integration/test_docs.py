"""Whatever README and docs tell a reader to type works as it stands there, in an empty directory, page by page."""

import re
import shlex
from pathlib import Path

import pytest
from command import typed

from tunesmith.schema import recipe_reference

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_BLOCK = re.compile(r"^```(\w+)(?: title=(\S+))?(?: repeat=(\d+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def type_in(line: str) -> None:
    """One line of a console block: `tunesmith …`, or `echo "…" | tunesmith …`; a comment may name its exit code."""
    command, _, comment = line.partition("  # ")
    expected = re.match(r"exit code (\d+)", comment)
    given, _, verb = command.rpartition(" | ")
    words = shlex.split(verb)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return
    assert words[0] == "tunesmith", f"{line!r} is neither tunesmith nor make"
    done = typed(*words[1:], given=" ".join(shlex.split(given)[1:]) + "\n" if given else "")
    assert done.returncode == (int(expected[1]) if expected else 0), f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_file_of_a_page_works(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _, title, repeat, body in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if title:
            rows = [body.replace("{n}", str(n)).replace("{2n}", str(2 * n)) for n in range(int(repeat or 0))]
            Path(title).write_text("".join(rows) or body, encoding="utf-8")
    for language, title, _, body in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "console":
            for line in body.splitlines():
                type_in(line.removeprefix("$ "))
        elif language == "python" and not title:
            exec(compile(body, str(page), "exec"), {})


@pytest.mark.parametrize(
    ("page", "result"),
    [
        ("training", "stage_quality"),
        ("objectives", "few_quality"),
        ("objectives", "distillation_quality"),
        ("planning", "afterwards_memory"),
    ],
)
def test_a_page_quotes_what_was_measured(page: str, result: str) -> None:
    measured = (ROOT / "benchmarks" / "results" / f"{result}.md").read_text(encoding="utf-8").strip()
    assert measured in (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_recipes_page_is_what_the_recipe_says() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page == recipe_reference(), "write it anew: tunesmith schema --markdown --output docs/recipe.md"


def test_the_speed_page_quotes_what_was_measured() -> None:
    def lines(file: Path) -> list[str]:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("|")]

    results = ROOT / "benchmarks" / "results"
    names = ("train_speed", "method_speed", "data_speed", "arena")
    measured = [line for name in names for line in lines(results / f"{name}.md")]
    assert len(measured) > 20
    assert lines(ROOT / "docs" / "speed.md") == measured
