"""The engine's answers are the model's own, and the same to the bit whatever else is answered at the same time."""

import json
import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bigram import first_beyond
from combinations import few
from engines import (
    CACHE,
    GREEDY,
    SAMPLED,
    VOCABULARY,
    Answer,
    answered,
    assert_own,
    built,
    each_alone,
    in_company,
    own_scores,
    paged,
    prompts_of,
    random_model,
    requests_of,
)
from families import DECODERS, ENCODER_DECODERS, SORTED_EXPERTS
from peft import LoraConfig, get_peft_model
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tunesmith.errors import UserError
from tunesmith.inference.adapters import AdapterShelf, is_shareable
from tunesmith.inference.engine import LOOKAHEAD, Engine
from tunesmith.inference.paged_model import PagedModel, paged_model
from tunesmith.inference.pages import Pages
from tunesmith.inference.request import Request
from tunesmith.inference.sampling import Sampling
from tunesmith.models.families import families as listed_families
from tunesmith.ops import native
from tunesmith.ops.paged_attention import PAGE

NOT_PAGED = {"bloom", "falcon", "granitemoehybrid", "stablelm"}
"""Families with their own attention mask, or with a state."""

EXPERTS = ("deepseek_v3", "gpt_oss", "mixtral", "qwen3_moe")
"""Mixtures."""

PAGED = sorted(set(DECODERS) - NOT_PAGED)

COVERING = ("deepseek_v3", "gemma2", "gpt2", "gpt_oss", "jetmoe", "llama", "mistral", "mixtral", "phi")
"""Each kind of attention, of positions, of norms and of experts."""


@pytest.fixture(scope="module")
def llama() -> Any:
    return random_model("llama")


@pytest.fixture(scope="module")
def llama_paged(llama: Any) -> PagedModel:
    return paged(llama)


# Each family


@pytest.mark.parametrize("family", sorted(NOT_PAGED))
def test_families_with_a_mask_or_a_state_of_their_own_are_not_paged(family: str) -> None:
    assert paged_model(random_model(family)) is None


def test_the_printed_list_of_families_is_what_the_tests_of_each_find() -> None:
    known = listed_families()
    paged_families = {*PAGED, *SORTED_EXPERTS}
    tested = {*DECODERS, *ENCODER_DECODERS, *SORTED_EXPERTS} - {*known.not_tried}
    assert tested & {*known.paged} == tested & paged_families
    assert tested & {*known.own} == tested - paged_families
    assert len(tested) > 20


