"""Every option of `tunesmith vote` and `tunesmith rank` does what its help says."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import typed
from scripted_server import Body, Scripted, scripted
from settings_coverage import shows

from tunesmith.data.example import Example
from tunesmith.data.read import Row, read
from tunesmith.data.row_formats import to_example


def question(body: Body) -> str:
    return str(body["messages"][-1]["content"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOGNAME", "anna")
    Path("rows.jsonl").write_text(
        "".join(json.dumps({"question": f"q{number}?"}) + "\n" for number in range(12)), encoding="utf-8"
    )
    return tmp_path


@pytest.fixture
def two() -> Iterator[tuple[Scripted, Scripted]]:
    """Two servers; the first one's answers are longer."""
    with scripted(lambda body: f"Surely {question(body)}") as one, scripted(question) as other:
        yield one, other


def vote(*arguments: Any, keys: str = "", code: int = 0) -> str:
    done = typed("vote", *map(str, arguments), given=keys)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def votes(file: str = "votes.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def shown(out: str) -> list[tuple[str, bool]]:
    """Of each pair, the row it is from, and whether the longer answer is on the left."""
    rows = re.findall(r"of \d+ · rows.jsonl (row \d+)", out)
    lefts = re.findall(r"^│ (\S+)", out, re.MULTILINE)
    return list(zip(rows, (left == "Surely" for left in lefts), strict=True))


@shows("tunesmith vote models", "tunesmith vote --data", "tunesmith vote --rows")
def test_two_models_answer_evenly_spaced_rows(two: tuple[Scripted, Scripted]) -> None:
    out = vote(two[0].url, two[1].url, "--data", "rows.jsonl", "--rows", 3, keys="1 2\nt")
    assert sorted(row for row, _ in shown(out)) == ["row 1", "row 12", "row 7"]
    assert "anna has voted on 3 of 3 pairs, 3 of them now." in out
    assert "Elo points" in out, "at the end the ranking is shown"
    rows = votes()
    assert {row["models"]["chosen"] for row in rows} <= {url.url.split("//")[1].replace("/v1#", "/") for url in two}
    assert [row["tie"] for row in rows] == [False, False, True]
    assert "--rows 0 is not a number of rows" in vote(two[0].url, two[1].url, "--rows", 0, code=2)
    assert "Name files with --data rows.jsonl." in vote(two[0].url, two[1].url, "--rows", "rows.jsonl", code=2)
    vote(two[0].url, two[1].url, "--data", "rows.jsonl", "--rows", "all", keys="1" * 9)
    assert {row["source"] for row in votes()} == {f"rows.jsonl row {number}" for number in range(1, 13)}


@shows("tunesmith vote --seed", "tunesmith vote --voter")
def test_seed_and_voter_decide_order_and_sides(two: tuple[Scripted, Scripted]) -> None:
    def run(*more: Any) -> list[tuple[str, bool]]:
        file = f"{'-'.join(map(str, more))}.jsonl"
        return shown(vote(two[0].url, two[1].url, "--data", "rows.jsonl", "--output", file, *more, keys="t" * 12))

    first, again, other, bert = run("--seed", 1), run("--seed", 1, "--voter", "anna"), run("--seed", 2), run(
        "--seed", 1, "--voter", "bert"
    )  # fmt: skip
    assert first == again
    assert [row for row, _ in first] == [row for row, _ in bert] != [row for row, _ in other]
    assert dict(first) != dict(bert), "each voter has sides of their own"
    assert 2 <= sum(left for _, left in first + other + bert) <= 34
    for row, (_, left) in zip(votes("--seed-1.jsonl"), first, strict=True):
        longer = "chosen" if row["chosen"][0]["content"].startswith("Surely") else "rejected"
        assert (row["voter"], row["shown_first"] == longer) == ("anna", left)
    assert {row["voter"] for row in votes("--seed-1---voter-bert.jsonl")} == {"bert"}


@shows("tunesmith vote --output")
def test_votes_are_appended_to_the_output(two: tuple[Scripted, Scripted]) -> None:
    for keys in ("1", "2"):
        vote(two[0].url, two[1].url, "--data", "rows.jsonl", "--output", "new/mine.jsonl", keys=keys)
    assert len(votes("new/mine.jsonl")) == 2
    assert not Path("votes.jsonl").exists()


@shows("tunesmith vote --max-new-tokens", "tunesmith vote --repetition-penalty")
def test_answers_are_written_as_asked(two: tuple[Scripted, Scripted]) -> None:
    options = ["--rows", 1, "--max-new-tokens", 17, "--repetition-penalty", 1.3]
    vote(two[0].url, two[1].url, "--data", "rows.jsonl", *options, keys="1")
    for server in two:
        assert [(body["max_completion_tokens"], body["repetition_penalty"]) for body in server.asked] == [(17, 1.3)]


@shows("tunesmith vote --concurrent")
@pytest.mark.parametrize("most", [1, 3])
def test_no_more_answers_than_asked_for_are_computed_at_once(most: int) -> None:
    running, seen, lock = [0], set[int](), threading.Lock()

    def reply(letter: str) -> Callable[[Body], str]:
        def answered(body: Body) -> str:
            with lock:
                running[0] += 1
                seen.add(running[0])
            time.sleep(0.02)
            with lock:
                running[0] -= 1
            return letter

        return answered

    with scripted(reply("a")) as one, scripted(reply("b")) as other:
        vote(one.url, other.url, "--data", "rows.jsonl", "--rows", 6, "--concurrent", most, keys="q")
    assert max(seen) == most


@shows("tunesmith vote --cache")
def test_answers_are_kept_unless_told_otherwise(tiny_model: Path, here: Path, two: tuple[Scripted, Scripted]) -> None:
    kept = here / "cache" / "evaluation"
    for option, exists in (("--no-cache", False), ("--cache", True)):
        vote(tiny_model, two[0].url, "--data", "rows.jsonl", "--rows", 2, "--max-new-tokens", 6, option, keys="1")
        assert kept.exists() == exists
    (first, second) = votes()
    hashes = {hash for row in (first, second) for hash in row["model_sha256"].values()}
    assert len(hashes - {None}) == 1, "the model's content, with the cache and without"
    assert all(len(hash) == 64 for hash in hashes - {None})


@shows("tunesmith rank files", "tunesmith rank --json")
def test_rank_reads_files_and_prints_a_table_or_json(two: tuple[Scripted, Scripted]) -> None:
    def better(voter: str, longer: bool) -> None:
        """Vote for the longer answers, or for the shorter ones."""
        where = shown(vote(two[0].url, two[1].url, "--data", "rows.jsonl", "--voter", voter, "--output", "all.jsonl",
                           keys="s" * 12))  # fmt: skip
        keys = "".join("1" if left == longer else "2" for _, left in where)
        vote(two[0].url, two[1].url, "--data", "rows.jsonl", "--voter", voter, "--output", f"{voter}.jsonl", keys=keys)

    better("anna", True)
    better("bert", True)
    better("carl", False)
    result = json.loads(typed("rank", "anna.jsonl", "bert.jsonl", "--json").stdout)
    (group,) = result["groups"]
    assert (result["votes"], result["agreement"]["pairs"], result["agreement"]["alpha"]["value"]) == (24, 12, 1.0)
    assert [row["wins"] for row in group["models"]] == [24, 0]
    assert [row["ranks"] for row in group["models"]] == [[1, 1], [2, 2]]
    assert result["agreement"]["share"]["value"] == 1
    against = json.loads(typed("rank", "anna.jsonl", "carl.jsonl", "--json").stdout)
    assert against["agreement"]["share"]["value"] == 0
    assert against["agreement"]["alpha"]["value"] == pytest.approx(1 - 1 / (24 / 47))
    assert against["groups"][0]["models"][0]["points"] == pytest.approx(0, abs=1e-6)
    assert [row["ranks"] for row in against["groups"][0]["models"]] == [[1, 2], [1, 2]]
    out = typed("rank", "anna.jsonl", "bert.jsonl").stdout
    assert max(map(len, out.splitlines())) <= 80
    assert "Krippendorff's alpha 1.00" in " ".join(out.split())


def test_votes_are_rows_of_the_preference_format(two: tuple[Scripted, Scripted]) -> None:
    vote(two[0].url, two[1].url, "--data", "rows.jsonl", "--rows", 2, keys="1t")
    rows = [row for row in read(["votes.jsonl"], Path.cwd()) if isinstance(row, Row)]
    first, tie = (to_example(row, "preference") for row in rows)
    assert isinstance(first, Example)
    assert isinstance(tie, Example)
    texts = [completion.messages[0]["content"] for completion in first.completions]
    assert texts == [votes()[0][side][0]["content"] for side in ("chosen", "rejected")]
    assert [each.score for each in first.completions] == [1, 0]
    assert [each.score for each in tie.completions] == [0, 0]
    assert first.messages == tuple(votes()[0]["prompt"])
