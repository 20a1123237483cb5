"""Near-duplicates with datasketch: signatures on all cores, then one index that each row is looked up in.

python datasketch_duplicates.py ROWS.jsonl DIRECTORY
"""

import json
import re
import sys
from multiprocessing import Pool
from pathlib import Path

from datasketch import MinHash, MinHashLSH

WORD = re.compile(r"\w+")


def signature(line: str) -> MinHash:
    """Of the row's runs of three words."""
    text = " ".join(turn["content"] for turn in json.loads(line)["messages"])
    words = WORD.findall(text.casefold())
    found = MinHash(num_perm=128)
    found.update_batch([" ".join(words[at : at + 3]).encode() for at in range(max(1, len(words) - 2))])
    return found


def main() -> None:
    index, duplicates = MinHashLSH(threshold=0.8, num_perm=128), 0
    with Path(sys.argv[1]).open(encoding="utf-8") as lines, Pool() as pool:
        for number, found in enumerate(pool.imap(signature, lines, chunksize=256)):
            if index.query(found):
                duplicates += 1
            else:
                index.insert(number, found)
    print(duplicates)


if __name__ == "__main__":
    main()
