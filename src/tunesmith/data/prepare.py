"""From the recipe's files to token tables: read → detect the format → split → render → tokenize → check, and count."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
from tunesmith.data.examples import all_paths, examples, held_out_share, training_rows
from tunesmith.data.length_policy import apply_length_policy
from tunesmith.data.mix import field_of, mixed
from tunesmith.data.read import fingerprint
from tunesmith.data.render import Renderer
from tunesmith.data.rendered import ChatsOrText, renders, takes_text
from tunesmith.data.report import SHOWN, DataReport
from tunesmith.data.tokenize import Chunk, Tokenizer
from tunesmith.data.tokens import TableBuilder, TokenTable
from tunesmith.errors import UserError


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


def _tokenize_all(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[TokenTable, TokenTable, DataReport]:
    report, renderer = DataReport(), Renderer(tokenizer)
    data, objective = recipe.data, recipe.objective
    share = 0.0 if isinstance(data.held_out, list) else held_out_share(data, objective.formats, data.held_out)
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
