"""Question–answer pairs from the documentation of the running Python: real data on every machine.

The question names an object of the standard library, with its module and signature. The answer is the kind of the
object and the first sentence of its docstring. Entire modules are held out, by the hash of the top-level name, so that
nothing of a held-out module, nor of its package, is in the training data.

    python -m tunesmith.demo.docstrings --out FILE
"""

import argparse
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from tunesmith.demo.standard_library import Documented, documented
from tunesmith.run import atomic_write

HELD_OUT_SHARE = 0.075  # of modules; about a tenth of the pairs, from some fifteen modules
LONGEST_ANSWER = 30  # words
LONGEST_SIGNATURE = 120  # characters; longer ones are shown without defaults

QUESTION = "What is `{}`?"
ANSWER = "{kind}. {sentence}"


@dataclass(frozen=True, slots=True)
class Pair:
    """A question about one documented object, and its answer.

    Attributes:
        question: contains the qualified name and signature.
        answer: the object's kind, and one sentence.
        module: the object's module: `xml.dom.minidom`.
        name: its qualified name: `xml.dom.minidom.parse`.
    """

    question: str
    answer: str
    module: str
    name: str


def pairs(left_out: Counter[str] | None = None) -> list[Pair]:
    """All pairs from the standard library of the running Python, in a fixed order.

    Args:
        left_out: if given, counts the documented objects that gave no pair, by reason.
    """
    kept = []
    seen: set[str] = set()
    reasons = left_out if left_out is not None else Counter()
    for thing in documented():
        answer, reason = summary(thing)
        if thing.name in seen:
            reasons["the same name again"] += 1
        elif answer is None:
            reasons[reason] += 1
        else:
            seen.add(thing.name)
            full_answer = ANSWER.format(kind=thing.kind.capitalize(), sentence=answer)
            kept.append(Pair(question(thing), full_answer, thing.module, thing.name))
    return kept


def question(thing: Documented) -> str:
    """The question about it: ``What is `shutil.copyfile(src, dst, *, follow_symlinks=True)`?``"""
    signature = thing.signature or _signature_in_text(thing)
    if len(signature) > LONGEST_SIGNATURE:
        without_defaults = re.sub(r"=(?:\([^()]*\)|'[^']*'|[^,()])*", "", signature)
        names = re.findall(r"(?:^[(]|, )([*]{0,2}\w+|[*]|/)", without_defaults)
        signature = f"({', '.join(names)})"
    return QUESTION.format(f"{thing.name}{signature}")


def _signature_in_text(thing: Documented) -> str:
    """C code often has its signature in the docstring's first line: B.count(sub[, start]) -> int."""
    name = thing.name.rpartition(".")[2]
    match = re.match(rf"(?:\w+\.)?{re.escape(name)}(\((?:[^()]|\([^()]*\))*\))", thing.docstring.lstrip())
    return match[1] if match and thing.kind in ("function", "method") else ""


_MARKUP = (
    (r":[a-z:]+:`~?([^`<]+?)(?: <[^`>]*>)?`", r"\1"),  # reStructuredText roles: :func:`open`
    (r"``([^`]+)``|`([^`']+)[`']", r"\1\2"),
    (r"(?<![\w*])\*{1,2}(\w[^*]*?)\*{1,2}(?![\w*])", r"\1"),
    (r"\s+", " "),
)
_SIGNATURE = r"(?:[A-Za-z_][\w.]*)\((?:[^()]|\([^()]*\))*\)"
_SIGNATURE_LINE = re.compile(rf"^{_SIGNATURE}\s*(?:(?:-+>|=>)[^.]*|--?|:)?$")
_SIGNATURE_PREFIX = re.compile(
    rf"^{_SIGNATURE}(?:\s*-+>\s*[\w ,.|\[\]()]*?(?:\.\s|:\s|\s--\s|\s-\s)|\s*(?::|--?)\s+)\s*(?=\S)"
)
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\betc)(?<!\bcf)(?<!\b[A-Z])[.!?][)'\"]?(?=\s|$)")
_STOPS = re.compile(r"^\s*(?:>>>|[-=~^*]{3,}$|:\w+|[-*] |(?:Args|Arguments|Parameters|Returns|Usage|Example)s?:)")
_WORD = re.compile(r"^[A-Za-z][\w.'/-]*[,;:]?$")
_NOT_AN_ANSWER = re.compile(
    r"(?i)^(?:deprecated|internal|obsolete|todo|xxx|see\b|same as|alias|helper|private|undocumented|"
    r"not implemented|copyright|\w+ \[|this (?:class|function|method) is (?:deprecated|obsolete|private))|"
    r"deprecated|>>>|-+>|[:,]$|https?:"
)


