"""`tunesmith data clean`: a cleaned copy of the rows, and a ledger of what became of each."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunesmith.checks.driver import check_data
from tunesmith.checks.inputs import inputs
from tunesmith.checks.mask import find_sensitive
from tunesmith.checks.result import DataChecks
from tunesmith.checks.subject import Subject, of_files
from tunesmith.curation.changing import fixed, has_positions, line_of_values, masked, relabeled
from tunesmith.curation.ledger import Entry, Writer, ledger_path
from tunesmith.curation.marked import Marks, Reason, Representatives
from tunesmith.curation.origin import claimed
from tunesmith.curation.policy import Action, policy, possible_actions
from tunesmith.curation.rows import Item, Line, Paths, Rows
from tunesmith.curation.verdicts import Verdict, digest_of_line, read_verdicts
from tunesmith.data.example import Malformed
from tunesmith.data.read import fingerprint
from tunesmith.errors import UserError
from tunesmith.file_hash import file_sha256
from tunesmith.run import Subscriber, atomic_file, writing

SENSITIVE = ("personal_data", "secrets")
DUPLICATES = ("exact_duplicates", "near_duplicates")


@dataclass(frozen=True)
class Done:
    """What was done because of one check.

    Attributes:
        check: its name.
        title: for people.
        action: what is done with the rows that it marks.
        marked: how many rows it marks.
        rows: with how many of them that was done. Others were left out for another reason, or were kept by a verdict,
            or could not be fixed, or stand for the rows that repeat them.
    """

    check: str
    title: str
    action: Action
    marked: int
    rows: int


@dataclass(frozen=True)
class Cleaned:
    """What `data_clean` wrote.

    Attributes:
        file: with the rows.
        ledger: what became of each row.
        read: rows that were read.
        written: rows in the file.
        fates: rows by fate: `kept`, `dropped`, `masked`, `fixed`, `relabeled`; one row can be masked and fixed.
        done: by check.
        verdicts: rows by what people said of them.
        hidden: rows whose original is not in the ledger, because it holds personal data or secrets.
    """

    file: Path
    ledger: Path
    read: int
    written: int
    fates: Mapping[str, int]
    done: Sequence[Done]
    verdicts: Mapping[str, int]
    hidden: int


def data_clean(
    paths: Paths,
    output: str | Path,
    *,
    actions: Mapping[str, str] | None = None,
    against: Sequence[str | Path] = (),
    verdicts: Sequence[str | Path] = (),
    keep_secrets: bool = False,
    seed: int | str = 0,
    subscribers: Sequence[Subscriber] = (),
) -> Cleaned:
    """Write a cleaned copy of the rows, and beside it `OUTPUT.ledger.jsonl` with every row's fate and reason.

    Rows that are not changed are written as they were, in their order. By default, rows are dropped that are malformed,
    empty, repeated, cut off, in another language, under a suspicious label, or in a file of `against`; broken
    characters are fixed; personal data and secrets are masked, the same value by the same pseudonym everywhere. A row
    with entities or tags at positions in its text is dropped instead of changed. Rows that other checks mark are kept.

    Args:
        paths: files, as `data.train` takes them, or a recipe.
        output: the file of JSON lines to write; neither it nor its ledger may exist.
        actions: what to do by check instead: `drop`, `keep`, `fix` (of `encoding`), `mask` (of `personal_data` and
            `secrets`).
        against: held-out files or benchmarks; rows that are also there are dropped.
        verdicts: files of `data_review`: a row is kept or dropped or gets another label as they say, whatever checks
            say; it is still masked and fixed.
        keep_secrets: whether the ledger has the originals of rows with personal data and secrets, too. Without, they
            stay masked when the file is restored.
        seed: of the pseudonyms. Who knows it can test whether a value is behind one.
        subscribers: receive `progress` events.

    Returns:
        What was done.

    Raises:
        UserError: the rows cannot be read, an action is not possible, nothing would be left, or an output exists or is
            being written.
    """
    target = Path(output)
    ledger = ledger_path(target)
    chosen = policy(actions or {})
    opinions = read_verdicts(verdicts)
    rows = Rows(paths, subscribers)
    subject = _subject(rows, against)
    settings = {
        "actions": chosen,
        "against": {each.name: each.key for each in subject.others},
        "verdicts": fingerprint([str(path) for path in verdicts], Path.cwd()),
        "keep_secrets": keep_secrets,
    }  # not the seed: who has it can test whether a value is behind a pseudonym
    with claimed(target, ledger):
        checks = check_data(subject, only=list(chosen), subscribers=subscribers)
        with (
            writing(target),
            atomic_file(target) as partial,
            atomic_file(ledger) as partial_ledger,
            partial_ledger.open("w", encoding="utf-8") as log,
        ):
            cleaning = _Cleaning(rows, checks, chosen, opinions, keep_secrets, seed, Writer(log))
            cleaning.writer.begin(rows.fingerprints, settings, version("tunesmith"))
            with partial.open("wb") as out:
                cleaning.run(out)
            if not cleaning.written:
                raise UserError(f"No row would be left of {cleaning.read:,}. {_most(cleaning.dropped)}")
            cleaning.writer.end(dict(cleaning.writer.fates), file_sha256(partial), cleaning.contents())
    return Cleaned(
        target, ledger, cleaning.read, cleaning.written, dict(cleaning.writer.fates),
        [Done(name, checks[name].title, action, checks[name].count, cleaning.done[name])
         for name, action in chosen.items() if name in checks],
        dict(cleaning.heard), cleaning.hidden,
    )  # fmt: skip


def _subject(rows: Rows, against: Sequence[str | Path]) -> Subject:
    """The rows as they are read here."""
    data, others = rows.data, of_files([], against).others
    return Subject(tuple(inputs(rows.paths, Path.cwd(), data.format, rows.formats or (), data.columns)), others)


def _most(dropped: Mapping[str, int]) -> str:
    check, count = max(dropped.items(), key=lambda entry: entry[1])
    keeping = f", or use --do {check}=keep" if "keep" in possible_actions(check) else ""
    return f"{check} drops {count:,}: look at them with tunesmith data check{keeping}."


@dataclass
class _Cleaning:
    """The pass over the rows.

    Attributes:
        rows: all rows.
        checks: what they found.
        policy: what is done for each check.
        verdicts: by row.
        keep_secrets: whether the ledger has them.
        seed: of the pseudonyms.
        writer: of the ledger.
    """

    rows: Rows
    checks: DataChecks
    policy: Mapping[str, Action]
    verdicts: Mapping[str, Verdict]
    keep_secrets: bool
    seed: int | str
    writer: Writer
    read: int = 0
    written: int = 0
    hidden: int = 0
    done: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    heard: Counter[str] = field(default_factory=Counter)
    _originals: "defaultdict[str, Any]" = field(default_factory=lambda: defaultdict(hashlib.sha256))
    _represented: Representatives = field(default_factory=Representatives)

    def run(self, out: Any) -> None:
        """Write the rows that are kept, and the ledger."""
        marks = Marks(self.checks, self.policy)
        for row in self.rows.lines("cleaning"):
            self.read += 1
            self._originals[row.source.file].update(row.before + _original(row))
            every = marks.of(row.source)
            if every or self.verdicts:
                line, entry = self._looked_at(self.rows.item(row), every)
            else:  # the checks have parsed it
                line, entry = row.line, _kept(row)
            self.writer.add(entry)
            if line is not None:
                self.written += 1
                out.write(line)
        if marks.left:
            raise UserError(
                f"{marks.left[0].source} has changed since it was checked. Try again when nothing writes it."
            )

    def contents(self) -> dict[str, dict[str, Any]]:
        """Of each file, the SHA-256 of what `data_restore` writes, and what is after its last row."""
        found = {}
        for name, digest in self._originals.items():
            tail = self.rows.tails.get(name, b"")
            digest.update(tail)
            found[name] = {"sha256": digest.hexdigest(), "lines": self.rows.keeps_lines(name)}
            if tail:
                found[name]["tail"] = tail.decode("utf-8", "surrogateescape")
        return found

    def _looked_at(self, item: Item, every: Sequence[Reason]) -> tuple[bytes | None, Entry]:
        """The line to write of a row that is marked, or that may have a verdict; and the ledger's entry."""
        reasons = [reason for reason in every if self._applies(reason)]
        line, entry = self._decided(item, reasons, self._verdict(item))
        repeats = [reason.mark for reason in every if reason.check in DUPLICATES]
        self._represented.add(item.source, line is not None, repeats)
        return line, entry

    def _applies(self, reason: Reason) -> bool:
        """Whether a row is a duplicate of one that is kept; true for other checks."""
        return reason.check not in DUPLICATES or self._represented.repeats(reason.mark) is not None

    def _verdict(self, item: Item) -> Verdict | None:
        if not self.verdicts or isinstance(item.example, Malformed):
            return None
        found = self.verdicts.get(digest_of_line(item.line))
        if found is not None:
            self.heard[found.verdict] += 1
        return found

    def _decided(self, item: Item, reasons: Sequence[Reason], verdict: Verdict | None) -> tuple[bytes | None, Entry]:
        """The line to write, None for a dropped row; and the ledger's entry."""
        said = [] if verdict is None else [f"verdict of {verdict.reviewer}: {verdict.verdict}"]
        if isinstance(item.example, Malformed):
            self.dropped["malformed"] += 1
            self.done["malformed"] += 1
            return None, self._entry(item, "dropped", [f"malformed: {item.example.reason}"], reasons)
        if verdict is not None and verdict.verdict == "drop":
            return None, self._entry(item, "dropped", said, reasons)
        drops = [] if verdict is not None else [reason for reason in reasons if reason.action == "drop"]
        changes = [reason for reason in reasons if reason.action in ("mask", "fix")]
        if changes and not drops and has_positions(json.loads(item.line)):
            drops = changes
        if drops:
            self.done.update(reason.check for reason in drops)
            self.dropped.update(reason.check for reason in drops)
            return None, self._entry(item, "dropped", self._why(drops, reasons), reasons)
        return self._changed(item, reasons, verdict, said)

    def _changed(
        self, item: Item, reasons: Sequence[Reason], verdict: Verdict | None, said: list[str]
    ) -> tuple[bytes, Entry]:
        """A row that is kept, with what is changed in it."""
        values = before = json.loads(item.line)
        changes = []
        for action, fate, change in (("fix", "fixed", fixed), ("mask", "masked", self._masked)):
            for_it = [reason for reason in reasons if reason.action == action]
            after = change(values) if for_it else values
            if after != values:
                changes.append(fate)
                self.done.update({reason.check for reason in for_it})
                said += self._why(for_it, reasons)
            values = after
        if verdict is not None and verdict.label is not None:
            values = relabeled(values, verdict.label, self.rows.format, self.rows.data.columns)
            changes.append("relabeled")
        if values == before:
            return item.line, _kept(item, said)
        return line_of_values(values), self._entry(item, "+".join(changes), said, reasons)

    def _masked(self, values: Any) -> Any:
        return masked(values, self.seed)

    def _why(self, reasons: Sequence[Reason], every: Sequence[Reason]) -> list[str]:
        """In words; without what they quote of a row that holds what must not be in the ledger."""
        if not self.keep_secrets and any(reason.check in SENSITIVE for reason in every):
            return [reason.check for reason in reasons]
        return [f"{reason.check}: {reason.mark.detail}" for reason in reasons]

    def _entry(self, item: Item, fate: str, why: Sequence[str], reasons: Sequence[Reason]) -> Entry:
        """The entry of a row that is not written as it was."""
        was: bytes | None = item.line or None
        is_hidden = not self.keep_secrets and self._is_sensitive(item, reasons)
        if is_hidden:
            self.hidden += 1
            was = self._without_secrets(item) if fate == "dropped" else None
        return Entry(item.source.file, item.source.row, fate, why, was, is_hidden, item.before, item.is_ended)

    def _is_sensitive(self, item: Item, reasons: Sequence[Reason]) -> bool:
        if isinstance(item.example, Malformed):  # no check has looked at it
            is_asked = any(check in self.policy for check in SENSITIVE)
            return is_asked and bool(find_sensitive(item.line.decode("utf-8", "replace")))
        return any(reason.check in SENSITIVE for reason in reasons)

    def _without_secrets(self, item: Item) -> bytes | None:
        if isinstance(item.example, Malformed):
            return None
        return line_of_values(self._masked(json.loads(item.line)))


def _kept(item: Line, why: Sequence[str] = ()) -> Entry:
    """The entry of a row that is written as it was."""
    return Entry(item.source.file, item.source.row, "kept", why, before=item.before, is_ended=item.is_ended)


def _original(item: Line) -> bytes:
    return item.line if item.is_ended else item.line.removesuffix(b"\n")
