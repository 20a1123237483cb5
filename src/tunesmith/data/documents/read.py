"""Which files of a directory are documents, and how each is read."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tunesmith.data.documents.document import Document, UnreadableError
from tunesmith.data.documents.markdown import read_markdown
from tunesmith.data.documents.office import read_slides, read_word, read_workbook
from tunesmith.data.documents.pdf import read_pdf
from tunesmith.data.documents.plain_text import read_code, read_text
from tunesmith.data.documents.web_page import read_web_page
from tunesmith.errors import UserError

Reader = Callable[[bytes], Document]

LARGEST = 200_000_000
"""Bytes of the largest file that is read."""

_EXTENSIONS: dict[Reader, str] = {
    read_text: ".txt .text .rst .adoc .org .tex .log",
    read_markdown: ".md .markdown .mdx",
    read_web_page: ".html .htm .xhtml",
    read_pdf: ".pdf",
    read_word: ".docx",
    read_slides: ".pptx",
    read_workbook: ".xlsx",
    read_code: ".py .pyi .js .jsx .ts .tsx .java .kt .c .h .cc .cpp .hpp .cs .go .rs .rb .php .swift .scala .sh .sql "
    ".r .jl .lua .pl .yaml .yml .toml .ini .cfg .css",
}
READERS: dict[str, Reader] = {extension: reader for reader, names in _EXTENSIONS.items() for extension in names.split()}
"""By extension."""


def files_in(directory: Path) -> list[Path]:
    """The files of a directory at all levels, sorted by path; hidden files and directories are not among them.

    Args:
        directory: to search; links to directories are not followed.

    Returns:
        The files, whether they can be read or not.

    Raises:
        UserError: there is no such directory.
    """
    if not directory.is_dir():
        what = "is a file; name the directory that it is in" if directory.exists() else "does not exist"
        raise UserError(f"{directory} {what}.")
    return sorted(_walk(directory))


def _walk(directory: Path) -> Iterator[Path]:
    for root, directories, files in os.walk(directory):
        directories[:] = [name for name in directories if not name.startswith(".")]
        yield from (Path(root, name) for name in files if not name.startswith("."))


def read(name: str, data: bytes) -> Document:
    """Read a document.

    Args:
        name: of the file; its extension decides how it is read.
        data: its bytes.

    Returns:
        The document.

    Raises:
        UnreadableError: it is of another format, damaged, or empty.
    """
    extension = Path(name).suffix.lower()
    reader = READERS.get(extension)
    if reader is None:
        raise UnreadableError(f"{extension or 'without an extension'}: not a format that is read")
    document = reader(data)
    if not document.text.strip():
        raise UnreadableError("it holds no text")
    return document