def summary(thing: Documented) -> tuple[str | None, str]:
    """The docstring's first sentence on one line (PEP 257's summary), or None with the reason.

    A leading signature and markup are removed; a capital letter and a period are added if missing.
    """
    text = _plain(_first_paragraph(thing.docstring))
    text = _SIGNATURE_PREFIX.sub("", text)
    for name in (thing.name, thing.name.rpartition(".")[2]):
        text = text.removeprefix(f"{name}: ")
    end = _SENTENCE_END.search(text)
    sentence = text[: end.end()] if end else text
    words = sentence.split()
    if len(words) < 3:
        return None, "fewer than three words"
    if len(words) > LONGEST_ANSWER:
        return None, f"more than {LONGEST_ANSWER} words"
    if _NOT_AN_ANSWER.search(sentence) or not _WORD.match(words[0]) or not sentence.isascii():
        return None, "not a description in plain English"
    if sentence.count("(") != sentence.count(")"):
        return None, "cut in the middle"
    first = words[0]
    if first.isalpha() and first.islower():
        sentence = sentence[0].upper() + sentence[1:]
    return (sentence if sentence[-1] in ".!?" else f"{sentence}."), ""


def _first_paragraph(docstring: str) -> str:
    """The lines up to the first blank line, joined; leading lines that only repeat the signature are skipped."""
    lines: list[str] = []
    for line in docstring.strip().splitlines():
        if not lines and (not line.strip() or _SIGNATURE_LINE.match(line.strip())):
            continue
        if not line.strip() or _STOPS.match(line):
            break
        lines.append(line.strip())
    return " ".join(lines)


def _plain(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def is_held_out(module: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether a module's top-level package is held out: sha256(its name), as a number in [0, 1), < `share`."""
    top = module.partition(".")[0]
    return int.from_bytes(hashlib.sha256(top.encode()).digest()[:8], "big") / 2**64 < share


class Answered(Protocol):
    """A row of a demo: its answer, and the module that it is about."""

    @property
    def answer(self) -> str: ...

    @property
    def module(self) -> str: ...


AnyRow = TypeVar("AnyRow", bound=Answered)


def split(all_rows: Iterable[AnyRow], share: float = HELD_OUT_SHARE) -> tuple[list[AnyRow], list[AnyRow], int]:
    """Training rows, held-out rows, and the number of held-out rows removed because training has the same answer."""
    sides: tuple[list[AnyRow], list[AnyRow]] = ([], [])
    for row in all_rows:
        sides[is_held_out(row.module, share)].append(row)
    trained_answers = {row.answer.casefold() for row in sides[0]}
    kept = [row for row in sides[1] if row.answer.casefold() not in trained_answers]
    return sides[0], kept, len(sides[1]) - len(kept)


def write_pairs(directory: str | Path, share: float = HELD_OUT_SHARE) -> tuple[Path, Path, dict[str, int]]:
    """Write `train.jsonl` and `held_out.jsonl` into `directory`.

    Returns:
        Both paths, and counts: documented, pairs, train, held_out, train_modules, held_out_modules
        (top-level ones), held_out_removed (training has the same answer), and what was left out, by reason.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    left_out: Counter[str] = Counter()
    kept = pairs(left_out)
    train, held_out, removed = split(kept, share)
    counts = {
        "documented": len(kept) + left_out.total(),
        "pairs": len(kept),
        "train": len(train),
        "held_out": len(held_out),
        "train_modules": len({pair.module.partition(".")[0] for pair in train}),
        "held_out_modules": len({pair.module.partition(".")[0] for pair in held_out}),
        "held_out_removed": removed,
        **{f"left out: {reason}": count for reason, count in sorted(left_out.items())},
    }
    files = (directory / "train.jsonl", directory / "held_out.jsonl")
    for file, side in zip(files, (train, held_out), strict=True):
        _write(file, side)
    return files[0], files[1], counts


def _write(file: Path, rows: Iterable[Pair]) -> None:
    with atomic_write(file) as out:
        out.writelines(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write all pairs to one file."""
    parser = argparse.ArgumentParser(description="Pairs from this Python's documentation, as JSONL.")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    _write(parser.parse_args(arguments).out, pairs())


if __name__ == "__main__":
    main()
