"""What a text may have that a check looks for. A check names the traits of which every row that it marks has one, so
that it need not look at the others."""

from enum import IntFlag


class Trait(IntFlag):
    """Traits of a text. Each is a condition that is quickly tested and that no text without it meets what is named."""

    AT = 1 << 0
    """`@`: e-mail addresses, passwords in URLs."""

    NUMBER = 1 << 1
    """Six digits, with at most two of ` .-/()A-Z` between two of them."""

    ADDRESS = 1 << 2
    """Four numbers with dots between them, or hexadecimal digits with two colons: IP addresses."""

    TOKEN = 1 << 3
    """20 letters, digits and `+/_-.=` in a row."""

    VALUE = 1 << 4
    """Eight signs with a digit behind `:` or `=`: passwords."""

    TAG = 1 << 5
    """`<` before a letter, `/` or `|`; `<<S`, `<</`."""

    BRACKET = 1 << 6
    """`[` before a capital or `/`."""

    HEADING = 1 << 7
    """`###` before a word."""

    ENTITY = 1 << 8
    """`&` before a letter or `#`."""

    BAD = 1 << 9
    """A character that no text should have."""

    MOJIBAKE = 1 << 10
    """Two characters as UTF-8 that was read in another encoding has them."""

    HIDDEN = 1 << 11
    """A Unicode tag, or a character that orders in scripts other than Latin have."""

    ORDERS = 1 << 12
    """The words of an order to a model."""

    WORDS = 1 << 13
    """A word, or letters that may be one, that only `Record.words` shows."""

    BLANK = 1 << 14
    """Nothing that is printed, in ASCII."""

    OPEN = 1 << 15
    """An answer that ends in the middle of a sentence."""

    PRAISE = 1 << 16
    BLAME = 1 << 17
    """As `groups.POSITIVE` and `NEGATIVE`."""

    PHRASE = 1 << 18
    """A word of a term of several words."""


EVERY = Trait(0xFFFFFFFF)
"""All traits, for a check that looks at all rows."""
