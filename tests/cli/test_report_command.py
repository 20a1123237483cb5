"""`tunesmith report`: writes the page, and opens it if there is a browser."""

from pathlib import Path

import pytest
from command import typed


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text("base: b\n", encoding="utf-8")
    return tmp_path


def test_report_writes_the_page_and_prints_its_path(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webbrowser.open", lambda address: pytest.fail(f"opened {address}"))
    done = typed("report", str(run))
    assert (done.returncode, done.stdout) == (0, f"Wrote {run}/report.html.\n")
    assert "Not evaluated yet" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("opens", "more"), [(True, ""), (False, "No browser could be opened here.\n")])
def test_report_opens_the_page_or_says_that_it_cannot(
    run: Path, monkeypatch: pytest.MonkeyPatch, opens: bool, more: str
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or opens)
    done = typed("report", str(run), "--open")
    assert (done.returncode, done.stdout) == (0, f"Wrote {run}/report.html.\n{more}")
    assert opened == [(run / "report.html").as_uri()]


def test_report_of_a_directory_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    done = typed("report", str(tmp_path))
    assert (done.returncode, "is not a run" in done.stderr) == (2, True)


@pytest.mark.parametrize("rows", ["some", "ALL", "-3", "2.5", "", 300 * "a", 5000 * "9"])
def test_evaluate_refuses_other_words_than_a_number_or_all_in_one_line(rows: str, run: Path) -> None:
    done = typed("evaluate", str(run), "--rows", rows)
    assert done.returncode == 2
    assert done.stderr == f"error: --rows {rows} is not a number of rows. Use a number, or all.\n"
