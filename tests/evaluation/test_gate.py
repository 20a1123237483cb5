"""Gates: limits on intervals are met, failed or undecided, and files that are no gates are refused by field."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import typed

from tunesmith.errors import UserError
from tunesmith.evaluation.gate import Gate, checked, write_example_gate
from tunesmith.evaluation.suite import SUITES


def entry(low: float, high: float) -> dict[str, Any]:
    return {"value": (low + high) / 2, "interval": [low, high], "rows": 50}


RESULT = {
    "reference": "base",
    "models": {
        "base": {"exact_match": entry(0.1, 0.3), "loss": entry(2.0, 2.2)},
        "tuned": {"exact_match": entry(0.5, 0.7), "loss": entry(1.0, 1.4)},
    },
    "differences": {"tuned": {"exact_match": entry(0.3, 0.5), "loss": entry(-1.1, -0.8)}},
}


def outcome(**limit: Any) -> dict[str, Any]:
    """What a gate with one limit finds in `RESULT`."""
    found = checked(Gate.model_validate({"limits": [limit]}), RESULT)
    (only,) = found["limits"]
    assert found["passed"] == (only["outcome"] == "met")
    return only


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ({"figure": "exact_match", "at_least": 0.5}, "met"),
        ({"figure": "exact_match", "at_least": 0.51}, "undecided"),
        ({"figure": "exact_match", "at_least": 0.7}, "undecided"),
        ({"figure": "exact_match", "at_least": 0.71}, "failed"),
        ({"figure": "loss", "at_most": 1.4}, "met"),
        ({"figure": "loss", "at_most": 1.39}, "undecided"),
        ({"figure": "loss", "at_most": 0.99}, "failed"),
        ({"figure": "loss", "model": "base", "at_most": 1.9}, "failed"),
        ({"figure": "loss", "difference": True, "at_most": -0.8}, "met"),
        ({"figure": "exact_match", "difference": True, "at_least": 0.6}, "failed"),
    ],
)
def test_a_limit_is_on_the_whole_interval(limit: dict[str, Any], expected: str) -> None:
    found = outcome(**limit)
    assert found["outcome"] == expected
    assert found["model"] == limit.get("model", "tuned")
    assert "over 50 rows" in found["why"]


def test_a_limit_without_a_model_is_on_all_but_the_reference() -> None:
    result = {**RESULT, "models": {**RESULT["models"], "worse": {"exact_match": entry(0.0, 0.1)}}}
    gate = Gate.model_validate({"limits": [{"figure": "exact_match", "at_least": 0.4}]})
    found = checked(gate, result)
    assert [(limit["model"], limit["outcome"]) for limit in found["limits"]] == [("tuned", "met"), ("worse", "failed")]
    assert found["passed"] is False


def test_what_cannot_be_decided_counts_as_the_gate_says() -> None:
    limits = [{"figure": "exact_match", "at_least": 0.6}]
    for undecided, passed in (("fail", False), ("pass", True)):
        found = checked(Gate.model_validate({"limits": limits, "undecided": undecided}), RESULT)
        assert (found["passed"], found["limits"][0]["outcome"]) == (passed, "undecided")
        assert found["limits"][0]["why"].endswith("may be at least 0.6 or not: more rows would decide it")


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        ({"figure": "exact_mach", "at_least": 0}, "exact_mach was not measured of tuned. Did you mean exact_match?"),
        ({"figure": "loss", "model": "tund", "at_least": 0}, "there is no model tund. Models: base, tuned"),
        ({"figure": "rouge", "difference": True, "at_least": 0}, "rouge was not measured of tuned."),
    ],
)
def test_a_figure_that_was_not_measured_fails_and_says_so(limit: dict[str, Any], why: str) -> None:
    found = outcome(**limit)
    assert (found["outcome"], found["why"].startswith(why)) == ("failed", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limits: []", r"g.yaml: limits: list should have at least 1 item"),
        ("limits:\n- {figure: loss}", r"g.yaml: limits.0: give either at_least or at_most"),
        ("limits:\n- {figure: loss, at_lest: 1}", r"g.yaml: limits.0.at_lest is not a field. Did you mean at_least\?"),
        ("limits:\n- {at_least: 1}", r"g.yaml: limits.0.figure is missing. Add it"),
        ("limit: 1", r"g.yaml: limit is not a field. Did you mean limits\?"),
        ("limits:\n- {figure: loss, at_most: low}", r"g.yaml: limits.0.at_most: input should be a valid number"),
        (
            "limits:\n- {figure: loss, at_most: 1}\nundecided: maybe",
            r"g.yaml: undecided: input should be 'fail' or 'pass'",
        ),
        ("- 1", r"g.yaml: a gate is a mapping with limits; this is list"),
        ("limits: [", r"g.yaml line 1: not valid YAML"),
    ],
)
def test_a_file_that_is_no_gate_is_refused_by_field(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        Gate.load(tmp_path / "g.yaml")
    with pytest.raises(UserError, match=r"none.yaml cannot be read as a gate: No such file"):
        Gate.load(tmp_path / "none.yaml")


def test_the_command_ends_with_3_if_a_gate_is_not_passed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = "".join(json.dumps({"question": f"{n}?", "answer": f"It is {n}."}) + "\n" for n in range(4))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    options = ["--data", str(tmp_path / "rows.jsonl"), "--max-new-tokens", "2"]
    for limit, code, shown in (("at_most: 100", 0, "is at most 100"), ("at_most: 0.1", 3, "is not at most 0.1")):
        (tmp_path / "gate.yaml").write_text(f"limits:\n- {{figure: loss, {limit}}}\n", encoding="utf-8")
        done = typed("evaluate", str(tiny_model), *options, "--gate", str(tmp_path / "gate.yaml"))
        assert done.returncode == code, done.stderr
        assert shown in " ".join(done.stdout.split())
        assert all(len(line) <= 80 for line in done.stdout.splitlines())
        printed = typed("evaluate", str(tiny_model), *options, "--gate", str(tmp_path / "gate.yaml"), "--json")
        assert printed.returncode == code
        assert json.loads(printed.stdout)["gate"]["passed"] == (code == 0)


def test_init_writes_a_gate_to_begin_with_and_keeps_one_that_is_there(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(json.dumps({"question": f"{n}?", "answer": f"It is {n}."}) + "\n" for n in range(20))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    done = typed("init", "rows.jsonl", "--base", str(tiny_model))
    assert "tunesmith evaluate RUN --gate gate.yaml" in done.stdout
    gate = Gate.load(tmp_path / "gate.yaml")
    assert [(limit.figure, limit.difference, limit.at_most) for limit in gate.limits] == [("loss", True, 0)]
    everything = (tmp_path / "gate.yaml").read_text(encoding="utf-8").replace("# - {", "- {")
    (tmp_path / "everything.yaml").write_text(everything, encoding="utf-8")
    suites = {limit.figure.partition(".")[0] for limit in Gate.load(tmp_path / "everything.yaml").limits}
    assert suites - set(SUITES) == {"loss", "exact_match"}
    assert suites > {"forgetting", "bias", "topic", "memorization", "latency"}
    (tmp_path / "gate.yaml").write_text("mine", encoding="utf-8")
    assert typed("init", "rows.jsonl", "--base", str(tiny_model), "--output", "other.yaml").returncode == 0
    assert (tmp_path / "gate.yaml").read_text(encoding="utf-8") == "mine"


def test_an_example_of_limits_never_replaces_a_file(tmp_path: Path) -> None:
    file = tmp_path / "gate.yaml"
    assert write_example_gate(file)
    Gate.load(file)
    file.write_text("mine")
    assert not write_example_gate(file)
    assert file.read_text() == "mine"
