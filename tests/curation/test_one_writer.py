"""Two processes never write one output, whatever the act."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from curated import sentence, write

from tunesmith.curation.augment import data_augment
from tunesmith.curation.balance import data_balance
from tunesmith.curation.clean import data_clean
from tunesmith.curation.diff import data_diff
from tunesmith.curation.restore import data_restore
from tunesmith.curation.sample import data_sample
from tunesmith.curation.select import data_select
from tunesmith.curation.split import data_split
from tunesmith.curation.worst import data_worst
from tunesmith.errors import UserError
from tunesmith.run_lock import output_lock

ACTS: dict[str, Callable[[Path, Path], Any]] = {
    "augment": lambda rows, out: data_augment(rows, out, templates=["Please: {prompt}"]),
    "balance": lambda rows, out: data_balance(rows, out),
    "clean": lambda rows, out: data_clean(rows, out),
    "diff": lambda rows, out: data_diff(rows, rows.with_name("other.jsonl"), out),
    "restore": lambda rows, out: data_restore(rows.with_name("cleaned.jsonl"), out),
    "sample": lambda rows, out: data_sample(rows, 2, out),
    "select": lambda rows, out: data_select(rows, 2, out, by="random"),
    "split": lambda rows, out: data_split(rows, out, held_out=0.5),
    "worst": lambda rows, out: data_worst(rows, 1, out),
}


@pytest.mark.parametrize("name", ACTS)
def test_an_output_that_another_process_writes_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    texts = [{"text": f"What is {sentence(n, 8)}?", "label": "ab"[n % 2]} for n in range(8)]
    rows = write(tmp_path / "rows.jsonl", [*texts, texts[0]])
    write(tmp_path / "other.jsonl", texts[1:])
    data_clean(rows, tmp_path / "cleaned.jsonl")
    out = tmp_path / "new" / "out.jsonl"
    out.parent.mkdir()
    with output_lock(out), pytest.raises(UserError, match=r"out\.jsonl is being written by"):
        ACTS[name](rows, out)
    assert not list(out.parent.iterdir())
    ACTS[name](rows, out)
    assert out.exists()
    with pytest.raises(UserError, match=r"out\.jsonl already exists"):
        ACTS[name](rows, out)
