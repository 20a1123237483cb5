"""Votes survive any end of the process, can be undone, and are rows to train on; models are ranked by those of all."""

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import typed
from rich.console import Console
from scripted_server import Scripted, scripted

from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.evaluation.rows import EvaluationRows
from tunesmith.report.votes import printable, two_answers
from tunesmith.run_lock import output_lock
from tunesmith.training.stages import train
from tunesmith.voting.ranking import rank
from tunesmith.voting.vote import Shown, Voted, vote
from tunesmith.voting.votes import Contender, Vote, VoteFile, read_votes

PAIRS = 6


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Scripted]]:
    """Two servers that answer six questions, the first one in capitals."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "system", "content": "Hm."}, {"role": "user", "content": f"q{n}"}]} for n in range(6)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with (
        scripted(lambda body: body["messages"][-1]["content"].upper()) as one,
        scripted(lambda body: body["messages"][-1]["content"]) as other,
    ):
        yield [one, other]


def session(models: list[Scripted], *keys: str, voter: str = "anna") -> tuple[Voted, list[Shown]]:
    """Vote with these keys, and then quit; what was shown."""
    shown: list[Shown] = []
    pressed = iter(keys)

    def ask(pair: Shown) -> Any:
        shown.append(pair)
        return next(pressed, "q")

    return vote([each.url for each in models], ask, voter=voter, data="rows.jsonl"), shown


def test_a_session_goes_on_after_the_last_vote(models: list[Scripted]) -> None:
    first, shown = session(models, "1", "s", "t")
    assert (first.votes, first.skipped, first.done, first.pairs, first.is_complete) == (2, 1, 2, PAIRS, False)
    assert [pair.number for pair in shown] == [1, 2, 3, 4]
    content = Path("votes.jsonl").read_bytes()
    whole = len(content)
    Path("votes.jsonl").write_bytes(content + content[: whole // 3])  # killed while it was written
    for server in models:
        server.asked.clear()
    second, again = session(models, "2", "2", "2", "2")
    assert [len(server.asked) for server in models] == [4, 4], "only what is still open is answered again"
    assert again[0].source == shown[1].source, "what was skipped is asked for again"
    assert [(pair.number, pair.total) for pair in again] == [(3, 6), (4, 6), (5, 6), (6, 6)]
    assert second.is_complete
    assert Path("votes.jsonl").read_bytes()[:whole] == content
    assert len({found.source for found in read_votes(["votes.jsonl"])}) == PAIRS
    assert session(models)[1] == [], "there is nothing left to ask"
    assert [pair.source for pair in session(models, voter="bert")[1]] == [shown[0].source], (
        "another voter has all pairs"
    )


def test_a_vote_is_written_before_the_next_pair_is_shown_and_undone(models: list[Scripted]) -> None:
    lines: list[int] = []
    keys = iter("u1u2su1q")

    def ask(pair: Shown) -> Any:
        lines.append(len(Path("votes.jsonl").read_bytes().splitlines()) if Path("votes.jsonl").exists() else 0)
        sources.append(pair.source)
        return next(keys)

    sources: list[str] = []
    voted = vote([each.url for each in models], ask, voter="anna", data="rows.jsonl")
    assert lines == [0, 0, 1, 0, 1, 1, 1, 2]
    assert sources[0] == sources[1] == sources[3]
    assert sources[4] == sources[6], "a skip is undone like a vote"
    assert voted.votes == 2


def test_the_vote_is_on_what_was_shown(models: list[Scripted]) -> None:
    _, shown = session(models, "1", "2", "1", "2", "t", "t")
    for key, pair, found in zip("1212tt", shown, read_votes(["votes.jsonl"]), strict=True):
        assert (found.question, found.source) == (
            replace(found, prompt=[dict(turn) for turn in pair.prompt]).question,
            pair.source,
        )
        assert found.tie == (key == "t")
        assert pair.answers[0 if found.shown_first == "chosen" else 1] == found.chosen
        if key != "t":
            assert found.chosen == pair.answers[int(key) - 1]
        capitals = models[0].url.split("//")[1].replace("/v1#", "/")
        assert (found.chosen_by.name == capitals) == found.chosen.isupper()
    assert [turn["role"] for turn in shown[0].prompt] == ["system", "user"]


def test_equal_and_empty_answers_are_counted_and_not_asked_for(models: list[Scripted]) -> None:
    replies: list[Callable[[Any], str]] = [
        lambda body: {"q0": "", "q1": "same"}.get(body["messages"][-1]["content"], "a"),
        lambda body: {"q0": "b", "q1": "same"}.get(body["messages"][-1]["content"], "b"),
    ]
    with scripted(replies[0]) as one, scripted(replies[1]) as other:
        voted, shown = session([one, other], *"1111")
    assert (voted.equal, voted.empty, voted.pairs, voted.done, voted.is_complete) == (1, 1, 4, 4, True)
    assert not {"rows.jsonl row 1", "rows.jsonl row 2"} & {pair.source for pair in shown}


def test_of_three_models_all_pairs_are_asked_for(models: list[Scripted]) -> None:
    with scripted(lambda body: "other") as third:
        voted, _ = session([*models, third], *"1" * 18)
    assert voted.done == 3 * PAIRS
    (group,) = rank("votes.jsonl")["groups"]
    assert [each["votes"] for each in group["models"]] == [2 * PAIRS] * 3
    assert len(group["pairs"]) == 3


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        ("", 2, "stdin is no terminal and has no keys"),
        ("1x", 2, "stdin: 'x' is none of 1, 2, t, s, u and q. Votes before it are written."),
        ("u", 2, "stdin: there is nothing to undo"),
    ],
)
def test_keys_from_a_pipe_are_checked(models: list[Scripted], keys: str, code: int, message: str) -> None:
    done = typed("vote", *(each.url for each in models), "--data", "rows.jsonl", given=keys)
    assert (done.returncode, message in done.stderr) == (code, True)
    assert Path("votes.jsonl").exists() == keys.startswith("1")


def test_what_cannot_work_is_refused_before_a_model_answers(models: list[Scripted], reading: Path) -> None:
    def refused(*names: Any, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            vote(list(names), lambda pair: "q", voter="anna", **options)
        return str(error.value)

    urls = [each.url for each in models]
    assert "alone has nothing to be compared with" in refused(urls[0], data="rows.jsonl")
    assert "There are no questions. Give --data FILE" in refused(*urls)
    assert "does not write text" in refused(urls[0], reading / "classes", data="rows.jsonl")
    with output_lock(Path("votes.jsonl")):
        assert "votes.jsonl is being written" in refused(*urls, data="rows.jsonl")
    Path("votes.jsonl").write_text('{"chosen": "a", "rejected": "b", "prompt": "c"}\n', encoding="utf-8")
    assert "row 1 is no vote: it has no models and no shown_first and no voter" in refused(*urls, data="rows.jsonl")
    assert models[0].asked == []


def a_vote(better: str, worse: str, number: int, **more: Any) -> Vote:
    given = {"tie": False, "shown_first": "chosen", "voter": "anna", **more}
    return Vote(
        [{"role": "user", "content": f"q{number}"}], f"{better} says", f"{worse} says",
        Contender(better, more.pop("sha256", None)), Contender(worse), given["tie"], given["shown_first"],
        given["voter"], "2026-01-01T00:00:00Z", 1.0, f"rows.jsonl row {number}", f"{better}{worse}{number}",
    )  # fmt: skip


def write(votes: list[Vote], path: Path) -> Path:
    with VoteFile.open(path) as file:
        for each in votes:
            file.append(each)
    return path


def test_models_that_no_vote_connects_are_not_ranked_together(tmp_path: Path) -> None:
    votes = [a_vote(pair[0], pair[1], number) for pair in ("ab", "bc", "de") for number in range(4)]
    result = rank(write(votes, tmp_path / "v.jsonl"))
    assert [[row["name"] for row in group["models"]] for group in result["groups"]] == [["a", "b", "c"], ["d", "e"]]
    for group in result["groups"]:
        assert sum(row["points"] for row in group["models"]) == pytest.approx(0, abs=1e-6)


def test_a_later_vote_on_the_same_answers_replaces_the_first(tmp_path: Path) -> None:
    votes = [a_vote("a", "b", 1), a_vote("b", "a", 1), a_vote("b", "a", 2, voter="bert"), a_vote("a", "b", 3, tie=True)]
    result = rank(write(votes, tmp_path / "v.jsonl"))
    assert (result["votes"], result["repeated"], result["ties"]) == (3, 1, 1)
    assert {row["name"]: row["wins"] for row in result["groups"][0]["models"]} == {"a": 0, "b": 2}


def test_models_of_one_name_are_told_apart_by_their_content(tmp_path: Path) -> None:
    votes = [a_vote("a", "b", 1, sha256="1" * 64), a_vote("a", "b", 2, sha256="2" * 64)]
    names = {row["name"] for row in rank(write(votes, tmp_path / "v.jsonl"))["groups"][0]["models"]}
    assert names == {"a (111111)", "a (222222)", "b"}


def test_the_position_bias_is_the_share_of_decided_votes_for_the_first(tmp_path: Path) -> None:
    votes = [a_vote("a", "b", n, shown_first="chosen" if n < 18 else "rejected", tie=n == 19) for n in range(20)]
    result = rank(write(votes, tmp_path / "v.jsonl"))
    assert result["shown_first"]["value"] == pytest.approx(18 / 19)
    assert result["shown_first"]["interval"][0] > 0.7
    assert result["voters"]["anna"]["shown_first"] == result["shown_first"]
    assert result["agreement"] is None


def test_a_file_of_votes_is_trained_on_unchanged(tmp_path: Path, tiny_model: Path) -> None:
    votes = [a_vote("a", "b", number, tie=number == 3) for number in range(8)]
    file = write(votes, tmp_path / "v.jsonl")
    recipe = {
        "base": str(tiny_model), "data": {"train": str(file), "held_out": 0.25, "skip_unusable": True},
        "objective": {"kind": "dpo"}, "method": {"kind": "lora", "rank": 2},
        "train": {"steps": 1, "tokens_per_step": 64},
    }  # fmt: skip
    run = train(Recipe.load(recipe), tmp_path / "run")
    (data,) = [event for event in run.events() if event["event"] == "data"]
    assert (data["format"], data["rows"], data["unusable"]) == ("preference", 8, 1)
    beside_base = vote(run.directory, lambda pair: "q", tmp_path / "w.jsonl", voter="anna", max_new_tokens=4)
    held_out = EvaluationRows.of_run(run.directory).examples
    assert beside_base.pairs + beside_base.equal + beside_base.empty == len(held_out) > 0


def test_what_a_model_writes_cannot_control_the_terminal() -> None:
    assert printable("a\x1b[31mb\tc\r\n\x07\x9b") == "a␛[31mb\tc\n␇�"


def test_answers_are_one_below_the_other_in_a_narrow_terminal() -> None:
    def lines(width: int) -> int:
        out = io.StringIO()
        Console(width=width, file=out).print(two_answers([], ["a", "b"], 1, 2, "x", width))
        return len(out.getvalue().splitlines())

    assert lines(50) > lines(80)


def test_a_terminal_needs_no_enter_and_is_as_before_at_the_end() -> None:
    program = (
        "import sys, termios\n"
        "from tunesmith.cli.pressed_keys import pressed_keys\n"
        "before = termios.tcgetattr(0)\n"
        "with pressed_keys() as keys:\n"
        "    print('ready', flush=True)\n"
        "    print(next(keys), next(keys), flush=True)\n"
        "print(termios.tcgetattr(0) == before, flush=True)\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", program], stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.write(ours, b" T1")
        assert process.stdout.read() == "t 1\nTrue\n"
        os.close(ours)
