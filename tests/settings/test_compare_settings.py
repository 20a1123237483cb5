"""Every option of `tunesmith compare` does what its help says."""

import json
from pathlib import Path

import pytest
from command import typed
from settings_coverage import shows


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {n} + {n}?", "answer": "It is so."} for n in range(60)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "base": str(tiny_model),
        "data": {"train": "rows.jsonl", "held_out": 0.3},
        "ways": ["plain", "few_shot"],
        "shots": [1],
        "max_new_tokens": 4,
        "rows": 12,
    }
    Path("mine.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return tmp_path


@shows(
    "tunesmith compare comparison",
    "tunesmith compare --output",
    "tunesmith compare --budget",
    "tunesmith compare --concurrent",
    "tunesmith compare --json",
)
def test_compare_prints_the_ways_and_writes_them_beside_its_file() -> None:
    done = typed("compare", "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert "few_shot" in done.stdout
    assert "The data cannot tell" in done.stdout
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    assert Path("mine/compare.json").exists()
    page = Path("mine/report.html").read_text(encoding="utf-8")
    assert "The data cannot tell" in page
    assert "Quality against cost, all rows" in page
    elsewhere = typed("compare", "mine.yaml", "--output", "o", "--budget", "0.001s", "--concurrent", "1", "--json")
    result = json.loads(elsewhere.stdout)
    assert list(result["ways"]) == ["plain"]
    assert result["left_out"]["few_shot"] == "the budget of 0.001s does not allow it"
    plain = json.loads(Path("mine/compare.json").read_text(encoding="utf-8"))["ways"]["plain"]
    assert result["ways"]["plain"]["exact_match"] == plain["exact_match"], "whatever is computed together"
    assert Path("o/compare.json").exists()
    refused = typed("compare", "nowhere.yaml")
    assert refused.returncode == 2
    assert "nowhere.yaml cannot be read as a comparison: No such file or directory." in refused.stderr
