"""A form of a model is read by the program that it is for, and one that is not that model is noticed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from bytewise import byte_tokenizer
from command import typed
from exportable import FAMILIES, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from running_server import served
from safetensors.torch import load_file, save_file
from small_models import config_for
from transformers import AutoModel

import tunesmith
from tunesmith.errors import UserError
from tunesmith.exporting.export import export
from tunesmith.proving.http import bucketed_divergence
from tunesmith.proving.limits import EIGHT_BITS, EXACT, FEWER_BITS, FOUR_BITS, kind_of
from tunesmith.proving.reader import agreement

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FEW = {"rows": 3, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama that llama.cpp can compute."""
    directory = tmp_path_factory.mktemp("parity") / "base"
    saved(directory, *FAMILIES["llama"])
    return directory


@pytest.fixture(scope="module")
def forms(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base as other programs read it, written without the gate."""
    directory = tmp_path_factory.mktemp("forms")
    outputs = {"gguf": ("m.gguf", "gguf:f32"), "hf": ("hf", "hf")}
    return {form: export(base, directory / name, to).path for form, (name, to) in outputs.items()}


@pytest.mark.parametrize(("form", "program"), [("gguf", "llama.cpp"), ("hf", "transformers")])
def test_the_program_of_a_form_computes_the_same_model(
    form: str, program: str, base: Path, forms: dict[str, Path]
) -> None:
    result = tunesmith.parity(base, forms[form], **FEW)
    assert result["program"] == program
    assert result["passed"]
    assert result["failed"] == []
    assert result["token_ids_equal"] is True
    assert result["chats"] == 3 + 5
    assert result["not_rendered"] == ["a tool", "a call of a tool and its result"]
    assert result["top1_agreement"] == 1
    assert 0 <= result["kl"] < 1e-5
    assert result["loss"]["b"] == pytest.approx(result["loss"]["a"], abs=1e-3)
    assert result["answers"] == result["same_answers"] == 3
    stored = forms[form].with_suffix(".parity.json") if form == "gguf" else forms[form] / "parity.json"
    assert json.loads(stored.read_text()) == json.loads(json.dumps(result))


def _patched(file: Path, target: Path, change: Callable[[gguf.GGUFReader], None]) -> Path:
    target.write_bytes(file.read_bytes())
    reader = gguf.GGUFReader(target, "r+")
    change(reader)
    reader.data.flush()
    return target


def _other_role(reader: gguf.GGUFReader) -> None:
    """The template writes another word before the model's answer."""
    text = reader.fields["tokenizer.chat_template"].parts[-1]
    word = np.frombuffer(b"assistant", np.uint8)
    positions = [k for k in range(len(text) - len(word)) if (text[k : k + len(word)] == word).all()]
    text[positions[-1]] = ord("A")


def _adds_bos(reader: gguf.GGUFReader) -> None:
    """A token is put before every text, which the chat template does not write."""
    reader.fields["tokenizer.ggml.add_bos_token"].parts[-1][0] = True
    reader.fields["tokenizer.ggml.bos_token_id"].parts[-1][0] += 2


def _swapped(reader: gguf.GGUFReader) -> None:
    """Two layers have each other's queries."""
    one, two = (next(t for t in reader.tensors if t.name == f"blk.{k}.attn_q.weight").data for k in (0, 1))
    kept = one.copy()
    one[:] = two
    two[:] = kept


@pytest.mark.parametrize(
    ("change", "equal", "reason"),
    [
        (_other_role, False, "other token ids"),
        (_adds_bos, False, "other token ids"),
        (_swapped, True, "nats per token, and the limit for 16 bits or more is 0.001"),
    ],
)
def test_a_gguf_file_with_one_thing_changed_is_not_the_model(
    change: Callable[[gguf.GGUFReader], None],
    equal: bool,
    reason: str,
    base: Path,
    forms: dict[str, Path],
    tmp_path: Path,
) -> None:
    result = tunesmith.parity(base, _patched(forms["gguf"], tmp_path / "changed.gguf", change), **FEW)
    assert not result["passed"]
    assert result["token_ids_equal"] is equal
    assert reason in "; ".join(result["failed"])


def test_a_directory_with_one_thing_changed_is_not_the_model(
    base: Path, forms: dict[str, Path], tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in forms["hf"].iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n{% endif", "Assistant\n{% endif"))
    result = tunesmith.parity(base, changed, **FEW)
    assert (result["token_ids_equal"], result["passed"]) == (False, False)
    assert result["kl"] < 1e-5
    template.write_bytes((forms["hf"] / template.name).read_bytes())
    weights = load_file(changed / "model.safetensors")
    name = "model.layers.{}.self_attn.q_proj.weight"
    weights[name.format(0)], weights[name.format(1)] = weights[name.format(1)], weights[name.format(0)]
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    result = tunesmith.parity(base, changed, **FEW)
    assert (result["token_ids_equal"], result["passed"]) == (True, False)
    assert result["kl"] > 0.001


def test_a_served_model_is_compared_as_far_as_the_protocol_reports(base: Path, forms: dict[str, Path]) -> None:
    with served(base) as server:
        result = tunesmith.parity(base, server.address, **FEW)
        assert result["passed"]
        assert result["token_ids_equal"] is None
        assert result["chats"] == 3 + 5
        assert result["not_checked"][0].startswith("token ids: the protocol reports only how many")
        assert result["kl"] < 1e-6
        assert result["loss"]["b"] == pytest.approx(result["loss"]["a"], abs=1e-4)
        assert result["same_answers"] == 3


def test_another_served_model_is_not_the_model(base: Path, tmp_path: Path) -> None:
    saved(tmp_path / "other", *FAMILIES["llama with linear scaling"])
    (tmp_path / "other" / "chat_template.jinja").write_text(TEMPLATE.replace("\n{{", " of this chat\n{{"))
    with served(tmp_path / "other") as server:
        result = tunesmith.parity(base, server.address, **FEW)
    assert result["token_ids_equal"] is False
    assert "tokens for" in result["failed"][0]
    assert any("nats per token" in reason for reason in result["failed"])


def test_an_address_without_a_server_is_an_error(base: Path) -> None:
    with pytest.raises(UserError, match=r"does not answer: .*Is the server running"):
        tunesmith.parity(base, "http://127.0.0.1:9", **FEW)


def test_a_run_is_compared_on_its_held_out_rows_and_the_card_says_so(base: Path, tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}, of course."} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "base": str(base),
        "data": {"train": str(tmp_path / "rows.jsonl"), "held_out": 0.3},
        "method": {"kind": "lora", "rank": 4},
        "train": {"steps": 2, "learning_rate": 1e-2, "precision": "fp32"},
    }
    run = tunesmith.train(recipe, tmp_path / "run").directory
    done = tunesmith.export(run, tmp_path / "run.gguf", "gguf:f32", rows=4)
    assert done.parity is not None
    assert done.parity["rows_from"] == "held-out rows of the run"
    assert done.parity["rows"] == 4
    assert done.parity["b"] == str(tmp_path / "run.gguf")
    assert set(done.parity["metrics"]) == {"rouge_l", "first_word", "exact_match"}
    assert done.card == tmp_path / "run.md"
    card = done.card.read_text(encoding="utf-8")
    assert "| token ids, 9 chats |  |  | equal |" in card
    assert "Not measured" not in card
    assert json.loads((tmp_path / "run.parity.json").read_text())["passed"]
    left = {path.name for path in tmp_path.iterdir()} - {"cache", "rows.jsonl", "run"}
    assert left == {"run.gguf", "run.md", "run.parity.json"}


def test_an_export_beyond_the_limits_leaves_nothing_unless_it_is_accepted(base: Path, tmp_path: Path) -> None:
    arguments = ("export", str(base), "--to", "gguf:q4_0", "--output", str(tmp_path / "m.gguf"), "--rows", "2")
    refused = typed(*arguments)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "is not the same model, so it was not kept" in refused.stderr
    assert "the limit for 4 to 6 bits is" in refused.stderr
    assert "keep it anyway with --accept-loss" in refused.stderr
    assert list(tmp_path.iterdir()) == []
    kept = typed(*arguments, "--accept-loss")
    assert kept.returncode == 0, kept.stderr
    stored = json.loads((tmp_path / "m.parity.json").read_text())
    assert (stored["passed"], stored["accepted_loss"]) == (False, True)
    assert "**Accepted in spite of the limits** (`--accept-loss`)" in (tmp_path / "m.md").read_text(encoding="utf-8")


PAUSED = """
import sys
import tunesmith

def wait(event):
    if event.get("what", "").startswith("parity: answers") and event["done"] == 0:
        print("written", flush=True)
        sys.stdin.readline()

tunesmith.export(sys.argv[1], sys.argv[2], "gguf:f32", rows=1, subscribers=[wait])
"""


@pytest.mark.long
def test_two_processes_never_write_one_output(base: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.gguf"
    first = subprocess.Popen(
        [sys.executable, "-c", PAUSED, str(base), str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin is not None
    assert first.stdout is not None
    assert first.stdout.readline() == "written\n"
    with pytest.raises(UserError, match=rf"m.gguf is being written by process {first.pid} on .* use another output"):
        tunesmith.export(base, output, "gguf:f32", rows=1)
    assert (tmp_path / ".m.gguf.unproven" / "m.gguf").exists()
    first.communicate("go on\n", timeout=120)
    assert first.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "m.md", "m.parity.json"}
    with pytest.raises(UserError, match=r"m.gguf already exists"):
        tunesmith.export(base, output, "gguf:f32", rows=1)


def test_other_token_ids_are_never_accepted(base: Path, tmp_path: Path) -> None:
    """llama.cpp's `upper` changes ASCII letters only, Jinja's all letters."""
    template = base / "chat_template.jinja"
    before = template.read_text()
    try:
        template.write_text(TEMPLATE.replace("message['role']", "('ü' ~ message['role']) | upper"))
        with pytest.raises(UserError, match="6 of 6 chats have other token ids"):
            tunesmith.export(base, tmp_path / "m.gguf", "gguf:f32", accept_loss=True, rows=1)
    finally:
        template.write_text(before)
    assert list(tmp_path.iterdir()) == []


TOOLS = (
    "{% if tools %}<|im_start|>system\nTools:\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<call>{{ call.function.name }}: "
    "{{ call.function.arguments | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_lists_tools_is_compared_with_tools_and_calls(base: Path, tmp_path: Path) -> None:
    template = base / "chat_template.jinja"
    before = template.read_text()
    try:
        template.write_text(TOOLS)
        done = tunesmith.export(base, tmp_path / "m.gguf", "gguf:f32", rows=1)
        template.write_text(TOOLS.replace("Tools:", "Functions:"))
        other = tunesmith.parity(base, tmp_path / "m.gguf", rows=1)
    finally:
        template.write_text(before)
    assert done.parity is not None
    assert (done.parity["token_ids_equal"], done.parity["not_rendered"]) == (True, [])
    assert {each["chat"] for each in other["differing"]} == {"a tool", "a call of a tool and its result"}


def test_a_template_that_writes_the_date_is_compared_as_of_today(base: Path, tmp_path: Path) -> None:
    template = base / "chat_template.jinja"
    before = template.read_text()
    try:
        template.write_text("{{ strftime_now('%d %b %Y') }}\n" + TEMPLATE)
        done = tunesmith.export(base, tmp_path / "m.gguf", "gguf:f32", rows=1)
    finally:
        template.write_text(before)
    assert done.parity is not None
    assert done.parity["token_ids_equal"] is True


def test_the_command_prints_the_figures_as_json_and_fails_if_they_differ(
    base: Path, forms: dict[str, Path], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "What is a fox?", "answer": "A fox is brown."}) + "\n")
    options = ("--json", "--rows", "5", "--data", str(rows), "--max-new-tokens", "2")
    done = typed("parity", str(base), str(forms["gguf"]), *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {"token_ids_equal", "top1_agreement", "kl", "loss", "passed"} <= set(result)
    assert (result["rows"], result["rows_from"]) == (1, str(rows))
    changed = _patched(forms["gguf"], tmp_path / "changed.gguf", _swapped)
    failed = typed("parity", str(base), str(changed), *options[1:])
    assert failed.returncode == 2
    words = " ".join(failed.stdout.split())
    assert "Beyond the limits: " in words
    assert "KL is " in words


def test_models_that_write_no_text_are_exported_and_said_not_to_be_compared(tmp_path: Path) -> None:
    AutoModel.from_config(config_for("bert")).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    done = tunesmith.export(tmp_path / "base", tmp_path / "hf", "hf")
    assert done.parity is None
    assert "only decoders that write text are compared" in done.card.read_text(encoding="utf-8")


SCORES = st.integers(2, 9).flatmap(
    lambda size: st.lists(
        st.tuples(*[st.lists(st.floats(-5, 5), min_size=size, max_size=size)] * 2, st.integers(0, size - 1)),
        min_size=1,
        max_size=130,
    )
)


@settings(max_examples=30, deadline=None)
@given(SCORES)
def test_agreement_is_its_definition(rows: list[tuple[list[float], list[float], int]]) -> None:
    first, second = (np.array([row[k] for row in rows], np.float32) for k in (0, 1))
    targets = np.array([row[2] for row in rows], np.int32)
    found = agreement(first, second, targets)
    p, q = (np.exp(np.float64(each)) / np.exp(np.float64(each)).sum(1, keepdims=True) for each in (first, second))
    positions = np.arange(len(rows))
    assert found.positions == len(rows)
    assert found.same == (p.argmax(1) == q.argmax(1)).sum()
    assert found.divergence == pytest.approx((p * np.log(p / q)).sum(), abs=1e-9)
    assert found.losses == pytest.approx((-np.log(p[positions, targets]).sum(), -np.log(q[positions, targets]).sum()))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=3, max_size=12), st.data())
def test_the_divergence_of_reported_tokens_is_at_most_the_full_one(
    weights: list[tuple[float, float]], data: st.DataObject
) -> None:
    p, q = (np.array(each) / np.sum(each) for each in zip(*weights, strict=True))
    reported = data.draw(st.integers(1, len(p) - 1))
    full = float((p * np.log(p / q)).sum())
    found = bucketed_divergence({k: p[k] for k in range(reported)}, {k: np.log(q[k]) for k in range(reported)})
    assert -1e-12 <= found <= full + 1e-9
    every = bucketed_divergence({k: p[k] for k in range(len(p))}, {k: np.log(q[k]) for k in range(len(p))})
    assert every == pytest.approx(full, abs=1e-9)


@pytest.mark.parametrize(
    ("bits", "kind"),
    [(32, EXACT), (16, EXACT), (8.5, EIGHT_BITS), (6.6, FOUR_BITS), (4.8, FOUR_BITS), (3.4, FEWER_BITS)],
)
def test_limits_follow_the_bits_that_a_file_has(bits: float, kind: Any) -> None:
    assert kind_of(bits) is kind
