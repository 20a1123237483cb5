"""Every option of `tunesmith advise` does what its help says."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import typed
from settings_coverage import shows

from tunesmith.comparing.spec import Comparison


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "documents").mkdir()
    (tmp_path / "prompt.yaml").touch()
    return tmp_path


def advised(*arguments: Any) -> dict[str, Any]:
    """The advice as JSON, without costs unless a device is given, with a file that no other call has written."""
    base = () if "--device" in arguments else ("--base", "documents", "--device", "h100")
    output = f"{len(list(Path().iterdir()))}.yaml"
    done = typed("advise", *map(str, (*arguments, *base)), "--json", "--output", output)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@shows(
    "tunesmith advise --change", "tunesmith advise --rows", "tunesmith advise --documents", "tunesmith advise --json"
)
def test_what_must_change_with_which_rows_and_documents_decides_the_ways() -> None:
    assert advised("--change", "form", "--rows", 500)["way"] == "tuned"
    assert advised("--change", "form")["way"] == "prompt"
    assert advised("--change", "facts", "--documents", 1.5)["way"] == "retrieval"
    assert advised("--change", "facts")["way"] == "prompt"


@shows("tunesmith advise --facts-change")
def test_facts_that_change_often_are_not_left_to_weights() -> None:
    often = advised("--change", "facts", "--rows", 500, "--facts-change", "weekly")
    assert "weekly" in often["left_out"]["tuned"]
    assert "tuned" not in advised("--change", "facts", "--rows", 500, "--facts-change", "monthly")["left_out"]


@shows("tunesmith advise --requests", "tunesmith advise --output")
def test_a_years_requests_are_in_the_comparison() -> None:
    done = typed("advise", "--change", "form", "--base", "documents", "--requests", "7", "--output", "mine.yaml")
    assert "Wrote mine.yaml" in done.stdout
    assert Comparison.load("mine.yaml").prices.requests == 84


@shows("tunesmith advise --latency")
def test_a_latency_that_no_way_keeps_leaves_all_out() -> None:
    assert advised("--change", "form", "--latency", 1e-9, "--device", "h100")["way"] is None
    assert advised("--change", "form", "--latency", 0)["answers"]["latency"] is None


@shows("tunesmith advise --hosted", "tunesmith advise --price-in", "tunesmith advise --price-out")
def test_a_hosted_model_has_its_prices_and_a_place_in_the_comparison() -> None:
    found = advised("--change", "form", "--hosted", "--price-in", 3, "--price-out", 5, "--device", "h100")
    assert found["ways"]["plain"]["hosted_per_thousand"] == pytest.approx((100 * 3 + 100 * 5) / 1000)
    assert "# servers:" in Path(found["output"]).read_text(encoding="utf-8")
    none = advised("--change", "form", "--no-hosted", "--price-in", 3, "--price-out", 5)
    assert none["ways"]["plain"]["hosted_per_thousand"] is None
    assert "servers" not in Path(none["output"]).read_text(encoding="utf-8")


@shows("tunesmith advise --base", "tunesmith advise --device")
def test_the_base_is_planned_on_the_device() -> None:
    large = advised("--change", "form", "--base", "llama-3-8b", "--device", "h100")
    small = advised("--change", "form", "--base", "smollm2-135m", "--device", "t4")
    assert (large["plan"]["device"], small["plan"]["device"]) == ("h100", "t4")
    assert large["plan"]["rates"]["parameters"] > 50 * small["plan"]["rates"]["parameters"]
    assert Comparison.load(small["output"]).base == "smollm2-135m"
