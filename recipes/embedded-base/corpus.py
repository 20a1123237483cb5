"""Builds the embedded base model's pretraining corpus from documentation that Debian ships.

    python corpus.py --out /data/corpus --cache /data/cache

Downloads the packages named in `packages.py` (nothing is installed), reads their files, keeps plain English
paragraphs, removes duplicates, holds out some documents, and writes

    train.jsonl, held_out.jsonl   rows {"text", "source", "license"}, ordered by the hashes of their sources
    corpus.json                   each package's version, license, documents, bytes, and tokens where counted

Paragraphs that share eight words in a row with a docstring of Python's standard library are left out, and so
is that library's reference, because the demo evaluates on its modules.

Needs `apt-get` and `dpkg-deb`, and lxml (`pip install lxml`).
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import json
import lzma
import multiprocessing
import re
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from extract import READERS
from packages import PACKAGES, Package
from prose import cleaned, fingerprints, is_english, shingles, standard_library_shingles

LONGEST_FILE = 12_000_000
SHORTEST_DOCUMENT = 200
SHARE_OF_ONE_PACKAGE = 0.12
HELD_OUT_BYTES = 1_000_000

_LANGUAGES = """
af am ar as ast az be bg bn br bs ca cs cy da de de_DE el eo es es_ES et eu fa fi fr fr_FR ga gd gl gu he
hi hr hu hy ia id is it ja ja_JP ka kk km kn ko lt lv mk ml mn mr ms nb nds ne nl nn oc or pa pl pt pt_BR
pt-br ro ru ru_RU si sk sl sq sr sv ta te tg th tr ug uk uz vi wa xh zh zh_CN zh_TW zh-cn zh-tw zh_HK
en_GB es-ES fr-FR de-DE it-IT ja-JP pl-PL pt-BR ru-RU zh-CN zh-TW nb-NO id-ID sv-SE ko-KR tr-TR da-DK
nl-NL el-GR ro-RO vi-VN cs-CZ ar-MA fa-IR hr-HR ko-kr sr@latin
"""
LANGUAGES = _LANGUAGES.split()
FOREIGN_PATH = re.compile(
    r"/(?!en-US)[a-z][a-z]-[A-Z][A-Z]/|/(?:{0})/|"
    r"[._-](?:{0})(?:\.(?:UTF-8|utf8|euc-\w+))?(?:\.(?:html?|txt|xml|\d))?(?:\.gz)?$".format(
        "|".join(map(re.escape, LANGUAGES))
    )
)
UNWANTED_PATH = re.compile(
    r"(?i)/(copyright|changelog[^/]*|news[^/]*|authors[^/]*|todo[^/]*|copying[^/]*|licen[sc]e[^/]*|"
    r"credits[^/]*|"
    r"thanks[^/]*|contributors[^/]*|install[^/]{0,12}|release-?notes[^/]*|genindex[^/]*|py-modindex[^/]*|"
    r"search\.html|"
    r"[^/]*index-\w\.html|class-use|_modules|_sources|_static|locale|lintian|gettext|python3(\.\d+)?/(html/)?"
    r"(library|c-api|distutils|distributing|installing|license|bugs|copyright|genindex|reference)|tests?|"
    r"fortunes/(off|translate-me|ascii-art|ethnic|men-women|drugs|zippy|knghtbrd|startrek|songs-poems|"
    r"pratchett))(/|\.html|\.gz|$)|/src/|"
    r"-members\.html|_source\.html|_8h\.html|/rust-doc/html/(core|std|alloc|proc_macro|test|error_codes)/"
)


# From packages to cleaned documents ---------------------------------------------------------------------


def reader_of(path: str, package: Package) -> str:
    """The name of the reader for this file, or "" if there is none."""
    bare = re.sub(r"\.(gz|bz2|xz)$", "", path)
    name = PurePosixPath(bare).name
    suffix = PurePosixPath(bare).suffix.lower()
    if UNWANTED_PATH.search(path) or FOREIGN_PATH.search(path):
        return ""
    if "/man/man" in path:
        return "man" if re.search(r"/man/man\d", path) else ""
    if "/info/" in path:
        return "info" if re.search(r"\.info(-\d+)?$", name) else ""
    if path.endswith((".dict.dz", ".dict")):
        return package.reader
    if "/games/fortunes/" in path:
        return "fortunes" if suffix == "" else ""
    if suffix in (".html", ".htm", ".xhtml", ".ht") or bare.endswith(".html.en"):
        return "html"
    if suffix in (".page", ".docbook", ".xml") and re.search(r"/(help|gnome/help|HTML)/", path):
        return "xml"
    if suffix == ".utf8" and "skycultures" in path:
        return "html" if bare.endswith(".en.utf8") else ""
    if suffix == ".pod":
        return "pod"
    if suffix == ".txt" and re.search(r"/vim\d*/doc/", path):
        return "vim"
    if package.reader in ("translatable", "quoted", "stringtable", "keyed"):
        return package.reader if suffix in (".cfg", ".lua", ".txt", ".ruleset", ".dialog", ".xml", ".des") else ""
    if suffix in (".txt", ".md", ".rst", ".text") or name.startswith(("README", "FAQ")):
        return "text"
    return ""


def files_of(deb: Path, package: Package) -> Iterator[tuple[str, str, str]]:
    """(path, reader, contents) of each file with text, straight from the archive."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:
            path = member.name.removeprefix(".")
            reader = reader_of(path, package) if member.isfile() else ""
            handle = archive.extractfile(member) if reader else None
            if handle is not None:
                yield path, reader, decoded(handle.read(), path)


