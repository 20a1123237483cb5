"""`tunesmith data augment`: further rows, made of rows, each marked as synthetic with its parent."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.checks.driver import check_data
from tunesmith.curation.chance import mixed
from tunesmith.curation.changing import has_positions, line_of_values
from tunesmith.curation.origin import claimed, origin_path, write_origin
from tunesmith.curation.rewording import Reword, Writer, by_model, by_template, through, with_prompt
from tunesmith.curation.rows import Item, Paths, Rows
from tunesmith.data.example import Malformed
from tunesmith.data.report import Reason, Reasons
from tunesmith.errors import UserError
from tunesmith.run import Events, Subscriber, atomic_write, writing

CHECKS = ("malformed", "empty", "encoding", "control_tokens", "wrong_language", "exact_duplicates", "near_duplicates")
"""Checks whose marks leave a synthetic row out. A template changes too little for the last one."""

BATCH = 16
"""Rows that a model rewords at once."""

COLUMN = "synthetic"
"""The column of a synthetic row that says how it was made, of which row, and by which model."""


@dataclass(frozen=True)
class Augmented:
    """What `data_augment` wrote.

    Attributes:
        file: with the rows.
        rows: that were read and are in it.
        synthetic: further rows in it.
        left_out: synthetic rows that were left out, by reason.
        malformed: rows that could not be read and are not in it, by reason.
    """

    file: Path
    rows: int
    synthetic: int
    left_out: Mapping[str, int]
    malformed: tuple[Reason, ...]


def data_augment(
    paths: Paths,
    output: str | Path,
    *,
    templates: Sequence[str] = (),
    model: str | None = None,
    language: str | None = None,
    back_to: str = "English",
    share: float = 0.2,
    seed: int = 0,
    subscribers: Sequence[Subscriber] = (),
) -> Augmented:
    """Write all rows, and after them synthetic rows: the same with their prompts in other words.

    Answers and labels stay. Each synthetic row has a column `synthetic` with its way, parent and model. Those that a
    check marks, or that repeat another row, are left out. What a model wrote is kept in the user's cache, so that the
    same call continues after an interruption.

    Args:
        paths: files, as `data.train` takes them, or a recipe.
        output: the file to write; it must not exist.
        templates: texts with `{prompt}`.
        model: that paraphrases: a run, a model, or `http://HOST/v1#MODEL`.
        language: the model translates into this one and back, instead of paraphrasing.
        back_to: the language of the rows.
        share: of all rows written, at most, that are synthetic.
        seed: of which rows are reworded, and of the model's answers.
        subscribers: receive `progress` events.

    Returns:
        The counts.

    Raises:
        UserError: the rows or the model cannot be read, nothing says how to reword, or the output exists.
    """
    target = Path(output)
    if not 0 < share < 1:
        raise UserError(f"{share:g} is no share of synthetic rows. Give a number between 0 and 1.")
    if not templates and model is None:
        raise UserError("Nothing says how to reword. Give --template 'text with {prompt}', or --model.")
    if language is not None and model is None:
        raise UserError("--language needs a --model that translates.")
    with claimed(target):
        ways: list[tuple[dict[str, Any], Reword]] = [
            ({"how": "template", "template": text}, by_template(text)) for text in templates
        ]
        writer = None if model is None else Writer(model, seed)
        if writer is not None and language is not None:
            ways.append(({"how": "back-translation", "model": model}, through(writer, language, back_to)))
        elif writer is not None:
            ways.append(({"how": "paraphrase", "model": model}, by_model(writer)))
        rows, malformed, items = Rows(paths, subscribers), Reasons(), list[Item]()
        for item in rows.items():
            if isinstance(item.example, Malformed):
                malformed.add(item.source, item.example.reason)
            else:
                items.append(item)
        most = int(share / (1 - share) * len(items) + 1e-9)
        left_out: Counter[str] = Counter()
        try:
            made = _made(items, ways, most, seed, left_out, Events(*subscribers))
        finally:
            if writer is not None:
                writer.close()
        with writing(target), atomic_write(target, "wb") as out:
            out.writelines([*(item.line for item in items), *made])
        settings = {"templates": list(templates), "model": model, "language": language, "back_to": back_to,
                    "share": share, "seed": seed}  # fmt: skip
        counts = {"rows": len(items), "synthetic": len(made), "left_out": dict(left_out)}
        outputs = {target: len(items) + len(made)}
        write_origin(origin_path(target), "augment", rows.fingerprints, settings, outputs, counts)
        return Augmented(target, len(items), len(made), dict(left_out), malformed.by_count())


def _made(
    items: Sequence[Item],
    ways: Sequence[tuple[dict[str, Any], Reword]],
    most: int,
    seed: int,
    left_out: Counter[str],
    events: Events,
) -> list[bytes]:
    """Synthetic rows, until there are enough; the ways take turns."""
    order = np.argsort(mixed(seed, np.arange(len(items), dtype=np.uint64)), kind="stable").tolist()
    made: list[bytes] = []
    size = BATCH if any("model" in about for about, _ in ways) else max(1, 2 * most)
    for start in range(0, len(order), size):
        if len(made) >= most:
            break
        batch = [items[each] for each in order[start : start + size]]
        candidates = _candidates(batch, ways, start, left_out)
        made += _unmarked([item.line for item in items] + made, candidates, left_out)[: most - len(made)]
        events.emit("progress", what="making rows", done=len(made), total=most)
    return made


def _candidates(
    batch: Sequence[Item], ways: Sequence[tuple[dict[str, Any], Reword]], start: int, left_out: Counter[str]
) -> list[tuple[bytes, str]]:
    """Synthetic rows of some rows in their order, and how each was made."""
    found: dict[int, tuple[bytes, str]] = {}
    for number, (about, reword) in enumerate(ways):
        places = [at for at in range(len(batch)) if (start + at) % len(ways) == number]
        prompts = [_prompt(batch[at]) for at in places]
        for at, prompt, new in zip(places, prompts, reword([prompt or " " for prompt in prompts]), strict=True):
            row, why = _synthetic(batch[at], prompt, new)
            if row is None:
                left_out[why] += 1
            else:
                row[COLUMN] = {**about, "parent": str(batch[at].source)}
                found[at] = line_of_values(row), str(about["how"])
    return [found[at] for at in sorted(found)]


def _synthetic(item: Item, prompt: str, new: str) -> tuple[dict[str, Any] | None, str]:
    """The row with another prompt, or why there is none."""
    values = json.loads(item.line)
    if not prompt or has_positions(values) or not isinstance(values, dict):
        return None, "no prompt that could be reworded"
    if not new.strip() or new == prompt:
        return None, "the model wrote nothing new"
    changed = with_prompt(values, prompt, new)
    return (changed, "") if isinstance(changed, dict) else (None, "the prompt is made of several columns")


def _prompt(item: Item) -> str:
    """What is reworded: the last question, or the labeled text."""
    example = item.example
    assert not isinstance(example, Malformed)
    if example.messages is None:
        return example.text or "" if example.label is not None else ""
    questions = [turn.get("content") for turn in example.messages if turn.get("role") == "user"]
    return questions[-1] if questions and isinstance(questions[-1], str) else ""


def _unmarked(before: Sequence[bytes], candidates: Sequence[tuple[bytes, str]], left_out: Counter[str]) -> list[bytes]:
    """The candidates that no check marks beside the other rows."""
    if not candidates:
        return []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.jsonl"
        path.write_bytes(b"".join([*before, *(line for line, _ in candidates)]))
        found = check_data(path, only=CHECKS, cache=False)
        marked: dict[int, str] = {}
        for result in found.results:
            for mark in result.marks:
                number = mark.source.row - len(before) - 1
                is_template = number >= 0 and candidates[number][1] == "template"
                if number >= 0 and not (is_template and result.name == "near_duplicates"):
                    marked.setdefault(number, result.name)
    left_out.update(marked.values())
    return [line for number, (line, _) in enumerate(candidates) if number not in marked]
