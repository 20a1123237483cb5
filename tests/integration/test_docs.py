"""Every command in README and docs works as written, in an empty directory, page by page."""

import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from command import typed

from tunesmith.cli import command as verbs
from tunesmith.config.schema import recipe_reference

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_BLOCK = re.compile(r"^```(\w+)(?: title=(\S+))?(?: repeat=(\d+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


QUICK = ("README",)
"""Pages whose commands `make test` executes, with short training, and without Python and servers; `make test-all`
executes all pages in full."""

SHORTENED = {
    "train": ["--set", "train.steps=2", "--set", "train.epochs=null", "--set", "train.evaluate_rows=8"],
    "evaluate": ["--rows", "4", "--max-new-tokens", "4"],
}
"""Options that shorten a command; the last value of an option wins."""


SERVER_PORT = "8000"
"""In the pages; a free one in the tests."""


@contextmanager
def running(lines: Sequence[str], port: int) -> Iterator[None]:
    """Run `tunesmith serve …`, if that is one of the lines, as long as the block lasts."""
    line = next((line for line in lines if line.startswith("tunesmith serve")), None)
    if line is None:
        yield
        return
    command = [sys.executable, "-m", *shlex.split(line), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert f":{port}/v1" in process.stdout.readline()
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(60) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def execute(line: str, shortened: bool) -> None:
    """Run a line of a console block: `tunesmith …` or `echo "…" | tunesmith …`. A comment may give the exit code."""
    command, _, comment = line.partition("  # ")
    expected = re.match(r"exit code (\d+)", comment)
    source, _, verb = command.rpartition(" | ")
    words = shlex.split(verb)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return
    assert words[0] == "tunesmith", f"{line!r} is neither tunesmith nor make"
    extra = SHORTENED.get(words[1], []) if shortened and "--resume" not in words else []
    done = typed(*words[1:], *extra, given=" ".join(shlex.split(source)[1:]) + "\n" if source else "")
    assert done.returncode == (int(expected[1]) if expected else 0), f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    ("page", "shortened"),
    [
        *(pytest.param(page, True, id=f"{page.stem}-shortened") for page in PAGES if page.stem in QUICK),
        *(pytest.param(page, False, marks=pytest.mark.long, id=page.stem) for page in PAGES),
    ],
)
def test_all_commands_and_files_of_a_page_work(
    page: Path, shortened: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _, title, repeat, body in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if title:
            rows = [body.replace("{n}", str(n)).replace("{2n}", str(2 * n)) for n in range(int(repeat or 0))]
            Path(title).parent.mkdir(exist_ok=True)
            Path(title).write_text("".join(rows) or body, encoding="utf-8")
    port = free_port()
    with ExitStack() as servers:
        for language, title, _, body in _BLOCK.findall(page.read_text(encoding="utf-8")):
            lines = [line.removeprefix("$ ") for line in body.splitlines()]
            if language == "console":
                for line in lines:
                    if not line.startswith("tunesmith serve"):
                        execute(line, shortened)
                if not shortened:
                    servers.enter_context(running(lines, port))
            elif language == "python" and not title and not shortened:
                exec(compile(body.replace(f":{SERVER_PORT}/", f":{port}/"), str(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_all_commands_of_a_page_parse(page: Path) -> None:
    """The verb, its options and their values are valid. The test above executes the commands."""
    for language, _, _, body in _BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in body.splitlines() if language == "console" else ():
            words = shlex.split(line.removeprefix("$ ").partition("  # ")[0].rpartition(" | ")[2])
            if words[0] == "tunesmith":
                command, arguments = verbs(), words[1:]
                while hasattr(command, "commands") and arguments:
                    command, arguments = command.commands[arguments[0]], arguments[1:]
                command.make_context(words[1], arguments)


@pytest.mark.parametrize(
    ("page", "result"),
    [
        ("training", "stage_quality"),
        ("objectives", "few_quality"),
        ("objectives", "distillation_quality"),
        ("planning", "afterwards_memory"),
        ("testing", "mutants"),
        ("bases", "demo_quality"),
        ("generation", "generation_speed"),
        ("generation", "draft_speed"),
        ("generation", "sampling_speed"),
        ("generation", "cache_quality"),
        ("exporting", "parity_noise"),
        ("exporting", "same_answers"),
        ("exporting", "export_memory"),
        ("serving", "serve_load"),
        ("serving", "serve_threads"),
        ("serving", "serve_adapters"),
        ("evaluation", "evaluation_study"),
        ("retrieval", "retrieval_speed"),
        ("evaluation", "judge_trust"),
        ("evaluation", "quantization_table"),
        ("retrieval", "retrieval_quality"),
        ("comparing", "compare_study"),
        ("prompting", "prompt_search_study"),
        ("preferences", "preference_speed"),
        ("preferences", "preference_speed_fp32_dpo"),
        ("preferences", "preference_speed_fp32_grpo"),
        ("preferences", "preference_quality"),
        ("preferences", "ranking_coverage"),
        ("deciding", "compare_simulation"),
        ("data-checks", "data_check_faults"),
        ("data-checks", "near_duplicates"),
        ("data-checks", "unrelated_answers"),
        ("data-cleaning", "data_quality"),
        ("data-cleaning", "data_selection"),
        ("data-checks", "data_check_speed"),
        ("data-checks", "data_check_memory"),
        ("data-safety", "data_check_quality"),
    ],
)
def test_a_page_contains_the_measured_table(page: str, result: str) -> None:
    table = (ROOT / "benchmarks" / "results" / f"{result}.md").read_text(encoding="utf-8").strip()
    assert table in (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")


def test_every_link_has_an_existing_target() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_recipe_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page == recipe_reference(), "regenerate it: make schema"


def test_the_speed_page_contains_exactly_the_measured_tables() -> None:
    def lines(file: Path) -> list[str]:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("|")]

    results = ROOT / "benchmarks" / "results"
    names = ("train_speed", "method_speed", "data_speed", "startup", "attention_speed", "arena")
    measured = [line for name in names for line in lines(results / f"{name}.md")]
    assert len(measured) > 20
    assert lines(ROOT / "docs" / "speed.md") == measured
