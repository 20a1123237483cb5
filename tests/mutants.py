"""Mutation testing: how many single-line bugs do the tests notice? `make mutants`

1. The suite, or the tests given by `--tests`, run once under coverage, to record which tests reach each line and how
   long each takes; later only the changed parts run again. The result is stored in `.mutants/map.json`.
2. A seeded sample of `mutate.py`'s bugs is drawn, the same number from each directory.
3. Each bug goes into a copy of the source. A forked process, which has PyTorch and transformers imported already, runs
   the tests that reach the line, the quickest and nearest first, until one fails or their budget of processor time is
   used up. A test that fails, crashes or computes without end has to pass without the bug, or it does not count.
4. Survivors are listed with file and line. The table has each directory's share of detected bugs with its 95 % interval
   (Wilson 1927); bugs that do not change behavior are left out (`equivalent_mutants.yaml`, each with its reason).

We looked at mutmut 3 and cosmic-ray first. mutmut does not mutate decorated functions (most properties, `no_grad`,
validators) or code outside functions (fields, defaults), and does not draw seeded samples; cosmic-ray starts the test
command anew for each mutant: five seconds of imports here, and no selection of tests by coverage.
"""

import argparse
import ast
import compileall
import ctypes
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import coverage
import psutil
import pytest
import yaml
from mutate import Mutant, changes, mutants_of
from scipy.stats import binomtest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tunesmith"
WORK = ROOT / ".mutants"
TABLE = ROOT / "benchmarks" / "results" / "mutants.md"
EQUIVALENT = ROOT / "tests" / "equivalent_mutants.yaml"
HEADER = (
    "| directory | single-line bugs in all | drawn | tried | equivalent | detected | share, 95 % interval |",
    "|---|---:|---|---:|---:|---:|---:|",
)
DIRECTORIES = (
    "checks",
    "comparing",
    "config",
    "curation",
    "data",
    "engine",
    "evaluation",
    "exporting",
    "heads",
    "inference",
    "methods",
    "metrics",
    "models",
    "modules",
    "objectives",
    "ops",
    "planner",
    "prompting",
    "proving",
    "report",
    "retrieval",
    "rewards",
    "serving",
    "statistics",
    "subjects",
    "training",
)
PRELOADED = (
    "torch",
    "transformers.models.auto",
    "transformers.models.llama",
    "datasets",
    "hypothesis",
    "pyarrow",
    "pydantic",
    "rich.console",
    "rouge_score.rouge_scorer",
    "safetensors.torch",
    "scipy.stats",
    "sklearn.linear_model",
    "typer",
)
STUCK = 600
"""Seconds after which a test that uses no processor is ended. It does not count: the machine may have been paused."""
ENDLESS = 60
"""Seconds of processor time, beyond the budget, after which tests count as computing without end."""
PLAIN = ("-o", "addopts=", "-o", "timeout=0", "-p", "no:xdist", "-p", "no:cacheprovider", "-q")


# coverage: which tests reach which lines


@dataclass
class Reach:
    """Coverage and duration of the tests.

    Attributes:
        lines: the tests that reach each line of a file below `src/tunesmith`.
        seconds: duration of each test.
        hashes: of the files at the time of the measurement.
    """

    lines: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls) -> "Reach":
        file = WORK / "map.json"
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else cls()

    def write(self) -> None:
        partial = WORK / "map.json.partial"
        partial.write_text(json.dumps(vars(self)), encoding="utf-8")
        partial.replace(WORK / "map.json")

    def of(self, mutant: Mutant) -> list[str]:
        """The tests to run, the most promising first: quick tests, those of the mutant's own directory and line."""
        by_line = self.lines.get(mutant.file, {})
        own = {test for line in range(mutant.line, mutant.end[0] + 1) for test in by_line.get(str(line), ())}
        if runs_at_import((SOURCE / mutant.file).read_text(encoding="utf-8"), mutant.line):
            own = set()  # only of the test that happened to import the file first
        near = f"tests/{mutant.file.split('/')[0].removesuffix('.py')}"
        # Code that runs at import (a field with its bounds, a table) is reached by every user of the file, and maybe by
        # tests of its directory that run no other line of it: pydantic checks a bound without running any line.
        tests = own or {test for each in by_line.values() for test in each} | {
            test for test in self.seconds if test.startswith((near, "tests/settings/"))
        }

        def cost(test: str) -> tuple[float, str]:
            return self.seconds.get(test, 1.0) * (0.2 if test.startswith(near) else 1.0), test

        return sorted(tests & self.seconds.keys(), key=cost)


