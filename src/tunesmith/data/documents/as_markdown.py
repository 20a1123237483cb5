"""A document's text as Markdown, so that headings, tables and code stay what they are."""

from tunesmith.data.documents.document import Block, Document

FENCE = "```"


def as_markdown(document: Document) -> str:
    """The document as Markdown.

    Args:
        document: as read, of any format but Markdown, which is Markdown already.

    Returns:
        Its blocks with an empty line between them; a heading has `#` for each level, a table a line below its header.
    """
    return "\n\n".join(part for block in document.blocks if (part := _markdown(document.text, block))) + "\n"


def _markdown(text: str, block: Block) -> str:
    own = text[block.start : block.end]
    match block.kind:
        case "heading":
            return f"{'#' * min(max(block.level, 1), 6)} {block.title}"
        case "code":
            return f"{FENCE}\n{own.strip(chr(10))}\n{FENCE}"
        case "table":
            return _table(own)
    return own.strip()


def _table(rows: str) -> str:
    """Lines with ` | ` between their cells, the first of which names the columns."""
    cells = [[cell.strip() for cell in line.split(" | ")] for line in rows.splitlines() if line.strip()]
    if not cells:
        return ""
    width = max(map(len, cells))
    lines = [f"| {' | '.join(row + [''] * (width - len(row)))} |" for row in cells]
    return "\n".join([lines[0], f"|{'---|' * width}", *lines[1:]])
