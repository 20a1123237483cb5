"""A GGUF file becomes a model directory: the same weights and tokens, completely or not at all."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from bytewise import CHATML
from small_gguf import SPECIAL, TEXTS, Kind, bpe_tokenizer, small_source, write_gguf
from small_models import ROWS
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import tunesmith.models.gguf as converter
from tunesmith.cache_directory import cache_directory
from tunesmith.errors import UserError
from tunesmith.models.gguf import convert_gguf, gguf_base
from tunesmith.models.gguf_file import read_gguf


@pytest.fixture(scope="session")
def llama() -> Any:
    return small_source("llama", attention_bias=False)


@pytest.fixture
def llama_file(llama: Any, tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "llama.gguf", llama)


def named(name: str) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_name(name)


@pytest.mark.parametrize(
    ("family", "kind", "more"),
    [
        ("llama", Kind.F32, {"attention_bias": False}),
        ("llama", Kind.BF16, {"attention_bias": False}),
        ("qwen2", Kind.F16, {}),
        ("qwen2", Kind.F32, {"tie_word_embeddings": False}),
        ("gemma2", Kind.F16, {"attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 256}),
        ("phi3", Kind.F32, {"sliding_window": None}),
    ],
)
def test_logits_are_those_of_the_source(family: str, kind: Kind, more: dict[str, Any], tmp_path: Path) -> None:
    source = small_source(family, **more)
    convert_gguf(write_gguf(tmp_path / "a.gguf", source, kind), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    for ids in ROWS:
        tokens = torch.tensor([ids])
        torch.testing.assert_close(model(tokens).logits, source(tokens).logits, rtol=1e-5, atol=1e-5)


def test_token_ids_are_those_of_the_source(llama_file: Path, tmp_path: Path) -> None:
    convert_gguf(llama_file, tmp_path / "model")
    source, tokenizer = bpe_tokenizer(), AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) == len(source)
    for text in TEXTS:
        ids = source(text).input_ids
        assert tokenizer(text).input_ids == ids
        assert tokenizer.decode(ids) == source.decode(ids)
        assert tokenizer.decode(ids, skip_special_tokens=True) == source.decode(ids, skip_special_tokens=True)
    assert tokenizer.special_tokens_map.items() >= {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}.items()


def test_a_flag_adds_the_bos_token(llama: Any, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf", llama, extra=lambda writer: writer.add_add_bos_token(True))
    convert_gguf(file, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("the").input_ids == [tokenizer.bos_token_id, *bpe_tokenizer()("the").input_ids]


def test_the_tokenizer_has_no_token_without_an_embedding(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("small_gguf.SPECIAL", [*SPECIAL[:3], "<|other|>"])  # transformers adds <|endoftext|>
    assert "<|endoftext|>" not in bpe_tokenizer().get_vocab()
    convert_gguf(write_gguf(tmp_path / "a.gguf", llama), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) == llama.config.vocab_size
    assert max(tokenizer("a<|endoftext|><|other|>").input_ids) < llama.config.vocab_size


QUANTIZED = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 MXFP4 TQ1_0 TQ2_0".split()


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_weights_are_those_that_gguf_dequantizes(name: str, tmp_path: Path) -> None:
    kind = Kind[name]
    wide = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}
    source = small_source("qwen2", **wide)
    convert_gguf(write_gguf(tmp_path / "a.gguf", source, kind), tmp_path / "model")
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    for key, weight in source.state_dict().items():
        stored = kind if weight.ndim == 2 else Kind.F32
        exact = gguf.dequantize(gguf.quantize(weight.numpy(), stored), stored)
        assert torch.equal(weights[key], torch.from_numpy(exact).bfloat16()), key
    assert f"{name} × " in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_generation_stops_at_the_ends_of_text_and_turn(llama: Any, llama_file: Path, tmp_path: Path) -> None:
    convert_gguf(llama_file, tmp_path / "one")
    convert_gguf(
        write_gguf(tmp_path / "b.gguf", llama, extra=lambda writer: writer.add_eot_token_id(319)), tmp_path / "two"
    )
    one, two = (GenerationConfig.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert (one.bos_token_id, one.eos_token_id, one.pad_token_id) == (316, 317, 318)
    assert two.eos_token_id == [317, 319]


@pytest.mark.parametrize("template", [CHATML, None])
def test_the_chat_template_is_the_one_of_the_file(llama: Any, tmp_path: Path, template: str | None) -> None:
    convert_gguf(write_gguf(tmp_path / "a.gguf", llama, template=template), tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == template


def describe(writer: gguf.GGUFWriter) -> None:
    writer.add_name("Small Llama")
    writer.add_license("apache-2.0")
    writer.add_source_url("https://example.org/small")


def test_the_card_names_origin_license_file_and_bits(tmp_path: Path) -> None:
    source = small_source("llama", attention_bias=False, intermediate_size=64)
    file = write_gguf(tmp_path / "a.gguf", source, Kind.Q8_0, extra=describe)
    convert_gguf(file, tmp_path / "stated")
    convert_gguf(file, tmp_path / "given", origin="a shelf")
    card, given = ((tmp_path / name / "README.md").read_text(encoding="utf-8") for name in ("stated", "given"))
    assert card.startswith("---\nlibrary_name: transformers\nlicense: apache-2.0\n---\n\n# Small Llama\n")
    assert "- Origin: https://example.org/small\n" in card
    assert "- Origin: a shelf\n" in given
    assert converter._sha256(file) in card
    assert "Q8_0 × 16, F32 × 5" in card
    assert "passed through 8.6 bits each" in card


def test_the_card_of_a_file_that_states_nothing(llama_file: Path, tmp_path: Path) -> None:
    convert_gguf(llama_file, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "# llama\n" in card
    assert "- Origin: not stated in the file\n- License: not stated in the file\n" in card
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        *("README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }


def llama3_divisors(theta: float, size: int) -> np.ndarray:
    """`rope_freqs` of Llama 3.1 as llama.cpp's converter computes it, for heads of this size."""
    divisors = []
    for frequency in 1 / theta ** (np.arange(0, size, 2) / size):
        wavelength = 2 * np.pi / frequency
        smooth = (8192 / wavelength - 1) / 3
        between = 1 / ((1 - smooth) / 8 + smooth)
        divisors.append(1 if wavelength < 8192 / 4 else 8 if wavelength > 8192 else between)
    return np.array(divisors, np.float32)


