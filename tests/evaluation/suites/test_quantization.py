"""The suite of quantization: the forms of one model as an evaluation's models, each with what it takes and gives."""

from pathlib import Path
from typing import Any

import pytest
from exportable import ROTARY, saved

from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.gguf_form import gguf_form
from tunesmith.evaluation.suites import quantization
from tunesmith.report.table import evaluation_table

ROW = '{"question": "Say 1.", "answer": "1 it is."}\n{"question": "Say 2.", "answer": "2 it is."}\n'


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model that can be exported, and rows beside it; answers that are timed are short."""
    monkeypatch.setattr(quantization, "ANSWER", 4)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    saved(tmp_path / "model", "llama", ROTARY | {"intermediate_size": 128})  # 4-bit kernels take multiples of 64
    (tmp_path / "rows.jsonl").write_text(ROW, encoding="utf-8")
    return tmp_path / "model"


def measured(model: Path, kinds: str) -> dict[str, Any]:
    return evaluate(
        model, 2, 3, data=model.parent / "rows.jsonl", suites=["quantization"],
        suite_options={"quantization": {"kinds": kinds}},
    )  # fmt: skip


@pytest.mark.long
def test_the_forms_of_a_model_are_compared_in_quality_memory_and_speed(model: Path) -> None:
    found = measured(model, "fp32,nf4,gguf:q8_0")
    assert list(found["models"]) == ["model@fp32", "model@nf4", "model@gguf:q8_0"]
    exact, *others = found["models"].values()
    alone = evaluate(model, 2, 3, data=model.parent / "rows.jsonl")["models"]["model"]
    assert {name: exact[name] for name in alone} == alone
    for form, figures in zip(("nf4", "gguf:q8_0"), others, strict=True):
        assert figures["loss"]["value"] == pytest.approx(exact["loss"]["value"], rel=0.2)
        assert found["differences"][f"model@{form}"]["loss"]["rows"] == 2
        assert figures["quantization.tokens_per_second"]["value"] > 0
    memory = [figures["quantization.memory"]["value"] for figures in found["models"].values()]
    file = gguf_form(str(model), "q8_0")
    assert memory[2] == file.stat().st_size / 1e6
    assert memory[2] < memory[1] < memory[0]
    assert "quantization.memory" not in found["differences"]["model@nf4"], "it is counted, so nothing is tested"


def test_a_form_that_cannot_be_made_or_computed_here_is_left_out_by_name(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "ANSWER", 4)
    monkeypatch.setattr(quantization.Quantization, "measure", refuse_int8)
    kinds = {"quantization": {"kinds": "fp32,gguf:iq2_xs,int8,bf16"}}
    found = evaluate(tiny_model, 0, suites=["quantization"], suite_options=kinds)
    assert list(found["models"]) == ["llama@fp32", "llama@bf16"]
    assert "importance matrix" in found["left_out"]["llama@gguf:iq2_xs"]
    assert found["left_out"]["llama@int8"] == "no int8 here."
    assert "Left out: llama@int8: no int8 here." in str(evaluation_table(found).caption)


def refuse_int8(_: Any, subject: Any, __: Any) -> dict[str, Any]:
    if subject.name.endswith("int8"):
        raise UserError("no int8 here.")
    return {}


def test_without_llama_cpp_a_gguf_file_has_no_speed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "library_file", lambda: None)
    found = measured(model, "bf16,gguf:q8_0")
    assert found["models"]["model@bf16"]["quantization.tokens_per_second"]["value"] > 0
    stored = found["models"]["model@gguf:q8_0"]
    assert "quantization.tokens_per_second" not in stored
    assert stored["quantization.memory"]["value"] == gguf_form(str(model), "q8_0").stat().st_size / 1e6
    assert found["differences"]["model@gguf:q8_0"]["loss"]["rows"] == 2


def test_only_the_forms_of_one_model_of_this_machine_are_compared(tiny_model: Path) -> None:
    for models in ([tiny_model, f"{tiny_model}@nf4"], [f"{tiny_model}@nf4"], ["http://127.0.0.1:9/v1"]):
        with pytest.raises(UserError, match=r"The forms of one model of this machine are compared, not .*Name it"):
            evaluate(models, 0, suites=["quantization"])
    for kind in ("int9", "gguf:q9_0"):
        with pytest.raises(UserError, match=f"@{kind} is not one of "):
            evaluate(tiny_model, 0, suites=["quantization"], suite_options={"quantization": {"kinds": kind}})
