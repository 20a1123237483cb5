"""Which paragraphs are plain English prose, and which are duplicates.

The thresholds were set by reading accepted and rejected paragraphs.
"""

from __future__ import annotations

import ast
import hashlib
import pkgutil
import re
import sys
import sysconfig
from pathlib import Path

from extract import Document

_STOP_WORDS = """
the of and to a in is it that for you with on be this are as or not by from if can an will at have was
which but they when all one there we he his her she him had has i my me your so what no do use used may
more other any some then than also its their these them who been were would into only out up about how
such should must does did our us where while because each between after before over under very
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
LEGAL = re.compile(
    r"(?i)permission is (hereby )?granted|without warranty|merchantability|all rights reserved|"
    r"copyright (\(c\)|©)|"
    r"redistribut\w+ and use in source|free documentation license|general public licen[sc]e|creative commons|"
    r"licensed under|invariant sections|this (documentation|document|program|manual) is free|"
    r"free software foundation|"
    r"as is.{0,12} without|disclaims?|spdx|trademarks? of|last (modified|updated)|generated (by|on)|"
    r"created using|permissive licen|apache licen[sc]e"
)
CODE = re.compile(r"[{}<>\\|=;@#$^~_]|::|->|\(\)|//|&&|\[\w*\]|https?:|\b\w+\.\w+\(|^\s*(import|from|def|class) ")
NAVIGATION = re.compile(
    r"(?i)^(next|previous|prev|up|home|table of contents|contents|index|search|back to|see also|top|note|"
    r"skip to|"
    r"more information|related topics|on this page|view source|edit this page|parameters?|returns?|"
    r"examples?|arguments|"
    r"references|usage|details|value|author\(s\)|options?)\b.{0,24}$"
)
SHINGLE = 8
"""Words in a row that, found in the held-out Python library's own words, make a paragraph a leak."""


def words_of(text: str) -> list[str]:
    return WORD.findall(text)


def is_english(text: str, least: float = 0.18) -> bool:
    """The share of very common English words, which other languages and lists of names do not reach."""
    words = [w.lower() for w in words_of(text)]
    return bool(words) and sum(w in STOP_WORDS for w in words) / len(words) >= least


def is_prose(text: str, *, glossary: bool = False) -> bool:
    """Sentences one could read aloud: letters, spaces and common words, little code, no legal text."""
    if len(text) < 40 or len(text) > 6000 or LEGAL.search(text) or NAVIGATION.match(text):
        return False
    words = words_of(text)
    if len(words) < 7:
        return False
    letters = sum(map(len, words))
    visible = len(text) - text.count(" ")
    if letters / visible < 0.80 or not 3.0 <= letters / len(words) <= 7.5:
        return False
    if len(CODE.findall(text)) > max(1, len(words) // 12):
        return False
    if sum(c.isdigit() for c in text) / visible > 0.08:
        return False
    if sum(ord(c) > 0x24F and not 0x2010 <= ord(c) <= 0x2026 for c in text) > 0.02 * len(text):
        return False
    if sum(w[0].isupper() for w in words) > 0.45 * len(words):
        return False
    return is_english(text, 0.10 if glossary else 0.20)


def is_heading(text: str) -> bool:
    """A short line of words."""
    letters = sum(c.isalpha() or c == " " for c in text)
    return 3 <= len(text) <= 90 and letters / len(text) > 0.85 and not NAVIGATION.match(text) and not CODE.search(text)


def tidy(text: str) -> str:
    """Numbers of sections and marks of footnotes go; quotation marks and dashes become the keyboard's."""
    text = text.translate(str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "…": "..."}))
    text = re.sub(r"``|''(?!\w)", '"', text)
    text = re.sub(r"\s*\[(?:\d{1,3}|citation needed|edit|source)\]", "", text)
    text = re.sub(
        r"^(?:chapter \d+[.:]?|appendix \w[.:]?|§? ?\d+(?:\.\d+)+\.?|\d{1,2}\.)\s+(?=\w)",
        "",
        text,
        flags=re.I,
    )
    return re.sub(r" +([,.;:!?)])(?=\s|$)", r"\1", text.replace("—", " -- ").replace("  ", " ")).strip()


def cleaned(document: Document, *, glossary: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """(title, blocks) of the document's prose. A heading stays only where prose follows it."""
    kept: list[tuple[str, str]] = []
    heading = ""
    for kind, raw in document.blocks:
        text = tidy(raw)
        if kind == "heading":
            heading = text if is_heading(text) else ""
        elif is_prose(text, glossary=glossary):
            if heading:
                kept.append(("heading", heading))
                heading = ""
            kept.append(("paragraph", text))
    title = tidy(document.title)
    if not is_heading(title):
        title = kept[0][1] if kept and kept[0][0] == "heading" else ""
    if kept and kept[0] == ("heading", title):
        kept = kept[1:]
    return title, kept


def _digest(words: list[str]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()


def fingerprints(paragraph: str) -> list[bytes]:
    """Hashes under which a paragraph counts as seen: all its words; first and last 14 where it is long."""
    words = [w.lower() for w in words_of(paragraph)]
    if len(words) <= 24:
        return [_digest(words)]
    return [_digest(words), _digest(["first", *words[:14]]), _digest(["last", *words[-14:]])]


def _docstrings(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [d for node in ast.walk(tree) if isinstance(node, kinds) and (d := ast.get_docstring(node))]


def _builtin_docstrings() -> list[str]:
    texts = []
    for name in sorted(set(sys.builtin_module_names) | {m.name for m in pkgutil.iter_modules([_dynload()])}):
        try:
            module = __import__(name)
        except Exception:  # a module that cannot be imported here has no text to leak from here
            continue
        for value in [module, *vars(module).values()]:
            texts += [
                d
                for item in [value, *(vars(value).values() if isinstance(value, type) else [])]
                if isinstance(d := getattr(item, "__doc__", None), str)
            ]
    return texts


def _dynload() -> str:
    return str(Path(sysconfig.get_path("stdlib")) / "lib-dynload")


def shingles(text: str) -> set[bytes]:
    """Hashes of every run of eight words."""
    words = [w.lower() for w in words_of(text)]
    return {_digest(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


def standard_library_shingles() -> set[bytes]:
    """Every run of eight words in the docstrings of this Python's standard library, tests left out."""
    found: set[bytes] = set()
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            for docstring in _docstrings(path.read_text("utf-8", errors="replace")):
                found |= shingles(docstring)
    for docstring in _builtin_docstrings():
        found |= shingles(docstring)
    return found