def decoded(raw: bytes, path: str) -> str:
    """The file's text; empty for a file that is too long or broken."""
    opener = {".gz": gzip, ".dz": gzip, ".bz2": bz2, ".xz": lzma}.get(PurePosixPath(path).suffix)
    try:
        raw = opener.decompress(raw) if opener else raw
    except (OSError, EOFError, lzma.LZMAError):
        return ""
    if len(raw) > LONGEST_FILE and not path.endswith((".dz", ".dict")):
        return ""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def documents_of(deb: Path, package: Package, leaks: set[bytes]) -> Iterator[dict[str, Any]]:
    """The package's cleaned documents, each paragraph with its fingerprints, duplicates still among them."""
    glossary = package.reader in ("dict", "wordnet")
    for path, reader, contents in files_of(deb, package):
        if reader in ("html", "text", "man") and not is_english(contents[:200_000], 0.04):
            continue
        try:
            documents = list(READERS[reader](contents))
        except (ValueError, RecursionError, SyntaxError):  # a page that its own format's parser refuses
            continue
        for document in documents:
            title, blocks = cleaned(document, glossary=glossary)
            blocks = [(k, t) for k, t in blocks if k == "heading" or leaks.isdisjoint(shingles(t))]
            if blocks:
                source = f"{package.name}:{path}" + (f"#{document.part}" if document.part else "")
                prints = [[f.hex() for f in fingerprints(t)] if k == "paragraph" else [] for k, t in blocks]
                yield {"source": source, "title": title, "blocks": blocks, "prints": prints}


def write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Write JSON lines; an interrupted write leaves no file."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    partial.replace(path)


_leaks: set[bytes] = set()


def extract_package(job: tuple[Package, Path, Path]) -> str:
    """Writes one package's cleaned documents to its file in the cache, unless it is there."""
    package, deb, target = job
    if not target.exists():
        write_lines(target, documents_of(deb, package, _leaks))
    return package.name


def rules_version() -> str:
    """A hash of the cleaning rules, so that the cache of cleaned text is never stale."""
    rules = b"".join((Path(__file__).parent / name).read_bytes() for name in ("extract.py", "prose.py"))
    return hashlib.sha256(rules).hexdigest()[:10]


