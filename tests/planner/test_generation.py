"""The memory of writing text as planned is what the engine then allocates."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from combinations import few
from families import config_of
from small_models import small_model
from transformers import AutoModelForCausalLM

from tunesmith.config.base import Base
from tunesmith.errors import UserError
from tunesmith.inference.engine import Engine
from tunesmith.inference.memory import GPU_MARGIN, GenerationMemory, generation_memory, step_bytes
from tunesmith.inference.paged_model import PagedModel, Piece, paged_model
from tunesmith.inference.request import Request
from tunesmith.inference.sampling import Sampling
from tunesmith.models.load import load_model
from tunesmith.modules.weight_bytes import weight_bytes
from tunesmith.ops import native
from tunesmith.ops.paged_attention import PAGE
from tunesmith.planner.device import device_named, this_device
from tunesmith.planner.generation import plan_generation
from tunesmith.planner.shapes import with_known_config
from tunesmith.planner.trace import Trace, Watch

CPU = torch.device("cpu")
FAMILIES = ("llama", "gpt2", "mistral", "gemma3_text", "mixtral", "deepseek_v3")
"""Grouped queries, multi-head attention, windows, experts, and values narrower than keys."""


WIDER = {"hidden_size": 64, "intermediate_size": 128}
"""Widths of which four bits have whole blocks."""


def a_base(
    family: str, directory: Path, dtype: torch.dtype = torch.float32, shape: dict[str, int] | None = None, **more: Any
) -> Base:
    torch.manual_seed(0)
    config = config_of(family, 67, eos_token_id=None, **(shape or {}))
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(directory)
    return Base(path=str(directory), **more)


def served(base: Base, dtype: torch.dtype = torch.float32) -> PagedModel:
    paged = paged_model(load_model(base, dtype))
    assert paged is not None
    return paged


def planned(base: Base, dtype: torch.dtype = torch.float32) -> GenerationMemory:
    return plan_generation(base, dtype, this_device(CPU), available=10**9)


@pytest.mark.parametrize(
    ("family", "dtype"),
    few(
        product(FAMILIES, (torch.float32, torch.bfloat16)),
        [("llama", torch.bfloat16), ("mixtral", torch.float32), ("deepseek_v3", torch.float32)],
    ),
)
def test_a_page_takes_the_planned_bytes_and_a_step_no_more(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = a_base(family, tmp_path, dtype)
    memory, model = planned(base, dtype), served(base, dtype)
    assert model.bytes_per_page() == memory.page
    engine = Engine(model, cache_bytes=40 * memory.page)
    engine.run([Request([5] * 20, Sampling(1))])
    parts = [part for own in model.caches.values() for part in (own.keys, own.values)]
    allocated = sum(part.numel() * part.element_size() for part in parts)
    assert allocated == 40 * memory.page
    pieces = [Piece([5] * 256, 0, list(range(16)), 0), *(Piece([5], 0, [20 + number], 0) for number in range(4))]
    trace = Trace()
    with Watch(trace, "workspace"):
        model.compute(pieces)
    measured = sum(trace.peak().values())
    assert measured <= step_bytes(model.model, 260) < 3 * measured


def test_the_widest_layer_is_one_that_has_both_sizes() -> None:
    """Of PEFT's layers, one for norms has neither, and one of OFT's only the first."""
    model = small_model(dtype=torch.float32)
    before, layer = step_bytes(model, 8), torch.nn.Identity()
    model.another = layer
    for sizes in ((None, None), (10**6, None)):
        layer.in_features, layer.out_features = sizes
        assert step_bytes(model, 8) == before
    del layer.out_features
    assert step_bytes(model, 8) == before
    layer.out_features = 1
    assert step_bytes(model, 8) > 8 * 3 * 10**6


@pytest.mark.skipif(native.library() is None, reason="without the native kernels, layers are not packed")
@pytest.mark.parametrize(
    ("family", "dtype", "weights"),
    [
        ("llama", torch.float32, "auto"),
        ("llama", torch.bfloat16, "auto"),
        ("qwen2", torch.bfloat16, "auto"),  # whose last layer is the embedding
        ("gpt2", torch.float32, "auto"),
        ("mixtral", torch.float32, "auto"),
        ("gpt_oss", torch.bfloat16, "auto"),  # whose experts' matrices are stored transposed
        ("llama", torch.float32, "int8"),
        ("llama", torch.float32, "nf4"),
    ],
)
def test_the_weights_in_memory_are_the_planned_bytes(
    family: str, dtype: torch.dtype, weights: Any, tmp_path: Path
) -> None:
    base = a_base(family, tmp_path, dtype, None if family == "gpt2" else WIDER, weights=weights)
    assert weight_bytes(served(base).model) == planned(base).weights


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_a_page_in_int8_takes_the_planned_bytes(family: str, tmp_path: Path) -> None:
    base = a_base(family, tmp_path)
    paged = paged_model(load_model(base, torch.float32), in_int8=True)
    assert paged is not None
    memory = plan_generation(base, torch.float32, this_device(CPU), available=10**9, cache="int8")
    assert memory.page == paged.bytes_per_page() < planned(base).page
    with pytest.raises(UserError, match="cache: fp8 is not one of auto and int8"):
        plan_generation(base, torch.float32, this_device(CPU), cache="fp8")


def test_what_is_left_is_the_cache_and_says_how_many_texts_fit() -> None:
    base, device = with_known_config(Base(path="llama-3.2-1b")), device_named("h100")
    memory = plan_generation(base, torch.bfloat16, device)
    assert memory.page == 2 * 16 * 8 * 64 * 2 * PAGE
    assert memory.weights == pytest.approx(2 * 1.236e9, rel=0.001)
    free = device.memory_bytes - device.program_bytes - memory.weights
    assert memory.margin == int(GPU_MARGIN * free)
    assert memory.cache == free - memory.step - memory.adapters - memory.margin
    assert memory.tokens == memory.cache // memory.page * PAGE
    assert memory.contexts == memory.tokens // 131072


def test_a_device_that_the_weights_fill_has_no_room_for_a_cache(tmp_path: Path) -> None:
    memory = plan_generation(a_base("llama", tmp_path), torch.float32, this_device(CPU), available=1000)
    assert (memory.cache, memory.tokens, memory.contexts) == (0, 0, 0)


def test_requests_wait_where_memory_is_short_and_none_fails(tmp_path: Path) -> None:
    model = served(a_base("llama", tmp_path))
    page = model.bytes_per_page()
    available = 2 * (step_bytes(model.model, 24) + 10 * page)
    memory = generation_memory(model.model, page, available, on_gpu=False, concurrent=16, prompt_tokens=8)
    engine = Engine(model, 16, 8, cache_bytes=memory.cache)
    assert 2 <= engine.pages.total < 16
    requests = [Request([number + 3] * 10, Sampling(8), number=number) for number in range(16)]
    most = 0

    def note(_: int) -> None:
        nonlocal most
        most = max(most, engine.running)

    engine.run(requests, note)
    assert 0 < most < 16
    assert all(len(request.tokens) == 8 for request in requests)


@pytest.mark.parametrize("family", ["bloom", "granitemoehybrid"])
def test_a_family_without_pages_has_no_plan_for_them(family: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the attention of \w+ForCausalLM cannot be paged"):
        planned(a_base(family, tmp_path))
