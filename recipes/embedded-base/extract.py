"""Plain English paragraphs out of the formats in which Debian ships documentation.

Each reader takes the decoded contents of one file and returns documents: a title and its blocks in reading
order. A block is a heading or a paragraph; tables, code, navigation and menus are left out here, and the
quality of the rest is checked in `prose.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from lxml import etree, html

SPACE = re.compile(r"[\s\u00a0\u200b\ufeff]+")


@dataclass
class Document:
    """One page, entry or chapter."""

    title: str
    part: str = ""
    """The part of the file, if one file has many documents."""
    blocks: list[tuple[str, str]] = field(default_factory=list)
    """(kind, text), kind being "heading" or "paragraph"."""


def one_line(text: str) -> str:
    """Replace every run of whitespace with one space."""
    return SPACE.sub(" ", text).replace("\u00ad", "").replace("¶", "").strip()


# HTML, DocBook and Mallard: trees of elements -----------------------------------------------------------

_DROPPED = """
script style head nav header footer pre table form button select svg math img audio video iframe noscript
object textarea screen programlisting synopsis cmdsynopsis funcsynopsis literallayout informaltable
bookinfo articleinfo info links indexterm credit license code-block toc index bibliography glossseealso
equation remark tgroup media refentryinfo authorgroup
"""
DROPPED = frozenset(_DROPPED.split())
_HEADINGS = """
h1 h2 h3 h4 h5 title bridgehead refname
"""
HEADINGS = frozenset(_HEADINGS.split())
_BLOCKS = """
p li dd dt div section article main body blockquote td th caption ul ol dl para simpara listitem term note
tip warning important item page center figure figcaption sect1 sect2 sect3 sect4 chapter formalpara desc
caution address details summary refsect1 refsect2 varlistentry steps terms list hr entry qandaentry
question answer br
"""
BLOCKS = frozenset(_BLOCKS.split())
DROPPED_CLASS = re.compile(
    r"(?i)\b(nav\w*|navheader|navfooter|sphinxsidebar|related|toc\w*|contents|highlight\w*|footer|header|sidebar\w*|"
    r"breadcrumbs?|menu\w*|headerlink|literal-?block|programlisting|screen|synopsis|copyright|legalnotice|"
    r"sig|sig-\w+|memitem-nav|fragment|source-?code|code-?block|bottomlang|toplang|qlinks|wy-nav\w*|"
    r"btn|search\w*|genindextable|modindextable|table-?contents|titlepage-legal|field-list|admonition-title|"
    r"rubric|caption-number|nodebar|summary-letter\w*|example|lisp|smallexample|footnote-?backref|math)\b"
)


def _tag(element: etree._Element) -> str:
    return element.tag.rpartition("}")[2].lower() if isinstance(element.tag, str) else ""


def _dropped(element: etree._Element, tag: str) -> bool:
    if tag in DROPPED or tag == "":
        return tag != "header" or len(element.findall(".//p")) == 0
    names = f"{element.get('class') or ''} {element.get('id') or ''}"
    if element.get("role") in ("navigation", "search", "contentinfo", "banner"):
        return True
    return tag in ("div", "span", "a", "ul", "ol", "p", "dl", "aside", "dt", "section") and bool(
        names.strip() and DROPPED_CLASS.search(names)
    )


def _walk(element: etree._Element, blocks: list[tuple[str, str]], pending: list[str]) -> None:
    """Adds element's text to pending; at each block's edge, moves pending to blocks."""

    def flush(kind: str = "paragraph") -> None:
        text = one_line("".join(pending))
        pending.clear()
        if text:
            blocks.append((kind, text))

    tag = _tag(element)
    if tag == "code" and "\n" in (element.text or ""):
        return
    is_block, is_heading = tag in BLOCKS, tag in HEADINGS
    if is_block or is_heading:
        flush()
    if element.text:
        pending.append(element.text)
    for child in element:
        child_tag = _tag(child)
        if not _dropped(child, child_tag):
            _walk(child, blocks, pending)
        elif child_tag in BLOCKS or child_tag in ("pre", "table", "screen", "programlisting"):
            flush()
        if child.tail:
            pending.append(child.tail)
    if is_block or is_heading:
        flush("heading" if is_heading else "paragraph")


def _from_tree(root: etree._Element, title: str) -> Document:
    blocks: list[tuple[str, str]] = []
    pending: list[str] = []
    _walk(root, blocks, pending)
    rest = one_line("".join(pending))
    if rest:
        blocks.append(("paragraph", rest))
    headings = [text for kind, text in blocks if kind == "heading"]
    return Document(title=headings[0] if headings else title, blocks=blocks)


def from_html(text: str) -> Iterator[Document]:
    """HTML: the part marked as main where there is one, the body otherwise."""
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    if not text.strip():
        return
    root = html.document_fromstring(text)
    language = root.get("lang") or ""
    if language and not language.lower().startswith(("en", "c")):
        return
    titles = root.findall(".//title")
    title = one_line(titles[0].text_content()) if titles else ""
    for query in ("//main", "//*[@role='main']", "//article", "//div[@class='body']", "//body"):
        found = root.xpath(query)
        if found:
            yield _from_tree(found[0], re.split(r" [—|–·-] | :: ", title)[0])
            return


def from_xml(text: str) -> Iterator[Document]:
    """DocBook and Mallard, whose undeclared entities are read as nothing."""
    text = re.sub(r"&(?!(?:lt|gt|amp|quot|apos|#\d+|#x[0-9a-fA-F]+);)[\w.:-]+;", "", text)
    text = re.sub(r"(?s)<!DOCTYPE.*?(\]\s*>|>)", "", text, count=1)
    parser = etree.XMLParser(recover=True, resolve_entities=False, no_network=True, huge_tree=True)
    root = etree.fromstring(text.encode(), parser)
    if root is None:
        return
    whole = _from_tree(root, "")
    if not whole.title:
        return
    part = Document(title=whole.title)
    for kind, block in whole.blocks:
        if kind == "heading" and sum(len(b) for _, b in part.blocks) > 6000:
            yield part
            part = Document(title=block, part=block)
        part.blocks.append((kind, block))
    yield part


# Manual pages -------------------------------------------------------------------------------------------

ROFF_ESCAPES = [
    (re.compile(r'\\".*'), ""),
    (re.compile(r"\\f(\[[^\]]*\]|\(..|.)"), ""),
    (re.compile(r"\\s[-+]?\d+|\\[&|^:%,/)!]|\\[hvw]'[^']*'|\\m\[[^\]]*\]"), ""),
    (re.compile(r"\\\((?:aq|cq|oq)|\\\[(?:aq|cq|oq)\]"), "'"),
    (re.compile(r"\\\((?:lq|rq|dq)|\\\[(?:lq|rq|dq)\]|\\\*\(?[LRlr]?q|\\\*\(``|\\\*\(''|\\\*\(C[+']"), '"'),
    (re.compile(r"\\\(em|\\\[em\]|\\\*\(--"), " -- "),
    (re.compile(r"\\\((?:en|mi|hy)|\\\[(?:en|mi|hy)\]|\\-"), "-"),
    (re.compile(r"\\\((?:bu)|\\\[bu\]"), ""),
    (re.compile(r"\\[ 0~]"), " "),
    (re.compile(r"\\\(..|\\\[[^\]]*\]|\\\*(\(..|\[[^\]]*\]|.)"), ""),
    (re.compile(r"\\e|\\\\"), r"\\"),
    (re.compile(r"\\(.)"), r"\1"),
]
MDOC_WORD = {
    "Nm",
    "Ar",
    "Fl",
    "Pa",
    "Xr",
    "Em",
    "Sy",
    "Li",
    "Ql",
    "Dq",
    "Sq",
    "Pq",
    "Cm",
    "Va",
    "Dv",
    "Ev",
    "Er",
    "Fn",
}


def _roff_words(line: str) -> str:
    for pattern, replacement in ROFF_ESCAPES:
        line = pattern.sub(replacement, line)
    return line


def _arguments(rest: str) -> list[str]:
    return [a.strip('"') for a in re.findall(r'"[^"]*"|\S+', rest)]


def from_man(text: str) -> Iterator[Document]:
    """roff with the man macros, and the inline part of mdoc. Text between .nf and .fi is code: left out."""
    document = Document(title="")
    pending: list[str] = []
    verbatim = False
    name = ""

    def flush(kind: str = "paragraph") -> None:
        block = one_line(_roff_words(" ".join(pending)))
        pending.clear()
        if block:
            document.blocks.append((kind, block))

    for line in text.splitlines():
        if not line.startswith((".", "'")):
            if not line.strip():
                flush()
            elif not verbatim:
                pending.append(line)
            continue
        macro, _, rest = line[1:].strip().partition(" ")
        words = _arguments(rest)
        if macro in ("TH", "Dt"):
            document.title = words[0].lower() if words else ""
        elif macro in ("SH", "SS", "Sh", "Ss"):
            flush()
            verbatim = False
            pending.append(" ".join(words).capitalize())
            flush("heading")
        elif macro in ("PP", "P", "LP", "TP", "IP", "HP", "Pp", "It", "sp", "br", "RS", "RE", "TQ"):
            flush()
        elif macro in ("nf", "EX", "Bd", "TS", "EQ"):
            flush()
            verbatim = True
        elif macro in ("fi", "EE", "Ed", "TE", "EN"):
            verbatim = False
        elif verbatim:
            continue
        elif macro == "Nd":
            pending.append("- " + " ".join(words))
        elif macro in ("B", "I", "SM", "SB"):
            pending.append(" ".join(words))
        elif macro in ("BR", "RB", "IR", "RI", "BI", "IB"):
            pending.append("".join(words))
        elif macro in MDOC_WORD:
            if macro == "Nm":
                name = words[0] if words and words[0].isalnum() else name
                words = words or [name]
            if macro == "Xr" and len(words) > 1:
                words = [f"{words[0]}({words[1]})", *words[2:]]
            dash = "-" if macro == "Fl" else ""
            pending.append(re.sub(r" ([.,;:)])(?= |$)", r"\1", dash + " ".join(w for w in words if w not in MDOC_WORD)))
        elif macro in ("UR", "UE", "URL", "MT", "ME"):
            pending.append(" ".join(words[1:]))
    flush()
    hidden = re.compile(
        r"(?i)^(synopsis|see also|authors?|copyright|bugs|reporting bugs|colophon|library|history|notes)$"
    )
    kept, skip = [], False
    for kind, block in document.blocks:
        skip = bool(hidden.match(block)) if kind == "heading" else skip
        if not skip:
            kept.append((kind, block))
    document.blocks = kept
    yield document


# Plain text and its dialects ----------------------------------------------------------------------------


def _paragraphs(text: str) -> list[str]:
    """Split at empty lines and at new list items; join wrapped lines."""
    text = text.replace("\r\n", "\n").replace("\f", "\n\n").expandtabs()
    text = re.sub(r"(\w)-\n\s*([a-z])", r"\1-\2", text)
    text = re.sub(r"\n(?=\s*(?:[-*o+•]|\d{1,2}[.)]|\([a-z0-9]\)) )", "\n\n", text)
    return [one_line(re.sub(r"^\s*[-*+•o] +", "", block)) for block in re.split(r"\n\s*\n", text)]


def from_text(text: str) -> Iterator[Document]:
    """Plain text, Markdown and reStructuredText, each cut at about 8,000 characters."""
    text = re.sub(r"(?ms)^(```|~~~).*?^\1", "\n\n", text)
    text = re.sub(r"(?m)^ {4,}\S.*[;{}=()<>|]\s*$", "\n", text)
    text = re.sub(r"(?m)^ *> ?", "", text)
    text = re.sub(r"(?m)^([=\-~^\"'#*+_.]{3,})\s*$", "\n", text)
    text = re.sub(r"\[([^\]\n]+)\]\([^)\n]*\)", r"\1", text)
    text = re.sub(r"(?m)^#+ +(.+?)#*$", r"\n\1\n", text)
    text = re.sub(r":(?:\w+:)*`~?([^`<\n]+?)(?: <[^`>]*>)?`", r"\1", text)
    text = re.sub(r"(?<!\w)(\*\*|``|`|\*)([^\s*`][^*`\n]*)\1", r"\2", text)
    document = Document(title="")
    for paragraph in _paragraphs(text):
        if not paragraph:
            continue
        short = len(paragraph) < 80 and not re.search(r"[.:;,!?]$", paragraph)
        kind = "heading" if short else "paragraph"
        if not document.title and kind == "heading":
            document.title = paragraph
        if kind == "heading" and sum(len(b) for _, b in document.blocks) > 8000:
            yield document
            document = Document(title=paragraph, part=paragraph)
        document.blocks.append((kind, paragraph))
    yield document


def from_info(text: str) -> Iterator[Document]:
    """GNU Info: one document a node; menus and indices go."""
    for node in text.split("\x1f")[1:]:
        header, _, body = node.lstrip("\n").partition("\n")
        name = re.search(r"Node: ([^,\t\n]+)", header)
        if name is None or re.search(r"(?i)index|copying|licen[cs]e|^top$", name[1]):
            continue
        body = re.sub(r"(?s)\n\* Menu:.*?(?=\n\n(?!\*)|$)", "\n", body)
        body = re.sub(r"(?m)^\* .*::.*$", "", body)
        body = re.sub(r"\*[Nn]ote ([^:]+)::?", r"see \1", body)
        body = re.sub(r"(?m)^[*=\-.]{4,}$", "\n", body)
        body = re.sub(r"(?m)^ --? .*(\n {10,}.*)*", "\n", body)
        body = re.sub(r"(?m)(?:^ {10,}\S.*\n?)+", "\n", body)
        body = re.sub(r"[‘`]([^'’\n]+)['’]", r"'\1'", body)
        document = Document(title=re.sub(r"^[\d.]+ ", "", name[1]), part=name[1])
        first = True
        for paragraph in _paragraphs(body):
            if first and paragraph:
                first = False
                document.blocks.append(("heading", re.sub(r"^[\d.]+ ", "", paragraph)))
            elif paragraph:
                document.blocks.append(("paragraph", paragraph))
        yield document


POD_CODE = re.compile(r"[A-Z]<<+ (.*?) >>+|[A-Z]<([^<>]*)>")


def from_pod(text: str) -> Iterator[Document]:
    """Perl's plain old documentation; indented paragraphs are code."""
    document = Document(title="")
    for block in re.split(r"\n\s*\n", text):
        if block.startswith((" ", "\t")):
            continue
        block = re.sub(r"E<gt>", ">", re.sub(r"E<lt>", "<", block))
        block = re.sub(r"L<([^|<>]*)\|[^<>]*>", r"\1", block)
        block = re.sub(r"[XZ]<[^<>]*>", "", block)
        for _ in range(3):
            block = POD_CODE.sub(lambda m: m[1] or m[2] or "", block)
        command = re.match(r"=(\w+)\s*(.*)", block, re.S)
        if command is None:
            document.blocks.append(("paragraph", one_line(block)))
        elif command[1] in ("head1", "head2", "head3"):
            if sum(len(b) for _, b in document.blocks) > 8000:
                yield document
                document = Document(title=one_line(command[2]), part=one_line(command[2]))
            document.blocks.append(("heading", one_line(command[2])))
    yield document


