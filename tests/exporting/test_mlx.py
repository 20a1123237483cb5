"""A model in mlx-lm's format: its integers are the nearest, and mlx-lm computes from them what the model computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exportable import FAMILIES, saved
from safetensors.torch import load_file
from torch import Tensor

import tunesmith
from tunesmith.errors import UserError
from tunesmith.exporting.export import export
from tunesmith.exporting.mlx import FAMILIES as SUPPORTED
from tunesmith.exporting.mlx import GROUP, quantize_groups


def unpacked(words: Tensor, bits: int) -> Tensor:
    """(out, in) codes, int64."""
    shifted = words.long()[..., None] >> torch.arange(0, 32, bits)
    return (shifted & (2**bits - 1)).reshape(len(words), -1)


def restored(parts: dict[str, Tensor], bits: int) -> Tensor:
    """(out, in) the numbers that are stored."""
    scales, biases = (parts[name].float().repeat_interleave(GROUP, 1) for name in ("scales", "biases"))
    return unpacked(parts["weight"], bits) * scales + biases


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_each_number_is_the_nearest_of_its_group(bits: int, shift: float) -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 3 * GROUP) + shift
    values[0, :GROUP] = 0.0
    values[1, :GROUP] = 0.25
    parts = quantize_groups(values, bits, torch.float32)
    assert parts["weight"].shape == (5, 3 * GROUP * bits // 32)
    assert parts["scales"].shape == parts["biases"].shape == (5, 3)
    found = restored(parts, bits)
    steps = parts["scales"].abs().repeat_interleave(GROUP, 1)
    assert ((found - values).abs() <= 1.01 * steps / 2 + 1e-6).double().mean() > 0.99
    assert ((found - values).abs() <= 1.6 * steps).all()
    extreme = values.reshape(5, 3, GROUP).abs().amax(-1)
    torch.testing.assert_close(found.reshape(5, 3, GROUP).abs().amax(-1), extreme, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_mlx_quantizes_to_the_same_integers(bits: int) -> None:
    mx = pytest.importorskip("mlx.core")
    torch.manual_seed(0)
    values = torch.randn(16, 4 * GROUP)
    ours = quantize_groups(values, bits, torch.float32)
    weight, scales, biases = (np.array(each) for each in mx.quantize(mx.array(values.numpy()), GROUP, bits))
    np.testing.assert_allclose(ours["scales"].numpy(), scales, rtol=1e-5)
    np.testing.assert_allclose(ours["biases"].numpy(), biases, rtol=1e-5)
    theirs = unpacked(torch.from_numpy(weight.astype(np.int64)), bits)
    assert (unpacked(ours["weight"], bits) == theirs).double().mean() > 0.999


def test_the_directory_is_in_mlx_lms_format(tmp_path: Path) -> None:
    saved(tmp_path / "model", *FAMILIES["qwen2"])
    done = export(tmp_path / "model", tmp_path / "mlx", "mlx")
    assert done.to == "mlx:q4"
    config = json.loads((done.path / "config.json").read_text())
    assert config["quantization"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    tensors = load_file(done.path / "model.safetensors")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    layer = "model.layers.0.self_attn.q_proj"
    assert {f"{layer}.{part}" for part in ("weight", "scales", "biases", "bias")} <= set(tensors)
    parts = {part: tensors[f"{layer}.{part}"] for part in ("weight", "scales", "biases")}
    assert torch.allclose(restored(parts, 4), stored[f"{layer}.weight"], atol=0.1)
    assert torch.equal(tensors[f"{layer}.bias"], stored[f"{layer}.bias"])
    assert "model.layers.0.mlp.down_proj.scales" not in tensors, "its rows of 96 numbers are not in whole groups"
    assert "lm_head.weight" not in tensors, "it is the embeddings"


def test_other_models_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model", *FAMILIES["gpt2"])
    with pytest.raises(UserError, match=r"--to mlx is not for this gpt2 model. Export it to hf, or use one of llama"):
        export(tmp_path / "model", tmp_path / "mlx", "mlx:q8")
    saved(tmp_path / "long", *FAMILIES["phi3 with long factors"])
    with pytest.raises(UserError, match=r"--to mlx is not for rotary embeddings of the kind longrope. Export"):
        export(tmp_path / "long", tmp_path / "mlx", "mlx:q8")
    assert not (tmp_path / "mlx").exists()


CASES = {name: case for name, case in FAMILIES.items() if case[0] in SUPPORTED and "long" not in name}


@pytest.mark.parametrize("case", CASES)
def test_mlx_lm_computes_the_familys_next_tokens(case: str, tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    saved(tmp_path / "model", *CASES[case])
    done: Any = tunesmith.export(tmp_path / "model", tmp_path / "mlx", "mlx:q8", rows=2, accept_loss=True)
    assert done.parity["program"] == "mlx-lm"
    assert done.parity["token_ids_equal"] is True
    assert done.parity["kl"] < 0.02


def test_without_mlx_lm_the_export_says_that_it_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.proving.mlx.find_spec", lambda _: None)
    saved(tmp_path / "model", *FAMILIES["llama"])
    done = tunesmith.export(tmp_path / "model", tmp_path / "mlx", "mlx:q8")
    assert (done.parity, done.unproven is not None and "mlx-lm is not installed here" in done.unproven) == (None, True)
    assert "mlx-lm is not installed here" in done.card.read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"needs mlx-lm. Install it: pip install mlx-lm"):
        tunesmith.parity(tmp_path / "model", tmp_path / "mlx", rows=1)
