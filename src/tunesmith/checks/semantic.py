"""Rows that mean the same in other words, by an encoder."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.labeled import records_of
from tunesmith.checks.result import Mark
from tunesmith.checks.table import Table
from tunesmith.checks.table_check import TableCheck
from tunesmith.data.example import Source
from tunesmith.errors import UserError

SIMILAR = 0.9
"""The cosine similarity from which two rows mean the same."""

MOST = 100_000
"""Rows that are compared: all of their vectors are in memory, and each is compared with all before it."""

BATCH, BLOCK = 256, 512
"""Rows that are embedded, and compared, at once."""

Vectors = NDArray[np.float32]


def _semantic(table: Table) -> Iterator[Mark]:
    if table.records > MOST:
        raise UserError(
            f"--encoder compares up to {MOST:,} rows, and these are {table.records:,}. Draw some with `tunesmith data "
            "sample`, or leave it out: near_duplicates takes any number."
        )
    sources, vectors = _embedded(table)
    labels = table.column("label")
    for row, other, similarity in same_meaning(vectors, labels):
        detail = f"means the same as {sources[other]} (cosine {similarity:.2f})"
        yield Mark(sources[row], detail, (sources[other],), similarity)


def same_meaning(
    vectors: Vectors, labels: NDArray[np.uint64], least: float = SIMILAR
) -> Iterator[tuple[int, int, float]]:
    """Rows that are similar to an earlier row that is itself kept and has the same label, with the most similar one.

    Args:
        vectors: (rows, hidden), of length 1.
        labels: (rows,).
        least: the similarity from which rows are the same.
    """
    kept = np.ones(len(vectors), bool)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        similarities = block @ vectors[: start + len(block)].T
        similarities[labels[start : start + BLOCK, None] != labels[: start + len(block)]] = -1
        for row, values in enumerate(similarities, start):
            earlier = np.where(kept[:row], values[:row], -1)
            best = int(earlier.argmax()) if row else 0
            if row and earlier[best] >= least:
                kept[row] = False
                yield row, best, float(earlier[best])


def _embedded(table: Table) -> tuple[list[Source], Vectors]:
    from tunesmith.metrics.similarity import encoder_of

    encoder = encoder_of(table.models.encoder)
    sources: list[Source] = []
    parts: list[Vectors] = []
    records = records_of(table)
    while batch := list(islice(records, BATCH)):
        sources += [record.source for record in batch]
        parts.append(encoder.embed(["\n".join(record.texts) or " " for record in batch]))
    vectors = np.concatenate(parts)
    return sources, vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


SEMANTIC_DUPLICATES = TableCheck(
    "semantic_duplicates",
    "Rows that mean the same",
    "note",
    "Keep those that say it in another way on purpose; remove the others.",
    _semantic,
    when=lambda table: bool(table.models.encoder) and table.records > 0,
)