def runs_at_import(source: str, line: int) -> bool:
    """Whether a line is in no function: a constant, a field, a decorator, a default.

    Args:
        source: of the file.
        line: from 1.
    """
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return not any(node.body[0].lineno <= line <= (node.end_lineno or 0) for node in functions)


def up_to_date_reach(tests: Sequence[str], jobs: int) -> Reach:
    """The map, updated by running the tests of changed files again; in another process, so that this one has not
    imported what will be mutated.

    Args:
        tests: test files or directories; those of the map that are not among them stay in it.
        jobs: how many processes run them.
    """
    process = get_context("fork").Process(target=_update_map, args=(tests, jobs))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)
    return Reach.read()


def _update_map(tests: Sequence[str], jobs: int) -> None:
    reach = Reach.read()
    now = {name: _hash(ROOT / name) for name in _files(tests, reach)}
    changed = {name for name in {*now, *reach.hashes} if now.get(name) != reach.hashes.get(name)}
    if changed:
        sources = {name.removeprefix("src/tunesmith/") for name in changed if name.startswith("src/")}
        test_files = {name for name in changed if name.startswith("tests/")}
        stale = {test for file in sources for each in reach.lines.pop(file, {}).values() for test in each}
        stale |= {test for test in reach.seconds if test.split("::")[0] in test_files}
        for by_line in reach.lines.values():
            for line, reaching in by_line.items():
                by_line[line] = [test for test in reaching if test not in stale]
        for test in stale:
            reach.seconds.pop(test, None)
        files = {name for name in test_files if (ROOT / name).exists()}
        again = files | {test for test in stale if test.split("::")[0] not in test_files}
        if again:
            _run_under_coverage(reach, sorted(again), jobs)
        reach.hashes = now
        reach.write()


def _files(tests: Sequence[str], reach: Reach) -> list[str]:
    """The source and the chosen tests, with those that the map has already."""
    files = [*SOURCE.rglob("*.py")]
    for path in map(Path, tests):
        files += [path.absolute()] if path.is_file() else path.absolute().rglob("test_*.py")
    known = {name for name in reach.hashes if name.startswith("tests/") and (ROOT / name).exists()}
    return sorted({str(file.relative_to(ROOT)) for file in files} | known)


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class _Seconds:
    """Records the duration of each test, and which tests fail."""

    def __init__(self) -> None:
        self.durations: dict[str, float] = defaultdict(float)
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.durations[report.nodeid] += report.duration
        if not report.passed:
            self.failed.add(report.nodeid)


