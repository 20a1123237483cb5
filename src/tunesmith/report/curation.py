"""What the acts on data did, in the terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tunesmith.report.colors import WARNING

if TYPE_CHECKING:
    from tunesmith.curation.augment import Augmented
    from tunesmith.curation.balance import Balance
    from tunesmith.curation.clean import Cleaned
    from tunesmith.curation.diff import Difference
    from tunesmith.curation.restore import Restored
    from tunesmith.curation.sample import Sample
    from tunesmith.curation.select import Selection
    from tunesmith.curation.split import Split
    from tunesmith.curation.worst import Worst
    from tunesmith.data.report import Reason

SHOWN = 20
"""Rows of a table; what is left out is counted."""

ROWS = 5
"""Rows of the data that are named for each kind."""


def counts_table(first: str, columns: Mapping[str, Mapping[str, int]]) -> Table:
    """Counts of the same things side by side.

    Args:
        first: what the things are.
        columns: counts by thing, by column.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    things = list(dict.fromkeys(thing for counts in columns.values() for thing in counts))
    for thing in things[:SHOWN]:
        table.add_row(Text(thing), *(f"{counts.get(thing, 0):,}" for counts in columns.values()))
    if len(things) > SHOWN:
        rest = things[SHOWN:]
        sums = (f"{sum(counts.get(thing, 0) for thing in rest):,}" for counts in columns.values())
        table.add_row(f"{len(rest):,} more", *sums, style="dim")
    return table


def malformed_lines(reasons: Sequence["Reason"]) -> list[RenderableType]:
    """Rows that could not be read.

    Args:
        reasons: from an act.
    """
    return [Text(f"left out, malformed: {reason}", style=WARNING) for reason in reasons]


def split_parts(split: "Split") -> list[RenderableType]:
    """What `data_split` wrote.

    Args:
        split: its result.
    """
    total = sum(split.rows.values())
    parts: list[RenderableType] = [
        Text(f"{split.files[side]}  {rows:,} rows ({rows / max(1, total):.1%})") for side, rows in split.rows.items()
    ]
    if split.classes:
        parts.append(counts_table("class", {side: _of(split.classes, side) for side in split.rows}))
    if split.together:
        parts.append(
            Text(
                f"{split.together:,} rows were kept together with others (the same input, the same group, or nearly "
                f"the same text), up to {split.largest:,} in one unit."
            )
        )
    return parts + malformed_lines(split.malformed)


def _of(classes: Mapping[str, Mapping[str, int]], side: str) -> dict[str, int]:
    ordered = sorted(classes.items(), key=lambda entry: -sum(entry[1].values()))
    return {name: counts.get(side, 0) for name, counts in ordered}


def balance_parts(balance: "Balance") -> list[RenderableType]:
    """What `data_balance` wrote.

    Args:
        balance: its result.
    """
    columns = {"before": balance.before, "after": balance.after, "of them different": balance.different}
    short = sum(rows < balance.target for rows in balance.after.values())
    parts: list[RenderableType] = [
        Text(f"Wrote {balance.file}: {balance.rows:,} rows of {len(balance.before):,} classes."),
        counts_table("class", columns),
    ]
    if short:
        parts.append(
            Text(
                f"{short:,} classes have fewer than {balance.target:,} rows: no row is written more often than "
                "--most-copies allows.",
                style=WARNING,
            )
        )
    return parts + malformed_lines(balance.malformed)


def sample_parts(sample: "Sample") -> list[RenderableType]:
    """What `data_sample` wrote.

    Args:
        sample: its result.
    """
    parts: list[RenderableType] = [Text(f"Wrote {sample.file}: {sample.rows:,} of {sample.read:,} rows.")]
    if sample.classes:
        parts.append(counts_table("class", {"rows": sample.classes}))
    return parts + malformed_lines(sample.malformed)


def worst_parts(worst: "Worst") -> list[RenderableType]:
    """What `data_worst` wrote.

    Args:
        worst: its result.
    """
    which = f"the worst {worst.rows:,} of {worst.marked:,} marked rows, the worst first; {worst.read:,} were checked."
    review = Text(f"Look at them with what checks say: tunesmith data review {worst.file}")
    return [Text(f"Wrote {worst.file}: {which}"), review, *malformed_lines(worst.malformed)]


def selection_parts(selection: "Selection") -> list[RenderableType]:
    """What `data_select` wrote.

    Args:
        selection: its result.
    """
    parts: list[RenderableType] = [Text(f"Wrote {selection.file}: {selection.rows:,} of {selection.read:,} rows.")]
    if selection.hopeless:
        hopeless = f"{selection.hopeless:,} rows come last: their prompts do not help the model with their answers."
        parts.append(Text(hopeless, style=WARNING))
    if selection.lost:
        classes = "1 class" if len(selection.lost) == 1 else f"{len(selection.lost):,} classes"
        names = ", ".join(selection.lost[:ROWS]) + (", …" if len(selection.lost) > ROWS else "")
        advice = "Select more rows, or as many of each class: tunesmith data balance."
        parts.append(Text(f"No row of {classes} was chosen: {names}. {advice}", style=WARNING))
    return parts + malformed_lines(selection.malformed)