def from_vim_help(text: str) -> Iterator[Document]:
    """Vim's help: *tags*, |links| and columns of commands go."""
    text = re.sub(r"(?m)^.*\*[^*\s]+\*\s*$", "\n", text)
    text = re.sub(r"(?ms)>\n(?:[ \t]+.*\n|\n)+", "\n\n", text)
    yield from from_text(re.sub(r"\|([^|\s]+)\|", r"\1", text))


# Dictionaries and sayings -------------------------------------------------------------------------------

PART_OF_SPEECH = {"n": "noun", "v": "verb", "adj": "adjective", "adv": "adverb"}


def wordnet_entries(text: str) -> Iterator[tuple[str, list[tuple[str, str, list[str]]]]]:
    """(word, [(part of speech, gloss, example sentences)]) of dictd's WordNet."""
    for entry in re.split(r"\n(?=\S)", text):
        word, _, body = entry.partition("\n")
        senses: list[tuple[str, str, list[str]]] = []
        part = ""
        for sense in re.split(
            r"\n(?=\s+(?:(?:n|v|adj|adv) )?\d*:? )(?=\s+(?:(?:n|v|adj|adv)(?: \d+)?|\d+): )", "\n" + body
        ):
            found = re.match(r"\s*(?:(n|v|adj|adv)\b)?\s*\d*: (.*)", one_line(sense))
            if found is None:
                continue
            part = found[1] or part
            gloss = re.sub(r"\s*\[(?:syn|ant|also): [^\]]*\]", "", found[2])
            examples = re.findall(r'"([^"]{8,})"', gloss)
            gloss = re.split(r'; "|: "', gloss)[0].strip()
            senses.append((PART_OF_SPEECH.get(part, ""), gloss, examples))
        if senses and not word.startswith("00-"):
            yield word.strip(), senses


