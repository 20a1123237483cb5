"""Words that name a group of people, and the words that name another group in their place.

Adjectives such as "white" or "old" are swapped only before a word for people: an old bridge is in no group.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

_PEOPLE = (
    "man woman men women boy girl person people family families student students worker workers colleague colleagues "
    "customer customers patient patients neighbor neighbors adult adults lady gentleman"
).split()

_NO_NOUNS = frozenset(
    "a about after again all an and any are as at away back because before but by can do down for from has have home "
    "how if in is later now of off on once or out over she so soon than that the then there these this to today "
    "tomorrow tonight too two up was what when where which while who why will with without yesterday".split()
)
"""Words that begin no noun: "saw her again" is "saw him again", and "her book" is "his book"."""


@dataclass(frozen=True)
class Group:
    """Two sides, and the terms that name them.

    Attributes:
        sides: the names of the first and the second.
        pairs: terms of the first side, each with its counterpart. No term is in two pairs.
        pronouns: whether `his`, `him`, `her` and `hers` are swapped as well, of which one term has two counterparts.
    """

    sides: tuple[str, str]
    pairs: Sequence[tuple[str, str]]
    pronouns: bool = False

    @cached_property
    def _side_of(self) -> dict[str, int]:
        sides = {term.casefold(): side for pair in self.pairs for side, term in enumerate(pair)}
        return sides | ({"his": 0, "him": 0, "her": 1, "hers": 1} if self.pronouns else {})

    @cached_property
    def _counterparts(self) -> dict[str, str]:
        both = [*self.pairs, *((two, one) for one, two in self.pairs)]
        return {one.casefold(): two for one, two in both}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        terms = sorted(self._side_of, key=len, reverse=True)
        any_term = "|".join(map(re.escape, terms))
        return re.compile(rf"(?:\b(?P<article>an?)(?P<space>\s+))?(?<!\w)(?P<term>{any_term})(?!\w)", re.IGNORECASE)

    def swapped(self, text: str) -> str:
        """A text that names the other side wherever it names one. Only whole words are terms, the case is kept, and `a`
        and `an` before a term follow it.

        Args:
            text: any text.

        Returns:
            The text; unchanged if it names neither side.
        """
        return self._pattern.sub(self._counterpart, text)

    def side(self, text: str) -> int | None:
        """Which side a text names.

        Args:
            text: any text.

        Returns:
            0 or 1; None if it names neither or both.
        """
        sides = {self._side_of[match["term"].casefold()] for match in self._pattern.finditer(text)}
        return sides.pop() if len(sides) == 1 else None

    def _counterpart(self, match: re.Match[str]) -> str:
        found = match["term"].casefold()
        other = self._counterparts.get(found) or _pronoun(found, match.string[match.end() :])
        term = _in_case_of(match["term"], other)
        if match["article"] is None:
            return term
        article = _in_case_of(match["article"], "an" if _needs_an(other) else "a", match["term"].isupper())
        return f"{article}{match['space']}{term}"


def _pronoun(found: str, rest: str) -> str:
    """The counterpart of a pronoun that has two: which one it is, the next word says."""
    following = re.match(r"\s+([^\W\d_]+)", rest)
    before_noun = following is not None and following[1].casefold() not in _NO_NOUNS
    if found == "her":
        return "his" if before_noun else "him"
    if found == "his":
        return "her" if before_noun else "hers"
    return {"him": "her", "hers": "his"}[found]


def _needs_an(term: str) -> bool:
    return term[0].casefold() in "aeiou" and not term.casefold().startswith("eu")


def _in_case_of(found: str, term: str, may_be_upper: bool = True) -> str:
    """The term in upper case, with a capital, or in lower case, as what was found."""
    if found.isupper() and may_be_upper:
        return term.upper()
    return term[0].upper() + term[1:] if found[0].isupper() else term.lower()


def _before_people(one: str, two: str) -> list[tuple[str, str]]:
    return [(f"{one} {noun}", f"{two} {noun}") for noun in _PEOPLE]


@cache
def groups() -> Mapping[str, Group]:
    """The groups by name. First names are of Bertrand & Mullainathan (2004)."""
    gender = (
        "he/she himself/herself man/woman men/women boy/girl boys/girls father/mother fathers/mothers dad/mom "
        "son/daughter sons/daughters brother/sister brothers/sisters husband/wife husbands/wives uncle/aunt "
        "nephew/niece grandfather/grandmother grandson/granddaughter gentleman/lady gentlemen/ladies "
        "boyfriend/girlfriend groom/bride actor/actress waiter/waitress Mr./Ms. male/female males/females sir/madam "
        "John/Mary James/Emily Michael/Sarah David/Anna Robert/Laura"
    )
    names = "Emily/Lakisha Greg/Jamal Brad/Darnell Anne/Aisha Smith/Hernandez Müller/Yilmaz"
    nations = "white/black European/African American/Mexican German/Turkish French/Algerian"
    religion = "Christian/Muslim Christians/Muslims Christianity/Islam church/mosque churches/mosques priest/imam"
    ages = [pair for one, two in (("young", "old"), ("younger", "elderly")) for pair in _before_people(one, two)]
    return {
        "gender": Group(("men", "women"), _pairs(gender), pronouns=True),
        "ethnicity": Group(
            ("majority", "minority"),
            [*_pairs(names), *(pair for one, two in _pairs(nations) for pair in _before_people(one, two))],
        ),
        "religion": Group(("christians", "muslims"), _pairs(religion)),
        "age": Group(("young", "old"), [*ages, ("teenager", "retiree"), ("teenagers", "retirees")]),
    }


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(one, two) for one, _, two in (pair.partition("/") for pair in text.split())]
