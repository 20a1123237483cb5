"""Answers to a file of questions: whether they are found, faithful, and cite what supports them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.evaluation.figures import Figures
from tunesmith.evaluation.summary import summary
from tunesmith.inference.model import Model
from tunesmith.inference.model_reference import fingerprint_of
from tunesmith.inference.result_cache import ResultCache, digest_of
from tunesmith.metrics.text import exact_match, word_f1
from tunesmith.retrieval.ask import DEFAULTS, Answer, Asker, AskSettings, Query
from tunesmith.retrieval.citing import SUPPORT, best_support
from tunesmith.retrieval.generation import Generation
from tunesmith.retrieval.prompt import without_citations
from tunesmith.retrieval.questions import Question, about_questions, read_questions, relevant_chunks
from tunesmith.retrieval.search import Index
from tunesmith.run import Events, Subscriber, jsonable
from tunesmith.statistics.measured import Measured, mean_of, ratio_of

TOGETHER = 8
"""Questions that are answered together, and kept."""

Record = dict[str, Any]
"""An answer as `Answer.described`, with `chunks`: the numbers of the prompt's chunks; `grounded`: of each claim,
whether one of them supports it, cited or not."""

TITLES = {
    "retrieved": ("passage among the excerpts", "questions with a passage, of which a chunk was found"),
    "found": ("answered, if there is an answer", "questions with a passage that do not get “not found”"),
    "not_found": ("“not found”, if there is none", "questions without a passage that get “not found”"),
    "faithfulness": ("claims that an excerpt supports", "claims that a sentence of a chunk supports, cited or not"),
    "citation_recall": ("claims that their citations support", "claims that a sentence of a cited chunk supports"),
    "citation_precision": ("citations that support their claim", "cited chunks of which a sentence supports the claim"),
    "citation_relevance": ("citations of the passage", "cited chunks that hold the question's passage"),
    "exact_match": ("exact match", "answers equal to the expected one, without citations, case and final periods"),
    "f1": ("F1 of words", "words that answer and expected answer share (Rajpurkar et al. 2016)"),
}
"""Of figures: the title, and what it is a share of."""


def ask_questions(
    index: str | Path | Index,
    model: str | Path | Model,
    questions: str | Path,
    settings: AskSettings = DEFAULTS,
    subscribers: Sequence[Subscriber] = (),
) -> dict[str, Any]:
    """Answer a file of questions, and measure the answers. Answers are kept in the user's cache: what was killed
    resumes, and what is asked again is not computed again.

    Args:
        index, model: as in `tunesmith.ask`.
        questions: a JSONL file, as `read_questions` explains; with `answer`, answers are compared with it.
        settings: how each is answered.
        subscribers: receive `progress` events.

    Returns:
        As `tunesmith.evaluate`: `figures`, `models` (one), `rows`, `data`; and `answers`: each with its `question`,
        `source`, and `relevant`: which of the prompt's chunks hold its passage.

    Raises:
        UserError: as `tunesmith.ask` and `read_questions` raise, with the row of a question that is too long; or a
            passage is in no chunk.
    """
    path = Path(questions)
    rows = read_questions(path)
    asker = Asker(index, model, settings)
    relevant = relevant_chunks(asker.index.version, rows)
    records = records_of(asker, [Query(row.text, row.source) for row in rows], Events(*subscribers))
    for row, record, chunks in zip(rows, records, relevant, strict=True):
        record |= {"question": row.text, "source": row.source}
        record["relevant"] = [chunk in chunks for chunk in record["chunks"]]
    name = Path(asker.model.name).name
    figures = answer_figures(rows, records)
    about = {"rows": len(rows), "generated_rows": 0, "data": about_questions(path, rows)}
    return {**about, **summary({name: figures}, name), "answers": records}


def records_of(asker: Asker, queries: Sequence[Query], events: Events) -> list[Record]:
    """Answers, of which those that are kept are not computed again.

    Args:
        asker: with the index and the model.
        queries: the questions.
        events: receives `progress`.

    Returns:
        (queries,) records.

    Raises:
        UserError: a question is too long; its row is named.
    """
    model, how = asker.model, asker.settings
    identity = digest_of([fingerprint_of(model.name), str(model.dtype), model.device.type])
    settings = [how.k, how.mode, asker.index.weight, asker.threshold, how.max_new_tokens, how.rerank, how.support]
    cache = ResultCache(identity, ["ask", _digest(asker.index.version), settings])
    keys = [digest_of([query.text, query.injected]) for query in queries]
    missing = list({key: query for key, query in zip(keys, queries, strict=True) if key not in cache}.items())
    for start in range(0, len(missing), TOGETHER):
        events.emit("progress", what="answers", done=start, total=len(missing))
        group = missing[start : start + TOGETHER]
        answers = asker.answers([query for _, query in group])
        cache.add({key: _record(asker, answer) for (key, _), answer in zip(group, answers, strict=True)})
    if missing:
        events.emit("progress", what="answers", done=len(missing), total=len(missing))
    return [dict(cache[key]) for key in keys]


def _digest(version: Generation) -> str:
    """Of the documents and of what the chunks depend on."""
    documents = [[document.file, document.key] for document, _ in version.documents()]
    settings = version.settings
    marks = [settings.size, settings.fingerprint, settings.format, documents]
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()


def _record(asker: Asker, answer: Answer) -> Record:
    grounded = [best_support(claim.text, answer.hits, asker.support) >= SUPPORT for claim in answer.claims]
    record = {**answer.described(), "chunks": [hit.chunk for hit in answer.hits], "grounded": grounded}
    plain: Record = json.loads(json.dumps(jsonable(record)))
    return plain


def answer_figures(rows: Sequence[Question], records: Sequence[Record]) -> Figures:
    """Figures of answers.

    Args:
        rows: the questions.
        records: (questions,) their answers, with `relevant`.

    Returns:
        By name. A figure that no question counts for is left out.
    """
    pairs = list(zip(rows, records, strict=True))
    with_passage = [pair for pair in pairs if pair[0].targets]
    without = [pair for pair in pairs if not pair[0].targets]
    expected = [pair for pair in with_passage if pair[0].answer is not None]
    figures = {
        "retrieved": _mean("retrieved", with_passage, lambda _, record: any(record["relevant"])),
        "found": _mean("found", with_passage, lambda _, record: record["found"]),
        "not_found": _mean("not_found", without, lambda _, record: not record["found"]),
        "faithfulness": _ratio("faithfulness", pairs, lambda record: record["grounded"]),
        "citation_recall": _ratio("citation_recall", pairs, lambda record: _each(record["claims"], "supported")),
        "citation_precision": _ratio(
            "citation_precision", pairs, lambda record: _each(record["citations"], "supports")
        ),
        "citation_relevance": _ratio("citation_relevance", with_passage, _cited_relevant),
        "exact_match": _mean("exact_match", expected, lambda row, record: exact_match(*_texts(row, record))),
        "f1": _mean("f1", expected, lambda row, record: word_f1(*_texts(row, record))),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


def _each(values: Sequence[Record], name: str) -> list[bool]:
    return [each[name] for each in values]


def _cited_relevant(record: Record) -> list[bool]:
    return [record["relevant"][citation["number"] - 1] for citation in record["citations"]]


def _texts(row: Question, record: Record) -> tuple[str, str]:
    assert row.answer is not None
    return without_citations(record["answer"]), row.answer


def _mean(
    name: str, pairs: Sequence[tuple[Question, Record]], value: Callable[[Question, Record], float]
) -> Measured | None:
    """The mean of a value over questions."""
    if not pairs:
        return None
    return mean_of([float(value(*pair)) for pair in pairs], [row.source for row, _ in pairs], *TITLES[name])


def _ratio(
    name: str, pairs: Sequence[tuple[Question, Record]], values: Callable[[Record], list[bool]]
) -> Measured | None:
    """The share of claims or citations, over answers that have any; an interval counts an answer as a whole."""
    counted = [(row.source, found) for row, record in pairs if (found := values(record))]
    if not counted:
        return None
    sums = np.array([sum(found) for _, found in counted], np.float64)
    counts = np.array([len(found) for _, found in counted], np.int64)
    sources = [source for source, _ in counted]
    if sums.sum() in (
        0,
        counts.sum(),
    ):  # all or none: resamples do not differ, and Wilson's interval over answers is used
        return mean_of(sums / counts, sources, *TITLES[name])
    return ratio_of(sums, counts, sources, *TITLES[name], "higher", "share")
