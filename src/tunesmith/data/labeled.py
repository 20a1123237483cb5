"""Row formats of labeled texts: a class, several classes, a value, a tag per word, or a second text."""

import math
import re
from typing import Any

from tunesmith.data.row_format import RowFormat, Values, nonempty_text, required, text_of
from tunesmith.data.turns import MalformedRowError, in_words, parsed

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
"""The words that get a tag if a row gives spans and not words; a single character in scripts without spaces."""

OUTSIDE = "O"
"""The tag of a word that belongs to no entity (Ramshaw & Marcus 1995)."""


def _raw_text(values: Values) -> dict[str, Any]:
    """`text`, or a row or file that is only text."""
    return {"text": nonempty_text(values, "text")}


def _classification(values: Values) -> dict[str, Any]:
    """`text` and `label`: a class name or number."""
    return {"text": nonempty_text(values, "text"), "label": _name(required(values, "label"), "label")}


def _multi_label(values: Values) -> dict[str, Any]:
    """`text` and `labels`: a list of names or numbers, which may be empty; or that list as JSON; or one name."""
    labels = required(values, "labels")
    if isinstance(labels, str) and labels.lstrip().startswith("["):
        labels = parsed(labels, "labels")
    names = labels if isinstance(labels, list) else [labels]
    label = tuple(dict.fromkeys(_name(each, "a label") for each in names))
    return {"text": nonempty_text(values, "text"), "label": label}


def _regression(values: Values) -> dict[str, Any]:
    """`text` and `score`: a number, or a number as text (as in CSV files)."""
    value = required(values, "score")
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise MalformedRowError(f"score is {in_words(value)}, not a finite number")
    return {"text": nonempty_text(values, "text"), "label": score}


def _words(values: Values) -> dict[str, Any]:
    """`tokens` and `tags`: words and a tag for each, as in CoNLL files."""
    words, tags = (parsed(required(values, field), field) for field in ("tokens", "tags"))
    if not isinstance(words, list) or not isinstance(tags, list) or not all(isinstance(word, str) for word in words):
        raise MalformedRowError("tokens is not a list of words, or tags is not a list")
    if len(words) != len(tags):
        raise MalformedRowError(f"it has {len(words)} tokens and {len(tags)} tags")
    if not words:
        raise MalformedRowError("it has no tokens")
    spans, start = [], 0
    for word, tag in zip(words, tags, strict=True):
        spans.append((start, start + len(word), _name(tag, "a tag")))
        start += len(word) + 1
    return {"text": " ".join(words), "spans": tuple(spans)}


def _entities(values: Values) -> dict[str, Any]:
    """`text` and `entities`: [{start, end, label}] in characters, `end` exclusive. Each word gets a tag: `B-` for the
    first word of an entity, `I-` for its others, `O` outside (Ramshaw & Marcus 1995)."""
    text, entities = nonempty_text(values, "text"), parsed(required(values, "entities"), "entities")
    if not isinstance(entities, list):
        raise MalformedRowError(f"entities is {in_words(entities)}, not a list")
    marks: dict[int, tuple[int, str]] = {}  # character → (the entity's start, its label)
    for each in entities:
        start, end, label = _entity(each, text)
        if any(character in marks for character in range(start, end)):
            raise MalformedRowError(f"two entities overlap at {text[start:end]!r}")
        marks.update(dict.fromkeys(range(start, end), (start, label)))
    spans, before = [], None
    for word in WORD.finditer(text):
        entities_of_word = {marks.get(character) for character in range(*word.span())}
        if len(entities_of_word) > 1:
            raise MalformedRowError(f"an entity begins or ends inside the word {word.group()!r}")
        inside = entities_of_word.pop()
        prefix = "I" if inside == before else "B"
        spans.append((*word.span(), OUTSIDE if inside is None else f"{prefix}-{inside[1]}"))
        before = inside
    return {"text": text, "spans": tuple(spans)}


def _pair(values: Values) -> dict[str, Any]:
    """`anchor`, `positive`: two texts that match; `negative`: a text, or a list of texts, that do not match the
    anchor."""
    value = values.get("negative")
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parsed(value, "negative")
    negatives = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text.strip() for text in negatives):
        raise MalformedRowError("negative is neither a text nor a list of texts")
    return {"text": nonempty_text(values, "anchor"), "others": (nonempty_text(values, "positive"), *negatives)}


def _name(value: Any, what: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int) or not str(value).strip():
        raise MalformedRowError(f"{what} is {in_words(value)}, not a class name or number")
    return str(value).strip()


def _entity(each: Any, text: str) -> tuple[int, int, str]:
    if isinstance(each, list) and len(each) == 3:  # spaCy's tuples
        each = dict(zip(("start", "end", "label"), each, strict=True))
    if not isinstance(each, dict):
        raise MalformedRowError(f"an entity is {in_words(each)}, not {{start, end, label}}")
    start, end = each.get("start"), each.get("end")
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end <= len(text):
        raise MalformedRowError(f"an entity's start and end ({start}, {end}) are not a span of the text")
    if not text[start:end].strip():
        raise MalformedRowError(f"the entity from {start} to {end} holds no word")
    return start, end, _name(text_of(each, "label"), "an entity's label")


_TEXTS = ("text", "content", "sentence")
_CLASS = ("labels", "category", "class", "intent", "sentiment", "topic")


def _with_text(*names: str) -> tuple[tuple[str, ...], ...]:
    return tuple((text, name) for text in _TEXTS for name in names)


LABELED: dict[str, RowFormat] = {
    "classification": RowFormat(
        "texts with classes", _with_text("label", *_CLASS), (), _classification, "classification"
    ),
    "multi_label": RowFormat(
        "texts with several classes", _with_text("labels", "label", "categories", "tags"), (), _multi_label,
        "multi_label", detected=False,
    ),
    "regression": RowFormat(
        "texts with values", _with_text("score", "value", "rating", "label", "target"), (), _regression, "regression",
        detected=False,
    ),
    "words": RowFormat(
        "words with tags",
        tuple((words, tags) for words in ("tokens", "words") for tags in ("tags", "ner_tags", "labels")),
        (), _words, "token_classification",
    ),
    "entities": RowFormat(
        "texts with entities", _with_text("entities", "spans", "label"), (), _entities, "token_classification",
        detected=False,
    ),
    "pairs": RowFormat(
        "texts in pairs",
        (
            ("anchor", "positive"),
            ("query", "positive"),
            ("query", "passage"),
            ("query", "document"),
            ("question", "context"),
            ("question", "answer"),
            ("title", "text"),
        ),
        ("negative",), _pair, "embedding", detected=False,
    ),
    "text": RowFormat("raw text", (("text",), ("content",)), (), _raw_text),
}  # fmt: skip
