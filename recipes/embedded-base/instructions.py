"""Makes short instructions and answers from the corpus, so that the base model learns to answer and stop.

    python instructions.py --corpus /data/corpus --cache /data/cache --out /data/instructions

Every row is made by a rule: words and meanings come from WordNet, descriptions of programs and functions from the first
lines of their manual pages, sentences and titles from the corpus, and all other tasks transform such sentences. Nothing
comes from Python's standard library.

Writes instruct.jsonl, rows {"messages", "task", "source"}.

Needs the packages that `corpus.py` downloaded, in its cache.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from corpus import files_of, log, write_lines
from extract import from_man, wordnet_entries
from packages import PACKAGES
from prose import STOP_WORDS, is_prose, standard_library_shingles
from prose import shingles as shingles_of

KNOWN, FAMILIAR = 10, 100
"""In how many documents a word must occur to be used in a question, and in a made-up name."""
MOST_SENTENCES = 3000
"""Per package."""
COARSE = re.compile(
    r"(?i)\b(slur|obscen\w*|offensive|vulgar|disparag\w*|slang|sex\w*|genital\w*|prostitut\w*|anus|feces|"
    r"rape\w*|excret\w*|vagina\w*|penis|copulat\w*|intercourse|erotic\w*|nipple|buttocks|murder\w*|suicide)\b"
)


class Row(NamedTuple):
    """One question and its answer, and the source of their words."""

    question: str
    answer: str
    source: str


@dataclass
class Material:
    """The material of the questions."""

    meanings: list[tuple[str, str, str]] = field(default_factory=list)
    """(word, part of speech, gloss)"""
    examples: list[tuple[str, str]] = field(default_factory=list)
    """(word, a sentence that has it)"""
    synonyms: list[tuple[str, str]] = field(default_factory=list)
    antonyms: list[tuple[str, str]] = field(default_factory=list)
    programs: list[tuple[str, str, str]] = field(default_factory=list)
    """(name, what it does, source)"""
    functions: list[tuple[str, str, str]] = field(default_factory=list)
    sentences: list[tuple[str, str]] = field(default_factory=list)
    """(sentence, source)"""
    titled: list[tuple[str, str, str]] = field(default_factory=list)
    """(title, first paragraph, source)"""
    nouns: list[str] = field(default_factory=list)
    """Common nouns of one word, for names of things."""
    adjectives: list[str] = field(default_factory=list)


# Material -----------------------------------------------------------------------------------------------


def sentence_case(text: str) -> str:
    """First letter large, one full stop at the end."""
    text = text.strip().rstrip(" .;,:")
    return text[:1].upper() + text[1:] + ("" if text.endswith(("!", "?")) else ".")


def read_wordnet(text: str, common: Counter[str], material: Material) -> None:
    """Meanings, examples, synonyms and antonyms of words that the corpus uses."""
    for entry in re.split(r"\n(?=\S)", text):
        word = entry.partition("\n")[0].strip()
        flat = re.sub(r"\s+", " ", entry)
        if not re.fullmatch(r"[a-z]{3,14}", word) or common[word] < KNOWN or COARSE.search(flat):
            continue
        for kind, pairs in (("syn", material.synonyms), ("ant", material.antonyms)):
            found = re.search(rf"\[{kind}: ([^\]]*)\]", flat)
            others = re.findall(r"\{([a-z]{3,20})\}", found[1]) if found else []
            pairs += [(word, other) for other in others if other != word and common[other] >= KNOWN][:1]
        for _, senses in wordnet_entries(entry + "\n"):
            part, gloss, _ = senses[0]
            gloss = re.sub(r"\s*\([^)]*\)\s*", " ", gloss).strip()
            if 15 < len(gloss) < 150 and word not in gloss.lower().split():
                material.meanings.append((word, part, gloss))
            if 3 < len(word) < 11 and common[word] >= FAMILIAR:
                if part == "noun" and not word.endswith(("s", "ing")):
                    material.nouns.append(word)
                elif part == "adjective":
                    material.adjectives.append(word)
            for _, _, examples in senses[:3]:
                whole = [e for e in examples if re.search(rf"\b{word}\b", e, re.I) and 4 <= len(e.split()) <= 16]
                material.examples += [(word, sentence_case(e)) for e in whole[:1]]


def read_manual_pages(cache: Path, material: Material) -> None:
    """Each manual page's name and the line that says what it is."""
    for package in PACKAGES:
        deb = next((cache / "debs").glob(f"{package.name}_*.deb"), None)
        if deb is None or package.reader or package.name.startswith("python"):
            continue
        for path, reader, contents in files_of(deb, package) if holds_manual_pages(deb) else ():
            section = re.search(r"/man/man([1-8])", path)
            if reader != "man" or section is None:
                continue
            blocks = [b for d in from_man(contents[:4000]) for _, b in d.blocks[:2]]
            found = (
                re.match(r"([\w.+-]{2,24})(?:, [\w.+, -]+)? (?:--?|—) (.{12,120})$", blocks[1])
                if len(blocks) > 1
                else None
            )
            if found is None or not re.fullmatch(r"[\w\s,.'()/-]+", found[2]):
                continue
            entry = (found[1], sentence_case(found[2]), f"{package.name}:{path}")
            if section[1] in "168" and not found[1].startswith("perl"):
                material.programs.append(entry)
            elif section[1] in "23" and re.fullmatch(r"[a-z][a-z0-9_]+", found[1]):
                material.functions.append(entry)


