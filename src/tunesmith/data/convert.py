"""Human feedback from one form to another: pairs, rankings, ratings, and the best answers as examples."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import Any, Literal, get_args

from tunesmith.config.data import Data
from tunesmith.data.example import Completion, Example, Malformed, Source
from tunesmith.data.examples import DETECT_ROWS, every_row
from tunesmith.data.format_detection import format_of_rows
from tunesmith.data.preferences import PREFERENCES
from tunesmith.data.read import Row, read
from tunesmith.data.report import DataReport, Reason, Reasons
from tunesmith.errors import UserError
from tunesmith.run import atomic_write, writing

Form = Literal["pairs", "rankings", "ratings", "examples"]
READS = ("preference", "ranking", "rating")
"""The row formats that are converted."""


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        format: of the rows read.
        rows: that were read.
        written: rows by what they are.
        left_out: why rows, or answers of them, were left out, the most frequent reason first.
    """

    format: str
    rows: int
    written: Counter[str]
    left_out: tuple[Reason, ...]


@dataclass
class _Prompt:
    """A prompt with everything that is known of answers to it.

    Attributes:
        example: the first row with it.
        completions: of all of its rows.
    """

    example: Example
    completions: list[Completion] = field(default_factory=list)


Written = tuple[str, dict[str, Any]]
"""What a row is called in the counts, and the row."""


def convert(
    paths: str | Sequence[str], to: Form, output: str | Path, pairs: Literal["all", "best_and_worst"] = "all"
) -> Conversion:
    """Write human feedback in another form.

    Ratings of the same prompt are put together; pairs and rankings stay rows of their own.

    Args:
        paths: files of pairs, rankings or ratings, as `data.train` takes them.
        to: `pairs`, `rankings`, `ratings`, or `examples`: chats with the best answers.
        output: the file of JSON lines, which must not exist.
        pairs: of rankings and ratings: all pairs with a difference, or the best and the worst answer.

    Returns:
        Counts of what was read, written and left out.

    Raises:
        UserError: the rows are in no such form, the output exists, or nothing is left.
    """
    target, files = Path(output), [paths] if isinstance(paths, str) else list(paths)
    if to not in get_args(Form):
        raise UserError(f"{to} is not one of {', '.join(get_args(Form))}.")
    if target.exists():
        raise UserError(f"{target} already exists. Choose another output.")
    first = [row for row in islice(read(files, Path.cwd()), DETECT_ROWS) if isinstance(row, Row)]
    format = format_of_rows(first)
    if format not in READS:
        known = ", ".join(PREFERENCES[name].noun for name in READS)
        raise UserError(f"{files[0]}: these rows are in the format {format}; what can be converted is {known}.")
    left_out, written = Reasons(), Counter[str]()
    report = DataReport()
    rows = list(_examples(files, format, report, left_out))
    prompts = _by_prompt(rows) if format == "rating" else [_Prompt(row, list(row.completions)) for row in rows]
    with writing(target), atomic_write(target) as out:
        for prompt in prompts:
            for what, row in CONVERTERS[to](prompt, pairs, left_out):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                written[what] += 1
        if not written:
            reasons = "; ".join(map(str, left_out.by_count()[:3]))
            raise UserError(f"No {to} can be made of these {report.rows:,} rows: {reasons or 'there are none'}.")
    return Conversion(format, report.rows, written, left_out.by_count())


def _examples(files: Sequence[str], format: str, report: DataReport, left_out: Reasons) -> Iterator[Example]:
    data = Data(train=list(files))
    for example in every_row(data, (format,), files, report):
        report.rows += 1
        if isinstance(example, Malformed):
            left_out.add(example.source, example.reason)
        else:
            yield example


def _by_prompt(rows: Iterable[Example]) -> list[_Prompt]:
    """Ratings of the same prompt together, in the order of their first rows."""
    found: dict[str, _Prompt] = {}
    for row in rows:
        key = json.dumps([row.messages, row.tools], sort_keys=True)
        found.setdefault(key, _Prompt(row)).completions.extend(row.completions)
    return list(found.values())


def _pairs(prompt: _Prompt, which: str, left_out: Reasons) -> Iterator[Written]:
    ordered = sorted(prompt.completions, key=lambda completion: -completion.score)
    found = [(up, down) for up, down in combinations(ordered, 2) if up.score > down.score]
    if not found:
        _leave_out(prompt, "no answer to its prompt is better than another", left_out)
    elif which == "best_and_worst":
        found = [(ordered[0], ordered[-1])]
    for up, down in found:
        row = {"chosen": list(up.messages), "rejected": list(down.messages)}
        margin = up.score - down.score
        yield "pairs", {**_prompt(prompt.example), **row, **({} if margin == 1 else {"margin": margin})}


def _rankings(prompt: _Prompt, which: str, left_out: Reasons) -> Iterator[Written]:
    if len({completion.score for completion in prompt.completions}) < 2:
        _leave_out(prompt, "no answer to its prompt is better than another", left_out)
        return
    ordered = sorted(prompt.completions, key=lambda completion: -completion.score)
    row = {"completions": [list(each.messages) for each in ordered], "scores": [each.score for each in ordered]}
    yield "rankings", {**_prompt(prompt.example), **row}


def _ratings(prompt: _Prompt, which: str, left_out: Reasons) -> Iterator[Written]:
    scores = [completion.score for completion in prompt.completions]
    if len(scores) > 1 and min(scores) == max(scores):
        _leave_out(prompt, "its answers are as good as each other, so none is good or bad", left_out)
        return
    low, high = (0.0, 1.0) if len(scores) == 1 else (min(scores), max(scores))
    for completion in prompt.completions:
        if completion.score not in (low, high):
            left_out.add(prompt.example.source, "an answer between the best and the worst is neither good nor bad")
            continue
        is_good = completion.score == high
        row = {"completion": list(completion.messages), "label": is_good}
        yield "good" if is_good else "bad", {**_prompt(prompt.example), **row}


def _best(prompt: _Prompt, which: str, left_out: Reasons) -> Iterator[Written]:
    scores = [completion.score for completion in prompt.completions]
    if (len(scores) > 1 and min(scores) == max(scores)) or (len(scores) == 1 and scores[0] <= 0):
        _leave_out(prompt, "none of its answers is known to be good", left_out)
        return
    example = prompt.example
    for completion in prompt.completions:
        if completion.score == max(scores):
            tools = {"tools": list(example.tools)} if example.tools else {}
            yield "examples", {"messages": [*(example.messages or ()), *completion.messages], **tools}


CONVERTERS: dict[str, Callable[[_Prompt, str, Reasons], Iterator[Written]]] = {
    "pairs": _pairs,
    "rankings": _rankings,
    "ratings": _ratings,
    "examples": _best,
}


def _prompt(example: Example) -> dict[str, Any]:
    tools = {"tools": list(example.tools)} if example.tools else {}
    return {"prompt": list(example.messages or ()), **tools}


def _leave_out(prompt: _Prompt, reason: str, left_out: Reasons) -> None:
    source: Source = prompt.example.source
    left_out.add(source, reason)
