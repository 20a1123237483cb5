"""From the recipe's files to token tables: read → form → split → render → tokenise → check, with everything counted."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tunesmith.data import cache
from tunesmith.data.check import check
from tunesmith.data.example import Example, Malformed, Source
from tunesmith.data.forms import detect, to_example
from tunesmith.data.read import Row, fingerprint, read
from tunesmith.data.render import Renderer, Rendering
from tunesmith.data.split import is_held_out
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.recipe import Recipe

DETECT_ROWS = 100
TOKENISE_ROWS = 512  # at a time: enough for the tokeniser to use all cores, little memory
SHOWN = 5  # rows named in a message or kept in a report

Tokens = tuple[NDArray[np.int32], NDArray[np.bool_], Source]


@dataclass
class DataReport:
    """What the data held and what was done with it; goes into the `data` event as it is.

    Attributes:
        form: the rows' form, as detected or named.
        rows: read, malformed ones included.
        malformed: that could not be understood; `malformed_rows` names the first few with reasons.
        held_out_rows: examples kept out of training.
        examples: to train on, after splitting and dropping.
        truncated, split, dropped: examples over `data.max_length`, by what was done with them.
        unlearnable: pieces of split examples without a learnt token, left out.
        tokens, learnt_tokens: in the training examples.
        held_out_tokens, held_out_learnt_tokens: in the held-out ones.
        longest: tokens of the longest example before any cut.
        length_histogram: [upper edge in tokens, examples] of the training examples.
        cached: whether the tokens came from the cache.
    """

    form: str = ""
    rows: int = 0
    malformed: int = 0
    malformed_rows: list[str] = field(default_factory=list)
    held_out_rows: int = 0
    examples: int = 0
    truncated: int = 0
    split: int = 0
    dropped: int = 0
    unlearnable: int = 0
    tokens: int = 0
    learnt_tokens: int = 0
    held_out_tokens: int = 0
    held_out_learnt_tokens: int = 0
    longest: int = 0
    length_histogram: list[tuple[int, int]] = field(default_factory=list)
    cached: bool = False


@dataclass(frozen=True)
class Prepared:
    """Token tables of both sides, what was counted, and the SHA-256 of every file that they came from."""

    train: TokenTable
    held_out: TokenTable
    report: DataReport
    fingerprints: dict[str, str]


def prepare(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Token tables for the recipe's data, from the cache if everything that makes them is unchanged.

    Raises:
        UserError: too many malformed rows, over-long examples where they are refused, rows that would teach nothing or
            the wrong thing, an empty side; each with its rows.
    """
    held_out = recipe.data.held_out
    paths = recipe.data.train + (held_out if isinstance(held_out, list) else [])
    fingerprints = fingerprint(paths, Path.cwd())
    settings = {
        "data": recipe.data.model_dump(mode="json", exclude={"cache", "pack"}),
        "objective": recipe.objective.model_dump(mode="json"),
    }
    folder = cache.cache_folder() / "tokens" / cache.cache_key(fingerprints, tokenizer, settings)
    usable = recipe.data.cache and all(fingerprints.values())
    if usable and (found := cache.load(folder, ("train", "held_out"))) is not None:
        (train, kept_out), report = found
        return Prepared(train, kept_out, DataReport(**{**report, "cached": True}), fingerprints)
    train, kept_out, counted = _tokenise_all(recipe, tokenizer)
    if usable:
        cache.save(folder, (("train", train), ("held_out", kept_out)), asdict(counted))
    return Prepared(train, kept_out, counted, fingerprints)


def examples(recipe: Recipe, paths: Sequence[str], report: DataReport) -> Iterator[Example]:
    """The rows of the paths as examples; malformed rows are counted into the report and refused past the allowed share."""
    rows = read(paths, Path.cwd())
    first = list(islice(rows, DETECT_ROWS))
    form = recipe.data.form
    if form == "auto":
        form = detect([row for row in first if isinstance(row, Row)]) if not recipe.data.columns else "question_answer"
    report.form = form
    read_here = 0
    bad: list[Malformed] = []
    for row in chain(first, rows):
        read_here += 1
        example = row if isinstance(row, Malformed) else to_example(row, form, recipe.data.columns)
        if isinstance(example, Malformed):
            bad.append(example)
        else:
            yield example
    report.rows += read_here
    report.malformed += len(bad)
    shown = [f"{each.source}: {each.reason}" for each in bad[:SHOWN]]
    report.malformed_rows = (report.malformed_rows + shown)[:SHOWN]
    if len(bad) > recipe.data.max_malformed * read_here:
        more = f"\n  and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
        raise UserError(
            f"{len(bad):,} of {read_here:,} rows are malformed, more than data.max_malformed "
            f"({recipe.data.max_malformed:.0%}) allows. Mend them, or raise that share (they are then left out and counted):\n  "
            + "\n  ".join(shown)
            + more
        )


