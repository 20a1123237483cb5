"""Near-duplicates with datatrove's MinHash pipeline: signatures, buckets, clusters, on all cores.

python datatrove_duplicates.py ROWS.jsonl DIRECTORY
"""

import json
import os
import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader

CORES = len(os.sched_getaffinity(0))


def split(rows: Path, directory: Path) -> Path:
    """As many files as cores, each with `text`, as datatrove reads them: one file for each task."""
    directory.mkdir(parents=True)
    files = [(directory / f"{number}.jsonl").open("w", encoding="utf-8") for number in range(CORES)]
    with rows.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            text = " ".join(turn["content"] for turn in json.loads(line)["messages"])
            files[number % CORES].write(json.dumps({"text": text, "id": str(number)}) + "\n")
    for file in files:
        file.close()
    return directory


def run(directory: Path, step: object, tasks: int, *before: object) -> None:
    LocalPipelineExecutor([*before, step], tasks=tasks, workers=CORES, skip_completed=False).run()


def main() -> None:
    directory = Path(sys.argv[2])
    rows = split(Path(sys.argv[1]), directory / "rows")
    config = MinhashConfig(n_grams=3, num_buckets=14, hashes_per_bucket=8)
    signatures, buckets, removed = (str(directory / name) for name in ("signatures", "buckets", "removed"))
    run(directory, MinhashDedupSignature(signatures, config=config), CORES, JsonlReader(str(rows)))
    run(directory, MinhashDedupBuckets(signatures, buckets, config=config), config.num_buckets)
    run(directory, MinhashDedupCluster(buckets, removed, config=config), 1)


if __name__ == "__main__":
    main()
