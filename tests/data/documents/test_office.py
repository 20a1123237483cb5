"""Word, PowerPoint and Excel files, written by the libraries that define them."""

import sys
import zipfile
from io import BytesIO

import pytest

from tunesmith.data.documents import office
from tunesmith.data.documents.document import Document, UnreadableError
from tunesmith.data.documents.read import read
from tunesmith.retrieval.chunk import chunks_of

ROWS = [["Plan", "Price"], ["Free", "0"], ["Team", "20"]]


def word() -> bytes:
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("Handbook", 0)
    document.add_heading("Billing", 1)
    document.add_paragraph("Invoices are under Billing. ")
    table = document.add_table(3, 2)
    for row, values in zip(table.rows, ROWS, strict=True):
        for cell, value in zip(row.cells, values, strict=True):
            cell.text = value
    document.add_heading("Deletion", 2)
    document.add_paragraph("Data is removed after 30 days.", style="List Bullet")
    return saved(document)


def slides() -> bytes:
    pptx = pytest.importorskip("pptx")
    show = pptx.Presentation()
    for title, body in (("Results", "Sales doubled."), ("Plans", "We hire.")):
        slide = show.slides.add_slide(show.slide_layouts[1])
        slide.shapes.title.text = title
        slide.placeholders[1].text = body
    slide.notes_slide.notes_text_frame.text = "Say thanks."
    table = slide.shapes.add_table(3, 2, 0, 0, 100, 100).table
    for n, values in enumerate(ROWS):
        for m, value in enumerate(values):
            table.cell(n, m).text = value
    return saved(show)


def workbook() -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.title = "Plans"
    for row in ROWS:
        book.active.append(row)
    book.active.append([None, None])
    book.create_sheet("Empty")
    return saved(book)


def saved(document: object) -> bytes:
    file = BytesIO()
    document.save(file)  # type: ignore[attr-defined]
    return file.getvalue()


def parts(document: Document) -> list[tuple[str, int, str]]:
    return [(block.kind, block.level, document.text[block.start : block.end]) for block in document.blocks]


TABLE = ("table", 0, "Plan | Price\nFree | 0\nTeam | 20")


def test_a_word_file_has_headings_paragraphs_and_tables_in_order() -> None:
    document = read("a.docx", word())
    assert parts(document) == [
        ("heading", 1, "Handbook"), ("heading", 1, "Billing"), ("prose", 0, "Invoices are under Billing."), TABLE,
        ("heading", 2, "Deletion"), ("prose", 0, "Data is removed after 30 days."),
    ]  # fmt: skip
    last = chunks_of(document)[-1]
    assert (last.headings, last.text) == (("Billing", "Deletion"), "Data is removed after 30 days.")


def test_each_slide_is_a_page_under_its_title() -> None:
    document = read("a.pptx", slides())
    assert parts(document) == [
        ("heading", 1, "Results"), ("prose", 0, "Sales doubled."), ("heading", 1, "Plans"), ("prose", 0, "We hire."),
        TABLE, ("prose", 0, "Say thanks."),
    ]  # fmt: skip
    assert [chunk.page for chunk in chunks_of(document)] == [1, 2]


def test_each_sheet_is_a_table_whose_first_row_names_the_columns() -> None:
    document = read("a.xlsx", workbook())
    assert parts(document)[:2] == [("heading", 1, "Plans"), TABLE]
    table = document.blocks[1]
    assert document.text[table.start : table.header_end] == "Plan | Price\n"
    assert [chunk.text for chunk in chunks_of(document, 5)][1].startswith("Plan | Price\n")


@pytest.mark.parametrize("name", ["a.docx", "a.pptx", "a.xlsx"])
def test_what_is_damaged_or_unpacks_to_too_much_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreadableError, match="damaged or encrypted"):
        read(name, b"no archive")
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.xml", b"0" * 1_000_000)
    with pytest.raises(UnreadableError, match="it is damaged"):
        read(name, file.getvalue())
    monkeypatch.setattr(office, "LARGEST_UNPACKED", 999_999)
    with pytest.raises(UnreadableError, match=r"unpacks to 1 MB, and at most 1 are read; split it"):
        read(name, file.getvalue())


@pytest.mark.parametrize(("name", "package"), [("a.docx", "docx"), ("a.pptx", "pptx"), ("a.xlsx", "openpyxl")])
def test_a_missing_package_is_named_with_its_command(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.xml", "")
    with pytest.raises(UnreadableError, match=rf"needs {package}: pip install 'tunesmith\[office\]'"):
        read(name, file.getvalue())
