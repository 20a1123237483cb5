"""Forms of rows that tell something of a text: a class, several, a value, a tag for each word, or a text beside it."""

import math
import re
from typing import Any

from tunesmith.data.row_format import RowFormat, Values, needed, said, text_of
from tunesmith.data.turns import NotUnderstoodError, in_words, parsed

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
"""What gets a tag, where a row gives spans and not words; a character, in scripts that put no spaces between words."""

OUTSIDE = "O"
"""The tag of a word that belongs to no entity (Ramshaw & Marcus 1995)."""


def _raw_text(values: Values) -> dict[str, Any]:
    """`text`, or a row or file that is nothing but text."""
    return {"text": said(values, "text")}


def _classification(values: Values) -> dict[str, Any]:
    """`text` and `label`: a name or a number."""
    return {"text": said(values, "text"), "label": _name(needed(values, "label"), "label")}


def _multi_label(values: Values) -> dict[str, Any]:
    """`text` and `labels`: a list of names or numbers, which may be empty; or that list in JSON; or one name."""
    found = needed(values, "labels")
    if isinstance(found, str) and found.lstrip().startswith("["):
        found = parsed(found, "labels")
    names = found if isinstance(found, list) else [found]
    label = tuple(dict.fromkeys(_name(each, "a label") for each in names))
    return {"text": said(values, "text"), "label": label}


def _regression(values: Values) -> dict[str, Any]:
    """`text` and `score`: a number, or a text that is one (as CSV files have it)."""
    found = needed(values, "score")
    try:
        score = math.nan if isinstance(found, bool) else float(found)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise NotUnderstoodError(f"score is {in_words(found)}, not a finite number")
    return {"text": said(values, "text"), "label": score}


def _words(values: Values) -> dict[str, Any]:
    """`tokens` and `tags`: words and a tag for each, as CoNLL files have them."""
    words, tags = (parsed(needed(values, part), part) for part in ("tokens", "tags"))
    if not isinstance(words, list) or not isinstance(tags, list) or not all(isinstance(word, str) for word in words):
        raise NotUnderstoodError("tokens is not a list of words, or tags is no list")
    if len(words) != len(tags):
        raise NotUnderstoodError(f"it has {len(words)} tokens and {len(tags)} tags")
    if not words:
        raise NotUnderstoodError("it has no tokens")
    spans, start = [], 0
    for word, tag in zip(words, tags, strict=True):
        spans.append((start, start + len(word), _name(tag, "a tag")))
        start += len(word) + 1
    return {"text": " ".join(words), "spans": tuple(spans)}


def _entities(values: Values) -> dict[str, Any]:
    """`text` and `entities`: [{start, end, label}] in characters, `end` behind the last; made into a tag for each word:
    `B-` for an entity's first, `I-` for its others, `O` outside (Ramshaw & Marcus 1995)."""
    text, entities = said(values, "text"), parsed(needed(values, "entities"), "entities")
    if not isinstance(entities, list):
        raise NotUnderstoodError(f"entities is {in_words(entities)}, not a list")
    marks: dict[int, tuple[int, str]] = {}  # character → (the entity's start, its label)
    for each in entities:
        start, end, label = _entity(each, text)
        if any(place in marks for place in range(start, end)):
            raise NotUnderstoodError(f"two entities overlap at {text[start:end]!r}")
        marks.update(dict.fromkeys(range(start, end), (start, label)))
    spans, before = [], None
    for word in WORD.finditer(text):
        of = {marks.get(place) for place in range(*word.span())}
        if len(of) > 1:
            raise NotUnderstoodError(f"an entity begins or ends within the word {word.group()!r}")
        inside = of.pop()
        prefix = "I" if inside == before else "B"
        spans.append((*word.span(), OUTSIDE if inside is None else f"{prefix}-{inside[1]}"))
        before = inside
    return {"text": text, "spans": tuple(spans)}


def _pair(values: Values) -> dict[str, Any]:
    """`anchor`, `positive`: two texts that belong together; `negative`: one, or a list, that does not belong to the
    anchor."""
    found = values.get("negative")
    if isinstance(found, str) and found.lstrip().startswith("["):
        found = parsed(found, "negative")
    negatives = [] if found is None else found if isinstance(found, list) else [found]
    if not all(isinstance(text, str) and text.strip() for text in negatives):
        raise NotUnderstoodError("negative is neither a text nor a list of texts")
    return {"text": said(values, "anchor"), "others": (said(values, "positive"), *negatives)}


def _name(value: Any, what: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int) or not str(value).strip():
        raise NotUnderstoodError(f"{what} is {in_words(value)}, not a class's name or number")
    return str(value).strip()


def _entity(each: Any, text: str) -> tuple[int, int, str]:
    if isinstance(each, list) and len(each) == 3:  # spaCy's
        each = dict(zip(("start", "end", "label"), each, strict=True))
    if not isinstance(each, dict):
        raise NotUnderstoodError(f"an entity is {in_words(each)}, not {{start, end, label}}")
    start, end = each.get("start"), each.get("end")
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end <= len(text):
        raise NotUnderstoodError(f"an entity's start and end ({start}, {end}) are no span of the text")
    if not text[start:end].strip():
        raise NotUnderstoodError(f"the entity from {start} to {end} holds no word")
    return start, end, _name(text_of(each, "label"), "an entity's label")


_TEXTS = ("text", "content", "sentence")
_CLASS = ("labels", "category", "class", "intent", "sentiment", "topic")


def _beside_text(*names: str) -> tuple[tuple[str, ...], ...]:
    return tuple((text, name) for text in _TEXTS for name in names)


LABELED: dict[str, RowFormat] = {
    "classification": RowFormat(
        "texts with classes", _beside_text("label", *_CLASS), (), _classification, "classification"
    ),
    "multi_label": RowFormat(
        "texts with several classes", _beside_text("labels", "label", "categories", "tags"), (), _multi_label,
        "multi_label", detected=False,
    ),
    "regression": RowFormat(
        "texts with values", _beside_text("score", "value", "rating", "label", "target"), (), _regression, "regression",
        detected=False,
    ),
    "words": RowFormat(
        "words with tags",
        tuple((words, tags) for words in ("tokens", "words") for tags in ("tags", "ner_tags", "labels")),
        (), _words, "token_classification",
    ),
    "entities": RowFormat(
        "texts with entities", _beside_text("entities", "spans", "label"), (), _entities, "token_classification",
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