@pytest.mark.parametrize("family", [*PAGED, *SORTED_EXPERTS])
def test_greedy_answers_are_the_models_own(family: str) -> None:
    model = random_model(family)
    engine = Engine(paged(model), cache_bytes=CACHE, prompt_tokens=20)
    prompts = prompts_of(1, 33, 7, 16)
    requests = requests_of(prompts)
    for prompt, answer in zip(prompts, answered(engine, requests), strict=True):
        assert_own(model, prompt, answer)
    assert len({tuple(request.tokens) for request in requests}) > 1


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(Sampling(12, temperature=1.0, seed=4), id="unchanged probabilities"),
        pytest.param(Sampling(12, 0.8, 0.9, 1.3, seed=5, top_k=20, min_p=0.02), id="all settings together"),
        pytest.param(Sampling(12, repetition_penalty=1.7), id="greedy with a repetition penalty"),
    ],
)
def test_one_prompt_is_sampled_from_transformers_probabilities(family: str, sampling: Sampling) -> None:
    model = random_model(family, initializer_range=0.006)
    (prompt,) = prompts_of(9)
    request = Request(prompt, sampling)
    answered(Engine(paged(model), cache_bytes=CACHE), [request])
    logits = model(input_ids=torch.tensor([[*prompt, *request.tokens]])).logits[0, len(prompt) - 1 : -1].float()
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    if sampling.temperature:
        processors += [TemperatureLogitsWarper(sampling.temperature)]
        processors += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        processors += [TopPLogitsWarper(sampling.top_p), MinPLogitsWarper(sampling.min_p)]
    generator = torch.Generator().manual_seed(sampling.seed)
    for place, token in enumerate(request.tokens):
        before = torch.tensor([[*prompt, *request.tokens[:place]]])
        row = processors(before, logits[place][None].clone())[0]
        assert token == (first_beyond(torch.softmax(row, -1), generator) if sampling.temperature else int(row.argmax()))
    own = torch.log_softmax(logits, -1)[torch.arange(12), torch.tensor(request.tokens)]
    torch.testing.assert_close(torch.tensor(request.log_probabilities), own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", torch.float32), ("llama", torch.bfloat16), *((family, torch.float32) for family in EXPERTS)],
)
def test_given_answers_are_scored_with_the_models_own_log_probabilities(family: str, dtype: torch.dtype) -> None:
    model = random_model(family).to(dtype)
    engine = Engine(paged(model), cache_bytes=CACHE, prompt_tokens=13)
    prompts, completions = prompts_of(5, 40, 1, 16), prompts_of(30, 3, 1, 17, seed=2)
    both = zip(prompts, completions, strict=True)
    requests = [Request(prompt, Sampling(top_logprobs=2), completion=completion) for prompt, completion in both]
    tolerance = 1e-5 if dtype == torch.float32 else 0.2
    for request, (tokens, logs) in zip(requests, answered(engine, requests), strict=True):
        assert tokens == request.completion
        scores = own_scores(model, request.prompt, tokens)
        own = scores[torch.arange(len(tokens)), torch.tensor(tokens)]
        torch.testing.assert_close(torch.tensor(logs), own, rtol=tolerance, atol=tolerance)
        likeliest = torch.tensor([[log for _, log in each] for each in request.alternatives])
        torch.testing.assert_close(likeliest, scores.topk(2).values, rtol=tolerance, atol=tolerance)
        if dtype == torch.float32:
            assert [[token for token, _ in each] for each in request.alternatives] == scores.topk(2).indices.tolist()
    empty = Request(prompts[0], completion=[])
    assert answered(engine, [empty]) == [([], [])]


# The same to the bit in any company


@built
@pytest.mark.parametrize("family", few([*PAGED, *SORTED_EXPERTS], COVERING))
def test_an_answer_has_the_same_bits_alone_and_in_a_batch(family: str) -> None:
    model = paged(random_model(family))
    prompts = prompts_of(1, 50, 17, 16, 3, 31, 8)
    requests = requests_of(prompts[:4]) + requests_of(prompts[4:], SAMPLED)
    requests += [Request(prompts[2], completion=prompts[1]), Request(prompts[3], completion=prompts[4])]
    expected = each_alone(model, requests)
    engine = Engine(model, cache_bytes=CACHE, prompt_tokens=11)
    in_company(engine, requests, seed=0)
    assert [(request.tokens, request.log_probabilities) for request in requests] == expected


@built
@pytest.mark.parametrize(("family", "dtype"), [("llama", torch.float32), ("gemma2", torch.bfloat16)])
def test_caches_in_int8_give_the_same_bits_in_any_company_and_from_the_cache(family: str, dtype: torch.dtype) -> None:
    model = paged(random_model(family).to(dtype), in_int8=True)
    prompts = prompts_of(50, 16, 3, 31, 8)
    requests = [
        *requests_of(prompts[:2]),
        *requests_of(prompts[2:], SAMPLED),
        Request(prompts[0], completion=prompts[3]),
    ]
    expected = each_alone(model, requests)
    engine = Engine(model, cache_bytes=CACHE, prompt_tokens=11)
    in_company(engine, requests, seed=0)
    assert [(request.tokens, request.log_probabilities) for request in requests] == expected
    (again,) = requests_of(prompts[:1])
    assert answered(engine, [again]) == expected[:1]
    assert again.cached_tokens == 48
    exact = each_alone(paged(random_model(family).to(dtype)), [Request(prompts[0], completion=prompts[3])])[0][1]
    assert expected[-1][1] != exact


