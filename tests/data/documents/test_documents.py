"""Documents of each format: their blocks, and where each word is in the file."""

import sys
from io import BytesIO

import pytest
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from tunesmith.data.documents.document import Document, UnreadableError
from tunesmith.data.documents.read import read

MARKDOWN = """---
title: Note
---

# Pläne & `code`

First – paragraph.

- one
- two
  more

| A | B |
|---|---|
| 1 | 2 |

```python
# no heading
```

Under
-----
end
"""

PAGE = """<!doctype html><html><head><title>T</title><meta charset="{charset}"></head><body>
<nav>menu</nav><header>Top</header><main><h1>Größe &amp; Preis<a class=headerlink>¶</a></h1>
<p>First   para
with <b>bold</b> text.<p>Second &lt;x&gt;.
<ul><li>one<li>two</ul><pre>code
  here</pre><table><tr><th>A<th>B</tr><tr><td>1<td>two words</table></main><footer>foot</footer></body></html>"""


def parts(document: Document) -> list[tuple[str, str]]:
    return [(block.kind, block.title or document.text[block.start : block.end].strip()) for block in document.blocks]


def pdf(*pages: str, titles: tuple[str, ...] = ()) -> bytes:
    """A PDF with a line of text for each line of a page, and an outline of titles, all on the first page."""
    writer = PdfWriter()
    font = DictionaryObject({NameObject(f"/{key}"): NameObject(f"/{value}") for key, value in
                             {"Type": "Font", "Subtype": "Type1", "BaseFont": "Helvetica"}.items()})  # fmt: skip
    for text in pages:
        page = writer.add_blank_page(300, 300)
        content = DecodedStreamObject()
        lines = "".join(f"({line}) Tj 0 -20 Td " for line in text.split("\n"))
        content.set_data(f"BT /F1 12 Tf 20 250 Td {lines} ET".encode())
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        page[NameObject("/Contents")] = writer._add_object(content)
    for title in titles:
        writer.add_outline_item(title, page_number=0)
    file = BytesIO()
    writer.write(file)
    return file.getvalue()


def test_markdown_has_headings_items_tables_and_code() -> None:
    document = read("a.md", MARKDOWN.encode())
    assert parts(document) == [
        ("prose", "---\ntitle: Note\n---"),
        ("heading", "Pläne & code"),
        ("prose", "First – paragraph."),
        ("prose", "- one"),
        ("prose", "- two\n  more"),
        ("table", "| A | B |\n|---|---|\n| 1 | 2 |"),
        ("code", "```python\n# no heading\n```"),
        ("heading", "Under"),
        ("prose", "end"),
    ]
    assert [block.level for block in document.blocks if block.kind == "heading"] == [1, 2]
    table = next(block for block in document.blocks if block.kind == "table")
    assert document.text[table.start : table.header_end] == "| A | B |\n|---|---|\n"


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["Unix", "Windows"])
def test_bytes_and_lines_are_those_of_the_file(before: bytes, end: str) -> None:
    data = before + MARKDOWN.replace("\n", end).encode()
    document = read("a.md", data)
    for block in document.blocks:
        first, last = document.positions.bytes(block.start, block.end)
        text = document.text[block.start : block.end]
        assert data[first:last].decode() == text
        lines = document.positions.lines(block.start, block.start + len(text.rstrip()))
        assert lines[0] == data[:first].count(b"\n") + 1
        assert lines[1] == lines[0] + text.rstrip().count("\n")


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1"])
def test_a_web_page_has_its_main_part_with_the_position_of_each_word(charset: str) -> None:
    data = PAGE.format(charset=charset).encode(charset)
    document = read("a.html", data)
    assert parts(document) == [
        ("heading", "Größe & Preis"),
        ("prose", "First para with bold text."),
        ("prose", "Second <x>."),
        ("prose", "one"),
        ("prose", "two"),
        ("code", "code\n  here"),
        ("table", "A | B\n1 | two words"),
    ]
    for words in ("First", "para", "with", "bold", "Second", "two", "code", "words"):
        start = document.text.index(words)
        first, last = document.positions.bytes(start, start + len(words))
        assert data[first:last].decode(charset) == words
    start = document.text.index("bold")
    assert document.positions.lines(start, start + 4) == (4, 4)
    assert "menu" not in document.text
    assert "Top" in document.text, "a part that is not of the main one is read, and left out of the blocks"


def test_a_page_without_a_main_part_is_read_whole_however_broken_it_is() -> None:
    document = read("a.htm", b"<p>One<p>Two <i>three<table><tr><td>a<td><p>b</p>c</table>end &unknown; <h2>Last")
    assert parts(document) == [
        ("prose", "One"),
        ("prose", "Two three"),
        ("table", "a | b c"),
        ("prose", "end &unknown;"),
        ("heading", "Last"),
    ]


def test_underlined_headings_of_plain_text_have_levels_by_first_use() -> None:
    text = "=====\nTitle\n=====\n\nIntro.\n\nPart\n----\n\nText.\nMore.\n\nSub\n~~~\nx\n\nPart 2\n------\n"
    document = read("a.rst", text.encode())
    headings = [(block.title, block.level) for block in document.blocks if block.kind == "heading"]
    assert headings == [("Title", 1), ("Part", 2), ("Sub", 3), ("Part 2", 2)]
    assert ("prose", "Text.\nMore.") in parts(document)
    assert parts(read("a.txt", b"A list\n--\n\n----------\n")) == [("prose", "A list\n--"), ("prose", "----------")]


def test_a_program_is_parted_before_what_is_not_indented() -> None:
    code = "import os\n\nx = 1\n\n\ndef f():\n    a = 1\n\n    return a\n\n# about g\ndef g(): ...\n"
    assert [text for _, text in parts(read("a.py", code.encode()))] == [
        "import os",
        "x = 1",
        "def f():\n    a = 1\n\n    return a\n\n# about g\ndef g(): ...",
    ]


def test_a_pdf_has_pages_and_the_headings_of_its_outline() -> None:
    document = read("a.pdf", pdf("Intro\nHello world.", "Second page.", titles=("Intro",)))
    assert parts(document) == [("heading", "Intro"), ("prose", "Hello world."), ("prose", "Second page.")]
    assert [document.page(block.start) for block in document.blocks] == [1, 1, 2]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"caf\xe9 text", r"byte 4 is not UTF-8; save it as UTF-8"),
        ("a.txt", b"\0\1\2", "binary"),
        ("a.txt", b" \n", "no text"),
        ("a.xyz", b"text", r"\.xyz: not a format"),
        ("README", b"text", "without an extension"),
        ("a.html", b"<meta charset=nonsense>x", "encoding nonsense is not known"),
        ("a.pdf", b"%PDF-1.4 nothing", "damaged"),
        ("a.pdf", pdf(""), "its 1 pages hold no text; recognize it first"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(name: str, data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        read(name, data)


def test_an_encrypted_pdf_is_refused() -> None:
    writer = PdfWriter(BytesIO(pdf("Secret")))
    writer.encrypt("word", algorithm="RC4-128")
    file = BytesIO()
    writer.write(file)
    with pytest.raises(UnreadableError, match="encrypted"):
        read("a.pdf", file.getvalue())


def test_without_pypdf_the_reason_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(UnreadableError, match=r"pip install 'tunesmith\[pdf\]'"):
        read("a.pdf", b"%PDF")