def add_divisors(divisors: np.ndarray) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_tensor("rope_freqs.weight", divisors)


def test_llama_3_scaling_is_read_from_its_divisors(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"rope_theta": 5e5, "original_max_position_embeddings": 8192}
    source = small_source("llama", attention_bias=False, rope_parameters=rope)
    divisors = llama3_divisors(5e5, size=8)
    assert divisors[0] == 1 < divisors[2] < divisors[3] == 8
    convert_gguf(write_gguf(tmp_path / "a.gguf", source, extra=add_divisors(divisors)), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokens = torch.randint(0, 300, (1, 200))
    torch.testing.assert_close(model(tokens).logits, source(tokens).logits, rtol=1e-5, atol=1e-5)


def test_linear_scaling_is_read(tmp_path: Path) -> None:
    source = small_source(
        "llama", attention_bias=False, rope_parameters={"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}
    )

    def scale(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    convert_gguf(write_gguf(tmp_path / "a.gguf", source, extra=scale), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokens = torch.randint(0, 300, (1, 200))
    torch.testing.assert_close(model(tokens).logits, source(tokens).logits, rtol=1e-5, atol=1e-5)


def replaced(old: bytes, new: bytes) -> Callable[[Path], None]:
    """A change of the file's bytes that keeps all lengths."""
    assert len(old) == len(new)
    return lambda file: file.write_bytes(file.read_bytes().replace(old, new)) and None


REFUSED_BYTES = {
    "architecture": (replaced(b"llama", b"nolla"), "the architecture nolla .* Use the original model, or one of"),
    "its tensors": (replaced(b"llama", b"mamba"), "the architecture mamba|has no place for"),
    "no tokenizer": (replaced(b"ggml.tokens", b"ggml.nokens"), "contains no tokenizer"),
    "tokenizer": (replaced(b"\x04" + bytes(7) + b"gpt2", b"\x04" + bytes(7) + b"bert"), "tokenizer of the kind bert"),
    "no architecture": (replaced(b"general.architecture", b"general.architectura"), "no general.architecture"),
    "magic": (replaced(b"GGUF", b"GGML"), "is not a GGUF file"),
    "version": (replaced(b"GGUF\x03", b"GGUF\x07"), "truncated or broken, or in a newer format .*version 7"),
    "big-endian": (replaced(b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03"), "truncated or broken|big-endian"),
}


def check_refused(file: Path, directory: Path, message: str) -> None:
    """The conversion is refused in one line, and leaves nothing."""
    with pytest.raises(UserError, match=message) as refusal:
        convert_gguf(file, directory / "model")
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not list(directory.glob("*"))


@pytest.mark.parametrize("reason", REFUSED_BYTES)
def test_refused_by_its_header(reason: str, llama_file: Path, tmp_path: Path) -> None:
    change, message = REFUSED_BYTES[reason]
    change(llama_file)
    check_refused(llama_file, tmp_path / "new", message)


def add_unknown(writer: gguf.GGUFWriter) -> None:
    for name in ("a", "b", "c", "d"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(4, np.float32))


REFUSED_CONTENT: dict[str, tuple[dict[str, Any], str]] = {
    "kind": (
        {"extra": lambda writer: writer.add_tensor("blk.9.bytes", np.zeros(32, np.int8))},
        "its tensor blk.9.bytes is stored as I8, which cannot be dequantized",
    ),
    "unknown tensors": (
        {"extra": add_unknown},
        r"contains blk.0.a.weight, blk.0.b.weight, blk.0.c.weight and 1 more, which LlamaForCausalLM has no place for",
    ),
    "missing tensor": ({"without": "1.self_attn.q_proj"}, "has no weights for model.layers.1.self_attn.q_proj.weight"),
    "split": ({"extra": lambda writer: writer.add_uint16("split.count", 3)}, "one part of a split GGUF"),
    "yarn": (
        {"extra": lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)},
        r"scales its position embeddings in a way that is not supported in a GGUF \(yarn\)",
    ),
    "divisors": (
        {"extra": add_divisors(np.array([1, 2, 3, 8], np.float32))},
        r"not supported in a GGUF \(rope_freqs.weight\)",
    ),
}


@pytest.mark.parametrize("reason", REFUSED_CONTENT)
def test_refused_by_its_content(reason: str, llama: Any, tmp_path: Path) -> None:
    options, message = REFUSED_CONTENT[reason]
    check_refused(write_gguf(tmp_path / "a.gguf", llama, **options), tmp_path / "new", message)


def test_refused_by_its_name(llama_file: Path, tmp_path: Path) -> None:
    part = llama_file.rename(tmp_path / "llama-00002-of-00003.gguf")
    check_refused(part, tmp_path / "new", "one part of a split GGUF. .* llama-gguf-split --merge")


def test_refused_when_tensors_do_not_fit_the_metadata(tmp_path: Path) -> None:
    source = small_source("llama", attention_bias=False)
    source.config.intermediate_size = 40
    check_refused(write_gguf(tmp_path / "a.gguf", source), tmp_path / "new", "do not fit its metadata: size mismatch")


def test_an_existing_directory_is_refused_and_kept(llama_file: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match=r"model exists. Choose another directory"):
        convert_gguf(llama_file, tmp_path / "model")
    assert list((tmp_path / "model").iterdir()) == []


@pytest.mark.parametrize("use", [gguf_base, lambda file: convert_gguf(file, file.parent / "model")])
def test_a_missing_file_is_refused(use: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.gguf cannot be read: No such file or directory. Give the path"):
        use(tmp_path / "a.gguf")


def test_a_file_cut_anywhere_is_refused(llama_file: Path, tmp_path: Path) -> None:
    content = llama_file.read_bytes()
    for size in (0, 3, *range(4, len(content) - 32, len(content) // 40)):
        llama_file.write_bytes(content[:size])
        check_refused(llama_file, tmp_path / "new", "truncated or broken|is not a GGUF file")


def test_a_broken_header_is_read_or_refused(llama_file: Path) -> None:
    content = llama_file.read_bytes()
    random = np.random.default_rng(0)
    for position in random.integers(4, 12000, 50):
        broken = bytearray(content)
        broken[position] ^= int(random.integers(1, 256))
        llama_file.write_bytes(broken)
        with contextlib.suppress(UserError):
            read_gguf(llama_file)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """How often a file has been converted, in any process."""
    log, convert = tmp_path / "log", converter._convert
    log.touch()

    def logged(*args: Any) -> None:
        with log.open("a") as file:
            file.write("x")
        convert(*args)

    monkeypatch.setattr(converter, "_convert", logged)
    return lambda: log.stat().st_size


def test_a_file_is_converted_once_for_its_content(
    llama_file: Path, tmp_path: Path, conversions: Callable[[], int]
) -> None:
    first = gguf_base(llama_file)
    assert first.parent == cache_directory() / "gguf"
    assert gguf_base(llama_file.rename(tmp_path / "other.gguf")) == first
    assert conversions() == 1
    assert AutoModelForCausalLM.from_pretrained(first).config.model_type == "llama"
    other = write_gguf(tmp_path / "b.gguf", small_source("qwen2"))
    assert gguf_base(other) != first
    assert conversions() == 2


def test_another_converter_converts_again(
    llama_file: Path, conversions: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = gguf_base(llama_file)
    monkeypatch.setattr(converter, "_CONVERTER", 0)
    assert gguf_base(llama_file) != first
    assert conversions() == 2


def test_two_processes_convert_once(
    llama_file: Path, conversions: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("fork")
    both = context.Barrier(2)
    hashed = converter._sha256

    def together(file: Path) -> str:
        both.wait(timeout=30)
        return hashed(file)

    monkeypatch.setattr(converter, "_sha256", together)
    processes = [context.Process(target=gguf_base, args=(llama_file,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert conversions() == 1


def test_a_killed_conversion_leaves_no_model(llama_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converter, "_card", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    process = multiprocessing.get_context("fork").Process(target=gguf_base, args=(llama_file,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    rooms = cache_directory() / "gguf"
    assert not [path for path in rooms.iterdir() if not path.name.startswith(".") and path.is_dir()]
    monkeypatch.undo()
    monkeypatch.setenv("TUNESMITH_CACHE", str(rooms.parent))
    base = gguf_base(llama_file)
    assert [path for path in rooms.iterdir() if path.is_dir()] == [base]


def test_a_failed_conversion_leaves_nothing(llama: Any, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf", llama, without="down_proj")
    with pytest.raises(UserError, match="has no weights for"):
        gguf_base(file)
    assert not [path for path in (cache_directory() / "gguf").iterdir() if path.is_dir()]


def test_a_cache_that_cannot_be_written_is_refused(
    llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "taken"))
    with pytest.raises(UserError, match=r"gguf cannot be written: Not a directory. Set TUNESMITH_CACHE"):
        gguf_base(llama_file)


def test_a_directory_that_cannot_be_written_is_refused(llama_file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"model cannot be written: Not a directory. Choose another directory"):
        convert_gguf(llama_file, tmp_path / "taken" / "model")


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"TUNESMITH_CACHE": "/c/mine", "XDG_CACHE_HOME": "/c/xdg"}, "/c/mine"),
        ("linux", {"XDG_CACHE_HOME": "/c/xdg"}, "/c/xdg/tunesmith"),
        ("linux", {}, "/home/me/.cache/tunesmith"),
        ("darwin", {}, "/home/me/Library/Caches/tunesmith"),
        ("win32", {"LOCALAPPDATA": "/c/local"}, "/c/local/tunesmith"),
        ("win32", {}, "/home/me/AppData/Local/tunesmith"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(
    platform: str, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TUNESMITH_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert cache_directory() == Path(expected)
