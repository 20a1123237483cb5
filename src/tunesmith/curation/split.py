"""`tunesmith data split`: rows into training, held-out and test files, so that nothing in one is also in another."""

import datetime
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.curation.chance import hashed
from tunesmith.curation.classes import class_of
from tunesmith.curation.origin import SUFFIX, claimed, write_origin
from tunesmith.curation.rows import Item, Paths, Rows
from tunesmith.curation.sides import SIDES, sides_by_class, sides_by_hash, sides_by_time
from tunesmith.curation.units import NearGroups, units
from tunesmith.data.example import Malformed
from tunesmith.data.report import Reason, Reasons
from tunesmith.data.split import content_key
from tunesmith.errors import UserError
from tunesmith.run import Subscriber, atomic_directory, writing


@dataclass(frozen=True)
class Split:
    """What `data_split` wrote.

    Attributes:
        files: by side.
        rows: by side.
        classes: of the column that the split is stratified by: rows by side, by class; empty otherwise.
        together: rows that were kept on one side because another row there has the same input, the same group, or
            nearly the same text.
        largest: rows of the largest such unit.
        malformed: rows that could not be read and are in no file, by reason.
    """

    files: Mapping[str, Path]
    rows: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    together: int
    largest: int
    malformed: tuple[Reason, ...]


@dataclass
class _Seen:
    """What is kept of the rows.

    Attributes:
        keys: hashes of their inputs.
        groups: hashes of their values in the group column.
        near: their groups by what is nearly the same: their inputs, and all of their texts.
        classes: their numbers among `names`.
        times: in the time column.
        usable: whether they can be read.
    """

    keys: "array[int]" = field(default_factory=lambda: array("Q"))
    groups: "array[int]" = field(default_factory=lambda: array("Q"))
    near: list[NDArray[np.int64]] = field(default_factory=list)
    classes: "array[int]" = field(default_factory=lambda: array("l"))
    times: "array[float]" = field(default_factory=lambda: array("d"))
    usable: bytearray = field(default_factory=bytearray)
    names: dict[str, int] = field(default_factory=dict)
    malformed: Reasons = field(default_factory=Reasons)


def data_split(
    paths: Paths,
    output: str | Path,
    *,
    held_out: float = 0.1,
    test: float = 0.0,
    stratify: str | None = None,
    group: str | None = None,
    time: str | None = None,
    near_duplicates: bool = True,
    seed: int = 0,
    subscribers: Sequence[Subscriber] = (),
) -> Split:
    """Write rows into `train.jsonl`, `held_out.jsonl` and, if asked for, `test.jsonl`.

    Rows with the same input are on one side, and by default also rows whose inputs, or all of whose texts, are nearly
    the same. Without `stratify` and `time` a hash of the input decides, so that a row keeps its side when the file
    grows.

    Args:
        paths: files, as `data.train` takes them, or a recipe.
        output: the directory to write; it must not exist.
        held_out: the share of the rows in `held_out.jsonl`.
        test: the share in `test.jsonl`.
        stratify: `label`, or a column: each of its values has these shares on each side, as closely as whole rows
            allow.
        group: a column, such as the customer or the document: rows with the same value are on one side.
        time: a column with numbers or dates (ISO 8601): the latest rows are in `test.jsonl`, those before in
            `held_out.jsonl`.
        near_duplicates: whether rows whose inputs or texts are nearly the same are on one side.
        seed: another one gives other sides.
        subscribers: receive `progress` events.

    Returns:
        What was written.

    Raises:
        UserError: the rows cannot be read, the output exists, or a side would have no rows.
    """
    target, wanted = Path(output), {"train": 1 - held_out - test, "held_out": held_out, "test": test}
    if min(held_out, test) < 0 or wanted["train"] <= 0:
        raise UserError(f"held_out {held_out:g} and test {test:g} must be shares that leave rows to train on.")
    if time is not None and stratify is not None:
        raise UserError("A split by time has no random sides to stratify. Give --time or --stratify.")
    with claimed(target):
        rows = Rows(paths, subscribers)
        settings = {
            "held_out": held_out, "test": test, "stratify": stratify, "group": group, "time": time,
            "near_duplicates": near_duplicates, "seed": seed,
        }  # fmt: skip
        with writing(target), atomic_directory(target) as directory:
            with (
                TemporaryDirectory(dir=directory) as sketches,
                NearGroups(Path(sketches) / "inputs") as inputs,
                NearGroups(Path(sketches) / "texts") as texts,
            ):
                seen = _look(rows, stratify, group, time, (inputs, texts) if near_duplicates else ())
            unit = _units(seen)
            sides = _sides(seen, unit, wanted, seed)
            _refuse_empty(sides, wanted, np.bincount(unit).max(initial=0))
            return _write(rows, directory, target, seen, sides, unit, settings)