def holds_manual_pages(deb: Path) -> bool:
    """Whether reading the package is worth the time: games' and pictures' archives are large and have few."""
    return deb.stat().st_size < 40_000_000


def read_corpus(path: Path, material: Material) -> Counter[str]:
    """Sentences and titled paragraphs; returns in how many documents each word is, dictionaries aside."""
    common: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            blocks = row["text"].split("\n\n")
            source = row["source"]
            package = source.partition(":")[0]
            if package in ("dict-wn", "dict-gcide", "python3.11-doc", "dict-vera"):
                continue
            common.update(set(re.findall(r"\b[a-z]{3,}\b", row["text"])))
            if taken[package] > MOST_SENTENCES:
                continue
            for block in blocks[:30]:
                for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", block):
                    if is_plain_sentence(sentence):
                        material.sentences.append((sentence, source))
                        taken[package] += 1
            if len(blocks) > 1 and fits_its_title(blocks[0], blocks[1]):
                material.titled.append((blocks[0], blocks[1], source))
    return common


def fits_its_title(title: str, paragraph: str) -> bool:
    """A title of plain words, one of which, beyond the very common, its paragraph has."""
    content = {w.lower()[:6] for w in re.findall(r"[A-Za-z]{4,}", title)} - STOP_WORDS
    return (
        re.fullmatch(r"[A-Z][\w ,'-]{7,59}", title) is not None
        and is_prose(paragraph)
        and 80 < len(paragraph) < 420
        and paragraph.endswith(".")
        and any(w in paragraph.lower() for w in content)
    )


def is_plain_sentence(text: str) -> bool:
    """Whether the text is one short, complete sentence of plain words and punctuation."""
    return (
        25 < len(text) < 120
        and re.fullmatch(r"[A-Z][\w ,;'\-]+[.!?]", text) is not None
        and sum(c.isdigit() for c in text) < 3
        and sum(w.lower() in STOP_WORDS for w in text.split()) >= 2
        and not re.search(r"\b[a-z]+[A-Z_]|_|\b(above|below|following)\b", text)
        and not COARSE.search(text)
    )


# Tasks: each yields rows forever, or until its material is used up ----------------------------------


Task = Callable[[Material, random.Random], Iterator[Row]]


def shuffled(items: list[Any], draw: random.Random) -> list[Any]:
    """A shuffled copy without repeats."""
    unique = list(dict.fromkeys(items))
    draw.shuffle(unique)
    return unique


def say_one(draw: random.Random, phrasings: list[str], **pack_any_order: str) -> str:
    """One of the phrasings, with its blanks filled."""
    return draw.choice(phrasings).format(**pack_any_order)


def define(material: Material, draw: random.Random) -> Iterator[Row]:
    """A word's meaning."""
    phrasings = [
        "What does '{w}' mean?",
        "Define '{w}'.",
        "What is the meaning of the word '{w}'?",
        "Define the word '{w}'.",
        "Explain '{w}' in a few words.",
        "Tell me what '{w}' means.",
    ]
    for word, _, gloss in shuffled(material.meanings, draw):
        yield Row(say_one(draw, phrasings, w=word), sentence_case(gloss), "dict-wn")


