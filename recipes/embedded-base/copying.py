"""Makes text from which a small model learns to use again what it has just read, for pretraining's second part.

    python copying.py --corpus build/corpus --out build/copying

Copying from the context (Olsson et al. 2022, induction heads) comes late in ordinary text, later than a model of this
size is trained for; text that repeats itself brings it early. Four kinds of document, made by rule from the corpus:
a paragraph said twice; random words said twice; lists of names beside the words that they are made of; names of
functions beside a sentence that says them. And, as before, ordinary documents, so that nothing is forgotten.

Writes train.jsonl and held_out.jsonl, rows {"text"}.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

CHARACTERS = 26_000_000
SHARES = {"paragraph": 0.25, "words": 0.15, "names": 0.2, "functions": 0.2, "plain": 0.2}
VERBS = """
    get set add remove find open close read write send check make load save parse print sort count copy move start
    stop update create delete show hide join split format convert compute build replace insert append clear reset
    return list store fetch map filter merge compare test draw select change register handle process
""".split()
SENTENCES = (
    "{verb} the {words}.",
    "{verb} {words}.",
    "{verb} a {words}.",
    "{verb} the given {words}.",
    "{verb} all {words}.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.jsonl and held_out.jsonl")
    parser.add_argument("--seed", type=int, default=0, help="of every choice (default: 0)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    dice = random.Random(arguments.seed)
    texts = [json.loads(line)["text"] for line in (arguments.corpus / "train.jsonl").open(encoding="utf-8")]
    rows = list(documents(texts, dice))
    dice.shuffle(rows)
    for name, part in (("held_out", rows[:200]), ("train", rows[200:])):
        with (arguments.out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part)
    print(f"{len(rows):,} documents, {sum(map(len, rows)):,} characters")


def documents(texts: list[str], dice: random.Random) -> Iterator[str]:
    """Documents of each kind until its share of the characters is there."""
    counts = Counter(word for text in texts[:4000] for word in re.findall(r"\b[a-z]{3,12}\b", text))
    words = [word for word, count in counts.items() if count >= 20]
    paragraphs = [part for text in texts for part in text.split("\n\n") if 100 <= len(part) <= 700]
    makers = {
        "paragraph": lambda: twice(dice.choice(paragraphs), dice),
        "words": lambda: twice(" ".join(dice.choices(words, k=dice.randint(8, 60))), dice),
        "names": lambda: "\n".join(name_and_words(words, dice) for _ in range(dice.randint(6, 20))),
        "functions": lambda: "\n".join(function_and_sentence(words, dice) for _ in range(dice.randint(6, 20))),
        "plain": lambda: dice.choice(texts)[:4000],
    }
    for kind, share in SHARES.items():
        left = share * CHARACTERS
        while left > 0:
            text = makers[kind]()
            left -= len(text)
            yield text


def twice(text: str, dice: random.Random) -> str:
    return text + dice.choice(("\n\n", "\n", " ", "\n\nAgain: ", "\n\nRepeat: ")) + text


def name_of(parts: list[str], dice: random.Random) -> str:
    """The words as a name: snake_case, camelCase, CamelCase, kebab-case, joinedtogether."""
    style = dice.randrange(10)
    if style < 4:
        return "_".join(parts)
    if style < 6:
        return parts[0] + "".join(part.capitalize() for part in parts[1:])
    if style < 8:
        return "".join(part.capitalize() for part in parts)
    return ("-" if style == 8 else "").join(parts)


def name_and_words(words: list[str], dice: random.Random) -> str:
    parts = dice.choices(words, k=dice.randint(2, 4))
    name, said = name_of(parts, dice), " ".join(parts)
    return dice.choice((f"{name}: {said}", f"{name} - {said}", f"{said} ({name})", f"`{name}` {said.capitalize()}."))


def function_and_sentence(words: list[str], dice: random.Random) -> str:
    verb, parts = dice.choice(VERBS), dice.choices(words, k=dice.randint(1, 3))
    module = ".".join(dice.choices(words, k=dice.randint(0, 2)))
    arguments = ", ".join(dice.choices(words, k=dice.randint(0, 3)))
    name = (f"{module}." if module else "") + name_of([verb, *parts], dice)
    sentence = dice.choice(SENTENCES).format(verb=verb, words=" ".join(parts)).capitalize()
    return f"{name}({arguments}): {sentence}"


if __name__ == "__main__":
    main()