def download(packages: list[Package], directory: Path) -> dict[str, Path]:
    """name → .deb; missing packages are downloaded, and a package that the archive lacks is logged and left out."""
    directory.mkdir(parents=True, exist_ok=True)

    def downloaded() -> dict[str, Path]:
        return {p.name.split("_")[0]: p for p in sorted(directory.glob("*.deb"))}

    missing = [p.name for p in packages if p.name not in downloaded()]
    for name in missing:
        log(f"downloading {name}")
        command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name]
        if subprocess.run(command, cwd=directory, capture_output=True).returncode:
            log(f"{name}: not in this archive, left out")
    return {name: path for name, path in downloaded().items() if name in {p.name for p in packages}}


def extract_all(debs: dict[str, Path], cache: Path, workers: int) -> dict[str, Path]:
    """name → file of cleaned documents, largest package first over `workers` processes."""
    global _leaks
    cache.mkdir(parents=True, exist_ok=True)
    version = rules_version()
    jobs = [
        (package, debs[package.name], cache / f"{debs[package.name].stem}.{version}.jsonl")
        for package in sorted(PACKAGES, key=lambda p: -debs[p.name].stat().st_size if p.name in debs else 0)
        if package.name in debs
    ]
    if any(not target.exists() for _, _, target in jobs):
        log("reading the standard library's docstrings, to exclude them")
        _leaks = standard_library_shingles()
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for done, name in enumerate(pool.imap_unordered(extract_package, jobs), 1):
            log(f"{done}/{len(jobs)} {name}")
    return {package.name: target for package, _, target in jobs}


# From cleaned documents to the corpus -------------------------------------------------------------------


def order_of(source: str) -> str:
    """The sort key of a document in shuffled order: the hash of its source."""
    return hashlib.sha256(source.encode()).hexdigest()


def text_of(title: str, blocks: list[tuple[str, str]]) -> str:
    """Title, headings and paragraphs separated by empty lines; a heading without a paragraph is dropped."""
    lines = [title] if title else []
    for i, (kind, block) in enumerate(blocks):
        follows = i + 1 < len(blocks) and blocks[i + 1][0] == "paragraph"
        if kind == "paragraph" or (follows and block != title):
            lines.append(block)
    return "\n\n".join(lines)


def without_duplicates(files: dict[str, Path]) -> tuple[list[dict[str, str]], Counter[str]]:
    """All documents with only the first occurrence of each paragraph, and counts of what was left out."""
    seen: set[int] = set()
    rows: list[dict[str, str]] = []
    left_out: Counter[str] = Counter()
    for package in PACKAGES:
        if package.name not in files:
            continue
        with files[package.name].open(encoding="utf-8") as lines:
            for line in lines:
                document = json.loads(line)
                blocks = []
                for (kind, block), prints in zip(document["blocks"], document["prints"], strict=True):
                    numbers = {int(p, 16) for p in prints}
                    if kind == "paragraph" and not seen.isdisjoint(numbers):
                        left_out["duplicate paragraphs"] += 1
                        continue
                    seen |= numbers
                    blocks.append((kind, block))
                text = text_of(document["title"], blocks)
                if len(text) < SHORTEST_DOCUMENT or not is_english(text, 0.12):
                    left_out["documents too short or not English"] += 1
                    continue
                rows.append({"text": text, "source": document["source"], "license": package.license})
        log(f"{package.name}: {sum(len(r['text']) for r in rows) / 1e6:.1f} M characters so far")
    return rows, left_out


def capped(rows: list[dict[str, str]], share: float) -> tuple[list[dict[str, str]], int]:
    """The rows with no package above `share` of what remains, and how many were left out."""
    sizes: Counter[str] = Counter()
    for row in rows:
        sizes[row["source"].partition(":")[0]] += len(row["text"].encode())
    limit = float(max(sizes.values()))
    for _ in range(50):
        limit = share * sum(min(size, limit) for size in sizes.values())
    used: Counter[str] = Counter()
    kept = []
    for row in rows:
        package = row["source"].partition(":")[0]
        if used[package] <= limit:
            used[package] += len(row["text"].encode())
            kept.append(row)
    return kept, len(rows) - len(kept)