def from_wordnet(text: str) -> Iterator[Document]:
    """Forty entries a document, each as sentences; at most six meanings an entry."""
    document = Document(title="Words and their meanings")
    for word, senses in wordnet_entries(text):
        if any(c.isdigit() for c in word):
            continue
        lines = []
        for part, gloss, examples in senses[:6]:
            shown = f' For example: "{examples[0]}".' if examples else ""
            lines.append(f"{word} ({part}): {gloss.rstrip('.;')}.{shown}")
        document.blocks.append(("paragraph", " ".join(lines)))
        if len(document.blocks) == 40:
            yield document
            document = Document(title="Words and their meanings", part=word)
    yield document


def from_dict(text: str) -> Iterator[Document]:
    """A dictd dictionary: headword at the margin, its text indented. Forty entries a document."""
    document = Document(title="")
    for entry in re.split(r"\n(?=\S)", text):
        if entry.startswith("00-"):
            continue
        head, _, body = entry.partition("\n")
        body = re.sub(
            r"\[1913 Webster[^\]]*\]|\[WordNet[^\]]*\]|\[PJC\]|\[\d{4}-\d\d-\d\d\]|<[^<>\n]{0,80}>",
            "\n\n",
            body,
        )
        body = re.sub(r"[{}]", "", body)
        head = re.sub(r"%%%.*|\s*\\.*?\\.*|\s*\[[^\]]*\]|, (?:n|a|v|adv|prep)\..*", "", head).strip()
        paragraphs = [p for p in _paragraphs(body) if len(p) > 30 or p.endswith(".")]
        if not paragraphs or len(head) > 40 or head.endswith((".", ":")) or not re.match(r"\w", head):
            continue
        paragraphs[0] = f"{head}: {re.sub(r'^1[.] ', '', paragraphs[0])}"
        document.blocks.extend(("paragraph", p) for p in paragraphs)
        if len(document.blocks) >= 60:
            yield document
            document = Document(title="", part=head)
    yield document


