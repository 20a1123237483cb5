"""LoRA, IA3, prompts and prefixes in one batch: each answers as in PEFT, with the same bits as alone."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from combinations import few
from engines import (
    CACHE,
    GREEDY,
    SAMPLED,
    Answer,
    answered,
    assert_own,
    built,
    in_company,
    paged,
    prompts_of,
    random_model,
    requests_of,
)
from peft import (
    CartridgeConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from small_models import randomize

from tunesmith.errors import UserError
from tunesmith.inference.adapters import is_shareable
from tunesmith.inference.engine import Engine
from tunesmith.inference.paged_model import PagedModel
from tunesmith.inference.request import Request
from tunesmith.ops.paged_attention import PAGE

CAUSAL = {"task_type": "CAUSAL_LM"}


def kinds(feed_forward: str, keys: list[str]) -> dict[str, PeftConfig]:
    """A configuration of each kind, for a family with these names of layers."""
    everywhere = {"target_modules": "all-linear", "feedforward_modules": [*keys, feed_forward]}
    return {
        "ia3": IA3Config(**CAUSAL, target_modules=[*keys, feed_forward], feedforward_modules=[feed_forward]),
        "ia3 on all layers": IA3Config(**CAUSAL, **everywhere),
        "prompt": PromptTuningConfig(**CAUSAL, num_virtual_tokens=3),
        "long prompt": PromptTuningConfig(**CAUSAL, num_virtual_tokens=PAGE + 5),
        "p-tuning": PromptEncoderConfig(**CAUSAL, num_virtual_tokens=4, encoder_hidden_size=8),
        "prefix": PrefixTuningConfig(**CAUSAL, num_virtual_tokens=PAGE),
        "long prefix": PrefixTuningConfig(**CAUSAL, num_virtual_tokens=PAGE + 5),
        "projected prefix": PrefixTuningConfig(
            **CAUSAL, num_virtual_tokens=2, prefix_projection=True, encoder_hidden_size=8
        ),
        "cartridge": CartridgeConfig(**CAUSAL, num_virtual_tokens=3, num_frozen_tokens=1),
        "lora": LoraConfig(**CAUSAL, r=4, target_modules=keys),
    }


NAMES = {
    "llama": ("down_proj", ["k_proj", "v_proj"]),
    "gpt2": ("mlp.c_proj", ["c_attn"]),
    "gemma2": ("down_proj", ["k_proj", "v_proj"]),
}
"""Of the last layer of the feed-forward, and of the layers of keys and values."""

KINDS = kinds(*NAMES["llama"])


def stored(base: Any, config: PeftConfig, directory: Path) -> Any:
    """An adapter with random weights in PEFT's files. Returns PEFT's model."""
    tuned = randomize(get_peft_model(deepcopy(base), deepcopy(config)).eval(), 0.5)  # PEFT writes into it
    tuned.save_pretrained(directory)
    return tuned


@pytest.fixture(scope="module")
def llama() -> Any:
    return random_model("llama")


@pytest.fixture(scope="module")
def llama_paged(llama: Any) -> PagedModel:
    return paged(llama)


@pytest.fixture(scope="module")
def adapters(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """An adapter of each kind for one base: the directory and PEFT's model."""
    directory = tmp_path_factory.mktemp("kinds")
    return {name: (directory / name, stored(llama, config, directory / name)) for name, config in KINDS.items()}


def engine_of(model: PagedModel, adapters: dict[str, tuple[Path, Any]], **options: Any) -> Engine:
    engine = Engine(model, cache_bytes=CACHE, **options)
    for name, (directory, _) in adapters.items():
        engine.adapters.add(name, directory)
    return engine


def changed(directory: Path, copy: Path, **config: Any) -> Path:
    """A copy of the adapter with other settings."""
    shutil.copytree(directory, copy)
    file = copy / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return copy


# Each kind by itself


