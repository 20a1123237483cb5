"""Documents as rows of text: plain text as it is, the others as Markdown."""

from collections.abc import Iterator
from io import BytesIO
from typing import IO

from tunesmith.data.documents.as_markdown import as_markdown
from tunesmith.data.documents.document import UnreadableError
from tunesmith.data.documents.read import LARGEST, read
from tunesmith.data.example import Malformed, Row, Source
from tunesmith.data.reading.json_lines import not_utf8
from tunesmith.data.reading.pieces import pieces
from tunesmith.errors import UserError


def read_text(stream: IO[bytes], name: str, start: int = 0) -> Iterator[Row | Malformed]:
    """A text file as one row, or a long one as several.

    Args:
        stream: of its bytes.
        name: of the file.
        start: where in the file the stream begins.
    """
    position = start
    for number, piece in enumerate(pieces(stream), 1):
        source = Source(name, number)
        try:
            if b"\0" in piece:
                yield Malformed(source, f"holds a NUL byte at byte {position + piece.index(0):,}, which is no text")
            else:
                yield Row(piece.decode("utf-8"), source)
        except UnicodeDecodeError as error:
            yield not_utf8(source, position + error.start)
        position += len(piece)


def read_document(stream: IO[bytes], name: str, extension: str) -> Iterator[Row | Malformed]:
    """A web page, a PDF or an office file as one row of Markdown, or a long one as several.

    Args:
        stream: of its bytes.
        name: of the file.
        extension: decides how it is read.

    Raises:
        UserError: it is damaged, encrypted or too large, or holds no text.
    """
    data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise UserError(f"{name} has more than {LARGEST / 1e6:.0f} MB. Split it.")
    try:
        document = read(f"document{extension}", data)
    except UnreadableError as error:
        raise UserError(f"{name} cannot be read: {error}.") from None
    left_out = document.left_out
    for number, piece in enumerate(pieces(BytesIO(as_markdown(document).encode("utf-8", "replace"))), 1):
        yield Row(piece.decode("utf-8", "replace"), Source(name, number), left_out)
        left_out = 0
