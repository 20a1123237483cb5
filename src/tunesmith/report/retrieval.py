"""What indexing, searching and asking print in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from tunesmith.report.colors import ALSO, WARNING
from tunesmith.report.formatting import duration
from tunesmith.report.table import evaluation_table

EXAMPLES = 5
"""Unread files that are named."""

LINES = 6
"""Of a chunk's text that are shown."""


def indexed_text(done: Mapping[str, Any]) -> Text:
    """What `index` did.

    Args:
        done: the fields of `Indexed`.

    Returns:
        A line, and one for each of the first files that were not read.
    """
    by = "full text alone" if done["encoder"] is None else f"full text and vectors of {done['encoder']}"
    rate = f", {done['bytes'] / done['seconds'] / 1e6:.2g} MB/s" if done["bytes"] else ""
    removed = f", {done['removed']:,} removed" if done["removed"] else ""
    text = Text(
        f"{done['path']}: {done['files']:,} documents, {done['chunks']:,} chunks, {by}. "
        f"{done['read']:,} read{removed}, in {duration(done['seconds'])}{rate}."
    )
    unread = list(done["unread"].items())
    if unread:
        text.append(f"\n{len(unread):,} files were not read:", WARNING)
        for name, reason in unread[:EXAMPLES]:
            text.append(f"\n  {name}: {reason}")
        if len(unread) > EXAMPLES:
            text.append(f"\n  … and {len(unread) - EXAMPLES:,} more, which --json lists")
    return text


def hits_text(hits: Sequence[Mapping[str, Any]]) -> Text:
    """Chunks that were found.

    Args:
        hits: as `Hit.described` gives them.

    Returns:
        For each its location, its headings and the first lines of its text.
    """
    if not hits:
        return Text("Nothing found.", WARNING)
    parts = []
    for number, hit in enumerate(hits, start=1):
        text = Text(f"{number}. ", "bold")
        text.append(location_of(hit), f"bold {ALSO}").append(f"  {hit['score']:.3f}", "dim")
        if hit["headings"]:
            text.append(f"\n{' › '.join(hit['headings'])}", "dim")
        lines = hit["text"].splitlines()
        text.append("\n" + "\n".join(lines[:LINES]))
        if len(lines) > LINES:
            text.append(f"\n… {len(lines) - LINES} more lines", "dim")
        parts.append(text)
    return Text("\n\n").join(parts)


def location_of(found: Mapping[str, Any]) -> str:
    """Where a chunk or a quoted sentence is: `faq.md:12–15`, or `manual.pdf, page 3`.

    Args:
        found: with `file`, `lines`, and `page` if the format has pages.

    Returns:
        The location.
    """
    first, last = found["lines"]
    if found.get("page") is not None:
        return f"{found['file']}, page {found['page']}"
    return f"{found['file']}:{first}" + (f"–{last}" if last > first else "")


def answer_text(answer: Mapping[str, Any]) -> Text:
    """An answer with its sources.

    Args:
        answer: as `Answer.described` gives it.

    Returns:
        The answer; which of its sentences nothing supports; and the quoted sentences, by number.
    """
    text = Text(answer["answer"])
    if not answer["found"]:
        text.append(f"\nThe most relevant chunk has relevance {answer['relevance']:.2f}", "dim")
        text.append(f" (at least {answer['threshold']:.2f} is asked for).", "dim")
        return text
    if not answer["is_complete"]:
        text.append(" …\nThe answer is cut: it reached the most tokens.", WARNING)
    for claim in answer["claims"]:
        if not claim["supported"]:
            text.append(f"\nNot supported by what it cites: {claim['text']}", WARNING)
    seen = set()
    for citation in answer["citations"]:
        key = citation["number"], citation["quote"]
        if citation["supports"] and key not in seen:
            text.append(f"\n[{citation['number']}] ", "bold").append(location_of(citation), f"bold {ALSO}")
            text.append(f"  “{' '.join(citation['quote'].split())}”")
        seen.add(key)
    return text


def measured_table(result: dict[str, Any]) -> Group:
    """How well each way to search finds the passages of questions.

    Args:
        result: as `measure_questions` returns it.

    Returns:
        The table, and what its numbers are.
    """
    table = evaluation_table(result)
    caption, table.caption = table.caption, None
    alone = f"Way: {result['reference']}. " if len(result["models"]) == 1 else ""
    return Group(table, f"{alone}{caption}")


def made_text(made: Mapping[str, Any]) -> str:
    """What `make_questions` did.

    Args:
        made: the fields of `Made`.

    Returns:
        A line, and one for what was dropped.
    """
    dropped = ", ".join(f"{count:,} × {reason}" for reason, count in made["dropped"].items())
    first = f"{made['path']}: {made['questions']:,} synthetic questions from {made['chunks']:,} chunks."
    return first + (f"\nDropped: {dropped}." if dropped else "")


def tuned_text(tuned: Mapping[str, Any]) -> str:
    """What was chosen on questions.

    Args:
        tuned: `mode`, `weight`, `threshold`, `questions` and `threshold_errors`.

    Returns:
        Two sentences.
    """
    weight = f", weight {tuned['weight']:g} of the cosine" if tuned["mode"] == "weighted" else ""
    errors = tuned["threshold_errors"]
    wrong = errors["wrongly_found"]
    others = "none without an answer was there" if wrong is None else f"{wrong:.0%} of those without one pass it"
    return (
        f"Chosen on {tuned['questions']:,} other questions: {tuned['mode']}{weight}. Answers are found from relevance "
        f"{tuned['threshold']:.2f}: {errors['missed']:.0%} of these questions are below it, and {others}."
    )
