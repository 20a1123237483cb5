"""GGUF files in every kind of number: the mixes of llama.cpp, its bits, and the importance of inputs."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from combinations import few
from exportable import FAMILIES, saved
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import LlamaCpp
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from tunesmith.errors import UserError
from tunesmith.exporting import gguf_quantizer
from tunesmith.exporting.export import export
from tunesmith.exporting.gguf_mix import MIXES, TensorPosition
from tunesmith.exporting.gguf_quantizer import BY_GGUF, _by_llama_cpp, bytes_of, quantize

WIDE = {
    **FAMILIES["qwen2"][1],
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "initializer_range": 0.05,
    "num_attention_heads": 4,
    "head_dim": 64,
    "num_key_value_heads": 1,
}
BITS = {Kind.Q4_K: 0.1, Kind.Q6_K: 0.03, Kind.Q2_K: 0.5, Kind.IQ4_XS: 0.12, Kind.IQ3_S: 0.2}
"""The most that a weight of a normal distribution moves on average, in its deviations."""


def random_rows(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from(BY_GGUF[3:]), st.integers(0, 99))
def test_gguf_and_llama_cpp_write_the_same_bits(rows: int, blocks: int, kind: Kind, seed: int) -> None:
    values = random_rows(rows, 32 * blocks, seed)
    ours = quantize(values, kind)
    assert np.array_equal(ours, _by_llama_cpp(values, kind, None))
    assert ours.nbytes == bytes_of(values.shape, kind)


@pytest.mark.parametrize("kind", BITS)
def test_the_other_kinds_are_read_back_near_the_values(kind: Kind) -> None:
    values = random_rows(3, 512)
    read = gguf.dequantize(quantize(values, kind, np.ones(512, np.float32)), kind)
    assert 0 < np.abs(read - values).mean() < BITS[kind]


def test_pieces_give_the_bits_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    values = random_rows(7, 256)
    whole = quantize(values, Kind.Q4_K)
    monkeypatch.setattr(gguf_quantizer, "PIECE", 512)
    assert np.array_equal(quantize(values, Kind.Q4_K), whole)


def test_important_columns_are_closer(tmp_path: Path) -> None:
    values = random_rows(64, 256)
    weights = np.where(np.arange(256) % 8 == 0, 100.0, 1.0).astype(np.float32)
    plain, weighted = (gguf.dequantize(quantize(values, Kind.Q3_K, each), Kind.Q3_K) for each in (None, weights))
    important = weights > 1
    assert (np.abs(weighted - values)[:, important].mean()) < 0.8 * np.abs(plain - values)[:, important].mean()


def kinds_in(mix: str, blocks: int, grouped: bool = False, weighted: bool = False) -> dict[str, list[str]]:
    """The kind of each of a Llama's matrices, by block."""
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    return {
        name: [
            MIXES[mix].kind(f"blk.{n}.{name}.weight", 4096, TensorPosition(n, blocks, grouped, weighted), False).name
            for n in range(blocks)
        ]
        for name in names
    }


def test_q4_k_m_of_32_blocks_is_llama_cpps() -> None:
    """As in every Q4_K_M file of Llama 7B: half of the values and of what leaves the feed-forward part in 6 bits."""
    found = kinds_in("q4_k_m", 32)
    six = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    for name, kinds in found.items():
        expected = six if name in ("attn_v", "ffn_down") else []
        assert [n for n, kind in enumerate(kinds) if kind == "Q6_K"] == expected, name
        assert set(kinds) <= {"Q4_K", "Q6_K"}


def test_other_mixes_raise_the_bits_where_llama_cpp_does() -> None:
    assert kinds_in("q3_k_m", 32)["attn_v"] == ["Q5_K"] * 2 + ["Q4_K"] * 30
    assert kinds_in("q3_k_m", 32)["ffn_down"] == ["Q5_K"] * 2 + ["Q4_K"] * 30
    assert set(kinds_in("q3_k_m", 32)["attn_output"]) == {"Q4_K"}
    assert kinds_in("q4_k_s", 32)["attn_v"] == ["Q5_K"] * 4 + ["Q4_K"] * 28
    assert kinds_in("q4_k_s", 32)["ffn_down"] == ["Q5_K"] * 4 + ["Q4_K"] * 28
    assert set(kinds_in("q2_k", 32)["attn_v"]) == {"Q3_K"}
    assert set(kinds_in("q2_k", 32, grouped=True)["attn_v"]) == {"Q4_K"}
    assert kinds_in("iq4_xs", 32)["ffn_down"] == ["Q5_K"] * 4 + ["IQ4_XS"] * 28
    assert set(kinds_in("iq4_xs", 32, weighted=True)["ffn_down"]) == {"IQ4_XS"}
    assert kinds_in("q4_0", 32, weighted=True)["ffn_down"] == ["Q4_1"] * 4 + ["Q4_0"] * 28
    assert set(kinds_in("q4_k_s", 80, grouped=True)["attn_v"]) == {"Q5_K"}, "of 70 billion parameters"