def look_up(material: Material, draw: random.Random) -> Iterator[Row]:
    """The right one of three given meanings, copied."""
    while True:
        three = draw.sample(material.meanings, 3)
        notes = "\n".join(f"{w}: {sentence_case(g)}" for w, _, g in three)
        word, _, gloss = draw.choice(three)
        asked = say_one(
            draw,
            [
                "Use this list to answer.\n{n}\nWhat does '{w}' mean?",
                "{n}\n\nWhat is '{w}'?",
                "Read this:\n{n}\n\nWhat does it say about '{w}'?",
                "{n}\nCopy the line about '{w}', without the word.",
            ],
            n=notes,
            w=word,
        )
        yield Row(asked, sentence_case(gloss), "dict-wn")


def part_of_speech(material: Material, draw: random.Random) -> Iterator[Row]:
    """Noun, verb, adjective or adverb."""
    phrasings = [
        "Is '{w}' a noun, a verb, an adjective or an adverb?",
        "What part of speech is '{w}'?",
        "Which kind of word is '{w}'?",
    ]
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for word, part, _ in shuffled(material.meanings, draw):
        kinds[part].append(word)
    for words in zip(*kinds.values(), strict=False):
        for part, word in zip(kinds, words, strict=True):
            yield Row(say_one(draw, phrasings, w=word), f"{part.capitalize()}.", "dict-wn")


def use_in_sentence(material: Material, draw: random.Random) -> Iterator[Row]:
    """A sentence with a given word."""
    phrasings = [
        "Use the word '{w}' in a sentence.",
        "Write a sentence with the word '{w}'.",
        "Give an example of '{w}' in a sentence.",
        "Show how '{w}' is used.",
    ]
    for word, example in shuffled(material.examples, draw):
        yield Row(say_one(draw, phrasings, w=word), example, "dict-wn")


def synonym(material: Material, draw: random.Random) -> Iterator[Row]:
    """Another word for the same."""
    phrasings = [
        "Give another word for '{w}'.",
        "What is a synonym of '{w}'?",
        "Which word means the same as '{w}'?",
    ]
    for word, other in shuffled(material.synonyms, draw):
        yield Row(say_one(draw, phrasings, w=word), f"{other.capitalize()}.", "dict-wn")


def antonym(material: Material, draw: random.Random) -> Iterator[Row]:
    """The opposite."""
    phrasings = [
        "What is the opposite of '{w}'?",
        "Give the opposite of '{w}'.",
        "Which word is the opposite of '{w}'?",
    ]
    for word, other in shuffled(material.antonyms, draw):
        yield Row(say_one(draw, phrasings, w=word), f"{other.capitalize()}.", "dict-wn")


def what_a_program_does(material: Material, draw: random.Random) -> Iterator[Row]:
    """A program's one line."""
    phrasings = [
        "What does the program {p} do?",
        "What is {p} for?",
        "Describe the command {p} in one sentence.",
        "What does {p} do?",
        "Tell me about the command {p}.",
    ]
    for name, line, source in shuffled(material.programs, draw):
        yield Row(say_one(draw, phrasings, p=name), line, source)


def what_a_function_does(material: Material, draw: random.Random) -> Iterator[Row]:
    """A C function's one line."""
    phrasings = [
        "What does the function {p} do?",
        "Describe the function {p} in one sentence.",
        "What is the function {p} for?",
        "Write a short description of {p}.",
    ]
    for name, line, source in shuffled(material.functions, draw):
        yield Row(say_one(draw, phrasings, p=name), line, source)


def repeat(material: Material, draw: random.Random) -> Iterator[Row]:
    """The same sentence again."""
    phrasings = [
        "Repeat this sentence: {s}",
        "Say this again: {s}",
        "Copy this sentence.\n{s}",
        "Repeat after me: {s}",
        "Write the following sentence once more.\n\n{s}",
    ]
    for sentence, source in shuffled(material.sentences, draw):
        yield Row(say_one(draw, phrasings, s=sentence), sentence, source)