def _tokenise_all(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[TokenTable, TokenTable, DataReport]:
    report = DataReport()
    renderer = Renderer(tokenizer)
    sides: tuple[list[Tokens], list[Tokens]] = ([], [])
    held_out = recipe.data.held_out
    share = 0.0 if isinstance(held_out, list) else held_out
    for chunk in _chunks(examples(recipe, recipe.data.train, report)):
        for side in (False, True):
            chosen = [example for example in chunk if is_held_out(example, share) == side]
            sides[side].extend(_tokenise(recipe, renderer, chosen, report))
    if isinstance(held_out, list):
        for chunk in _chunks(examples(recipe, held_out, report)):
            sides[True].extend(_tokenise(recipe, renderer, chunk, report))
    train, kept_out = (list(_fit(recipe, side, report)) for side in sides)
    if not train:
        raise UserError("No training example is left. Give more rows, or lower data.held_out.")
    table, kept_out_table = TokenTable.build(train), TokenTable.build(kept_out)
    report.examples, report.held_out_rows = len(table), len(kept_out_table)
    report.tokens, report.learnt_tokens = len(table.ids), table.learnt_tokens
    report.held_out_tokens, report.held_out_learnt_tokens = len(kept_out_table.ids), kept_out_table.learnt_tokens
    report.length_histogram = _histogram(table.lengths)
    return table, kept_out_table, report


def _chunks(source: Iterator[Example]) -> Iterator[list[Example]]:
    while chunk := list(islice(source, TOKENISE_ROWS)):
        yield chunk


def _tokenise(recipe: Recipe, renderer: Renderer, chunk: Sequence[Example], report: DataReport) -> Iterator[Tokens]:
    """Render and tokenise, and refuse what would teach nothing or the wrong thing before any cut hides it."""
    renderings: list[Rendering] = []
    sources: list[Source] = []
    for example in chunk:
        rendered = recipe.objective.render(renderer, example)
        renderings.extend(rendered)
        sources.extend([example.source] * len(rendered))
    tokenised = renderer.tokenise_many(renderings)
    check(renderer, renderings, tokenised, sources)
    for (ids, learnt), source in zip(tokenised, sources, strict=True):
        report.longest = max(report.longest, len(ids))
        yield ids, learnt, source


def _fit(recipe: Recipe, rows: list[Tokens], report: DataReport) -> Iterator[Tokens]:
    """Bring over-long examples under `data.max_length` in the recipe's way, and count them."""
    limit = recipe.data.max_length
    how = recipe.data.over_long if recipe.data.over_long != "auto" else recipe.objective.over_long
    long = [(source, len(ids)) for ids, _, source in rows if len(ids) > limit]
    if long and how == "refuse":
        shown = ", ".join(f"{source} ({length:,} tokens)" for source, length in long[:SHOWN])
        more = f" and {len(long) - SHOWN:,} more" if len(long) > SHOWN else ""
        raise UserError(
            f"{len(long):,} of {len(rows):,} examples are longer than data.max_length ({limit:,} tokens): {shown}{more}. "
            "Raise data.max_length, or set data.over_long to truncate, split or drop (they are then counted)."
        )
    hopeless: list[Source] = []
    for ids, learnt, source in rows:
        if len(ids) <= limit:
            yield ids, learnt, source
        elif how == "drop":
            report.dropped += 1
        elif how == "truncate":
            report.truncated += 1
            if learnt[1:limit].any():
                yield ids[:limit], learnt[:limit], source
            else:
                hopeless.append(source)
        else:
            report.split += 1
            yield from _split(ids, learnt, source, limit, report)
    if hopeless:
        shown = ", ".join(str(source) for source in hopeless[:SHOWN])
        raise UserError(
            f"Truncated to data.max_length ({limit:,} tokens), {len(hopeless):,} examples have no learnt token left: "
            f"{shown}. Raise data.max_length, or set data.over_long: drop."
        )


def _split(
    ids: NDArray[np.int32], learnt: NDArray[np.bool_], source: Source, limit: int, report: DataReport
) -> Iterator[Tokens]:
    """Pieces of `limit` tokens; each begins with the last token of the one before, read and not learnt, so that every
    token is predicted exactly once."""
    for start in range(0, len(ids) - 1, limit - 1):
        piece = learnt[start : start + limit].copy()
        piece[0] = learnt[0] if start == 0 else False
        if piece[1:].any():
            yield ids[start : start + limit], piece, source
        else:
            report.unlearnable += 1


def _histogram(lengths: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Counts of examples by length, in about sixteen bins with round edges."""
    longest = int(lengths.max())
    width = next(
        step
        for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
        if step * 16 >= longest or step == 65536
    )
    counts = np.bincount(np.maximum(lengths - 1, 0) // width)
    return [((index + 1) * width, int(count)) for index, count in enumerate(counts)]