def augmented_parts(augmented: "Augmented") -> list[RenderableType]:
    """What `data_augment` wrote.

    Args:
        augmented: its result.
    """
    total = augmented.rows + augmented.synthetic
    share = augmented.synthetic / max(1, total)
    parts: list[RenderableType] = [
        Text(f"Wrote {augmented.file}: {total:,} rows, {augmented.synthetic:,} of them synthetic ({share:.0%}).")
    ]
    parts += [Text(f"left out: {count:,} synthetic rows, {why}") for why, count in augmented.left_out.items()]
    return parts + malformed_lines(augmented.malformed)


def diff_parts(difference: "Difference") -> list[RenderableType]:
    """What `data_diff` found.

    Args:
        difference: its result.
    """
    added, removed, changed = (len(each) for each in (difference.added, difference.removed, difference.changed))
    parts: list[RenderableType] = [
        Text(
            f"{difference.rows[0]:,} rows in A, {difference.rows[1]:,} in B: {difference.unchanged:,} unchanged, "
            f"{changed:,} changed, {removed:,} removed, {added:,} added."
        )
    ]
    for change in difference.changed[:ROWS]:
        near = "" if change.similarity is None else f", prompts {change.similarity:.0%} alike"
        parts.append(Text(f"  changed  {change.a} → {change.b}: {', '.join(change.columns) or 'order'}{near}"))
    for name, sources in (("removed", difference.removed), ("added", difference.added)):
        parts += [Text(f"  {name:<8} {source}") for source in sources[:ROWS]]
    shown = sum(min(ROWS, count) for count in (added, removed, changed))
    if shown < added + removed + changed:
        parts.append(Text(f"  {added + removed + changed - shown:,} more", style="dim"))
    parts += _shifts(difference)
    if any(difference.malformed):
        a, b = difference.malformed
        parts.append(Text(f"malformed, compared with nothing: {a:,} in A, {b:,} in B", style=WARNING))
    if difference.file is not None:
        parts.append(Text(f"Wrote {difference.file}: the rows that differ."))
    return parts


def _shifts(difference: "Difference") -> list[RenderableType]:
    """Of labels and lengths."""
    parts: list[RenderableType] = []
    shifted = {name: counts for name, counts in difference.labels.items() if counts[0] != counts[1]}
    if shifted:
        ordered = sorted(shifted, key=lambda name: -abs(shifted[name][1] - shifted[name][0]))
        columns = {side: {name: shifted[name][at] for name in ordered} for at, side in enumerate("AB")}
        parts.append(counts_table("label", columns))
    if difference.relabeled:
        named = {f"{one} → {other}": rows for (one, other), rows in difference.relabeled.items()}
        parts.append(counts_table("relabeled", {"rows": named}))
    lengths = {part: both for part, both in difference.lengths.items() if both[0] != both[1] and all(both)}
    if lengths:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for title in ("characters", "10 %", "median", "90 %", "longest"):
            table.add_column(title, justify="right" if table.columns else "left")
        for part, both in lengths.items():
            for side, quantiles in zip("AB", both, strict=True):
                table.add_row(f"{part}, {side}", *(f"{value:,}" for value in quantiles))
        parts.append(table)
    return parts


def cleaned_parts(cleaned: "Cleaned") -> list[RenderableType]:
    """What `data_clean` wrote.

    Args:
        cleaned: its result.
    """
    fates = ", ".join(f"{count:,} {fate}" for fate, count in cleaned.fates.items())
    parts: list[RenderableType] = [
        Text(f"Wrote {cleaned.file}: {cleaned.written:,} of {cleaned.read:,} rows ({fates}).")
    ]
    shown = [done for done in cleaned.done if done.marked]
    if shown:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for title, justify in (("check", "left"), ("marked", "right"), ("done", "right"), ("", "left")):
            table.add_column(title, justify="right" if justify == "right" else "left")
        for done in shown:
            table.add_row(done.check, f"{done.marked:,}", f"{done.rows:,}", PAST[done.action])
        parts.append(table)
    if cleaned.verdicts:
        parts.append(Text("verdicts: " + ", ".join(f"{count:,} {kind}" for kind, count in cleaned.verdicts.items())))
    parts.append(Text(f"Wrote {cleaned.ledger}: every row's fate. tunesmith data restore undoes it."))
    if cleaned.hidden:
        parts.append(
            Text(
                f"The ledger leaves out what {cleaned.hidden:,} rows with personal data or secrets were; "
                "--keep-secrets keeps it.",
                style=WARNING,
            )
        )
    return parts


PAST = {"drop": "dropped", "mask": "masked", "fix": "fixed"}


def restored_parts(restored: "Restored") -> list[RenderableType]:
    """What `data_restore` wrote.

    Args:
        restored: its result.
    """
    parts: list[RenderableType] = []
    for file in restored.files:
        how = "byte for byte as it was" if file in restored.exact else "as lines of JSON"
        parts.append(Text(f"Wrote {file}, {how}."))
    parts.append(Text(f"{restored.rows:,} rows."))
    if restored.masked:
        parts.append(
            Text(f"{restored.masked:,} rows stay masked: the ledger has no secrets.", style=WARNING),
        )
    if restored.missing:
        parts.append(
            Text(f"{restored.missing:,} malformed rows are missing: the ledger has no lines of them.", style=WARNING)
        )
    return parts
