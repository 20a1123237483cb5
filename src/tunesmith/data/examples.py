"""The rows of a recipe's files as examples, and which of them are held out: read → detect the format → split."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from tunesmith.config.data import Data
from tunesmith.config.mix import MixSource
from tunesmith.config.recipe import Recipe
from tunesmith.data.example import Example, Malformed, Source
from tunesmith.data.format_detection import chosen_format
from tunesmith.data.read import Row, read
from tunesmith.data.report import SHOWN, DataReport
from tunesmith.data.row_formats import to_example
from tunesmith.data.split import fold, is_held_out
from tunesmith.errors import UserError

DETECT_ROWS = 100
"""Rows from which the row format is detected."""


def examples(data: Data, formats: Sequence[str], paths: Sequence[str], report: DataReport) -> Iterator[Example]:
    """The rows of the paths as examples.

    Args:
        data: says how rows are read.
        formats: the row formats with targets that the objective accepts; empty for chats and raw text.
        paths: of the rows, such as `data.train`.
        report: malformed rows are counted in it.

    Raises:
        UserError: more rows than `data.max_malformed` allows are malformed, or a file cannot be read.
    """
    rows_read = 0
    bad: list[Malformed] = []
    for example in every_row(data, formats, paths, report):
        rows_read += 1
        if isinstance(example, Malformed):
            bad.append(example)
        else:
            yield example
    report.rows += rows_read
    report.malformed += len(bad)
    shown = [f"{each.source}: {each.reason}" for each in bad[:SHOWN]]
    report.malformed_rows = (report.malformed_rows + shown)[:SHOWN]
    if len(bad) > data.max_malformed * rows_read:
        more = f"\n  and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
        raise UserError(
            f"{len(bad):,} of {rows_read:,} rows are malformed, more than data.max_malformed "
            f"({data.max_malformed:.0%}) allows. Fix them, or raise that share (they are then left out and "
            "counted):\n  " + "\n  ".join(shown) + more
        )


def every_row(
    data: Data, formats: Sequence[str], paths: Sequence[str], report: DataReport
) -> Iterator[Example | Malformed]:
    """As `examples`, with malformed rows in their place."""
    rows = read(paths, Path.cwd())
    first = list(islice(rows, DETECT_ROWS))
    well_formed = [row for row in first if isinstance(row, Row)]
    report.format = chosen_format(well_formed, data.format, formats, data.columns)
    for row in chain(first, rows):
        report.boilerplate += 0 if isinstance(row, Malformed) else row.left_out
        yield row if isinstance(row, Malformed) else to_example(row, report.format, data.columns)


def all_paths(data: Data) -> list[str]:
    """The paths of everything that is read: the sources, and the held-out rows if they have paths."""
    sources = [path for source in data.sources.values() for path in source.paths]
    return [*sources, *(data.held_out if isinstance(data.held_out, list) else [])]


def training_rows(data: Data, formats: Sequence[str]) -> Iterator[Example]:
    """The rows of `data.train` or of the sources of `data.mix`, held-out ones among them. Arguments are those of
    `examples`."""
    for source in _own_sources(data):
        yield from examples(data.of(source), formats, source.paths, DataReport())


def every_training_row(data: Data, formats: Sequence[str]) -> Iterator[Example | Malformed]:
    """As `training_rows`, with malformed rows in their place."""
    for source in _own_sources(data):
        yield from every_row(data.of(source), formats, source.paths, DataReport())


def held_out_examples(data: Data, formats: Sequence[str]) -> list[Example]:
    """The held-out rows as examples, in order. Arguments are those of `examples`."""
    if isinstance(data.held_out, list):
        return list(examples(data, formats, data.held_out, DataReport()))
    return [example for example, is_held in _with_sides(data, formats) if is_held]


def training_examples(data: Data, formats: Sequence[str]) -> list[Example]:
    """The rows of `data.train` or `data.mix` that are not held out, as examples, in order, each once. Arguments are
    those of `examples`."""
    return [example for example, is_held in _with_sides(data, formats) if not is_held]


def examples_by_source(recipe: Recipe) -> dict[Source, Example]:
    """The rows of both sides as examples, by their source: what is not in the tokens.

    Raises:
        UserError: as `examples`.
    """
    data, formats = recipe.data, recipe.objective.formats
    held_out = examples(data, formats, data.held_out, DataReport()) if isinstance(data.held_out, list) else ()
    return {each.source: each for each in chain(training_rows(data, formats), held_out)}


def _with_sides(data: Data, formats: Sequence[str]) -> Iterator[tuple[Example, bool]]:
    """Each row, and whether it is held out."""
    share = 0.0 if isinstance(data.held_out, list) else held_out_share(data, formats, data.held_out)
    for source in _own_sources(data):
        of_source = share if source.held_out else 0.0
        for example in examples(data.of(source), formats, source.paths, DataReport()):
            yield example, is_held_out(example, of_source)


def held_out_share(data: Data, formats: Sequence[str], share: float) -> float | frozenset[bytes]:
    """The held-out share of the training rows; with `data.folds`, the keys of the held-out rows.

    Args:
        data, formats: as `examples` takes them.
        share: `data.held_out`.

    Raises:
        UserError: there are more folds than distinct rows.
    """
    if data.folds is None:
        return share
    if data.fold is None:
        return 0.0
    sources = [source for source in _own_sources(data) if source.held_out]
    rows = chain.from_iterable(examples(data.of(each), formats, each.paths, DataReport()) for each in sources)
    part = fold(rows, data.fold, data.folds)
    if not part:
        raise UserError(f"data.folds: {data.folds} is more than the number of distinct rows. Set fewer.")
    return part


def _own_sources(data: Data) -> list[MixSource]:
    """Without `data.replay`."""
    return list((data.mix or data.sources).values())[: len(data.mix) or 1]