def _look(rows: Rows, stratify: str | None, group: str | None, time: str | None, near: tuple[NearGroups, ...]) -> _Seen:
    """The first pass: what decides the sides. `near` has the rows' inputs, and all of their texts; or is empty."""
    seen = _Seen()
    for item in rows.items("looking for rows that belong together" if near else "reading"):
        seen.usable.append(not isinstance(item.example, Malformed))
        if isinstance(item.example, Malformed):
            seen.malformed.add(item.source, item.example.reason)
            continue
        seen.keys.append(hashed(content_key(item.example)))
        if group is not None:
            value = item.column(group)
            seen.groups.append(hashed(item.index) if value is None else hashed(value))
        if stratify is not None:
            seen.classes.append(seen.names.setdefault(class_of(item, stratify), len(seen.names)))
        if time is not None:
            seen.times.append(_time_of(item, time))
        if near:
            record = item.record
            assert record is not None
            for groups, text in zip(near, (record.given or record.learned, " ".join(record.texts)), strict=True):
                groups.add(text)
    seen.near = [each.groups() for each in near]
    return seen


def _time_of(item: Item, column: str) -> float:
    value = item.column(column)
    try:
        if isinstance(value, datetime.datetime):
            return value.timestamp()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        found = datetime.datetime.fromisoformat(str(value))
        return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()
    except ValueError:
        raise UserError(
            f"{item.source}: {column} {value!r} is neither a number nor a date such as 2026-01-31."
        ) from None


def _units(seen: _Seen) -> NDArray[np.int64]:
    kinds = [np.array(seen.keys, np.uint64)]
    if seen.groups:
        kinds.append(np.array(seen.groups, np.uint64))
    return units([*kinds, *seen.near])


def _sides(seen: _Seen, unit: NDArray[np.int64], wanted: Mapping[str, float], seed: int) -> NDArray[np.int8]:
    if seen.times:
        return sides_by_time(np.array(seen.times), unit, wanted)
    keys = np.array(seen.groups or seen.keys, np.uint64)
    if seen.names:
        return sides_by_class(np.array(seen.classes), keys, unit, wanted, seed)
    return sides_by_hash(keys, unit, wanted, seed)


def _refuse_empty(sides: NDArray[np.int8], wanted: Mapping[str, float], largest: int) -> None:
    counts = np.bincount(sides, minlength=len(SIDES))
    for number, name in enumerate(SIDES):
        if wanted[name] > 0 and not counts[number]:
            raise UserError(
                f"No row would be in {name}.jsonl: of {len(sides):,} rows, up to {largest:,} belong together (the same "
                "input, the same group, or nearly the same text). Give more rows, a larger share, or another --seed."
            )


def _write(
    rows: Rows,
    directory: Path,
    target: Path,
    seen: _Seen,
    sides: NDArray[np.int8],
    unit: NDArray[np.int64],
    settings: dict[str, Any],
) -> Split:
    """The second pass: each row into its file in a directory, which is going to be the target."""
    names = [name for number, name in enumerate(SIDES) if number == 0 or settings[name] > 0]
    counts: Counter[str] = Counter(dict.fromkeys(names, 0))
    classes: dict[str, Counter[str]] = {name: Counter() for name in seen.names}
    labels = list(seen.names)
    sizes = np.bincount(unit)
    together, largest = int(sizes[sizes > 1].sum()), int(sizes.max(initial=0))
    files = {name: (directory / f"{name}.jsonl").open("wb") for name in names}
    try:
        number = 0
        for line in rows.lines("writing"):
            if not seen.usable[line.index]:
                continue
            side = SIDES[sides[number]]
            files[side].write(line.line)
            counts[side] += 1
            if labels:
                classes[labels[seen.classes[number]]][side] += 1
            number += 1
    finally:
        for file in files.values():
            file.close()
    paths = {name: directory / f"{name}.jsonl" for name in names}
    outcome = {"rows": dict(counts), "malformed": seen.malformed.rows, "together": together}
    outputs = {path: counts[name] for name, path in paths.items()}
    write_origin(directory / f"split{SUFFIX}", "split", rows.fingerprints, settings, outputs, outcome)
    written = {name: target / f"{name}.jsonl" for name in names}
    return Split(written, dict(counts), classes, together, largest, seen.malformed.by_count())
