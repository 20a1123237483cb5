"""The notebook runs from top to bottom, as Jupyter runs it: all cells in one namespace."""

import json
import re
from pathlib import Path

import pytest

SHORTER = '"train.steps=2", "train.tokens_per_step=256", "train.evaluate_rows=4"'
"""What the test changes, for its time."""

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.mark.long
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    namespace: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "an output in the file is of another machine: clear it"
            source = re.sub(r'"train.steps=\d+"', SHORTER, "".join(cell["source"]))
            exec(compile(source, cell["id"], "exec"), namespace)
    printed = capsys.readouterr().out
    assert "200 rows, in the format question_answer" in printed
    assert "held-out loss:" in printed
    assert str(tmp_path / "runs" / "loop" / "adapter") in printed
