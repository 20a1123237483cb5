"""The page of a run: unusual runs do not break it, and the user's data never becomes markup."""

import json
import random
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tunesmith.errors import UserError
from tunesmith.report.html import write_report

HOSTILE = '"><script>alert("x")</script>'


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def titles(page: str) -> list[str]:
    charts = [ElementTree.fromstring(each) for each in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    return [chart.attrib["aria-label"].split(":")[0] for chart in charts]


def evaluation(text: str = "An answer.", tuned_loss: Any = 0.5) -> dict[str, Any]:
    def model(loss: Any) -> dict[str, Any]:
        return {
            "loss": {"value": loss, "interval": [0.4, 1.1], "rows": 1200},
            "m": {"value": 0.5, "interval": [0.4, 0.6], "rows": 1},
        }

    about = {"title": text, "explanation": f"About {text}", "better": "higher", "unit": "share"}
    differences = {
        "loss": {"value": -0.5, "interval": [-0.6, -0.4], "rows": 1200, "verdict": "better"},
        "m": {"value": 0.125, "interval": [-0.1, 0.35], "rows": 1, "verdict": "not shown", "rows_needed": 1234},
    }
    sample = {"source": text, "prompt": text, "expected": text, "answers": {"base": text, "tuned": text}}
    return {
        "rows": 1200,
        "data": "held-out rows of run",
        "loss_tokens": 2,
        "generated_rows": 1,
        "reference": "base",
        "figures": {
            "loss": {"title": "loss", "explanation": "surprise", "better": "lower", "unit": "nats per loss token"},
            "m": about,
        },
        "models": {"base": model(1.0), "tuned": model(tuned_loss)},
        "differences": {"tuned": differences},
        "comparisons": 2,
        "samples": [sample],
        "gate": None,
    }


def add(run: Path, **event: Any) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def test_the_page_shows_curves_counts_and_costs_and_loads_nothing_external(run: Path) -> None:
    page = page_of(run)
    assert titles(page) == ["Loss", "Learning rate", "Gradient norm", "Speed", "Lengths of the examples"]
    assert "Finished: 12 steps in" in page
    assert all(text in page for text in ("peak memory", "rows read", "malformed rows, left out", "The resolved recipe"))
    assert not re.search(r"""\s(src|href)\s*=|@import|url\(|<script|<link""", page)


def test_samples_of_a_policy_are_shown_over_time(run: Path) -> None:
    """Of five phases of nine, the first and the last among them."""
    assert "Samples over time" not in page_of(run)
    for step in range(0, 90, 10):
        add(run, event="sample", step=step, prompt=f"asked {step}", completion=f"wrote {step}", reward=step / 8)
    add(run, event="sample", prompt=HOSTILE, completion=None, reward="NaN")
    page = page_of(run)
    assert "in 5 of 9 phases" in page
    assert [step for step in range(0, 90, 10) if f"<td>wrote {step}</td>" in page] == [0, 20, 40, 60, 80]
    assert '<td>wrote 80</td><td class="n">10.000</td>' in page
    assert "<td>(nothing)</td>" in page
    assert "<script" not in page


def test_text_from_rows_never_becomes_markup(run: Path) -> None:
    (run / "evaluation.json").write_text(json.dumps(evaluation(HOSTILE)), encoding="utf-8")
    with (run / "recipe.yaml").open("a", encoding="utf-8") as file:
        file.write(f"# {HOSTILE}\n")
    add(run, event="skipped", step=3, reason=HOSTILE, rows=[HOSTILE])
    add(run, event="warning", message=HOSTILE)
    add(run, event="data", rows=1, malformed=1, malformed_rows=[HOSTILE], unusable_rows=[HOSTILE], format=HOSTILE)
    page = page_of(run)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 5 + 4 + 1 + 1 + 2 + 1 + 3


def test_the_evaluation_compares_base_and_tuned_with_intervals_and_a_verdict(run: Path) -> None:
    (run / "evaluation.json").write_text(json.dumps(evaluation()), encoding="utf-8")
    page = page_of(run)
    assert "It worked: held-out loss 1.000 before, 0.500 after (difference −0.500 [−0.600, −0.400])" in page
    assert "1,200 held-out rows of run (2 loss tokens); answers to 1 of them." in page
    assert "after Holm&#39;s correction for 2 comparisons" in page
    assert "(1,234 rows would be needed to show +12%)" in page
    assert '<td class="n better" data-of="difference">−0.500' in page
    assert '<td class="n " data-of="difference">+12.5 points [−10.0, +35.0]' in page, "its interval contains 0"
    assert titles(page)[:2] == ["Loss, lower is better", "An answer."]


@pytest.mark.parametrize(
    ("found", "verdict"), [("worse", "It made things worse"), ("not shown", "No significant difference")]
)
def test_the_verdict_says_when_a_run_did_not_help(run: Path, found: str, verdict: str) -> None:
    result = evaluation()
    result["differences"]["tuned"]["loss"] |= {"verdict": found}
    (run / "evaluation.json").write_text(json.dumps(result), encoding="utf-8")
    assert verdict in page_of(run)


def test_aborted_and_unstarted_runs_have_a_page_too(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    for remaining in (lines[:-1], lines[:6], lines[:1], []):
        metrics.write_text("".join(remaining) + ('{"event": "st' if remaining else ""), encoding="utf-8")
        page = page_of(run)
        assert "</html>" in page
        assert "Finished" not in page
    metrics.unlink()
    (run / "provenance.json").unlink()
    assert "This run has not started yet" in page_of(run)


def test_missing_fields_do_not_break_the_page(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    events = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    draw = random.Random(0)
    for _ in range(30):
        cut = [{k: v for k, v in event.items() if k == "event" or draw.random() < 0.6} for event in events]
        metrics.write_text("".join(json.dumps(event) + "\n" for event in cut), encoding="utf-8")
        result = {key: value for key, value in evaluation().items() if draw.random() < 0.6}
        (run / "evaluation.json").write_text(json.dumps(result), encoding="utf-8")
        assert "</html>" in page_of(run)


def test_losses_that_are_not_finite_leave_a_gap_in_the_chart(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    text = metrics.read_text(encoding="utf-8")
    text = re.sub(r'"loss": [\d.]+, "grad_norm": [\d.]+', '"loss": "nan", "grad_norm": "inf"', text, count=3)
    metrics.write_text(text, encoding="utf-8")
    (run / "evaluation.json").write_text(json.dumps(evaluation(tuned_loss="nan")), encoding="utf-8")
    charts = "".join(re.findall(r"<svg.*?</svg>", page_of(run), re.DOTALL))
    assert "nan" not in charts
    assert "inf" not in charts


def test_predicted_and_measured_total_time_are_compared_only_for_a_complete_run(run: Path) -> None:
    assert "time in all" in page_of(run)
    metrics = run / "metrics.jsonl"
    text = metrics.read_text(encoding="utf-8").replace('"total_steps": 12', '"total_steps": 24')
    metrics.write_text(text.replace('"reason": "done"', '"reason": "interrupted"'), encoding="utf-8")
    page = page_of(run)
    assert "time in all" not in page
    assert "time per step" in page
    assert "Ended by interrupted" not in page
    assert "Interrupted after 12 of 24 steps" in page


def test_the_first_forecast_stays_when_a_run_is_resumed(run: Path) -> None:
    add(run, event="forecast", memory={"peak_bytes": 77.77e9})
    assert "77.77 GB" not in page_of(run)


def test_a_directory_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        write_report(tmp_path)


def test_the_page_says_that_a_run_is_not_evaluated_yet(run: Path) -> None:
    page = page_of(run)
    assert "Not evaluated yet. <code>tunesmith evaluate RUN</code>" in page
    (run / "evaluation.json").write_text(json.dumps(evaluation()), encoding="utf-8")
    assert "Not evaluated yet" not in page_of(run)


def test_a_metric_is_explained_beneath_the_title_of_its_chart(run: Path) -> None:
    (run / "evaluation.json").write_text(json.dumps(evaluation("Overlap")), encoding="utf-8")
    page = page_of(run)
    assert '<figcaption><b>Overlap</b><span class="note">About Overlap</span></figcaption>' in page
    assert '<figcaption><b>Loss, lower is better</b><span class="note">surprise</span></figcaption>' in page


def sample_page(run: Path, **texts: str) -> str:
    """The part of the page with the answers of one sample."""
    result = evaluation("short")
    (sample,) = result["samples"]
    for name, text in texts.items():
        (sample if name in sample else sample["answers"])[name] = text
    (run / "evaluation.json").write_text(json.dumps(result), encoding="utf-8")
    page = page_of(run)
    return page[page.index("Answers, side by side") : page.index("Training curves")]


@pytest.mark.parametrize(
    ("texts", "cut"),
    [
        ({}, []),
        ({"tuned": "x" * 450}, []),
        ({"tuned": "x" * 451}, ["tuned"]),
        ({"expected": "\n" * 9, "base": "\n" * 10}, ["base"]),
        ({"prompt": "x" * 1100}, []),
        ({"prompt": "x" * 1101}, ["prompt"]),
        ({"expected": "y" * 999, "tuned": "z" * 999}, ["expected", "tuned"]),
    ],
)
def test_long_texts_are_cut_and_a_checkbox_shows_all(run: Path, texts: dict[str, str], cut: list[str]) -> None:
    part = sample_page(run, **texts)
    assert re.findall(r'class="of-(\w+)"><h3>\w+</h3>\n<p class="cut">', part) == [
        each for each in cut if each != "prompt"
    ]
    assert ('<p class="prompt cut">' in part) == ("prompt" in cut)
    assert part.count('<input type="checkbox" id="all-1"><label for="all-1">show all</label>') == bool(cut)
    assert all(text in part for text in texts.values()), "nothing is left out of the page"
    assert "-webkit-line-clamp: 10;" in page_of(run)


def test_the_page_marks_where_expected_and_tuned_answer_differ(run: Path) -> None:
    part = sample_page(run, expected="the red fox", base="a hen", tuned="the blue fox")
    assert "the <del>red</del> fox</p>" in part
    assert "the <ins>blue</ins> fox</p>" in part
    assert "<p>a hen</p>" in part
    page = page_of(run)
    for tag in ("del", "ins"):
        assert re.search(rf"^{tag} {{[^}}]*text-decoration: underline", page, re.MULTILINE), "not by color alone"


def test_an_empty_answer_is_shown_as_nothing(run: Path) -> None:
    part = sample_page(run, expected="a fox", base="", tuned="")
    assert part.count("<p>(nothing)</p>") == 2
    assert "<del>a fox</del>" in part