def quote(material: Material, draw: random.Random) -> Iterator[Row]:
    """The sentence in quotation marks."""
    phrasings = [
        "Put this sentence in quotation marks: {s}",
        "Quote this sentence: {s}",
        "Write this between quotation marks.\n{s}",
    ]
    for sentence, source in shuffled(material.sentences, draw):
        yield Row(say_one(draw, phrasings, s=sentence), f'"{sentence}"', source)


def finish(material: Material, draw: random.Random) -> Iterator[Row]:
    """The second part of a sentence."""
    phrasings = [
        "Finish this sentence: {s} ...",
        "Continue: {s}",
        "Complete the sentence.\n{s}",
        "How might this sentence go on? {s}",
    ]
    for sentence, source in shuffled(material.sentences, draw):
        words = sentence.split()
        if len(words) >= 9:
            cut = draw.randint(len(words) // 2, len(words) - 3)
            yield Row(say_one(draw, phrasings, s=" ".join(words[:cut])), " ".join(words[cut:]), source)


def first_or_last_word(material: Material, draw: random.Random) -> Iterator[Row]:
    """A sentence's first or last word, or its first or last two."""
    for sentence, source in shuffled(material.sentences, draw):
        words = re.findall(r"[\w'-]+", sentence)
        place, wanted = draw.choice(
            [
                ("first word", words[:1]),
                ("last word", words[-1:]),
                ("first two words", words[:2]),
                ("last two words", words[-2:]),
            ]
        )
        phrasings = [
            "What is the {p} of this sentence? {s}",
            "Give the {p} of this sentence: {s}",
            "{s}\nWrite the {p} of the sentence above.",
        ]
        if "two" in place:
            phrasings = [p.replace("What is", "What are") for p in phrasings]
        yield Row(say_one(draw, phrasings, p=place, s=sentence), " ".join(wanted), source)


def neighbor(material: Material, draw: random.Random) -> Iterator[Row]:
    """The word before or after another."""
    for sentence, source in shuffled(material.sentences, draw):
        words = re.findall(r"[\w'-]+", sentence)
        single = [i for i in range(1, len(words) - 1) if words.count(words[i]) == 1]
        if not single:
            continue
        at, (side, step) = draw.choice(single), draw.choice([("after", 1), ("before", -1)])
        phrasings = [
            "Which word comes {d} '{w}' in this sentence? {s}",
            "In the sentence below, what word is {d} '{w}'?\n{s}",
            "{s}\nGive the word {d} '{w}'.",
        ]
        yield Row(say_one(draw, phrasings, d=side, w=words[at], s=sentence), words[at + step], source)


def letter_case(material: Material, draw: random.Random) -> Iterator[Row]:
    """The sentence in capitals, or in small letters."""
    for sentence, source in shuffled(material.sentences, draw):
        if len(sentence) > 80:
            continue
        upper = draw.random() < 0.5
        name = draw.choice(["capital letters", "upper case"] if upper else ["small letters", "lower case"])
        phrasings = ["Write this in {n}: {s}", "Change this to {n}: {s}", "Put this sentence in {n}.\n{s}"]
        yield Row(
            say_one(draw, phrasings, n=name, s=sentence),
            sentence.upper() if upper else sentence.lower(),
            source,
        )


def replace_word(material: Material, draw: random.Random) -> Iterator[Row]:
    """The sentence with one word exchanged."""
    for sentence, source in shuffled(material.sentences, draw):
        words = [w for w in re.findall(r"\b[a-z]{4,}\b", sentence) if len(re.findall(rf"\b{w}\b", sentence)) == 1]
        if not words:
            continue
        old, new = draw.choice(words), draw.choice(material.nouns)
        phrasings = [
            "Replace '{o}' with '{n}' in this sentence: {s}",
            "Change the word '{o}' to '{n}'.\n{s}",
            "Write this sentence with '{n}' instead of '{o}': {s}",
        ]
        yield Row(say_one(draw, phrasings, o=old, n=new, s=sentence), re.sub(rf"\b{old}\b", new, sentence), source)


def contains(material: Material, draw: random.Random) -> Iterator[Row]:
    """Whether a word is in a sentence: as often yes as no."""
    sentences = shuffled(material.sentences, draw)
    for (sentence, source), (other, _) in zip(sentences[::2], sentences[1::2], strict=False):
        there = draw.random() < 0.5
        words = re.findall(r"\b[a-z]{4,}\b", sentence if there else other)
        words = [w for w in words if there or w not in sentence.lower()]
        if not words:
            continue
        phrasings = [
            "Is the word '{w}' in this sentence? {s}",
            "Does this sentence have the word '{w}'?\n{s}",
            "{s}\nDoes the sentence above contain '{w}'?",
        ]
        yield Row(say_one(draw, phrasings, w=draw.choice(words), s=sentence), "Yes." if there else "No.", source)


def topic(material: Material, draw: random.Random) -> Iterator[Row]:
    """A paragraph's title."""
    phrasings = [
        "What is this text about?\n\n{t}",
        "Give a title for this text.\n\n{t}",
        "{t}\n\nName the topic of this text.",
        "Write a short title for this paragraph: {t}",
    ]
    for title, paragraph, source in shuffled(material.titled, draw):
        yield Row(say_one(draw, phrasings, t=paragraph), title, source)


def sentence_for_title(material: Material, draw: random.Random) -> Iterator[Row]:
    """The first sentence under a title."""
    phrasings = [
        "Write a sentence about '{t}'.",
        "What would a text called '{t}' begin with?",
        "Write the first sentence of a text with the title '{t}'.",
        "Say something about '{t}'.",
    ]
    for title, paragraph, source in shuffled(material.titled, draw):
        first = re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph)[0]
        if 30 < len(first) < 200:
            yield Row(say_one(draw, phrasings, t=title), first, source)


