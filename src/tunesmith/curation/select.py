"""`tunesmith data select`: the most useful rows, by diversity, difficulty or quality; or random ones beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tunesmith.checks.quality import quality
from tunesmith.checks.record import Record
from tunesmith.curation.chance import mixed
from tunesmith.curation.chosen import write_chosen
from tunesmith.curation.facility import by_vectors, by_words, facility_location
from tunesmith.curation.origin import claimed
from tunesmith.curation.rows import Paths, Rows
from tunesmith.data.example import Example, Malformed
from tunesmith.data.report import Reason, Reasons
from tunesmith.errors import UserError
from tunesmith.run import Events, Subscriber

By = Literal["diversity", "difficulty", "quality", "random"]

BATCH = 64
"""Rows that a model reads between two reports of progress."""


@dataclass(frozen=True)
class Selection:
    """What `data_select` wrote.

    Attributes:
        file: with the rows.
        rows: in it.
        read: rows that they were chosen from.
        malformed: rows that could not be read, by reason.
        hopeless: rows with a difficulty of 1 or more, which are chosen last: the prompt does not help with the answer.
        lost: classes of which no row was chosen.
    """

    file: Path
    rows: int
    read: int
    malformed: tuple[Reason, ...]
    hopeless: int = 0
    lost: tuple[str, ...] = ()


def data_select(
    paths: Paths,
    rows: int,
    output: str | Path,
    *,
    by: By = "diversity",
    model: str | None = None,
    seed: int = 0,
    subscribers: Sequence[Subscriber] = (),
) -> Selection:
    """Choose rows and write them, in the order of the files.

    - `diversity`: rows that together are similar to all rows (facility location), by shared words, or by the vectors of
      an encoder. All texts are in memory.
    - `difficulty`: rows whose answers a model finds hard to predict even with the prompt: the loss of the answer after
      its prompt, by the loss of the answer alone (`tunesmith.checks.difficulty`), the highest below 1.
    - `quality`: rows with the best form (`tunesmith.checks.quality`).
    - `random`: the same number at random.

    Args:
        paths: files, as `data.train` takes them, or a recipe.
        rows: how many; all, if there are fewer.
        output: the file to write; it must not exist.
        by: what makes a row useful.
        model: for diversity, a model that embeds texts (None: shared words); for difficulty, a language model (None:
            the embedded base).
        seed: of random rows, and of which rows come first where they are equally useful.
        subscribers: receive `progress` events.

    Returns:
        The counts.

    Raises:
        UserError: the rows or the model cannot be read, the model is not of that kind, or the output exists.
    """
    target = Path(output)
    if by not in get_args(By):
        raise UserError(f"{by} is not one of {', '.join(get_args(By))}.")
    if rows < 1:
        raise UserError(f"{rows} is no number of rows to select. Give 1 or more.")
    if model is not None and by in ("quality", "random"):
        raise UserError(f"--by {by} needs no model.")
    with claimed(target):
        source, events, malformed = Rows(paths, subscribers), Events(*subscribers), Reasons()
        records, examples, classes, indices, total = [], [], [], [], 0
        for item in source.items():
            total += 1
            if isinstance(item.example, Malformed):
                malformed.add(item.source, item.example.reason)
            elif (record := item.record) is not None:
                records.append(record if by in ("diversity", "quality") else None)
                if by == "difficulty":
                    examples.append(item.example)
                classes.append(item.example.label if isinstance(item.example.label, str) else None)
                indices.append(item.index)
        chosen, hopeless = _chosen(by, model, records, examples, rows, seed, events)
        copies = np.zeros(total, np.int64)
        copies[np.array(indices, np.int64)[chosen]] = 1
        settings = {"rows": rows, "by": by, "model": model, "seed": seed}
        lost = tuple(sorted({each for each in classes if each is not None} - {classes[each] for each in chosen}))
        counts = {"read": total, "hopeless": hopeless, "lost": lost}
        written = write_chosen(source, target, copies, "select", settings, counts)
        return Selection(target, written, total, malformed.by_count(), hopeless, lost)


def _chosen(
    by: By,
    model: str | None,
    records: Sequence[Record | None],
    examples: Sequence[Example],
    count: int,
    seed: int,
    events: Events,
) -> tuple[NDArray[np.int64], int]:
    """The numbers of the chosen records, and how many are hopeless."""
    draws = mixed(seed, np.arange(len(records), dtype=np.uint64))
    order = np.argsort(draws, kind="stable")
    if by == "random":
        return order[:count], 0
    if by == "difficulty":
        return _hardest(_difficulties(examples, model, events), order, count)
    shuffled = [record for each in order if (record := records[each]) is not None]
    if by == "diversity":

        def done(number: int) -> None:
            events.emit("progress", what="choosing rows", done=number, total=min(count, len(shuffled)))

        gains, similarities = _similarities(shuffled, model, events)
        return order[facility_location(gains, similarities, count, done)], 0
    scores = np.array([quality(record).score for record in shuffled])
    return order[np.argsort(-scores, kind="stable")[:count]], 0


def _hardest(scores: NDArray[np.float64], order: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], int]:
    """The rows with the highest difficulty below 1, then those from 1 on; and how many these are."""
    hopeless = scores[order] >= 1
    return order[np.lexsort((-scores[order], hopeless))[:count]], int(hopeless.sum())


def _similarities(
    records: Sequence[Record], model: str | None, events: Events
) -> tuple[NDArray[np.float64], Callable[[int], NDArray[np.float64]]]:
    texts = ["\n".join(record.texts) for record in records]
    if model is None:
        return by_words(texts)
    from tunesmith.metrics.similarity import encoder_of

    encoder = encoder_of(model)
    parts = []
    for start in range(0, len(texts), BATCH):
        parts.append(encoder.embed([text or " " for text in texts[start : start + BATCH]]))
        done = min(start + BATCH, len(texts))
        events.emit("progress", what="embedding rows", done=done, total=len(texts))
    return by_vectors(np.concatenate(parts))


def _difficulties(examples: Sequence[Example], model: str | None, events: Events) -> NDArray[np.float64]:
    """The instruction-following difficulty of each row, in nats per nat."""
    from tunesmith.checks.difficulty import AnswerLosses, difficulties

    def done(number: int) -> None:
        events.emit("progress", what="scoring rows", done=number, total=len(examples))

    found = difficulties(AnswerLosses(model or "embedded"), examples, done)
    if (lacking := np.flatnonzero(np.isnan(found))).size:
        raise UserError(
            f"--by difficulty needs rows with a prompt and an answer that fit in the model's context, and "
            f"{examples[lacking[0]].source} has none ({lacking.size:,} in all)."
        )
    return found
