"""Check data: read every row once on all cores, compare the rows, and keep what is found."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.cache_directory import cache_directory
from tunesmith.checks import registry
from tunesmith.checks.appended import Appended
from tunesmith.checks.bias import associations, representation, to_dicts
from tunesmith.checks.check import RowCheck
from tunesmith.checks.fingerprints import is_unchanged
from tunesmith.checks.groups import Lexicon, read_lexicon
from tunesmith.checks.inputs import Input, Task, tasks
from tunesmith.checks.language import languages
from tunesmith.checks.models import Models
from tunesmith.checks.result import CheckResult, DataChecks, line_of, read_result, write_result
from tunesmith.checks.row_traits import marked
from tunesmith.checks.scan import Part, Scanner, part_of, start
from tunesmith.checks.shingles import kinds
from tunesmith.checks.subject import OF_RECIPES, Subject, of_files, of_recipe
from tunesmith.checks.table import Table
from tunesmith.checks.table_check import TableCheck
from tunesmith.checks.word_runs import known_runs
from tunesmith.config.recipe import Recipe
from tunesmith.data.files import DataFile
from tunesmith.data.workers import cores, in_order, workers
from tunesmith.errors import UserError
from tunesmith.run import Events, Subscriber, writing
from tunesmith.run_lock import turn_lock

ALONE = 1 << 21
"""Bytes up to which files are checked without worker processes."""

MANY = 50_000
"""Rows from which comparing them takes long enough to show how far it is."""


def check_data(
    paths: str | Path | Recipe | Subject | Sequence[str | Path],
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    against: Sequence[str | Path] = (),
    groups: Sequence[str | Path] = (),
    encoder: str = "",
    toxicity: str = "",
    model: str = "",
    subscribers: Iterable[Subscriber] = (),
    cache: bool = True,
) -> DataChecks:
    """Check data: what is wrong, and in which rows.

    Args:
        paths: files, directories, globs or hub data sets; or a recipe, whose held-out rows are compared with; or both
            sides as they are, and then `against` does not count.
        only: names of checks; empty for all.
        skip: names of checks to leave out.
        against: held-out files or benchmarks that the rows must not have anything in common with.
        groups: YAML files with further words for groups of people (`tunesmith.checks.groups.read_lexicon`).
        encoder: a model that embeds texts, to find rows that mean the same; empty for none.
        toxicity: a model that classifies texts, some of them as toxic, or `NAME#LABEL`; empty for none.
        model: a model that writes text, to find answers that do not belong to their prompts; empty for none.
        subscribers: receive `progress` events (what, done, total).
        cache: whether what is known of the same content is used.

    Returns:
        What each check found. The marks are in the user's cache, and stay until it is emptied.

    Raises:
        UserError: a path does not exist, a file changes while it is read, its rows are in no known format, a check of
            `only` needs a model that is not named, or the cache cannot be written.
    """
    models = Models(encoder, toxicity, model)
    models.refuse_lacking(only)
    names = registry.selected(only, skip)
    subject = subject_of(paths, against)
    if subject.renders is None:
        names = [name for name in names if name not in OF_RECIPES]
    names = [name for name in names if name not in models.lacking]
    lexicon = read_lexicon(groups)
    directory = cache_directory() / "data-checks" / _key(subject, names, lexicon, models)
    events = Events(*subscribers)
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
    with turn_lock(directory, lambda: events.emit("progress", what="waiting for the same check", done=0, total=1)):
        if cache:
            with suppress(OSError, ValueError, KeyError, TypeError):
                return read_result(directory)
        else:
            shutil.rmtree(directory, ignore_errors=True)
        return _Run(subject, directory, names, lexicon, models, events).all()


def subject_of(paths: str | Path | Recipe | Subject | Sequence[str | Path], against: Sequence[str | Path]) -> Subject:
    """The files and rows that are checked.

    Args:
        paths, against: as `check_data` takes them.

    Raises:
        UserError: as of `check_data`.
    """
    if isinstance(paths, Subject):
        return paths
    given: Any = paths if isinstance(paths, list | tuple) else [paths]
    if len(given) != 1 or (isinstance(given[0], str | Path) and Path(given[0]).suffix not in (".yaml", ".yml")):
        return of_files(given, against)
    return of_recipe(given[0] if isinstance(given[0], Recipe) else Recipe.load(given[0]), against)


class _Run:
    """One check of some files."""

    def __init__(
        self,
        subject: Subject,
        directory: Path,
        names: Sequence[str],
        lexicon: Lexicon,
        models: Models,
        events: Events,
    ) -> None:
        self._subject = subject
        self._directory = directory
        self._checks = [registry.load(name) for name in names]
        self._lexicon = lexicon
        self._models = models
        self._events = events

    def all(self) -> DataChecks:
        """Read, compare, and write what is found."""
        files = self._subject.files
        table = self._scan()
        results = tuple(self._results(table))
        summary = {
            "formats": {each.name: each.layout.format for each in files},
            "labels": dict(table.labels.most_common()),
            "languages": languages(table),
            "groups": representation(table),
            "associations": to_dicts(associations(table)),
            "tokens": table.tokens,
            "loss_tokens": table.loss_tokens,
        }
        found = DataChecks(table.rows, tuple(each.name for each in files), results, summary, self._directory)
        write_result(found)
        return found

    def _scan(self) -> Table:
        files, others = self._subject.files, self._subject.others
        table = Table.open(self._directory / "rows")
        table.files, table.groups, table.models = files, self._lexicon.groups, self._models
        table.events = self._events
        views = tuple(sorted({view for check in self._checks if isinstance(check, TableCheck) for view in check.views}))
        row_checks = [check for check in self._checks if isinstance(check, RowCheck)]
        scanner = Scanner(row_checks, views, self._lexicon, renders=self._subject.renders)
        kinds(), marked()  # before workers are forked
        with Appended(table.directory) as out:
            left = _left(others, table.parts)
            self._add(table, out, replace(scanner, keeps_runs=True), left, "MB compared with", others)
            if others and any(check.name == "leakage" for check in self._checks):
                runs = np.fromfile(table.directory / "runs.bin", np.uint64)
                known = known_runs(runs, np.fromfile(table.directory / "run_counts.bin", np.uint32))
                scanner = replace(scanner, known=known, source_of_other=table.source_of_all)
            left = _left([*others, *files], table.parts)
            self._add(table, out, scanner, left, "MB checked", files)
        for each in (*others, *files):
            _refuse_changed(each)
        return table

    def _add(
        self, table: Table, out: Appended, scanner: Scanner, work: Iterator[Task], what: str, files: Sequence[Input]
    ) -> None:
        done, total = 0, sum(each.print.size for each in files if each.print is not None)
        for part in _parts(scanner, work, total):
            table.add(part, out)
            done += part.size
            self._events.emit("progress", what=what, done=min(done, total) >> 20, total=max(1, total >> 20))

    def _merged(self, check: RowCheck, table: Table, path: Path, count: int) -> tuple[int, Path]:
        """A check's marks with those that only the whole set shows, in the order of the files and rows."""
        more = list(check.more(table)) if check.more is not None else []
        if not more:
            return count, path
        places = {name: index for index, name in enumerate(dict.fromkeys(each.name for each in self._subject.files))}
        known = CheckResult(check.name, check.title, check.severity, check.advice, count, path)
        both = {mark.source: mark for mark in (*more, *known.marks)}
        merged = table.marks(f"{check.name}.merged")
        with merged.open("w", encoding="utf-8") as file:
            for source in sorted(both, key=lambda source: (places.get(source.file, 0), source.row)):
                file.write(line_of(both[source]))
        return len(both), merged

    def _results(self, table: Table) -> Iterator[CheckResult]:
        for number, check in enumerate(self._checks):
            self._tell(table, number)
            path = table.marks(check.name)
            if isinstance(check, RowCheck):
                count = table.counts[check.name]
                if count and check.stands is not None and not check.stands(table):
                    count = 0
                    path.unlink()
                if check.more is not None:
                    count, path = self._merged(check, table, path, count)
            elif check.when(table):
                count = _write(check, table, path)
            else:
                continue
            about = table.about.get(check.name, "")
            yield CheckResult(check.name, check.title, check.severity, check.advice, count, path, about)
        self._tell(table, len(self._checks))

    def _tell(self, table: Table, done: int) -> None:
        if table.records >= MANY:
            self._events.emit("progress", what="checks", done=done, total=len(self._checks))