@built
@pytest.mark.parametrize(
    ("family", "dtype", "count"),
    [
        ("llama", torch.float32, 7),
        ("llama", torch.float32, 64),
        pytest.param("llama", torch.bfloat16, 64, marks=pytest.mark.long),
        ("llama", torch.bfloat16, 7),
        *((family, torch.float32, 7) for family in EXPERTS),
        *(pytest.param(family, torch.float32, 64, marks=pytest.mark.long) for family in EXPERTS),
        pytest.param("gpt_oss", torch.bfloat16, 64, marks=pytest.mark.long),
    ],
)
def test_shuffled_requests_that_join_and_leave_are_answered_as_alone(
    family: str, dtype: torch.dtype, count: int
) -> None:
    model = paged(random_model(family).to(dtype))
    lengths = torch.randint(1, 60, (count,), generator=torch.Generator().manual_seed(count)).tolist()

    def requests() -> list[Request]:
        prompts = prompts_of(*lengths)
        kinds = [replace(GREEDY, max_new_tokens=6), replace(SAMPLED, max_new_tokens=6)]
        return [Request(prompt, kinds[number % 2], number=number) for number, prompt in enumerate(prompts)]

    expected = each_alone(model, requests())
    for seed, options in enumerate([{"prompt_tokens": 17}, {"concurrent": 20}]):
        again = requests()
        in_company(Engine(model, cache_bytes=CACHE, **options), again, seed)
        assert [(request.tokens, request.log_probabilities) for request in again] == expected


def test_several_answers_to_a_prompt_differ_if_sampled_and_share_its_pages(llama_paged: PagedModel) -> None:
    (prompt,) = prompts_of(40)
    engine = Engine(llama_paged, cache_bytes=CACHE)
    requests = requests_of([prompt] * 4, replace(SAMPLED, temperature=2.0, top_k=0, top_p=1.0))
    answered(engine, requests)
    assert len({tuple(request.tokens) for request in requests}) == 4
    assert [request.cached_tokens for request in requests] == [0, 32, 32, 32]
    greedy = requests_of([prompt] * 3)
    assert len({str(answer) for answer in answered(engine, greedy)}) == 1


# Pages


def test_a_text_that_comes_again_is_taken_from_the_cache_with_the_same_bits(llama_paged: PagedModel) -> None:
    (prompt,) = prompts_of(49)
    expected = each_alone(llama_paged, requests_of([prompt, prompt[:40], [*prompt[:33], 5, 5]]))
    engine = Engine(llama_paged, cache_bytes=CACHE)
    first, again, shorter, other = requests_of([prompt, prompt, prompt[:40], [*prompt[:33], 5, 5]])
    outs = [answered(engine, [request])[0] for request in (first, again, shorter, other)]
    assert [request.cached_tokens for request in (first, again, shorter, other)] == [0, 48, 32, 32]
    if native.library() is not None:
        assert outs == [expected[0], expected[0], *expected[1:]]
    longer = Request([*prompt, *first.tokens, 9], GREEDY)
    answered(engine, [longer])
    assert longer.cached_tokens == 48, "the answer's tokens are known too, as far as pages are full"
    engine.pages.forget_all()
    (forgotten,) = requests_of([prompt])
    answered(engine, [forgotten])
    assert forgotten.cached_tokens == 0


def test_a_text_whose_last_page_is_full_still_has_its_last_token_computed(llama_paged: PagedModel) -> None:
    engine = Engine(llama_paged, cache_bytes=CACHE)
    (prompt,) = prompts_of(2 * PAGE)
    first, again = requests_of([prompt] * 2)
    assert answered(engine, [first]) == answered(engine, [again])
    assert again.cached_tokens == PAGE


