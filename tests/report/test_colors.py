"""Colors of the terminal: readable on black and on white, and no others are used."""

import re
from pathlib import Path

import pytest
from rich.color import Color

import tunesmith
from tunesmith.report import colors

NAMES = [getattr(colors, name) for name in dir(colors) if name.isupper()]


def luminance(color: Color) -> float:
    """Relative luminance by WCAG 2, from 0 (black) to 1."""
    parts = [part / 255 for part in color.get_truecolor()]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("name", NAMES)
def test_each_color_has_contrast_on_black_and_on_white(name: str) -> None:
    color = Color.parse(name)
    assert color.number is not None
    assert color.number >= 16, "of the first 16, each terminal has its own"
    assert (1 + 0.05) / (luminance(color) + 0.05) > 3.5
    assert (luminance(color) + 0.05) / 0.05 > 3.5


def test_no_other_color_is_written_that_vanishes_on_white() -> None:
    faint = re.compile(r"\"(bold )?(green|yellow|cyan|white|bright_\w+|ansi_dark)\"|\[(bold )?(green|yellow|cyan)\]")
    for part in ("cli", "report"):
        for file in (Path(tunesmith.__file__).parent / part).glob("*.py"):
            assert not faint.findall(file.read_text(encoding="utf-8")), file
