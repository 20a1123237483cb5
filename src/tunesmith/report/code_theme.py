"""Colors of code in the terminal."""

from pygments.token import Comment, Keyword, Literal, Name, Token
from rich.style import Style
from rich.syntax import ANSISyntaxTheme

from tunesmith.report.colors import ALSO, GOOD, THIRD, WARNING

CODE = ANSISyntaxTheme(
    {
        Token: Style(),
        Comment: Style(dim=True),
        Keyword: Style(color=THIRD),
        Name.Function: Style(bold=True),
        Name.Tag: Style(color=ALSO),
        Literal.Number: Style(color=WARNING),
        Literal.String: Style(color=GOOD),
    }
)
"""Of Python and JSON, readable on black and on white; a tag is a key of JSON."""