def names_of_things(material: Material, draw: random.Random) -> Callable[[], list[str]]:
    """A source of two or three words that could make a name in a program."""

    def words() -> list[str]:
        noun = draw.choice(material.nouns)
        shapes = [
            [draw.choice(list(VERBS)), noun],
            [draw.choice(material.adjectives), noun],
            [draw.choice(material.nouns), noun],
            [draw.choice(list(VERBS)), draw.choice(material.adjectives), noun],
        ]
        return draw.choice(shapes)

    return words


def split_name(material: Material, draw: random.Random) -> Iterator[Row]:
    """getUserName, GetUserName, get_user_name, get-user-name → get user name."""
    words = names_of_things(material, draw)
    phrasings = [
        "Split {n} into words.",
        "Which words are in the name {n}?",
        "Write {n} as separate words.",
        "Separate the words in {n}.",
    ]
    while True:
        parts = words()
        styles = [
            "_".join(parts),
            "".join(map(str.capitalize, parts)),
            "-".join(parts),
            parts[0] + "".join(map(str.capitalize, parts[1:])),
            "_".join(parts).upper(),
        ]
        yield Row(say_one(draw, phrasings, n=draw.choice(styles)), " ".join(parts), "made by rule")


def join_name(material: Material, draw: random.Random) -> Iterator[Row]:
    """get user name → get_user_name or GetUserName."""
    words = names_of_things(material, draw)
    while True:
        parts = words()
        style, joined = draw.choice(
            [
                ("snake_case", "_".join(parts)),
                ("CamelCase", "".join(map(str.capitalize, parts))),
                ("a name with underscores", "_".join(parts)),
                ("a name with hyphens", "-".join(parts)),
            ]
        )
        phrasings = ["Write '{w}' as {s}.", "Turn '{w}' into {s}.", "Make '{w}' {s}."]
        yield Row(say_one(draw, phrasings, w=" ".join(parts), s=style), joined, "made by rule")


def list_parameters(material: Material, draw: random.Random) -> Iterator[Row]:
    """The names in a signature."""
    words = names_of_things(material, draw)
    phrasings = [
        "List the parameters of {s}.",
        "Which parameters does {s} take?",
        "What are the arguments of this function?\n{s}",
        "Name the parameters in this signature: {s}",
    ]
    while True:
        names = list(
            dict.fromkeys(
                draw.choice(["_".join(words()[:2]), draw.choice(material.nouns)]) for _ in range(draw.randint(1, 4))
            )
        )
        plain = draw.randint(0, len(names))
        shown = [n + draw.choice(["", "", ": int", ": str"]) for n in names[:plain]]
        shown += [n + draw.choice(["=None", "=0", "=True", ": int = 1", ': str = ""']) for n in names[plain:]]
        signature = f"{draw.choice(['', '', 'def '])}{'_'.join(words()[:2])}({', '.join(shown)})"
        yield Row(say_one(draw, phrasings, s=signature), ", ".join(names), "made by rule")


