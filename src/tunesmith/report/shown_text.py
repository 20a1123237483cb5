"""The beginning of a text of the data, as it is shown."""

import re

from tunesmith.checks.mask import mask

MARGIN = 2_000
"""Characters behind those that are shown, so that what the cut goes through is whole."""

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f]")


def beginning(text: str, characters: int) -> str:
    """The beginning of a text without personal data and secrets, and with signs for characters that cannot be shown.

    A value that is cut in two is not found any more, so it is masked before the text is cut.

    Args:
        text: of any length.
        characters: the most that are returned.
    """
    masked = str(mask(text[: characters + MARGIN]).value)[:characters]
    return _CONTROL.sub(lambda match: chr(0x2400 + ord(match[0])), masked)
