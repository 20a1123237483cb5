"""From the recipe's files to token tables: read → detect the format → split → render → tokenize → check, and count."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tunesmith.cache_directory import cache_directory
from tunesmith.config import extensions
from tunesmith.config.data import Data
from tunesmith.config.mix import MixSource
from tunesmith.config.recipe import Recipe
from tunesmith.data import cache
from tunesmith.data.example import Example, Malformed, Source
from tunesmith.data.format_detection import chosen_format
from tunesmith.data.length_policy import apply_length_policy
from tunesmith.data.mix import field_of, mixed
from tunesmith.data.read import Row, fingerprint, read
from tunesmith.data.render import Renderer
from tunesmith.data.rendered import ChatsOrText, renders, takes_text
from tunesmith.data.report import SHOWN, DataReport
from tunesmith.data.row_formats import to_example
from tunesmith.data.split import fold, is_held_out
from tunesmith.data.tokenize import Chunk, Tokenizer
from tunesmith.data.tokens import TableBuilder, TokenTable
from tunesmith.errors import UserError

DETECT_ROWS = 100
"""Rows from which the row format is detected."""


@dataclass(frozen=True)
class Prepared:
    """Token tables of both sides, the counts, and the SHA-256 of every file that they come from."""

    train: TokenTable
    held_out: TokenTable
    report: DataReport
    fingerprints: dict[str, str]


def prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Token tables for the recipe's data, from the cache if everything that decides them is unchanged.

    Raises:
        UserError: too many malformed rows, examples over `data.max_length` if the policy is to refuse, rows that would
            teach nothing or the wrong thing, or no training rows. The message names the rows.
    """
    recipe.import_code()  # another recipe's may have been imported since
    recipe = resolve(recipe)
    paths = all_paths(recipe.data)
    fingerprints = fingerprint(paths, Path.cwd())
    settings = {
        "data": recipe.data.model_dump(mode="json", exclude={"cache", "checks", "pack", "order"}),
        "objective": recipe.objective.model_dump(mode="json"),
        "mix_seed": recipe.train.seed if recipe.data.mix or recipe.data.replay else None,
        "extensions": extensions.fingerprint(recipe.extensions.values(), recipe.directory),
    }
    directory = cache_directory() / "tokens" / cache.cache_key(fingerprints, tokenizer, settings)
    is_cacheable = recipe.data.cache and all(fingerprints.values())
    if is_cacheable and (entry := cache.load(directory, ("train", "held_out"))) is not None:
        (train, held_out_table), report = entry
        return Prepared(train, held_out_table, DataReport.from_dict(report, cached=True), fingerprints)
    train, held_out_table, counts = _tokenize_all(recipe, tokenizer)
    if is_cacheable:
        cache.save(directory, (("train", train), ("held_out", held_out_table)), asdict(counts))
    return Prepared(train, held_out_table, counts, fingerprints)


def resolve(recipe: Recipe) -> Recipe:
    """The recipe, with what its objective derives from the training rows: the class names.

    Raises:
        UserError: the rows do not give it, or cannot be read.
    """
    data, formats = recipe.data, recipe.objective.formats
    objective = recipe.objective.resolve(lambda: training_rows(data, formats))
    return recipe.model_copy(update={"objective": objective})


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


def _own_sources(data: Data) -> list[MixSource]:
    """Without `data.replay`."""
    return list((data.mix or data.sources).values())[: len(data.mix) or 1]


def held_out_examples(data: Data, formats: Sequence[str]) -> list[Example]:
    """The held-out rows as examples, in order. Arguments are those of `examples`."""
    if isinstance(data.held_out, list):
        return list(examples(data, formats, data.held_out, DataReport()))
    return [example for example, is_held in _with_sides(data, formats) if is_held]


def training_examples(data: Data, formats: Sequence[str]) -> list[Example]:
    """The rows of `data.train` or `data.mix` that are not held out, as examples, in order, each once. Arguments are
    those of `examples`."""
    return [example for example, is_held in _with_sides(data, formats) if not is_held]


def _with_sides(data: Data, formats: Sequence[str]) -> Iterator[tuple[Example, bool]]:
    """Each row, and whether it is held out."""
    share = 0.0 if isinstance(data.held_out, list) else _share(data, formats, data.held_out)
    for source in _own_sources(data):
        of_source = share if source.held_out else 0.0
        for example in examples(data.of(source), formats, source.paths, DataReport()):
            yield example, is_held_out(example, of_source)


def examples_by_source(recipe: Recipe) -> dict[Source, Example]:
    """The rows of both sides as examples, by their source: what is not in the tokens.

    Raises:
        UserError: as `examples`.
    """
    data, formats = recipe.data, recipe.objective.formats
    held_out = examples(data, formats, data.held_out, DataReport()) if isinstance(data.held_out, list) else ()
    return {each.source: each for each in chain(training_rows(data, formats), held_out)}