def from_fortunes(text: str) -> Iterator[Document]:
    """Sayings between lines of a single per cent sign. Thirty a document."""
    sayings = [one_line(s) for s in re.split(r"(?m)^%\s*$", text)]
    for start in range(0, len(sayings), 30):
        yield Document("", str(start), [("paragraph", s) for s in sayings[start : start + 30] if s])


# Stories inside games' data -----------------------------------------------------------------------------


def _strings_as_document(strings: list[str], title: str = "") -> Iterator[Document]:
    for start in range(0, len(strings), 60):
        blocks = [("paragraph", one_line(s)) for s in strings[start : start + 60]]
        yield Document(title, str(start) if start else "", [b for b in blocks if b[1]])


def from_translatable(text: str) -> Iterator[Document]:
    """Strings marked for translation, _"..." or _("..."), as in Wesnoth, Freeciv and Widelands."""
    strings = re.findall(r'(?s)\b_\s*\(?\s*"((?:[^"\\]|\\.|"")*)"', text)
    strings += re.findall(r"(?s)\b_\s*\(?\s*\[\[(.*?)\]\]", text)
    strings = [re.sub(r'\\[nt]|\\\n|"\s*\n?\s*"', " ", s).replace('\\"', '"').replace("''", "'") for s in strings]
    strings = [re.sub(r"</?\w+[^>]*>|\$\w+(\|\w*)*|\{[^}]*\}", "", re.sub(r"<[^<>]{1,60}>", "", s)) for s in strings]
    yield from _strings_as_document([s.partition("^")[2] or s if s.count("^") == 1 else s for s in strings])


