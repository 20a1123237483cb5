"""What memory `tunesmith data check` needs, and how it grows with the rows.

    python benchmarks/data_check_memory.py --rows ../shared/data/gsm8k/train.jsonl

Checks files of two sizes of data_check_speed.py's chats with all default checks, and looks at the memory of all
processes together ten times a second: what is anonymous, and all of it, with the pages of mapped files, which the
system takes back when it needs them. The growth by row is the difference of the two sizes. Writes
results/data_check_memory.{json,md}.
"""

import argparse
from pathlib import Path
from typing import Any

from data_check_speed import check, first_bytes, make_rows
from stored_result import measure_and_store

HERE = Path(__file__).resolve().parent
KINDS = ("anonymous", "memory")


def measured(directory: Path, source: Path, sizes: tuple[int, int]) -> dict[str, Any]:
    rows = directory / "rows.jsonl"
    make_rows(source, rows, max(sizes))
    found: list[dict[str, Any]] = []
    for number, size in enumerate(sorted(sizes)):
        part = first_bytes(rows, directory / f"{number}.jsonl", size)
        with part.open("rb") as lines:
            count = sum(1 for _ in lines)
        found.append({"rows": count, **check(part, directory / f"cache-{number}", every=0.1)})
    return {"sizes": found}


def table_of(found: dict[str, Any]) -> str:
    lines = [
        "| data | rows | anonymous | with the pages of files | processor seconds/MB |",
        "|---|---:|---:|---:|---:|",
    ]
    few, many = found["sizes"]
    for each in (few, many):
        sizes = " | ".join(f"{each[kind] / 1e6:,.0f} MB" for kind in KINDS)
        rate = each["processor_seconds"] / each["bytes"] * 1e6
        lines.append(f"| {each['bytes'] / 1e6:,.0f} MB | {each['rows']:,} | {sizes} | {rate:.3f} |")
    growth = ((many[kind] - few[kind]) / (many["rows"] - few["rows"]) for kind in KINDS)
    lines.append(f"| one more row | | {' | '.join(f'{each:,.0f} bytes' for each in growth)} | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, nargs=2, default=(64, 256))
    asked = parser.parse_args()
    first, second = (int(size * 1e6) for size in asked.megabytes)
    results = HERE / "results" / "data_check_memory.json"
    measure_and_store(results, lambda directory: measured(directory, asked.rows, (first, second)), table_of)


if __name__ == "__main__":
    main()
