"""Code in answers: it runs with limits, in its own directory, without a network; tests decide whether it passes."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.metrics import METRICS, NAMED, RUNS_CODE, metric_named, sandbox
from tunesmith.metrics.code import code_of
from tunesmith.metrics.sandbox import Limits, isolation, run_python

LIMITED = Limits(seconds=60, memory=256, file=1)
"""More time than any of these programs takes, also on a busy machine."""


def test_a_program_that_ends_passes_and_its_output_is_kept() -> None:
    ran = run_python("def main():\n    print(sum(range(5)))\nif __name__ == '__main__':\n    main()", LIMITED)
    assert (ran.passed, ran.problem, ran.output) == (True, None, "10\n")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("assert 1 == 2, 'wrong'", "AssertionError: wrong"),
        ("def (", "SyntaxError: invalid syntax"),
        ("import sys; sys.exit(0)", "it ended before its last line"),
        ("import os; os._exit(0)", "it ended before its last line"),
        ("import os; os.kill(os.getpid(), 11)", "killed"),
        ("while True: pass", "time"),
        ("x = []\nwhile True: x.append(' ' * 10**6)", "memory"),
        ("open('large', 'wb').write(b'0' * 2**22)", "OSError: [Errno 27] File too large"),
    ],
)
def test_a_program_that_fails_or_exceeds_a_limit_does_not_pass(source: str, problem: str) -> None:
    ran = run_python(source, replace(LIMITED, seconds=1) if problem == "time" else LIMITED)
    assert not ran.passed
    assert ran.problem == problem


def test_a_program_that_sleeps_is_stopped_by_the_clock_with_its_children() -> None:
    started = time.monotonic()
    child = "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(77)'])\n"
    ran = run_python(child + "time.sleep(60)", Limits(seconds=1))
    assert ran.problem == "time"
    assert time.monotonic() - started < 10
    for _ in range(50):  # the system needs a moment to end it
        running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"time.sleep(77)" in _read(path)]
        if not running:
            return
        time.sleep(0.1)
    raise AssertionError(running)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("kind", ["as this system allows", "blocked sockets"])
def test_a_program_reaches_no_network(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    if kind == "blocked sockets":
        monkeypatch.setattr(sandbox, "isolation", lambda: "blocked sockets")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ran = run_python(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)", LIMITED)
        low_level = run_python(f"import _socket\n_socket.socket().connect(('127.0.0.1', {port}))", LIMITED)
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
    for each in (ran, low_level):
        assert not each.passed
        assert each.problem is not None
        assert "Error" in each.problem


def test_a_program_has_the_limits_that_are_given() -> None:
    names = ("CPU", "AS", "FSIZE")
    source = f"import resource as r\nprint([r.getrlimit(getattr(r, 'RLIMIT_' + name))[0] for name in {names}])"
    assert run_python(source, Limits(seconds=3, memory=300, file=2)).output == f"{[3, 300 << 20, 2 << 20]}\n"
    children = "import os, resource as r\nprint(r.getrlimit(r.RLIMIT_NPROC)[0])"
    assert run_python(children, Limits(processes=10_000)).output == "10000\n"


def test_a_program_works_in_an_empty_directory_that_is_removed() -> None:
    os.environ["TUNESMITH_TEST_SECRET"] = "secret"
    try:
        ran = run_python(
            "import json, os\nopen('left.txt', 'w').write('x')\n"
            "print(json.dumps([os.getcwd(), sorted(os.environ), sorted(os.listdir())]))",
            LIMITED,
        )
    finally:
        del os.environ["TUNESMITH_TEST_SECRET"]
    directory, variables, files = json.loads(ran.output)
    assert not Path(directory).exists()
    assert "TUNESMITH_TEST_SECRET" not in variables
    assert [name for name in files if not name.startswith(".")] == ["left.txt"]


HUMAN_EVAL = "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(-1, 1) == 0\n\ncheck(add)"


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("def add(a, b):\n    return a + b", 1),
        ("Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds.", 1),
        ("```\ndef add(a, b):\n    return a - b\n```", 0),
        ("def add(a, b):\n    return a + b\nimport sys; sys.exit(0)", 0),
        ("It adds the two numbers.", 0),
        ("", 0),
    ],
)
def test_an_answer_passes_if_the_expected_tests_do(answer: str, passes: int) -> None:
    """In HumanEval's form (Chen et al. 2021): a function `check` that is called with the solution."""
    metric = metric_named("code_passes:2")
    assert metric.score is not None
    assert metric.score(answer, HUMAN_EVAL) == passes


def test_an_answer_without_tests_only_has_to_run() -> None:
    metric = metric_named("code_runs")
    assert metric.score is not None
    assert [metric.score(answer, "") for answer in ("x = 1", "x = y", "Sure!", "")] == [1, 0, 0, 0]
    assert metric_named("code_passes").fits(HUMAN_EVAL)
    assert metric_named("code_passes").fits("assert add(1, 2) == 3")
    assert not metric_named("code_passes").fits("def add(a, b):\n    return a + b")


def test_code_runs_only_if_it_is_asked_for_and_the_explanation_says_how_it_is_kept_in() -> None:
    assert not {*METRICS, *NAMED} & set(RUNS_CODE)
    network = {"namespace": "without a network", "blocked sockets": "with Python's sockets blocked"}[isolation()]
    assert network in metric_named("code_runs:7").explanation
    assert "7 s" in metric_named("code_runs:7").explanation
    with pytest.raises(UserError, match=r"needs seconds for each answer, such as code_runs:10"):
        metric_named("code_runs:fast")


def test_code_is_taken_from_all_fences_also_from_one_that_is_cut() -> None:
    assert code_of("```py\na = 1\n```\nthen\n```\nb = a\n```") == "a = 1\n\nb = a"
    assert code_of("```python\na = 1\nb =") == "a = 1\nb ="
