"""Drawing from several sources: which rows of each are trained on, and how often, by share, epochs and caps.

What is drawn depends on the seed, the source's name and its rows alone, so that another source changes nothing of it
but how much a share needs.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tunesmith.config.mix import MixSource
from tunesmith.data.tokens import TableBuilder, TokenTable
from tunesmith.errors import UserError


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a source contributes to an epoch.

    Attributes:
        name: of the source.
        available: its training examples.
        drawn: how many of them are trained on; an example that is drawn twice counts twice.
        tokens: in the drawn ones.
        loss_tokens: of these.
        most_often: how often an example of it is drawn, at most.
    """

    name: str
    available: int
    drawn: int
    tokens: int
    loss_tokens: int
    most_often: int

    @property
    def times(self) -> float:
        """How often an example is drawn on average."""
        return self.drawn / self.available if self.available else 0.0


def mixed(
    pools: Mapping[str, TokenTable], sources: Mapping[str, MixSource], seed: int
) -> tuple[TokenTable, tuple[Contribution, ...]]:
    """The training rows of all sources, one source after the other.

    Args:
        pools: the examples of each source.
        sources: how much of each is wanted.
        seed: of what is drawn.

    Returns:
        The rows, and what each source contributes.

    Raises:
        UserError: a source has no example, or too few for its share.
    """
    empty = next((name for name, pool in pools.items() if not len(pool)), None)
    if empty is not None and len(pools) > 1:
        raise UserError(f"{field_of(empty)} has no training example. Give it more rows, or remove it.")
    random = {name: np.random.default_rng([seed, zlib.crc32(name.encode())]) for name in pools}
    capped = {name: _capped(pool, sources[name].max_rows, random[name]) for name, pool in pools.items()}
    wanted = _tokens_wanted({name: int(pools[name].lengths[rows].sum()) for name, rows in capped.items()}, sources)
    builder = TableBuilder()
    found = []
    for name, pool in pools.items():
        lengths = pool.lengths[capped[name]]
        order = (
            _whole(len(lengths), sources[name].epochs, random[name])
            if wanted[name] is None
            else _until(lengths, float(wanted[name] or 0), random[name])
        )
        drawn = pool if _is_all(order, len(pool)) else pool.take(capped[name][order])
        builder.extend(drawn)
        often = int(np.bincount(order).max()) if len(order) else 0
        found.append(Contribution(name, len(pool), len(drawn), len(drawn.ids), drawn.loss_tokens, often))
    table = builder.table()
    return replace(table, source_rows=tuple(each.drawn for each in found)), tuple(found)


def field_of(name: str) -> str:
    """The field of the recipe that names a source."""
    return f"data.{name}" if name in ("train", "replay") else f"data.mix.{name}"


def _capped(pool: TokenTable, most: int | None, random: np.random.Generator) -> NDArray[np.int64]:
    """The rows that may be drawn, in their order."""
    if most is None or most >= len(pool):
        return np.arange(len(pool))
    return np.sort(random.permutation(len(pool))[:most])


def _whole(count: int, epochs: float, random: np.random.Generator) -> NDArray[np.int64]:
    """Each row as often as `epochs` says; the last part of an epoch is drawn at random."""
    full = int(epochs)
    rest = round((epochs - full) * count)
    whole = np.tile(np.arange(count), full)
    return np.concatenate([whole, random.permutation(count)[:rest]]) if rest else whole


def _until(lengths: NDArray[np.int64], tokens: float, random: np.random.Generator) -> NDArray[np.int64]:
    """Rows drawn at random until they have that many tokens; no row once more before all have been drawn as often."""
    full, rest = divmod(tokens, int(lengths.sum()))
    order = random.permutation(len(lengths))
    last = int(np.searchsorted(np.cumsum(lengths[order]), rest)) + 1 if rest > 0.5 else 0
    return np.concatenate([np.tile(order, int(full)), order[:last]])


def _is_all(order: NDArray[np.int64], count: int) -> bool:
    """Whether each row is drawn once, in its place."""
    return len(order) == count and bool((order == np.arange(count)).all())


def _tokens_wanted(held: Mapping[str, int], sources: Mapping[str, MixSource]) -> dict[str, float | None]:
    """The tokens of each source that has a share; None for those that are taken whole.

    Raises:
        UserError: a source has too few.
    """
    shares = {name: source.share for name, source in sources.items() if source.share is not None}
    most = {name: held[name] * sources[name].epochs for name in shares}
    others = sum(held[name] * source.epochs for name, source in sources.items() if name not in shares)
    if len(shares) == len(sources):
        total = min(most[name] / share for name, share in shares.items())
    else:
        total = others / (1 - sum(shares.values()))
    for name, share in shares.items():
        if share * total > most[name] * (1 + 1e-9):
            raise UserError(_too_few(name, sources[name], most[name], share * total, others))
    return {name: shares[name] * total if name in shares else None for name in sources}


def _too_few(name: str, source: MixSource, held: float, needed: float, others: float) -> str:
    field, others_named = field_of(name), "data.train" if name == "replay" else "the sources without a share"
    share = f"{field}_share" if name == "replay" else f"{field}.share"
    times = f" in {source.epochs:g} epochs" if source.epochs != 1 else ""
    more = "" if name == "replay" else f", raise {field}.epochs"
    return (
        f"{field} holds {held:,.0f} tokens{times}, and {share}: {source.share:g} needs {needed:,.0f} for the "
        f"{others:,.0f} of {others_named}. Give more rows{more}, or lower the share."
    )
