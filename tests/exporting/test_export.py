"""A run becomes a model for another engine, with its template, its stops, its card, completely or not at all."""

import json
import math
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import yaml
from bytewise import CHATML, byte_tokenizer
from exportable import FAMILIES, saved
from gates import gate_file
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import LlamaCpp
from transformers import AutoModelForCausalLM

import tunesmith
from tunesmith.data.prepare import prepare
from tunesmith.errors import UserError
from tunesmith.evaluation.compare import evaluate
from tunesmith.evaluation.rows import EvaluationRows
from tunesmith.exporting.card import eval_results, write_run_card
from tunesmith.exporting.export import export
from tunesmith.exporting.gguf_family import Layout
from tunesmith.exporting.importance import importance
from tunesmith.exporting.ollama import go_template
from tunesmith.exporting.subject import Subject
from tunesmith.metrics import METRICS
from tunesmith.report.html import write_report
from tunesmith.run import Events


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run on a small Llama that llama.cpp can compute."""
    directory = tmp_path_factory.mktemp("exported")
    saved(directory / "base", *FAMILIES["llama"])
    rows = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}, of course."} for n in range(40)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "base": str(directory / "base"),
        "data": {"train": str(directory / "rows.jsonl"), "held_out": 0.2},
        "method": {"kind": "lora", "rank": 4},
        "train": {"steps": 8, "learning_rate": 3e-2, "precision": "fp32"},
    }
    return tunesmith.train(recipe, directory / "run").directory


QUESTION = [{"role": "user", "content": "What is 7 + 7?"}]


def test_llama_cpp_computes_the_trained_model_and_renders_its_chats(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "run.gguf", "gguf:f32")
    trained, read = Subject.find(str(run)), LlamaCpp(done.path)
    text = trained.tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids = trained.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert read.chat(QUESTION) == text
    assert read.tokens(text, special=True) == ids
    model = trained.reference.model(torch.float32, torch.device("cpu"))
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)
    found = read.log_probabilities(ids)
    assert max(abs(expected[id].item() - value) for id, value in found.items()) < 0.02
    adapter = export(run, tmp_path / "adapter.gguf", "gguf", adapter_only=True)
    base = export(run.parent / "base", tmp_path / "base.gguf", "gguf:f32")
    with_adapter = LlamaCpp(base.path, adapter.path).log_probabilities(ids)
    assert max(abs(expected[id].item() - value) for id, value in with_adapter.items()) < 0.02


def test_the_importance_is_the_mean_square_of_each_input(run: Path, tmp_path: Path) -> None:
    subject = Subject.find(str(run))
    layout = Layout.of(subject.model.config, subject.model.base_model_prefix)
    found = importance(subject, layout, 2, Events())
    inputs: list[torch.Tensor] = []
    merged = AutoModelForCausalLM.from_pretrained(export(run, tmp_path / "hf", "hf").path)
    layer = merged.model.layers[1].mlp.down_proj
    hook = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0][0]))
    assert subject.recipe is not None
    rows = prepare(subject.recipe, subject.tokenizer).train
    with torch.no_grad():
        for row in range(2):
            merged(input_ids=torch.as_tensor(np.asarray(rows[row][0], np.int64))[None])
    hook.remove()
    expected = torch.cat(inputs).square().mean(0).numpy()
    assert np.allclose(found["blk.1.ffn_down.weight"], expected, rtol=1e-5)
    assert {name.split(".")[-2] for name in found} >= {"attn_q", "attn_v", "ffn_up", "ffn_down", "attn_output"}


def test_importance_changes_the_written_weights(run: Path, tmp_path: Path) -> None:
    plain = export(run, tmp_path / "plain.gguf", "gguf:q4_0").path
    weighted = export(run, tmp_path / "weighted.gguf", "gguf:q4_0", importance_rows=8).path
    ours, theirs = ({t.name: bytes(t.data) for t in gguf.GGUFReader(path).tensors} for path in (plain, weighted))
    changed = {name for name in ours if ours[name] != theirs[name]}
    assert {"blk.0.attn_q.weight", "blk.2.ffn_down.weight"} <= changed
    assert not {name for name in changed if "norm" in name}


def test_the_card_and_the_metadata_say_where_the_model_comes_from(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "run.gguf", "gguf:q8_0")
    assert done.card == tmp_path / "run.md"
    card = done.card.read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["base_model"] == str(run.parent / "base")
    assert (head["library_name"], head["pipeline_tag"]) == ("llama.cpp", "text-generation")
    digest = json.loads((run / "provenance.json").read_text())["data"][str(run.parent / "rows.jsonl")]
    assert f"- Data: rows.jsonl, SHA-256 {digest}" in card
    assert re.search(r"^On \d+ held-out rows, as trained, before this export;.*\n\n\| \| base \| tuned \|$", card, re.M)
    assert "<!-- parity -->" in card
    fields = gguf.GGUFReader(done.path).fields
    assert fields["general.name"].contents() == "run"
    assert fields["general.dataset.0.version"].contents() == digest
    assert fields["general.base_model.0.name"].contents() == str(run.parent / "base")


def test_the_card_has_the_figures_of_evaluate_as_results_that_the_hub_reads(run: Path, tmp_path: Path) -> None:
    gate, own = gate_file(tmp_path, {"figure": "loss", "at_most": 99}), {"exact_match": METRICS["exact_match"]}
    found = evaluate(run, 2, 4, metrics=own, suites=["memorization"], gate=gate)
    try:
        read = ModelCard.load(export(run, tmp_path / "model", "hf").card)
        write_report(run)
        page = (run / "report.html").read_text(encoding="utf-8")
    finally:
        (run / "evaluation.json").unlink()
    results = {result.metric_type: result for result in read.data.eval_results}
    assert set(results) == set(found["models"]["tuned"])
    for name, result in results.items():
        figure = found["models"]["tuned"][name]
        assert result.metric_value == figure["value"]
        assert result.metric_args["interval"] == pytest.approx(figure["interval"])
        assert result.metric_args["rows"] == figure["rows"]
        assert result.metric_name == found["figures"][name]["title"]
        assert (result.task_type, read.data.model_name) == ("text-generation", "run")
    loss, exposed = results["loss"], results["memorization.membership"]
    assert (loss.dataset_name, loss.dataset_revision) == ("held-out rows of run", found["data_sha256"])
    assert exposed.dataset_name == "Tunesmith's suite memorization"
    assert "The gate is passed." in read.text
    value = found["models"]["tuned"]["loss"]["value"]
    assert f"{value:.4g} (" in next(line for line in read.text.splitlines() if line.startswith("| loss |"))
    assert f"{value:.3f}" in page, "the page shows the same figure"


def test_evaluate_writes_the_card_of_the_run_unless_the_user_wrote_one(run: Path) -> None:
    card = run / "adapter" / "README.md"
    written: list[str] = []
    try:
        for loss in (1.5, 1.25):
            figure = {"loss": {"value": loss, "interval": [1.0, 2.0], "rows": 8}}
            result = {"rows": 8, "figures": {"loss": {"title": "loss"}}, "models": {"base": figure, "tuned": figure}}
            (run / "evaluation.json").write_text(json.dumps(result), encoding="utf-8")
            written.append(write_run_card(run).read_text(encoding="utf-8"))
    finally:
        (run / "evaluation.json").unlink()
    for loss, text in zip((1.5, 1.25), written, strict=True):
        read = ModelCard(text)
        assert [result.metric_value for result in read.data.eval_results] == [loss]
        assert (read.data.library_name, read.data.base_model_relation) == ("peft", "adapter")
        assert f"| loss | {loss} (1 to 2) |" in read.text
        assert "More Information Needed" not in text
    card.write_text("Mine.", encoding="utf-8")
    assert write_run_card(run).read_text(encoding="utf-8") == "Mine."
    card.write_text(written[1], encoding="utf-8")
    evaluate(run, 1, 1, metrics={})
    (run / "evaluation.json").unlink()
    assert ModelCard.load(card).data.eval_results[0].metric_value != 1.25


def test_the_fingerprint_of_the_data_is_of_what_the_rows_say_and_not_of_where_they_are(
    run: Path, tmp_path: Path
) -> None:
    rows = (run.parent / "rows.jsonl").read_text(encoding="utf-8")
    (tmp_path / "moved.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "changed.jsonl").write_text(rows.replace("of course", "of curse"), encoding="utf-8")
    files = (run.parent / "rows.jsonl", tmp_path / "moved.jsonl", tmp_path / "changed.jsonl")
    own, moved, changed = (EvaluationRows.of_files([str(file)]).fingerprint for file in files)
    assert own == moved != changed


def test_a_model_without_finite_figures_has_no_results() -> None:
    figure = {"value": math.inf, "interval": [0.0, math.inf], "rows": 8}
    about = {"rows": 8, "figures": {"perplexity": {"title": "perplexity"}}, "models": {"tuned": {"perplexity": figure}}}
    assert list(eval_results(about, "text-generation")) == list(eval_results({}, "text-generation")) == []


def test_defaults_for_generation_travel(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", *FAMILIES["llama"])
    model.generation_config.update(do_sample=True, temperature=0.6, top_k=20, repetition_penalty=1.1)
    model.generation_config.save_pretrained(tmp_path / "model")
    done = export(tmp_path / "model", tmp_path / "m.gguf", "gguf")
    fields = gguf.GGUFReader(done.path).fields
    found = {name: fields[f"general.sampling.{name}"].contents() for name in ("temp", "top_k", "penalty_repeat")}
    assert found == pytest.approx({"temp": 0.6, "top_k": 20, "penalty_repeat": 1.1})
    made = (export(tmp_path / "model", tmp_path / "o", "ollama").path / "Modelfile").read_text()
    assert "PARAMETER temperature 0.6\nPARAMETER top_k 20\n" in made


def test_an_ollama_directory_has_the_file_its_stops_and_a_go_template(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "ollama", "ollama:f16")
    assert {path.name for path in done.path.iterdir()} == {"Modelfile", "README.md", "model-f16.gguf"}
    lines = (done.path / "Modelfile").read_text(encoding="utf-8")
    assert lines.startswith("FROM ./model-f16.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n' in lines
    assert 'eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>{{ else if' in lines
    assert lines.endswith('{{ end }}{{ end }}<|im_start|>assistant\n"""\n')


LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
)
WITH_DEFAULT = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>{% endif %}" + CHATML
COUNTING = "{% for m in messages %}{{ loop.index }}{{ m['content'] }}<|im_end|>{% endfor %}"


def template_of(text: str) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = text
    return go_template(tokenizer)


@pytest.mark.parametrize("text", [CHATML, WITH_DEFAULT])
@settings(max_examples=20)
@given(st.lists(st.text("ab \n", max_size=5), min_size=1, max_size=5), st.booleans())
def test_a_go_template_renders_what_the_chat_template_does(text: str, contents: list[str], system: bool) -> None:
    roles = ["system"] * system + ["user", "assistant"] * 3
    chat = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    expected = byte_tokenizer().apply_chat_template(
        chat, chat_template=text, tokenize=False, add_generation_prompt=True
    )
    assert template_of(text).text(chat) == expected


@pytest.mark.parametrize("text", [LLAMA2, COUNTING, "{{ raise_exception('no') }}"])
def test_a_template_that_treats_turns_differently_is_left_to_ollama(text: str) -> None:
    assert template_of(text) is None


def test_the_default_system_prompt_is_the_modelfiles() -> None:
    assert template_of(WITH_DEFAULT).system == "Be brief."
    assert template_of(CHATML).system is None


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("onnx", {}, "--to onnx does not exist. Use one of hf, int8, nf4, gguf, ollama, mlx, with"),
        ("hf:q8_0", {}, "--to hf:q8_0 does not exist"),
        ("gguf:q9", {}, "--to gguf:q9 does not exist. Use one of f32, f16, bf16, q8_0, "),
        ("hf", {"importance_rows": 4}, "--to hf takes neither --importance-rows nor --adapter-only"),
        ("ollama", {"adapter_only": True}, "--to ollama takes no --adapter-only"),
        ("mlx:q5", {}, "--to mlx:q5 does not exist. Use one of mlx:q4, mlx:q8."),
        ("gguf", {"precision": "fp16"}, "--to gguf takes no --precision. It is for hf."),
        ("hf", {"precision": "int8"}, "--precision int8 does not exist. Use one of fp32, bf16, fp16."),
    ],
)
def test_a_wrong_request_is_refused(to: str, options: Any, message: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        export(run, tmp_path / "out", to, **options)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("to", ["hf", "int8", "gguf", "ollama"])
def test_a_failed_export_leaves_nothing(to: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tunesmith.run._flush", full)
    name = "out.gguf" if to == "gguf" else "out"
    with pytest.raises(UserError, match=f"{name} cannot be written: No space left on device"):
        export(run, tmp_path / name, to)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_existing_files_are_kept(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("mine")
    with pytest.raises(UserError, match=r"a.md already exists"):
        export(run, tmp_path / "a.gguf", "gguf")
    assert (tmp_path / "a.md").read_text() == "mine"
    assert not (tmp_path / "a.gguf").exists()


def test_every_export_says_how_far_it_is(run: Path, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    export(run, tmp_path / "a.gguf", "gguf", importance_rows=3, subscribers=[seen.append])
    last = {event["what"]: (event["done"], event["total"]) for event in seen}
    assert last == {"importance, rows": (3, 3), "gguf, million weights": (1, 1)}


def test_sampling_defaults_without_sampling_are_left_out(tmp_path: Path) -> None:
    """Such configs exist on the hub; transformers refuses to save them."""
    saved(tmp_path / "model", *FAMILIES["llama"])
    file = tmp_path / "model" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "temperature": 0.6, "do_sample": False}))
    done = export(tmp_path / "model", tmp_path / "hf", "hf")
    assert "temperature" not in json.loads((done.path / "generation_config.json").read_text())
    written = export(tmp_path / "model", tmp_path / "m.gguf", "gguf")
    assert "general.sampling.temp" not in gguf.GGUFReader(written.path).fields


def test_a_gguf_file_needs_a_name_that_ends_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gguf is one file. Give it a name that ends in .gguf: out.gguf"):
        export("embedded", tmp_path / "out", "gguf")