def _run_under_coverage(reach: Reach, tests: Sequence[str], jobs: int) -> None:
    """Add the lines that these tests reach."""
    print(f"Measuring coverage of {len(tests)} test files and tests", flush=True)
    data = WORK / "coverage"
    for old in WORK.glob("coverage*"):
        old.unlink()
    config = WORK / "settings.ini"
    settings = {"source": SOURCE, "data_file": data, "concurrency": "thread"}
    config.write_text("[run]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()), encoding="utf-8")
    seconds = _Seconds()
    options = ["-q", "-p", "no:cacheprovider", f"--cov={SOURCE}", "--cov-context=test", "--cov-report="]
    # With one process, --dist has to be off too: pytest-cov takes it as a sign of workers, which alone note the tests.
    options += ["-n", "0", "--dist", "no"] if jobs == 1 else ["-n", str(jobs)]
    os.environ["COVERAGE_FILE"] = str(data)
    pytest.main([*options, f"--cov-config={config}", *tests], plugins=[seconds])
    del os.environ["COVERAGE_FILE"]
    if not seconds.durations:
        raise SystemExit("No test ran, so it is not known which lines the tests reach.")
    reach.seconds |= {test: duration for test, duration in seconds.durations.items() if test not in seconds.failed}
    covered = coverage.CoverageData(str(data))
    covered.read()
    if not any(covered.measured_contexts()):
        raise SystemExit("Coverage did not note which test reaches a line. Is PYTEST_ADDOPTS set?")
    in_file = defaultdict(set)
    for test in seconds.durations:
        in_file[test.split("::")[0]].add(test)
    for name in covered.measured_files():
        by_line = reach.lines.setdefault(str(Path(name).relative_to(SOURCE)), {})
        for line, contexts in covered.contexts_by_lineno(name).items():
            own = {test for context in contexts if context for test in _tests_of(context, in_file)}
            by_line[str(line)] = sorted({*by_line.get(str(line), ()), *own})


def _tests_of(context: str, in_file: dict[str, set[str]]) -> set[str]:
    """The tests of a context (`TEST|PHASE`). What a fixture runs may be shared by all tests of the file."""
    test, _, phase = context.rpartition("|")
    return in_file[test.split("::")[0]] if phase == "setup" else {test}


# running tests on mutants


def preload() -> None:
    """Import slow third-party modules, so that forked processes have them."""
    import_module("tunesmith.models.peft_import").import_peft()
    for name in PRELOADED:
        import_module(name)
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

    assert AutoModelForCausalLM
    assert LlamaForCausalLM
    assert PreTrainedTokenizerFast
    torch.set_num_threads(1)
    for name in [each for each in sys.modules if each.split(".")[0] == "tunesmith"]:
        del sys.modules[name]


@dataclass(frozen=True)
class Outcome:
    """The result of a mutant.

    Attributes:
        killed: whether a test failed.
        by: that test; `import`: the source cannot be imported.
        tests: number of tests that reach it.
        seconds: that the trial took.
    """

    killed: bool
    by: str
    tests: int
    seconds: float


class _First:
    """Stops the tests when their budget is used up; keeps the first failure, and in a file which test runs."""

    def __init__(self, budget: float, running: Path) -> None:
        self.budget, self.running = budget, running
        self.failed: str | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        # Processor time, of this process and those that it started: other work on the machine does not count.
        if sum(os.times()[:4]) > self.budget:
            item.session.shouldstop = "the time budget is used up"
        self.running.write_text(item.nodeid, encoding="utf-8")
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.failed is None:
            self.failed = "import"


class Workplace:
    """A copy of the source, to try one mutant at a time."""

    def __init__(self, number: int, budget: float) -> None:
        self.directory = WORK / f"copy-{number}"
        self.budget = budget
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.copytree(ROOT / "src", self.directory / "src", ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(self.directory / "src", quiet=1)  # else every forked process would compile all of it
        self.sound: dict[str, bool] = {}

    def attempt(self, mutant: Mutant, tests: list[str]) -> Outcome:
        """Run the tests on the mutant. A test that also fails without it, which can happen in a forked process, does
        not count."""
        started = time.monotonic()
        target = self.directory / "src" / "tunesmith" / mutant.file
        source = (SOURCE / mutant.file).read_text(encoding="utf-8")
        count = len(tests)
        while True:
            target.write_text(mutant.apply(source), encoding="utf-8")
            try:
                by = self.first_failure(tests)
            finally:
                target.write_text(source, encoding="utf-8")
            if by == "import":
                self.check_that_tests_run(tests)
            if by in (None, "import"):
                break
            assert by is not None
            if by not in self.sound:
                self.sound[by] = self.first_failure([by]) is None
            if self.sound[by]:
                break
            tests = [test for test in tests if test != by]
        return Outcome(by is not None, by or "", count, time.monotonic() - started)

    def check_that_tests_run(self, tests: list[str]) -> None:
        """Stop if pytest cannot even start without a mutant: every mutant would seem to be detected."""
        if "import" not in self.sound:
            self.sound["import"] = self.first_failure(tests[:1]) != "import"
        if not self.sound["import"]:
            raise SystemExit(f"Tests cannot start without a mutant either; see {self.directory / 'log'}.")

    def first_failure(self, tests: list[str]) -> str | None:
        """The first test that fails, in a separate process."""
        if not tests:
            return None
        answer, running = self.directory / "answer", self.directory / "running"
        answer.unlink(missing_ok=True)
        running.write_text("import", encoding="utf-8")
        process = os.fork()
        if process == 0:
            self._run(tests, answer, running)
        looked = time.monotonic()
        try:
            while os.waitpid(process, os.WNOHANG) == (0, 0):
                if time.time() > running.stat().st_mtime + STUCK:  # since this test began
                    return None
                if time.monotonic() > looked + 1:
                    looked = time.monotonic()
                    if sum(map(_processor_time, descendants())) > self.budget + ENDLESS:
                        break
                time.sleep(0.02)
        finally:
            end_descendants()
        if answer.exists():
            return answer.read_text(encoding="utf-8") or None
        return running.read_text(encoding="utf-8")  # it did not end, or it crashed

    def _run(self, tests: list[str], answer: Path, running: Path) -> None:
        """In the forked process; does not return."""
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        source = str(self.directory / "src")
        os.environ["PYTHONPATH"] = source
        os.environ["PYTEST_XDIST_WORKER"] = "mutants"  # limits it to one thread, as with other workers
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        os.environ.pop("PYTEST_ADDOPTS", None)  # of the user's; it may ask for a plug-in that is not loaded here
        sys.dont_write_bytecode = True
        sys.path.insert(0, source)
        with (self.directory / "log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        first = _First(self.budget, running)
        temporary = ["--basetemp", str(self.directory / "tmp")]
        try:
            code = pytest.main([*PLAIN, "-x", *temporary, *tests], plugins=[first])
            failed = first.failed or ("import" if code not in (0, 1, 2, 5) else "")
            answer.write_text(failed if code != 0 else "", encoding="utf-8")
        except BaseException:
            answer.write_text("import", encoding="utf-8")
        finally:
            os._exit(0)


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose parent ends, so that `descendants` finds them (prctl(2)).
    Linux has this; elsewhere, processes may outlive the test that started them."""
    if sys.platform == "linux":
        set_child_subreaper = 36
        if ctypes.CDLL(None, use_errno=True).prctl(set_child_subreaper, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def descendants() -> list[psutil.Process]:
    """What this process has started, and what these have."""
    return psutil.Process().children(recursive=True)


def end_descendants() -> None:
    """End them all, also those in sessions of their own, and those that are started meanwhile."""
    while found := descendants():
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        time.sleep(0.01)


def _processor_time(process: psutil.Process) -> float:
    """Seconds, with those of children that it has waited for."""
    try:
        return float(sum(process.cpu_times()[:4]))
    except psutil.NoSuchProcess:
        return 0.0


# sampling, storing, reporting


def drawn(directories: Sequence[str], count: int, seed: int) -> tuple[list[Mutant], dict[str, int]]:
    """The same number of mutants from each directory, and the number of all mutants in each."""
    chosen: list[Mutant] = []
    population = {}
    for index, directory in enumerate(directories):
        sources = {str(file.relative_to(SOURCE)): file for file in sorted((SOURCE / directory).rglob("*.py"))}
        texts = {name: file.read_text(encoding="utf-8") for name, file in sources.items()}
        every = [mutant for name, text in texts.items() for mutant in mutants_of(text, name)]
        population[directory] = len(every)
        random.Random(f"{seed} {directory}").shuffle(every)
        target = count // len(directories) + (index < count % len(directories))
        own = (mutant for mutant in every if changes(mutant, texts[mutant.file]))
        chosen += [mutant for _, mutant in zip(range(target), own, strict=False)]
    return chosen, population


def at_lines(locations: Sequence[str]) -> list[Mutant]:
    """All mutants of the given lines, such as `engine/loop.py:117`."""
    chosen = []
    for location in locations:
        file, line = location.removeprefix("src/tunesmith/").split(":")
        text = (SOURCE / file).read_text(encoding="utf-8")
        mutants = [each for each in mutants_of(text, file) if each.line == int(line) and changes(each, text)]
        if not mutants:
            raise SystemExit(f"{location} has no mutants.")
        chosen += mutants
    return chosen


def equivalents() -> dict[str, str]:
    """The reasons of mutants that do not change behavior, by the key of their text: file, line of source, new line."""
    listed = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else []
    return {_text_key(each["file"], each["line"], each["mutant"]): each["reason"] for each in listed or []}


def _text_key(file: str, before: str, after: str) -> str:
    return f"{file} | {before.strip()} | {after.strip()}"


def lines_of(mutant: Mutant) -> tuple[str, str]:
    """Its line before and after."""
    source = (SOURCE / mutant.file).read_text(encoding="utf-8")
    index = mutant.line - 1
    after = mutant.apply(source).splitlines()
    return source.splitlines()[index].strip(), after[index].strip() if index < len(after) else ""


class Results:
    """Outcomes of mutants, stored in a file so that an interrupted run can be resumed."""

    def __init__(self) -> None:
        self.file = WORK / "results.jsonl"
        self.records: dict[str, dict[str, Any]] = {}
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        for line in lines:
            record = json.loads(line)
            self.records[record["key"]] = record

    def known(self, mutant: Mutant, tests: Sequence[str], reach: Reach) -> Outcome | None:
        """Its outcome, if neither its file nor the tests that decided it have changed."""
        record = self.records.get(mutant.key)
        if record is None or record["source"] != reach.hashes[f"src/tunesmith/{mutant.file}"]:
            return None
        outcome = Outcome(record["killed"], record["by"], record["tests"], record["seconds"])
        return outcome if record["tests_hash"] == _decided_by(outcome, tests, reach) else None

    def add(self, mutant: Mutant, outcome: Outcome, tests: Sequence[str], reach: Reach) -> None:
        source = reach.hashes[f"src/tunesmith/{mutant.file}"]
        tests_hash = _decided_by(outcome, tests, reach)
        record = {"key": mutant.key, "source": source, "tests_hash": tests_hash, **vars(outcome)}
        self.records[mutant.key] = record
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _decided_by(outcome: Outcome, tests: Sequence[str], reach: Reach) -> str:
    """A hash to check whether an outcome is still valid: of the test that detected the mutant, or of all that did
    not."""
    deciding = [test for test in ([outcome.by] if outcome.killed else tests) if "::" in test]
    files = sorted({test.split("::")[0] for test in deciding})
    return hashlib.sha256("".join(f"{test}\n" for test in deciding).encode()).hexdigest()[:12] + "-".join(
        reach.hashes.get(file, "gone")[:6] for file in files
    )


@dataclass(frozen=True)
class Sample:
    """A directory's row of the table.

    Attributes:
        directory: below `src/tunesmith`.
        bugs: that could be made in it.
        drawn: the day, and the seed.
        tried: bugs.
        equivalent: those of them that no test detects, since they do not change behavior.
        detected: those that a test detects.
    """

    directory: str
    bugs: int
    drawn: str
    tried: int
    equivalent: int
    detected: int

    @classmethod
    def read(cls, row: str) -> "Sample":
        directory, bugs, drawn, *counts, _ = [cell.strip() for cell in row.strip("|").split("|")]
        return cls(directory, int(bugs.replace(",", "")), drawn, *map(int, counts))

    def __str__(self) -> str:
        share = _share(self.detected, self.tried - self.equivalent)
        cells = (self.directory, f"{self.bugs:,}", self.drawn, self.tried, self.equivalent, self.detected, share)
        return f"| {' | '.join(map(str, cells))} |"


def samples(
    outcomes: dict[Mutant, Outcome], population: dict[str, int], reasons: dict[str, str], drawn: str
) -> list[Sample]:
    """A row for each directory."""
    rows = []
    for directory, bugs in population.items():
        own = {mutant: outcome for mutant, outcome in outcomes.items() if mutant.file.split("/")[0] == directory}
        equivalent = [mutant for mutant in own if _is_equivalent(mutant, reasons) and not own[mutant].killed]
        detected = sum(outcome.killed for outcome in own.values())
        rows.append(Sample(directory, bugs, drawn, len(own), len(equivalent), detected))
    return rows


def table(rows: Iterable[Sample]) -> str:
    """A Markdown table with these rows, by name, and their sum."""
    ordered = sorted(rows, key=lambda row: row.directory)
    sums = [sum(getattr(row, name) for row in ordered) for name in ("bugs", "tried", "equivalent", "detected")]
    total = Sample("all", sums[0], "", *sums[1:])
    return "\n".join([*HEADER, *map(str, ordered), str(total)]) + "\n"


def stored_samples() -> dict[str, Sample]:
    """The rows of the stored table by directory."""
    lines = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else []
    rows = lines[lines.index(HEADER[1]) + 1 : -1] if HEADER[1] in lines else []
    read = map(Sample.read, rows)
    return {row.directory: row for row in read if row.directory in DIRECTORIES}


def _is_equivalent(mutant: Mutant, reasons: dict[str, str]) -> bool:
    return _text_key(mutant.file, *lines_of(mutant)) in reasons


def _share(killed: int, count: int) -> str:
    if not count:
        return "–"
    within = binomtest(killed, count).proportion_ci(method="wilson")
    return f"{killed / count:.0%} [{within.low:.0%}, {within.high:.0%}]"


def attempt_all(chosen: Sequence[Mutant], reach: Reach, jobs: int, budget: float) -> dict[Mutant, Outcome]:
    """The outcome of every mutant, stored or new; new ones are tried in parallel."""
    results = Results()
    tests = {mutant: reach.of(mutant) for mutant in chosen}
    before = {mutant: results.known(mutant, tests[mutant], reach) for mutant in chosen}
    outcomes = {mutant: outcome for mutant, outcome in before.items() if outcome is not None}
    waiting = [mutant for mutant in chosen if mutant not in outcomes]
    print(f"{len(outcomes)} of {len(chosen)} outcomes are stored; {len(waiting)} mutants to try.", flush=True)
    if not waiting:
        return outcomes
    preload()
    started = time.monotonic()
    workers: dict[int, tuple[int, int]] = {}
    shares = [waiting[number::jobs] for number in range(jobs)]
    for number, share in enumerate(shares):
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reading)
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through `finally`, which ends what was started
            adopt_orphans()
            workplace = Workplace(number, budget)
            with os.fdopen(writing, "w") as out:
                for index, mutant in enumerate(share):
                    out.write(json.dumps([index, vars_of(workplace.attempt(mutant, tests[mutant]))]) + "\n")
                    out.flush()
            os._exit(0)
        os.close(writing)
        workers[number] = (process, reading)
    for number, index, outcome in _answers(workers):
        mutant = shares[number][index]
        outcomes[mutant] = outcome
        results.add(mutant, outcome, tests[mutant], reach)
        done = len(outcomes) - (len(chosen) - len(waiting))
        left = (time.monotonic() - started) / done * (len(waiting) - done) / 60
        result = "detected" if outcome.killed else "SURVIVED"
        location = f"{mutant.file}:{mutant.line} {mutant.what}"
        print(f"{done}/{len(waiting)} {result} {location}; {left:.0f} min left", flush=True)
    return outcomes


def vars_of(outcome: Outcome) -> dict[str, Any]:
    return {"killed": outcome.killed, "by": outcome.by, "tests": outcome.tests, "seconds": round(outcome.seconds, 1)}


def _answers(workers: dict[int, tuple[int, int]]) -> Iterator[tuple[int, int, Outcome]]:
    """The workers' answers, as they arrive."""
    import selectors

    with selectors.DefaultSelector() as selector:
        streams = {number: os.fdopen(reading) for number, (_, reading) in workers.items()}
        for number, stream in streams.items():
            selector.register(stream, selectors.EVENT_READ, number)
        while selector.get_map():
            for key, _ in selector.select():
                line = streams[key.data].readline()
                if not line:
                    selector.unregister(streams[key.data])
                    continue
                index, values = json.loads(line)
                yield key.data, index, Outcome(**values)
    ends = [os.waitpid(process, 0)[1] for process, _ in workers.values()]
    if any(ends):
        raise SystemExit(1)  # the worker has said why


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directories", nargs="+", default=list(DIRECTORIES), choices=DIRECTORIES)
    parser.add_argument("--count", type=int, default=300, help="mutants in all, the same number from each directory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", nargs="+", help="all mutants of these lines instead: engine/loop.py:117")
    parser.add_argument("--budget", type=float, default=60, help="seconds of processor time per mutant")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tests", nargs="+", default=["tests"], help="test files or directories to run; default: all")
    parser.add_argument(
        "--write",
        metavar="MACHINE",
        help=f"replace the directories' rows in {TABLE.relative_to(ROOT)}; the machine, in words, stands above it",
    )
    options = parser.parse_args()
    os.chdir(ROOT)
    WORK.mkdir(exist_ok=True)
    reach = up_to_date_reach(options.tests, options.jobs)
    chosen, population = (
        (at_lines(options.lines), {}) if options.lines else drawn(options.directories, options.count, options.seed)
    )
    outcomes = attempt_all(chosen, reach, options.jobs, options.budget)
    reasons = equivalents()
    survivors = [mutant for mutant in sorted(outcomes) if not outcomes[mutant].killed]
    print("\nNot detected:")
    for mutant in survivors:
        before, after = lines_of(mutant)
        known = "  (equivalent)" if _is_equivalent(mutant, reasons) else ""
        location = f"src/tunesmith/{mutant.file}:{mutant.line}"
        print(f"{location}: {mutant.what}; {outcomes[mutant].tests} tests reach it{known}")
        print(f"    - {before}\n    + {after}")
    if not options.lines:
        rows = samples(outcomes, population, reasons, f"{time.strftime('%Y-%m-%d')}, seed {options.seed}")
        print("\n" + table(rows))
        if options.write:
            stored = stored_samples() | {row.directory: row for row in rows}
            about = f"{options.write}; {options.budget:.0f} s of processor time per bug at most."
            TABLE.write_text(f"{about}\n\n{table(stored.values())}", encoding="utf-8")
    else:
        print(f"\n{len(outcomes) - len(survivors)} of {len(outcomes)} detected.")


if __name__ == "__main__":
    if not os.environ.get("OMP_NUM_THREADS"):  # a forked process must not have other threads
        done = subprocess.run([sys.executable, *sys.argv], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        sys.exit(done.returncode)
    main()