@pytest.mark.parametrize(
    ("family", "name"),
    few(
        product(NAMES, KINDS),
        [*product(["llama"], KINDS), ("gpt2", "lora"), ("gpt2", "p-tuning"), ("gemma2", "ia3 on all layers")],
    ),
)
def test_an_adapter_answers_and_scores_as_in_peft(family: str, name: str, tmp_path: Path) -> None:
    base = random_model(family)
    tuned = stored(base, kinds(*NAMES[family])[name], tmp_path)
    assert is_shareable(tmp_path)
    engine = engine_of(paged(base), {"mine": (tmp_path, tuned)}, prompt_tokens=7)
    prompts = prompts_of(20, 3, 16)
    answers = answered(engine, requests_of(prompts, adapter="mine"))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert_own(tuned, prompt, answer, 3e-5)
    plain = answered(engine, requests_of(prompts))
    assert all(own != other for own, other in zip(answers, plain, strict=True))
    given = Request(prompts[0], completion=answers[0][0], adapter="mine")
    ((_, logs),) = answered(engine, [given])
    torch.testing.assert_close(torch.tensor(logs), torch.tensor(answers[0][1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["prompt", "long prompt", "prefix", "long prefix"])
def test_virtual_tokens_are_shared_and_take_room_but_are_not_counted(
    name: str, llama: Any, llama_paged: PagedModel, adapters: dict[str, tuple[Path, Any]]
) -> None:
    virtual = KINDS[name].num_virtual_tokens  # type: ignore[attr-defined]
    engine = engine_of(llama_paged, {name: adapters[name]})
    prompt, other = prompts_of(40, 30)

    def cached(ids: list[int]) -> int:
        request = Request(ids, GREEDY, adapter=name)
        answered(engine, [request])
        return request.cached_tokens

    assert cached(prompt) == 0
    assert cached(prompt) == (virtual + 39) // PAGE * PAGE - virtual
    used = engine.pages.available - len(engine.pages._free)
    assert cached(other) == 0
    shared = virtual // PAGE
    assert engine.pages.available - len(engine.pages._free) == used + (virtual + 39) // PAGE - shared
    room = llama.config.max_position_embeddings - virtual
    with pytest.raises(UserError, match=f"has {room} tokens, and the model's context holds {room}"):
        engine.submit(Request([5] * room, adapter=name))
    last = Request([5] * (room - 1), GREEDY, adapter=name)
    answered(engine, [last])
    assert len(last.tokens) == 1
    answered(engine, [Request([5] * room, GREEDY)])  # the base has no virtual tokens


# All kinds in one batch


def mixed_requests() -> list[Request]:
    """Of every kind and of the base, greedy, sampled and scored, of different lengths."""
    names = [*KINDS, None]
    prompts = prompts_of(*(1 + 13 * number % 45 for number in range(2 * len(names))))
    requests = [
        Request(prompt, SAMPLED if number % 3 else GREEDY, number=number, adapter=names[number % len(names)])
        for number, prompt in enumerate(prompts)
    ]
    return [*requests, *(Request(prompts[4], completion=prompts[5], adapter=name) for name in names)]


def found(requests: list[Request]) -> list[Answer]:
    return [(request.tokens, request.log_probabilities) for request in requests]


@built
@pytest.mark.parametrize("family", few(["llama", "gpt2"], ["llama"]))
def test_adapters_of_all_kinds_in_one_batch_have_the_bits_of_each_alone(family: str, tmp_path: Path) -> None:
    base = random_model(family)
    stores = {
        name: (tmp_path / name, stored(base, config, tmp_path / name)) for name, config in kinds(*NAMES[family]).items()
    }
    model = paged(base)
    requests = mixed_requests()
    alone = []
    for request in requests:
        own = {name: stores[name] for name in [request.adapter] if name is not None}
        fresh = replace(request, tokens=[], log_probabilities=[])
        alone += answered(engine_of(model, own), [fresh])
    for seed, options in enumerate([{"prompt_tokens": 17}, {"concurrent": 7}]):
        again = mixed_requests()
        in_company(engine_of(model, stores, **options), again, seed)
        assert found(again) == alone


def test_an_answer_that_has_begun_keeps_its_virtual_tokens_when_they_are_replaced(
    llama_paged: PagedModel, adapters: dict[str, tuple[Path, Any]]
) -> None:
    engine = engine_of(llama_paged, {"mine": adapters["prompt"]}, concurrent=1)
    (prompt,) = prompts_of(20)
    for before, after in (("prompt", "long prefix"), ("long prefix", "ia3"), ("ia3", "p-tuning")):
        begun, waiting = requests_of([prompt, prompt], adapter="mine")
        for request in (begun, waiting):
            engine.submit(request)
        engine.step()
        engine.adapters.add("mine", adapters[after][0])
        while not engine.is_idle:
            engine.step()
        assert_own(adapters[before][1], prompt, (begun.tokens, begun.log_probabilities), 3e-5)
        assert_own(adapters[after][1], prompt, (waiting.tokens, waiting.log_probabilities), 3e-5)


def test_a_waiting_request_whose_adapter_grows_beyond_its_room_is_cancelled_with_the_reason(
    llama: Any, llama_paged: PagedModel, adapters: dict[str, tuple[Path, Any]]
) -> None:
    engine = engine_of(llama_paged, {"mine": adapters["prompt"]}, concurrent=1)
    longest = [5] * (llama.config.max_position_embeddings - 4)
    begun, waiting = Request([7], GREEDY), Request(longest, GREEDY, adapter="mine")
    for request in (begun, waiting):
        engine.submit(request)
    engine.step()
    engine.adapters.add("mine", adapters["long prompt"][0])
    while not engine.is_idle:
        engine.step()
    assert begun.finish == "length"
    assert waiting.finish == "cancelled"
    assert isinstance(waiting.exception, UserError)
    assert "the model's context holds" in str(waiting.exception)


# What does not fit


def with_tensors(directory: Path, copy: Path, **tensors: Any) -> Path:
    """A copy of the adapter with other tensors; None leaves one out."""
    shutil.copytree(directory, copy)
    all_of_them = load_file(copy / "adapter_model.safetensors") | tensors
    save_file(
        {name: each for name, each in all_of_them.items() if each is not None}, copy / "adapter_model.safetensors"
    )
    return copy


def test_an_adapter_with_a_tensor_that_nothing_takes_is_refused_by_its_name(
    llama_paged: PagedModel, adapters: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    engine = Engine(llama_paged, cache_bytes=CACHE)
    stored(random_model("llama", num_hidden_layers=3), KINDS["ia3"], tmp_path / "deep ia3")
    stored(random_model("llama", num_hidden_layers=3), KINDS["prefix"], tmp_path / "deep prefix")
    stored(random_model("llama", num_key_value_heads=4), KINDS["prefix"], tmp_path / "other heads")
    stored(random_model("llama", hidden_size=64), KINDS["prompt"], tmp_path / "wide prompt")
    key = "base_model.model.model.layers.0.self_attn.k_proj.ia3_l"
    with_tensors(adapters["ia3"][0], tmp_path / "turned", **{key: torch.ones(1, 16)})
    with_tensors(adapters["prompt"][0], tmp_path / "more", extra=torch.ones(3))
    with_tensors(adapters["ia3"][0], tmp_path / "more ia3", **{"lm_head.weight": torch.ones(3)})
    for directory, message in {
        "deep ia3": r"no layer of the base takes .*layers\.2\.mlp\.down_proj\.ia3_l",
        "deep prefix": "no layer of the base takes prompt_embeddings",
        "other heads": "no layer of the base takes prompt_embeddings",
        "wide prompt": "no layer of the base takes prompt_embeddings",
        "turned": rf"no layer of the base takes {key}",
        "more": "no layer of the base takes extra",
        "more ia3": r"no layer of the base takes lm_head\.weight",
    }.items():
        with pytest.raises(UserError, match=f"does not fit on this base: {message}"):
            engine.adapters.add("mine", tmp_path / directory)
    assert not is_shareable(tmp_path / "more"), "PEFT loads it, or refuses it"
    assert not is_shareable(tmp_path / "more ia3")
    assert engine.adapters.names == ()


def test_an_adapter_whose_files_contradict_each_other_or_that_does_nothing_is_refused(
    llama: Any, llama_paged: PagedModel, adapters: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    engine = Engine(llama_paged, cache_bytes=CACHE)
    get_peft_model(deepcopy(llama), deepcopy(KINDS["ia3"])).save_pretrained(tmp_path / "ones")
    changed(adapters["prompt"][0], tmp_path / "count", num_virtual_tokens=5)
    changed(adapters["ia3"][0], tmp_path / "more", modules_to_save=["lm_head"])
    changed(adapters["prefix"][0], tmp_path / "prefix", modules_to_save=["lm_head"])
    context = llama.config.max_position_embeddings
    rows = torch.ones(context, llama.config.hidden_size)
    long = with_tensors(adapters["prompt"][0], tmp_path / "unfit", prompt_embeddings=rows)
    changed(long, tmp_path / "long", num_virtual_tokens=context)
    with_tensors(adapters["prompt"][0], tmp_path / "empty", prompt_embeddings=None, other=torch.ones(1))
    for directory, message in {
        "ones": "has no effect: every layer computes with it what the base does",
        "count": r"has 3 virtual tokens, and 5 in adapter_config\.json",
        "more": "has fully trained modules, which cannot be shared with other adapters. Load it as a model of its own",
        "prefix": "has fully trained modules, which cannot be shared",
        "long": f"has {context} virtual tokens, and the model's context holds {context}, so that no text has room",
        "empty": "lacks the tensor prompt_embeddings",
    }.items():
        with pytest.raises(UserError, match=message):
            engine.adapters.add("mine", tmp_path / directory)
    assert engine.adapters.names == ()


def test_adapters_of_all_kinds_count_their_bytes_in_memory(
    llama_paged: PagedModel, adapters: dict[str, tuple[Path, Any]]
) -> None:
    engine = engine_of(llama_paged, adapters)
    for name, (directory, _) in adapters.items():
        tensors = load_file(directory / "adapter_model.safetensors")
        assert engine.adapters.get(name).bytes == sum(4 * each.numel() for each in tensors.values())