@pytest.mark.parametrize(
    ("mix", "name", "columns", "is_tied", "kind"),
    [
        ("q4_k_m", "output.weight", 4096, False, Kind.Q6_K),
        ("q4_k_m", "token_embd.weight", 4096, False, Kind.Q4_K),
        ("q4_k_m", "token_embd.weight", 4096, True, Kind.Q6_K),
        ("q4_k_m", "token_embd.weight", 576, True, Kind.Q8_0),
        ("q4_1", "output.weight", 576, False, Kind.Q8_0),
        ("q4_k_m", "blk.0.attn_q.weight", 576, False, Kind.Q5_0),
        ("q6_k", "blk.0.attn_q.weight", 576, False, Kind.Q8_0),
        ("iq4_xs", "blk.0.attn_q.weight", 576, False, Kind.IQ4_NL),
        ("q4_k_m", "blk.0.attn_q.weight", 100, False, Kind.F16),
        ("q8_0", "blk.0.attn_q.weight", 100, False, Kind.F16),
        ("q4_k_m", "position_embd.weight", 4096, False, Kind.F32),
        ("bf16", "blk.0.attn_q.weight", 100, False, Kind.BF16),
    ],
)
def test_single_matrices_have_llama_cpps_kind(mix: str, name: str, columns: int, is_tied: bool, kind: Kind) -> None:
    assert MIXES[mix].kind(name, columns, TensorPosition(0, 8, False, False), is_tied) == kind


@pytest.mark.parametrize("mix", few(["bf16", "q8_0", "q5_1", "q4_k_m", "q6_k", "iq4_nl"], ["q8_0", "q4_k_m"]))
def test_llama_cpp_computes_with_each_mix_what_transformers_reads_from_it(mix: str, tmp_path: Path) -> None:
    saved(tmp_path / "model", "qwen2", WIDE)
    done = export(tmp_path / "model", tmp_path / f"{mix}.gguf", f"gguf:{mix}")
    assert gguf.GGUFReader(done.path).fields["general.file_type"].contents() == MIXES[mix].file_type
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=done.path.name, dtype=torch.float32)
    ids = torch.arange(20, 60, 2)
    with torch.no_grad():
        expected = torch.log_softmax(model(ids[None]).logits[0, -1], -1)
    found = LlamaCpp(done.path).log_probabilities(ids.tolist())
    assert max(abs(expected[id].item() - value) for id, value in found.items()) < 0.1  # its inputs are in 8 bits


def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_quantizer, "find_spec", lambda name: None)


def test_without_xllamacpp_its_kinds_name_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "model", *FAMILIES["llama"])
    without_llama_cpp(monkeypatch)
    with pytest.raises(UserError, match=r"gguf:q4_k_m needs llama.cpp's quantizer.*pip install 'tunesmith\[gguf\]'"):
        export(tmp_path / "model", tmp_path / "a.gguf", "gguf:q4_k_m")
    assert export(tmp_path / "model", tmp_path / "a.gguf", "gguf:q5_0").path.exists()


def test_kinds_that_need_importance_say_so(tmp_path: Path) -> None:
    saved(tmp_path / "model", *FAMILIES["llama"])
    with pytest.raises(UserError, match=r"gguf:iq2_xs needs an importance matrix.*--importance-rows 64"):
        export(tmp_path / "model", tmp_path / "a.gguf", "gguf:iq2_xs")
    with pytest.raises(UserError, match="needs the rows of a run"):
        export(tmp_path / "model", tmp_path / "a.gguf", "gguf:iq2_xs", importance_rows=4)
