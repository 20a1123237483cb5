"""Compiled kernels are used only if they are of the sources beside them."""

import ctypes
import logging
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tunesmith.checks import native as of_texts
from tunesmith.compiled_sources import are_current, checksum
from tunesmith.ops import native as of_tensors


@pytest.mark.parametrize("native", [of_texts, of_tensors], ids=["checks", "ops"])
def test_kernels_of_other_sources_are_not_used(
    native: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if native.library() is None:
        pytest.skip("no compiler")
    directory = tmp_path / "native"
    shutil.copytree(native.LIBRARY.parent, directory, ignore=shutil.ignore_patterns("__pycache__"))
    loaded = ctypes.CDLL(str(native.LIBRARY))
    with caplog.at_level(logging.WARNING, "tunesmith"):
        assert are_current(loaded, directory)
        assert not caplog.messages
        header = sorted(directory.glob("*.h"))[0]
        header.write_text(header.read_text(encoding="utf-8") + "/* changed */", encoding="utf-8")
        assert checksum(directory) != checksum(native.LIBRARY.parent)
        assert not are_current(loaded, directory)
    (message,) = caplog.messages
    assert "native was built from other sources, so it is not used" in message
    (directory / "kernels.c").unlink()
    assert are_current(loaded, directory), "an install without sources has nothing to compare"
    assert not are_current(ctypes.CDLL(None), native.LIBRARY.parent), "kernels that do not say what they are of"