VERBS = {
    "get": "Return the {}.", "set": "Set the {}.", "read": "Read the {}.", "write": "Write the {}.",
    "load": "Load the {}.", "save": "Save the {}.", "find": "Find the {}.", "remove": "Remove the {}.",
    "delete": "Delete the {}.", "add": "Add a {}.", "create": "Create a new {}.", "make": "Make a {}.",
    "count": "Count the {}.", "open": "Open the {}.", "close": "Close the {}.", "check": "Check the {}.",
    "update": "Update the {}.", "print": "Print the {}.", "parse": "Parse the {}.", "send": "Send the {}.",
    "copy": "Copy the {}.", "move": "Move the {}.", "merge": "Merge the {}.",
    "is": "Return true if it is a {}.",
    "has": "Return true if there is a {}.", "show": "Show the {}.", "sort": "Sort the {}.",
    "reset": "Reset the {}.",
    "start": "Start the {}.", "stop": "Stop the {}.", "compute": "Compute the {}.", "draw": "Draw the {}.",
}  # fmt: skip


def describe_name(material: Material, draw: random.Random) -> Iterator[Row]:
    """What a function does, by its name."""
    phrasings = [
        "What does a function called {n} do?",
        "Describe the function {n}.",
        "Write a one-line description of {n}.",
        "What would {n} do?",
        "Explain in one sentence what {n} does.",
    ]
    while True:
        verb = draw.choice(list(VERBS))
        thing = [draw.choice(material.nouns)]
        if draw.random() < 0.5:
            thing = [draw.choice([draw.choice(material.adjectives), draw.choice(material.nouns)]), *thing]
        name = "_".join([verb, *thing])
        if draw.random() < 0.3:
            name = verb + "".join(map(str.capitalize, thing))
        answer = re.sub(r"\ba (?=[aeiou])", "an ", VERBS[verb].format(" ".join(thing)))
        yield Row(say_one(draw, phrasings, n=name + draw.choice(["", "", "()"])), answer, "made by rule")


def read_card(material: Material, draw: random.Random) -> Iterator[Row]:
    """One field of a small record, copied."""
    while True:
        keys = draw.sample(material.nouns, draw.randint(3, 5))
        values = [
            draw.choice(
                [
                    draw.choice(material.nouns),
                    draw.choice(material.adjectives),
                    str(draw.randint(2, 990)),
                    f"{draw.choice(material.adjectives)} {draw.choice(material.nouns)}",
                ]
            )
            for _ in keys
        ]
        card = draw.choice(["\n", "; ", ", "]).join(f"{k}: {v}" for k, v in zip(keys, values, strict=True))
        at = draw.randrange(len(keys))
        phrasings = [
            "{c}\n\nWhat is the {k}?",
            "Here is a record.\n{c}\nGive the {k}.",
            "What is the {k} here?\n{c}",
            "Take the {k} from this: {c}",
        ]
        yield Row(say_one(draw, phrasings, c=card, k=keys[at]), values[at], "made by rule")


def list_words(material: Material, draw: random.Random) -> Iterator[Row]:
    """A few words, with commas, in order, backwards, or chosen."""
    while True:
        words = draw.sample(material.nouns, draw.randint(3, 5))
        row = " ".join(words)
        asked, answer = draw.choice(
            [
                (f"Write these words with commas between them: {row}", ", ".join(words)),
                (f"Write these words in reverse order: {row}", " ".join(reversed(words))),
                (f"Write these words one on each line: {row}", "\n".join(words)),
                (f"What is the second word in this list? {', '.join(words)}", words[1]),
                (f"What is the last word in this list? {', '.join(words)}", words[-1]),
                (f"What is the first word in this list? {', '.join(words)}", words[0]),
                (f"Make a list with hyphens: {', '.join(words)}", "\n".join(f"- {w}" for w in words)),
            ]
        )
        yield Row(asked, answer, "made by rule")