def test_equal_prompts_wait_for_the_first_and_then_enter_together(llama_paged: PagedModel) -> None:
    for length in (40, 2 * PAGE):
        engine = Engine(llama_paged, cache_bytes=CACHE)
        requests = requests_of(prompts_of(length) * 8, replace(GREEDY, max_new_tokens=3))
        for request in requests:
            engine.submit(request)
        engine.step()
        assert [len(request.tokens) for request in requests] == [1] + [0] * 7
        engine.step()
        assert [len(request.tokens) for request in requests] == [2] + [1] * 7
        engine.run([])


@pytest.mark.parametrize("pages", [4, 6, 11])
def test_a_small_cache_lets_requests_wait_and_changes_no_answer(llama_paged: PagedModel, pages: int) -> None:
    prompts = prompts_of(40, 12, 16, 30, 5, 33, 1) * 2
    expected = each_alone(llama_paged, requests_of(prompts))
    engine = Engine(llama_paged, cache_bytes=pages * llama_paged.bytes_per_page())
    assert engine.pages.total == pages
    requests = requests_of(prompts)
    outs = answered(engine, requests)
    if native.library() is not None:
        assert outs == expected
    assert engine.pages.available == pages


def test_a_request_that_the_cache_cannot_hold_is_refused_with_both_sizes(llama_paged: PagedModel) -> None:
    engine = Engine(llama_paged, cache_bytes=2 * llama_paged.bytes_per_page())
    with pytest.raises(UserError, match=r"needs room for 33 tokens, and the cache holds 32. Shorten it, lower max_new"):
        engine.run(requests_of(prompts_of(23)))
    assert engine.is_idle
    answered(engine, requests_of(prompts_of(22)))
    with pytest.raises(UserError, match="cache of 100 bytes holds not a single page of 16 tokens"):
        Engine(llama_paged, cache_bytes=100)


def test_what_cannot_be_answered_is_refused_before_it_enters(llama: Any, llama_paged: PagedModel) -> None:
    engine = Engine(llama_paged, cache_bytes=CACHE)
    room = llama.config.max_position_embeddings
    for request, message in [
        (Request([]), "The prompt is empty"),
        (Request([5] * room), f"has {room} tokens, and the model's context holds {room}"),
        (Request([5] * room, completion=[5, 6]), f"has {room + 2} tokens, and the model's context holds {room}"),
        (Request([5], Sampling(max_new_tokens=0)), "max_new_tokens is 0"),
        (Request([5], Sampling(logit_bias={VOCABULARY: 1.0})), f"logit_bias.*no token {VOCABULARY}"),
        (Request([5], adapter="none"), "There is no adapter none. Loaded: none."),
    ]:
        with pytest.raises(UserError, match=message):
            engine.submit(request)
    assert engine.is_idle
    last = Request([5] * (room - 1), GREEDY)
    answered(engine, [last])
    assert len(last.tokens) == 1
    whole = Request([5] * (room - 1), completion=[5, 6])  # nothing is computed after the last token
    assert len(answered(engine, [whole])[0][1]) == 2


def test_cancelled_requests_leave_the_queue_in_the_next_step(llama_paged: PagedModel) -> None:
    engine = Engine(llama_paged, concurrent=1, cache_bytes=CACHE)
    before = requests_of(prompts_of(5))[0]
    before.cancel()
    first, second, third, fourth = requests_of(prompts_of(5, 6, 7, 8))
    for request in (before, first, second, third, fourth):
        engine.submit(request)
    assert engine.step() == [before]
    third.cancel()
    second.cancel()
    third.cancel()
    assert engine.step() == [third, second]
    assert (engine.running, engine.waiting) == (1, 1)
    first.cancel()
    assert engine.step() == [first]
    engine.run([])
    assert len(fourth.tokens) == 10


