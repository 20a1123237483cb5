"""The CUDA kernels of attention over pages without a GPU: they are right in Triton's interpreter, and they compile."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith.ops.paged_attention import PAGE, TILE

triton = pytest.importorskip("triton")


def test_the_interpreted_kernels_equal_the_reference_in_float64() -> None:
    script = Path(__file__).with_name("interpreted_paged.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus(capability: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tunesmith.ops.paged_triton import _attend as kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    numbers = {"q", "keys", "values", "sinks", "out"}
    constants: dict[str, Any] = {
        "GROUP": 4, "HEADS": 4, "TOKENS": TILE, "ROWS": 64, "DIM": 128, "PADDED": 128, "VALUE_DIM": 128, "WIDTH": 128,
        "PADDED_VALUE": 128, "PAGE": PAGE, "BLOCK": 32, "WINDOW": 100, "HAS_SOFTCAP": True, "HAS_SINKS": True,
    }  # fmt: skip
    types = dict.fromkeys(numbers, "*bf16") | {"tiles": "*i64", "pages": "*i64", "scale": "fp32", "softcap": "fp32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs=places)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert "mma" in compiled.asm["ptx"]
    assert compiled.metadata.shared < 99 * 1024