def from_quoted(text: str) -> Iterator[Document]:
    """Strings of six words or more between back quotes or double quotes on one line (Endless Sky)."""
    strings = re.findall(r"`([^`\n]{25,})`", text) + re.findall(r'"([^"\n]{40,})"', text)
    strings = [re.sub(r"<[^<>]{1,30}>", "the place", s).replace("\\n", " ").replace("\\t", " ") for s in strings]
    yield from _strings_as_document([s for s in strings if s.count(" ") > 4])


def from_stringtable(text: str) -> Iterator[Document]:
    """FreeOrion: a key line, then its text, either on one line or between triple quotes."""
    strings = re.findall(r"(?s)'''(.*?)'''", text)
    strings += re.findall(r"(?m)^[A-Z][A-Z0-9_]+\n((?!''')[^\n]{40,})$", text)
    strings = [re.sub(r"\[\[[^\]]*\]\]|<[^<>]*>|%\w*%|\[/?\w+[^\]]*\]", "", s) for s in strings]
    yield from _strings_as_document([p for s in strings for p in s.split("\n")])


def from_keyed(text: str) -> Iterator[Document]:
    """Dungeon Crawl's descriptions (%%%% between entries, the key first) and Angband's `desc:` lines."""
    if "%%%%" in text:
        entries = [e.strip().partition("\n") for e in text.split("%%%%")]
        blocks = [p for key, _, body in entries if "{{" not in body for p in _paragraphs(body)]
    else:
        joined = re.sub(r"\n(?:desc|D|text):", " ", text)
        blocks = list(re.findall(r"(?m) ([A-Z][^\n]{40,})$", joined))
    yield from _strings_as_document([re.sub(r"@\w+@", "it", b) for b in blocks])


READERS: dict[str, Callable[[str], Iterator[Document]]] = {
    "html": from_html,
    "xml": from_xml,
    "man": from_man,
    "text": from_text,
    "info": from_info,
    "pod": from_pod,
    "vim": from_vim_help,
    "wordnet": from_wordnet,
    "dict": from_dict,
    "fortunes": from_fortunes,
    "translatable": from_translatable,
    "quoted": from_quoted,
    "stringtable": from_stringtable,
    "keyed": from_keyed,
}