def test_a_request_overtakes_those_whose_beginning_is_being_computed(llama_paged: PagedModel) -> None:
    shared, other = prompts_of(100, 9)
    engine = Engine(llama_paged, cache_bytes=CACHE, prompt_tokens=40)
    same = requests_of([shared] * (LOOKAHEAD + 1))
    late = Request(other, GREEDY)
    for request in (*same[:LOOKAHEAD], late, same[-1]):
        engine.submit(request)
    engine.step()
    assert (engine.running, engine.waiting) == (2, LOOKAHEAD), "the first and the other one have entered"
    crowded = Engine(llama_paged, cache_bytes=CACHE, prompt_tokens=40)
    for request in (*requests_of([shared] * (LOOKAHEAD + 1)), Request(other, GREEDY)):
        crowded.submit(request)
    crowded.step()
    assert crowded.running == 1, "it looks past a limited number of them"


def test_a_cancelled_request_leaves_its_room_to_others(llama_paged: PagedModel) -> None:
    engine = Engine(llama_paged, cache_bytes=4 * llama_paged.bytes_per_page())
    first, second, third = requests_of(prompts_of(40, 41, 42))
    for request in (first, second, third):
        engine.submit(request)
    engine.step()
    engine.step()
    assert (len(first.tokens), len(second.tokens)) == (2, 0), "the cache holds one at a time"
    second.cancel()
    first.cancel()
    assert set(engine.step()) == {first, second}
    assert first.finish == second.finish == "cancelled"
    assert len(first.tokens) == 2
    while not engine.is_idle:
        engine.step()
    assert third.finish == "length"
    assert engine.pages.available == 4
    third.cancel()
    assert third.finish == "length"


def test_an_error_in_the_middle_leaves_the_engine_empty(llama_paged: PagedModel) -> None:
    def fail(token: int) -> bool:
        raise KeyboardInterrupt

    engine = Engine(llama_paged, cache_bytes=CACHE)
    requests = requests_of(prompts_of(20, 20), on_token=fail)
    with pytest.raises(KeyboardInterrupt):
        engine.run(requests)
    assert engine.is_idle
    assert engine.pages.available == engine.pages.total


def test_a_request_whose_reader_fails_leaves_the_others_alone(llama_paged: PagedModel) -> None:
    requests = requests_of(prompts_of(5, 9, 3))
    expected = each_alone(llama_paged, requests)

    def fails(token: int) -> bool:
        raise RuntimeError("it cannot be read")

    requests[1].on_token = fails
    engine = Engine(llama_paged, cache_bytes=CACHE)
    for request in requests:
        engine.submit(request)
    while not engine.is_idle:
        engine.step()
    assert str(requests[1].exception) == "it cannot be read"
    assert [(each.tokens, each.log_probabilities) for each in (requests[0], requests[2])] == [expected[0], expected[2]]
    with pytest.raises(RuntimeError, match="it cannot be read"):
        engine.run([replace(requests[1], finish=None)])


def test_an_answer_ends_with_a_stop_token_or_when_its_reader_says_so(llama_paged: PagedModel) -> None:
    (prompt,) = prompts_of(20)
    engine = Engine(llama_paged, cache_bytes=CACHE)
    ((tokens, _),) = answered(engine, requests_of([prompt]))
    end = next(number for number in range(2, 10) if tokens[number] not in tokens[:number])
    stopped = Request(prompt, GREEDY, stops=frozenset({tokens[end]}))
    read: list[int] = []
    ended = Request(prompt, GREEDY, on_token=lambda token: read.append(token) or len(read) == 2)  # type: ignore[func-returns-value]
    done: list[int] = []
    engine.run([stopped, ended], done.append)
    assert (stopped.finish, stopped.tokens) == ("stop", tokens[:end])
    assert (ended.finish, ended.tokens, read) == ("stop", tokens[:2], tokens[:2])
    assert done[-1] == 2
    assert stopped.first_token_seconds is not None


