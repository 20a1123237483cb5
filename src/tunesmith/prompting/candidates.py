"""What a search compares: prompts from files and templates, each with and without few-shot examples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tunesmith.config.strict_file import checked_values, mapping_in
from tunesmith.data.example import Example
from tunesmith.errors import UserError
from tunesmith.prompting.prompt import Prompt
from tunesmith.prompting.sections import CHOICES
from tunesmith.prompting.shots import Shots, first_exchange, last_question, question_key
from tunesmith.retrieval.encoder import Encoder

PLAIN = "plain"
"""The chats as they are, without a prompt."""

MOST = 256
"""Candidates of one search."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt in a search.

    Attributes:
        name: in tables.
        prompt: with its examples.
        origin: `plain`, `file`, `template` or `written`, with `+ examples` if the search added them.
    """

    name: str
    prompt: Prompt
    origin: str


@dataclass(frozen=True)
class Showing:
    """Which examples are tried with each prompt.

    Attributes:
        k: numbers of examples; 0: none.
        choose: ways to choose them.
        seed: of random choices.
        encoder: by whose vectors questions are compared; None: by their words.

    Raises:
        UserError: there is no such choice, or no number.
    """

    k: Sequence[int]
    choose: Sequence[str]
    seed: int = 0
    encoder: str | None = None

    def __post_init__(self) -> None:
        unknown = [each for each in self.choose if each not in CHOICES]
        if unknown:
            raise UserError(f"choose: {unknown[0]} is not one of {', '.join(CHOICES)}.")
        if not self.k or min(self.k) < 0 or (max(self.k) > 0 and not self.choose):
            raise UserError("k: give numbers of examples from 0 on, and a way to choose them.")

    @property
    def needs_rows(self) -> bool:
        """Whether examples are tried."""
        return max(self.k) > 0


def of_files(paths: Sequence[str | Path]) -> list[Candidate]:
    """Prompts written by hand.

    Args:
        paths: as `Prompt.load` takes them.

    Returns:
        A candidate of each, by its file's name.

    Raises:
        UserError: one is no prompt.
    """
    short = [Path(path).stem for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    return [Candidate(name, Prompt.load(path), "file") for name, path in zip(names, paths, strict=True)]


def of_template(path: str | Path) -> list[Candidate]:
    """A prompt with lists of values: one candidate for each combination.

    Args:
        path: of a YAML file as `Prompt.load` reads it, in which a variable may have a list of values.

    Returns:
        The candidates, named by their values.

    Raises:
        UserError: it cannot be read, has no list, or has too many combinations.
    """
    file = Path(path)
    values = mapping_in(file, "a template", ", ".join(Prompt.model_fields))
    variables = values.get("variables")
    given = variables if isinstance(variables, dict) else {}
    lists = {name: each for name, each in given.items() if isinstance(each, list)}
    if not lists:
        raise UserError(
            f"{file.name}: no variable has a list of values, so there is one prompt. Give it as a candidate, or write "
            "variables: {tone: [brief, friendly]}, for example."
        )
    found = []
    for chosen in product(*lists.values()):
        of_this = dict(zip(lists, chosen, strict=True))
        filled = {**values, "variables": {**given, **of_this}}
        name = f"{file.stem} {' '.join(f'{key}={value}' for key, value in of_this.items())}"
        found.append(Candidate(name, checked_values(Prompt, filled, file.name, file.parent.absolute()), "template"))
        if len(found) > MOST:
            raise UserError(f"{file.name}: its lists have more than {MOST} combinations. Shorten them.")
    return found


def with_examples(
    candidates: Sequence[Candidate], pool: Sequence[Example], apart: Sequence[Example], showing: Showing
) -> list[Candidate]:
    """Each prompt with each choice of examples. One that has examples of its own keeps them.

    Args:
        candidates: the prompts.
        pool: rows that may be shown.
        apart: rows that may not be shown, such as the held-out ones; examples of a prompt's own lose them too.
        showing: what is tried.

    Returns:
        The candidates, those without examples first.

    Raises:
        UserError: there are too many, two have the same name, or no row can be shown.
    """
    found = list(_with_examples(candidates, pool, apart, showing))
    if len(found) > MOST:
        raise UserError(f"These are {len(found):,} candidates, more than {MOST}. Try fewer prompts, k or choices.")
    names = [candidate.name for candidate in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"Two candidates have the name {twice}. Rename a file.")
    return found


def _with_examples(
    candidates: Sequence[Candidate], pool: Sequence[Example], apart: Sequence[Example], showing: Showing
) -> Iterator[Candidate]:
    keys = {question_key(last_question(example.messages or ())) for example in apart}
    bare = [each for each in candidates if each.prompt.examples is None]
    if 0 in showing.k:
        yield from bare
    for candidate in candidates:
        if candidate.prompt.examples is not None:
            yield _without(candidate, keys)
    encoder = None if showing.encoder is None else Encoder(showing.encoder)
    for k, choose in product([k for k in showing.k if k], showing.choose):
        shots = Shots(pool, k, choose, showing.seed, encoder)
        shown = shots.examples if choose == "similar" else shots.for_chat(())
        for each in bare:
            prompt = each.prompt.with_given(shown, min(k, len(shown)), choose, showing.seed, showing.encoder)
            yield Candidate(f"{each.name} + {k} {choose}", prompt, f"{each.origin} + examples")


def _without(candidate: Candidate, keys: set[str]) -> Candidate:
    """The candidate, whose examples have none of these questions."""
    asked = candidate.prompt.examples
    assert asked is not None
    plain = [each for row in candidate.prompt.pool if (each := first_exchange(row)) is not None]
    kept = [each for each in plain if question_key(last_question(each.messages or ())) not in keys]
    if len(kept) == len(candidate.prompt.pool):
        return candidate
    if not kept:
        raise UserError(f"{candidate.name}: all its examples are development or held-out rows. Use training rows.")
    k = None if asked.k is None else min(asked.k, len(kept))
    prompt = candidate.prompt.with_given(kept, k, asked.choose, asked.seed, asked.encoder)
    return Candidate(candidate.name, prompt, candidate.origin)