def _share(data: Data, formats: Sequence[str], share: float) -> float | frozenset[bytes]:
    """The held-out share of the training rows; with `data.folds`, the keys of the held-out rows."""
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


def _tokenize_all(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[TokenTable, TokenTable, DataReport]:
    report, renderer = DataReport(), Renderer(tokenizer)
    data, objective = recipe.data, recipe.objective
    share = 0.0 if isinstance(data.held_out, list) else _share(data, objective.formats, data.held_out)
    parts: dict[str, _Part] = {}
    for name, source in data.sources.items():
        of_source = share if source.held_out else 0.0
        with _source_named(name if data.mix else None):
            parts[name] = _tokenize(data.of(source), recipe, renderer, of_source, report, is_mixed=name != "train")
    if isinstance(data.held_out, list):  # counted last, and drawn from by no source
        own = data.of(MixSource(paths=data.held_out))
        parts[_HELD_OUT] = _tokenize(own, recipe, renderer, 1.0, report, is_mixed=bool(data.mix))
    _refuse_unusable(data, report)
    held_out, pools = TableBuilder(), {}
    for name, part in parts.items():
        pools[name], held_out_part = (
            apply_length_policy(part.data, objective, side.table(), report, renderer.closing_tokens)
            for side in part.sides
        )
        held_out.extend(held_out_part)
    pools.pop(_HELD_OUT, None)
    train, contributions = mixed(pools, data.sources, recipe.train.seed)
    train = replace(objective.arrange(train), source_rows=train.source_rows)
    held_out_table = objective.arrange(held_out.table())
    if len(train) == 0:
        raise UserError("No training example is left. Give more rows, or lower data.held_out.")
    objective.check(train)
    report.format = ", ".join(dict.fromkeys(part.format for name, part in parts.items() if name != _HELD_OUT))
    report.sources = contributions if len(contributions) > 1 or data.mix else ()
    report.examples, report.held_out_rows = len(train), len(held_out_table)
    report.tokens, report.loss_tokens = len(train.ids), train.loss_tokens
    report.held_out_tokens, report.held_out_loss_tokens = len(held_out_table.ids), held_out_table.loss_tokens
    report.length_histogram = _histogram(train.lengths)
    return train, held_out_table, report


@contextmanager
def _source_named(name: str | None) -> Iterator[None]:
    """Say which source of a mix an error is about."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"{field_of(name)}: {error}" if name else str(error)) from error.__cause__


_HELD_OUT = "held-out rows"
"""The rows of `data.held_out`, if it is paths, among the parts."""


@dataclass(frozen=True)
class _Part:
    """The tokens of one source.

    Attributes:
        data: the section for it alone.
        format: of its rows.
        sides: its training and its held-out rows.
    """

    data: Data
    format: str
    sides: tuple[TableBuilder, TableBuilder]


def _tokenize(
    data: Data,
    recipe: Recipe,
    renderer: Renderer,
    held_out: float | frozenset[bytes],
    report: DataReport,
    is_mixed: bool,
) -> _Part:
    """A source's rows as tokens. Raw text that is mixed with chats has a loss on all tokens, and is split."""
    objective, accepted = renders(recipe), recipe.objective.formats
    with_text = is_mixed and takes_text(recipe)
    if with_text:
        objective = ChatsOrText(objective)
    sides = (TableBuilder(), TableBuilder())
    for chunk in Tokenizer(objective, renderer, held_out).all(examples(data, accepted, data.train, report)):
        for builder, side in zip(sides, chunk.sides, strict=True):
            builder.extend(side)
        _count(chunk, report)
    if with_text and report.format == "text" and data.overflow == "auto":
        data = data.model_copy(update={"overflow": "split"})
    return _Part(data, report.format, sides)


def _count(chunk: Chunk, report: DataReport) -> None:
    report.separate_turns += chunk.separate_turns
    report.longest = max(report.longest, chunk.longest)
    report.unusable += len(chunk.unusable)
    shown = [f"{source}: {reason}" for source, reason in chunk.unusable[:SHOWN]]
    report.unusable_rows = (report.unusable_rows + shown)[:SHOWN]


def _refuse_unusable(data: Data, report: DataReport) -> None:
    """Raises:
    UserError: there are unusable rows, and `data.skip_unusable` is false.
    """
    unusable, shown = report.unusable, report.unusable_rows
    if unusable and not data.skip_unusable:
        more = f"\n  and {unusable - len(shown):,} more" if unusable > len(shown) else ""
        raise UserError(
            f"{unusable:,} of {report.rows:,} rows cannot be trained on. Fix them, or set "
            "data.skip_unusable: true (they are then left out and counted):\n  " + "\n  ".join(shown) + more
        )


def _histogram(lengths: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(upper edge, examples) by length in tokens, in about sixteen bins with round edges."""
    longest = int(lengths.max())
    width = next(
        step
        for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
        if step * 16 >= longest or step == 65536
    )
    counts = np.bincount(np.maximum(lengths - 1, 0) // width)
    return [((index + 1) * width, int(count)) for index, count in enumerate(counts)]
