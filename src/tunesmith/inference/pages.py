"""The pages of the key-value cache: which are free, and which hold the beginning of a text that may come again.

A page that is full of computed tokens is known by its tokens, by the page before it, and by what computed it. A new
sequence that begins with the same tokens takes such pages over instead of computing them again (Kwon et al. 2023,
section 4.4). A page that no sequence uses keeps its content until its room is needed; the longest unused goes first.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import count

from tunesmith.ops.paged_attention import PAGE

Key = tuple[Hashable, tuple[int, ...]]
"""The parent: the number of the page before it, or what computed the text; and the page's tokens."""


class Pages:
    """Args:
    total: how many pages the cache has.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total - 1, -1, -1))  # the last is taken first: memory that was used is used again
        self._users = [0] * total
        self._numbers = count()
        self._known: dict[Key, tuple[int, int]] = {}  # the page, and its number among all that were ever known
        self._key_of: dict[int, Key] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # known pages without users, the longest unused first

    @property
    def available(self) -> int:
        """Pages that a sequence can take."""
        return len(self._free) + len(self._unused)

    def take(self) -> int:
        """A page for new tokens. There must be one."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._unused.popitem(last=False)
            del self._known[self._key_of.pop(page)]
        self._users[page] = 1
        return page

    def give_back(self, pages: Sequence[int]) -> None:
        """End one sequence's use of these pages."""
        for page in reversed(pages):  # the end of a text goes before its beginning
            self._users[page] -= 1
            if self._users[page]:
                continue
            if page in self._key_of:
                self._unused[page] = None
            else:
                self._free.append(page)

    def find(self, key: Key) -> tuple[int, int] | None:
        """The page with that content and its number, for one more sequence; None if there is none."""
        found = self._known.get(key)
        if found is not None:
            self._users[found[0]] += 1
            self._unused.pop(found[0], None)
        return found

    def knows(self, key: Key) -> bool:
        """Whether a page has that content."""
        return key in self._known

    def remember(self, page: int, key: Key) -> int:
        """Make a full page known by its content. If another page has it already, this one stays unknown.

        Returns:
            The number of the page that is known, the parent in the key of the page after it.
        """
        if key not in self._known:
            self._known[key] = (page, next(self._numbers))
            self._key_of[page] = key
        return self._known[key][1]

    def forget_all(self) -> None:
        """Forget the content of every page, since what computed it has changed."""
        self._free += self._unused
        self._unused.clear()
        self._known.clear()
        self._key_of.clear()


def pages_for(tokens: int) -> int:
    """How many pages hold that many tokens."""
    return -(-tokens // PAGE)