def split(rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(train, held out). One file in a hundred is held out, by the hash of its path, up to the limit."""
    train, held_out, size = [], [], 0
    for row in rows:
        path = row["source"].partition("#")[0]
        chosen = int(order_of(path), 16) % 100 == 0 and len(row["text"]) < 40_000
        if chosen and size < HELD_OUT_BYTES:
            held_out.append(row)
            size += len(row["text"].encode())
        elif not chosen:
            train.append(row)
    return train, held_out


def manifest(
    train: list[dict[str, str]],
    held_out: list[dict[str, str]],
    debs: dict[str, Path],
    left_out: Counter[str],
    tokenizer: str | None,
) -> dict[str, Any]:
    """The contents of the corpus, one row per package."""
    count = token_counter(tokenizer)
    packages: dict[str, dict[str, Any]] = defaultdict(lambda: {"documents": 0, "bytes": 0, "tokens": 0})
    for start in range(0, len(train), 1000):
        batch = train[start : start + 1000]
        for row, tokens in zip(batch, count([r["text"] for r in batch]), strict=True):
            entry = packages[row["source"].partition(":")[0]]
            entry["documents"] += 1
            entry["bytes"] += len(row["text"].encode())
            entry["tokens"] += tokens
    table = {p.name: p for p in PACKAGES}
    listed = [
        {
            "package": name,
            "version": debs[name].name.split("_")[1].replace("%3a", ":"),
            "license": table[name].license,
            "what": table[name].what,
            **numbers,
        }
        for name, numbers in sorted(packages.items(), key=lambda item: -item[1]["bytes"])
    ]
    total = {key: sum(p[key] for p in listed) for key in ("documents", "bytes", "tokens")}
    held = {"documents": len(held_out), "bytes": sum(len(r["text"].encode()) for r in held_out)}
    if tokenizer is None:
        for entry in [*listed, total]:
            entry["tokens"] = None
    return {"train": total, "held_out": held, "left_out": dict(left_out), "packages": listed}


def token_counter(tokenizer: str | None) -> Any:
    """texts → number of tokens of each; zeros without a tokenizer."""
    if tokenizer is None:
        return lambda texts: [0] * len(texts)
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(Path(tokenizer) / "tokenizer.json"))
    return lambda texts: [len(e.ids) for e in loaded.encode_batch(texts)]


def log(line: str) -> None:
    """Print progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="directory for train.jsonl, held_out.jsonl, corpus.json"
    )
    parser.add_argument("--cache", type=Path, help="directory for downloads and cleaned text (default: OUT/cache)")
    parser.add_argument("--tokenizer", help="directory of a tokenizer, to count tokens in corpus.json")
    parser.add_argument("--workers", type=int, default=2, help="processes that read packages (default: 2)")
    parser.add_argument("--offline", action="store_true", help="use only the packages in the cache")
    options = parser.parse_args()
    cache = options.cache or options.out / "cache"
    options.out.mkdir(parents=True, exist_ok=True)

    debs = download([] if options.offline else PACKAGES, cache / "debs")
    if options.offline:
        debs = {p.name.split("_")[0]: p for p in sorted((cache / "debs").glob("*.deb"))}
    files = extract_all(debs, cache / "text", options.workers)
    rows, left_out = without_duplicates(files)
    rows.sort(key=lambda row: order_of(row["source"]))
    rows, left_out["documents above a package's share"] = capped(rows, SHARE_OF_ONE_PACKAGE)
    train, held_out = split(rows)
    write_lines(options.out / "train.jsonl", iter(train))
    write_lines(options.out / "held_out.jsonl", iter(held_out))
    summary = manifest(train, held_out, debs, left_out, options.tokenizer)
    partial = options.out / "corpus.json.partial"
    partial.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    partial.replace(options.out / "corpus.json")
    log(f"{summary['train']['bytes'] / 1e6:.1f} MB in {summary['train']['documents']:,} documents")


if __name__ == "__main__":
    main()