def test_the_longest_unused_page_is_given_away_first() -> None:
    pages = Pages(3)
    numbers = [pages.take() for _ in range(3)]
    known = [pages.remember(page, (None, (number,))) for number, page in enumerate(numbers)]
    assert pages.remember(numbers[0], (None, (1,))) == known[1], "another page has that content already"
    pages.give_back([numbers[2]])
    pages.give_back(numbers[:2])  # the end of a text goes before its beginning
    assert pages.available == 3
    assert pages.find((None, (2,))) == (numbers[2], known[2])
    assert pages.take() == numbers[1]
    assert not pages.knows((None, (1,)))
    assert pages.take() == numbers[0]
    assert pages.available == 0


# Adapters


def stored_adapter(directory: Path, base: Any, seed: int = 0, **config: Any) -> Any:
    """A LoRA adapter with random weights in PEFT's files. Returns PEFT's model."""
    options: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | config
    torch.manual_seed(seed)
    model = get_peft_model(deepcopy(base), LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(directory, save_embedding_layers="tokens" in directory.name)
    return model


KINDS: dict[str, Mapping[str, Any]] = {
    "attention": {},
    "all layers": {"r": 7, "target_modules": "all-linear"},
    "rank-stabilized": {"r": 16, "use_rslora": True, "target_modules": ["down_proj", "o_proj"]},
    "patterns": {
        "target_modules": ["q_proj", "up_proj", "down_proj"],
        "rank_pattern": {"up_proj": 2, r"layers\.1\.self_attn\.q_proj": 9},
        "alpha_pattern": {"layers.0.mlp.down_proj": 20, "q_proj": 3},
    },
    "one layer": {"r": 1, "layers_to_transform": [1], "lora_alpha": 9},
    "output": {"target_modules": ["lm_head", "k_proj"]},
}


@pytest.fixture(scope="module")
def adapters(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Adapters of different shapes for one base: the directory and PEFT's model of each."""
    directory = tmp_path_factory.mktemp("adapters")
    return {
        name: (directory / name, stored_adapter(directory / name, llama, seed, **config))
        for seed, (name, config) in enumerate(KINDS.items())
    }


def test_adapters_in_one_batch_answer_as_each_alone_and_as_peft(
    llama: Any, llama_paged: PagedModel, adapters: dict[str, tuple[Path, Any]]
) -> None:
    engine = Engine(llama_paged, cache_bytes=CACHE, prompt_tokens=30)
    for name, (directory, _) in adapters.items():
        engine.adapters.add(name, directory)
    assert engine.adapters.names == tuple(adapters)
    names = [*adapters, None] * 2
    prompts = prompts_of(20, 33, 5, 17, 40, 9, 20) * 2
    requests = [Request(prompt, GREEDY, adapter=name) for prompt, name in zip(prompts, names, strict=True)]
    outs = answered(engine, requests)
    for prompt, name, answer in zip(prompts, names, outs, strict=True):
        assert_own(llama if name is None else adapters[name][1], prompt, answer, 2e-5)
        engine.pages.forget_all()
        alone = answered(engine, [Request(prompt, GREEDY, adapter=name)])
        assert native.library() is None or alone == [answer]
    assert len({tuple(tokens) for tokens, _ in outs}) == 7


def test_adapters_are_applied_to_layers_that_are_stored_transposed(tmp_path: Path) -> None:
    base = random_model("gpt2")
    tuned = stored_adapter(tmp_path, base, target_modules=["c_attn", "c_proj"])
    engine = Engine(paged(base), cache_bytes=CACHE)
    engine.adapters.add("mine", tmp_path)
    (prompt,) = prompts_of(20)
    (answer,) = answered(engine, [Request(prompt, GREEDY, adapter="mine")])
    assert_own(tuned, prompt, answer)


def test_a_text_is_cached_for_each_adapter_by_itself(
    llama_paged: PagedModel, adapters: dict[str, tuple[Path, Any]]
) -> None:
    engine = Engine(llama_paged, cache_bytes=CACHE)
    engine.adapters.add("mine", adapters["attention"][0])
    engine.adapters.add("same files", adapters["attention"][0])
    (prompt,) = prompts_of(40)

    def cached_and_answer(name: str | None) -> tuple[int, Answer]:
        request = Request(prompt, GREEDY, adapter=name)
        (answer,) = answered(engine, [request])
        return request.cached_tokens, answer

    base, first = cached_and_answer(None), cached_and_answer("mine")
    assert (base[0], first[0]) == (0, 0)
    assert base[1] != first[1]
    assert cached_and_answer("same files") == (32, first[1])
    engine.adapters.add("mine", adapters["all layers"][0])
    replaced = cached_and_answer("mine")
    assert replaced[0] == 0
    assert_own(adapters["all layers"][1], prompt, replaced[1], 2e-5)
    assert cached_and_answer("same files") == (32, first[1])
    engine.adapters.remove("mine")
    with pytest.raises(UserError, match=r"There is no adapter mine\. Loaded: same files"):
        cached_and_answer("mine")
    with pytest.raises(UserError, match="There is no adapter mine"):
        engine.adapters.remove("mine")


def test_an_answer_that_has_begun_keeps_its_adapter(
    llama_paged: PagedModel, adapters: dict[str, tuple[Path, Any]]
) -> None:
    engine = Engine(llama_paged, concurrent=1, cache_bytes=CACHE)
    engine.adapters.add("mine", adapters["attention"][0])
    (prompt,) = prompts_of(20)
    begun, waiting, other = Request(prompt, GREEDY, adapter="mine"), Request(prompt, GREEDY, adapter="mine"), None
    other = Request(prompt, GREEDY)
    for request in (begun, waiting, other):
        engine.submit(request)
    engine.step()
    engine.adapters.remove("mine")
    while not engine.is_idle:
        engine.step()
    assert_own(adapters["attention"][1], prompt, (begun.tokens, begun.log_probabilities))
    assert waiting.finish == "cancelled"
    assert str(waiting.exception) == "There is no adapter mine. Loaded: none."
    assert other.finish == "length", "others are answered all the same"


def changed(directory: Path, copy: Path, **config: Any) -> Path:
    """A copy of the adapter with other settings."""
    shutil.copytree(directory, copy)
    file = copy / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return copy


def test_what_is_more_than_a_lora_is_refused_with_the_reason(
    llama: Any, llama_paged: PagedModel, adapters: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    engine = Engine(llama_paged, cache_bytes=CACHE)
    plain = adapters["attention"][0]
    assert is_shareable(plain)
    for number, (config, reason) in enumerate(
        [
            ({"peft_type": "VERA"}, "an adapter of type VERA"),
            ({"bias": "all"}, "trained biases"),
            ({"modules_to_save": ["lm_head"]}, "fully trained modules"),
            ({"trainable_token_indices": [3]}, "trained tokens"),
        ]
    ):
        directory = changed(plain, tmp_path / str(number), **config)
        assert not is_shareable(directory)
        with pytest.raises(UserError, match=f"has {reason}, which cannot be shared with other adapters. Load it as"):
            engine.adapters.add("mine", directory)
    stored_adapter(tmp_path / "dora", llama, use_dora=True)
    assert not is_shareable(tmp_path / "dora")
    with pytest.raises(UserError, match="has DoRA, which cannot be shared"):
        engine.adapters.add("mine", tmp_path / "dora")
    assert engine.adapters.names == ()


def test_an_adapter_of_another_base_or_without_effect_is_refused(
    llama: Any, llama_paged: PagedModel, adapters: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    engine = Engine(llama_paged, cache_bytes=CACHE)
    add: Callable[[Path], None] = lambda directory: engine.adapters.add("mine", directory)  # noqa: E731
    stored_adapter(tmp_path / "deep", random_model("llama", num_hidden_layers=3))
    with pytest.raises(UserError, match=r"does not fit on this base: no layer of the base takes .*layers\.2\..*lora_A"):
        add(tmp_path / "deep")
    stored_adapter(tmp_path / "wide", random_model("llama", hidden_size=64))
    with pytest.raises(UserError, match="does not fit on this base"):
        add(tmp_path / "wide")
    stored_adapter(tmp_path / "tokens", llama, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(UserError, match=r"no layer of the base takes .*embed_tokens"):
        add(tmp_path / "tokens")
    assert not is_shareable(tmp_path / "tokens"), "PEFT loads it"
    with pytest.raises(UserError, match=r"has rank 4 in the file and 5 in adapter_config\.json"):
        add(changed(adapters["attention"][0], tmp_path / "rank", r=5))
    zeros = get_peft_model(deepcopy(llama), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    zeros.save_pretrained(tmp_path / "zeros")
    with pytest.raises(UserError, match="has no effect: every layer computes with it what the base does"):
        add(tmp_path / "zeros")
    with pytest.raises(UserError, match="has no effect"):
        add(changed(adapters["attention"][0], tmp_path / "scale", lora_alpha=0))
    with pytest.raises(UserError, match="cannot be read"):
        add(tmp_path / "missing")
    broken = changed(adapters["attention"][0], tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors cannot be read"):
        add(broken)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors cannot be read"):
        is_shareable(broken)
    assert engine.adapters.names == ()


def test_adapters_leave_memory_by_their_last_use_and_are_read_again(
    llama_paged: PagedModel, adapters: dict[str, tuple[Path, Any]], tmp_path: Path
) -> None:
    mine = changed(adapters["attention"][0], tmp_path / "mine")
    bytes_of = AdapterShelf(llama_paged.shape, 0)
    names = list(adapters)[:3]
    for name in names:
        bytes_of.add(name, adapters[name][0])
    room = sum(bytes_of.get(name).bytes for name in names[:2])
    shelf = AdapterShelf(llama_paged.shape, room)
    shelf.add("mine", mine)
    shelf.add("second", adapters[names[1]][0])
    first, second = shelf.get("mine"), shelf.get("second")
    assert shelf.get("mine") is first
    shelf.add("third", adapters["output"][0])  # the second was used least recently
    assert shelf.get("mine") is first
    again = shelf.get("second")
    assert again is not second
    assert again.identity == second.identity
    products = zip(again.layers.products, second.layers.products, strict=True)
    assert all((one is None) == (two is None) for one, two in products)

    small = AdapterShelf(llama_paged.shape, 1)
    small.add("mine", mine)
    assert small.get("mine") is small.get("mine"), "one stays"
    small.add("second", adapters[names[1]][0])
    changed_file = mine / "adapter_config.json"
    changed_file.write_text(json.dumps(json.loads(changed_file.read_text()) | {"lora_alpha": 3}))
    with pytest.raises(UserError, match=r"adapter mine: the files in .* have changed. Add it again."):
        small.get("mine")
    small.add("mine", mine)
    assert small.get("mine").identity != first.identity


def test_requests_get_their_share_in_their_order_whatever_adapter_they_have(
    llama_paged: PagedModel, adapters: dict[str, tuple[Path, Any]]
) -> None:
    engine = Engine(llama_paged, concurrent=4, prompt_tokens=8)
    name, (directory, _) = next(iter(adapters.items()))
    engine.adapters.add(name, directory)
    one = Sampling(max_new_tokens=1)
    first, second = Request(list(range(3, 27)), one), Request(list(range(5, 29)), one, adapter=name)
    engine.submit(first)
    engine.submit(second)
    for number in range(7):
        engine.submit(Request([number + 7] * 24, one))
        engine.step()
    assert first.finish == second.finish == "length"