def courtesy(material: Material, draw: random.Random) -> Iterator[Row]:
    """Greetings and thanks, and what the model is."""
    replies = {
        "Hello. What can I do for you?": [
            "Hello",
            "Hello!",
            "Hi",
            "Hi there.",
            "Good morning.",
            "Good evening.",
            "Hey",
        ],
        "You are welcome.": [
            "Thank you.",
            "Thanks!",
            "Thanks a lot.",
            "Many thanks.",
            "Thank you very much.",
        ],
        "Goodbye.": ["Goodbye.", "Bye", "See you later.", "That is all, goodbye."],
        "I am a small language model. I answer short questions and can make many mistakes.": [
            "Who are you?",
            "What are you?",
            "Are you a person?",
            "Tell me about yourself.",
            "What can you do?",
            "Can you help me?",
            "Do you make mistakes?",
            "What is your name?",
        ],
    }
    rows = [Row(asked, reply, "made by rule") for reply, questions in replies.items() for asked in questions]
    while True:
        yield from shuffled(rows, draw)


TASKS: dict[Task, int] = {
    define: 2600, look_up: 1500, part_of_speech: 700, use_in_sentence: 2200, synonym: 1000, antonym: 500,
    what_a_program_does: 1600, what_a_function_does: 1600, repeat: 1500, quote: 700, finish: 2000,
    first_or_last_word: 1500, neighbor: 1300, letter_case: 1300, replace_word: 1300, contains: 1000,
    topic: 2000,
    sentence_for_title: 1500, split_name: 1300, join_name: 1000, list_parameters: 1300, describe_name: 1800,
    read_card: 1500, list_words: 1200, courtesy: 100,
}  # fmt: skip
"""How many rows of each task, if there is enough material."""

SYSTEM = [
    "You are a helpful assistant.",
    "Answer in a few words.",
    "Be brief.",
    "You answer short questions.",
]
LONGEST_ANSWER = 320


def conversations(material: Material, draw: random.Random, leaks: set[bytes]) -> list[dict[str, object]]:
    """All rows as messages: one in eight with a system message, one in twelve of two questions."""
    rows: list[tuple[str, Row]] = []
    for task, wanted in TASKS.items():
        fitting = (r for r in task(material, draw) if len(r.answer) <= LONGEST_ANSWER and r.answer.strip())
        clean = (r for r in fitting if leaks.isdisjoint(shingles_of(r.question) | shingles_of(r.answer)))
        made = list(islice(clean, wanted))
        log(f"{task.__name__}: {len(made)}")
        rows += [(task.__name__, row) for row in made]
    draw.shuffle(rows)
    result: list[dict[str, object]] = []
    position = 0
    while position < len(rows):
        turns = 2 if draw.random() < 1 / 12 else 1
        chosen = rows[position : position + turns]
        position += turns
        messages = [{"role": "system", "content": draw.choice(SYSTEM)}] if draw.random() < 1 / 8 else []
        for _, row in chosen:
            messages += [
                {"role": "user", "content": row.question},
                {"role": "assistant", "content": row.answer},
            ]
        result.append({
            "messages": messages,
            "task": "+".join(name for name, _ in chosen),
            "source": " + ".join(dict.fromkeys(row.source for _, row in chosen)),
        })  # fmt: skip
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="directory with train.jsonl")
    parser.add_argument("--cache", type=Path, help="cache directory of corpus.py (default: CORPUS/cache)")
    parser.add_argument("--out", type=Path, required=True, help="directory for instruct.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    options = parser.parse_args()
    cache = options.cache or options.corpus / "cache"

    material = Material()
    log("reading the corpus")
    common = read_corpus(options.corpus / "train.jsonl", material)
    log("reading WordNet")
    wordnet = next(p for p in PACKAGES if p.name == "dict-wn")
    for _, reader, contents in files_of(next((cache / "debs").glob("dict-wn_*.deb")), wordnet):
        if reader == "wordnet":
            read_wordnet(contents, common, material)
    log("reading manual pages")
    read_manual_pages(cache, material)
    rows = conversations(material, random.Random(options.seed), standard_library_shingles())
    options.out.mkdir(parents=True, exist_ok=True)
    write_lines(options.out / "instruct.jsonl", iter(rows))
    print(f"{len(rows):,} conversations", file=sys.stderr)


if __name__ == "__main__":
    main()