def _parts(scanner: Scanner, work: Iterator[Task], total: int) -> Iterator[Part]:
    count = cores() if total > ALONE else 1
    if count == 1:
        yield from map(scanner.part, work)
        return
    with workers(count, start, scanner) as pool:
        yield from in_order(pool, count, part_of, work)


def _left(files: Sequence[Input], done: int) -> Iterator[Task]:
    """The tasks that are left after those that are done."""
    for number, task in enumerate(task for each in files for task in tasks(each)):
        if number >= done:
            yield task


def _write(check: TableCheck, table: Table, path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for mark in check.find(table):
            file.write(line_of(mark))
            count += 1
    return count


def _refuse_changed(each: Input) -> None:
    if isinstance(each.file, DataFile) and each.print is not None:
        with suppress(OSError):
            if is_unchanged(each.file.path, each.print):
                return
        raise UserError(f"{each.name} changed while it was read. Check it again once nothing writes it.")


def _key(subject: Subject, names: Sequence[str], lexicon: Lexicon, models: Models) -> str:
    """What everything that is found depends on: contents, names, formats, checks and their code."""
    parts: list[Any] = [
        [[each.name, each.key, each.layout.format, dict(each.layout.columns), each.held_out] for each in side]
        for side in (subject.files, subject.others)
    ]
    if models != Models():
        parts += models.fingerprints
    parts += [subject.key, list(names), lexicon.groups, dict(lexicon.terms), dict(lexicon.sentiment), _code()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _code() -> str:
    """SHA-256 of the source code of the checks and of what reads rows."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for file in sorted([*(package / "checks").rglob("*.py"), *(package / "data").rglob("*.py")]):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
