"""Drafts change how many steps an answer takes, and nothing about the answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bytewise import byte_tokenizer
from combinations import few
from engines import CACHE, VOCABULARY, built, paged, prompts_of, random_model
from families import config_of
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from small_models import method_of, randomize
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import tunesmith
from tunesmith.errors import UserError
from tunesmith.inference.cuda_graphs import CudaGraphs
from tunesmith.inference.draft_model import DraftModel
from tunesmith.inference.drafts import NGRAMS, Acceptance, Drafter, PromptLookup, looked_up
from tunesmith.inference.engine import Engine
from tunesmith.inference.paged_model import PagedModel, Piece
from tunesmith.inference.request import Request
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.speculative import DRAFTED_ROWS

TOKENIZER = byte_tokenizer()
GREEDY = Sampling(max_new_tokens=24)
SAMPLED = Sampling(max_new_tokens=24, temperature=0.8, top_p=0.95, seed=3)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}}, "required": ["a"]}


@dataclass(eq=False)
class Guesses:
    """Drafts known answers, with a wrong token here and there, and some that the model does not have."""

    answers: Sequence[Sequence[int]]
    seed: int = 0
    cost: float = 0.0
    drafted: int = 0

    def drafts(self, texts: Sequence[Sequence[int]], counts: Sequence[int]) -> list[Sequence[int]]:
        found = []
        for text, count in zip(texts, counts, strict=True):
            generator = torch.Generator().manual_seed(self.seed + len(text))
            whole = next(each for each in self.answers if list(each[: len(text)]) == list(text))
            draft = list(whole[len(text) : len(text) + count])
            for at in range(len(draft)):
                wrong = int(torch.randint(12, (), generator=generator))
                draft[at] = {0: (draft[at] + 1) % VOCABULARY, 1: VOCABULARY + 5}.get(wrong, draft[at])
            found.append(draft)
            self.drafted += len(draft)
        return found


@pytest.fixture(scope="module")
def model() -> PagedModel:
    return paged(random_model("llama"))


def fresh(requests: Sequence[Request], drafter: Drafter | None = None) -> list[Request]:
    """The same requests, not yet answered."""
    return [
        replace(each, tokens=[], log_probabilities=[], alternatives=[], finish=None, drafter=drafter)
        for each in requests
    ]


def watched(model: PagedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each of the model's steps has from now on."""
    compute, rows = model.compute, list[int]()

    def counted(pieces: Sequence[Piece], *others: Any) -> Any:
        rows.append(sum(len(piece.ids) for piece in pieces))
        return compute(pieces, *others)

    monkeypatch.setattr(model, "compute", counted)
    return rows


def outcome(request: Request) -> tuple[Any, ...]:
    return request.tokens, request.log_probabilities, request.alternatives, request.finish


def assert_same_with_drafts(
    model: PagedModel, requests: Sequence[Request], seeds: int = 3, adapter: Path | None = None, **options: Any
) -> None:
    """The requests are answered with the same bits without drafts and with right and wrong ones, in a cache that keeps
    what earlier answers left."""

    def engine_of() -> Engine:
        engine = Engine(model, **({"cache_bytes": CACHE} | options))
        if adapter is not None:
            engine.adapters.add("mine", adapter)
        return engine

    expected = fresh(requests)
    engine_of().run(expected)
    engine = engine_of()
    whole = [[*each.prompt, *each.tokens] for each in expected]
    for seed in range(seeds):
        guesses = Guesses(whole, seed)
        drafted = fresh(requests, guesses)
        engine.run(drafted)
        assert list(map(outcome, drafted)) == list(map(outcome, expected))
        assert guesses.drafted > 0
    assert engine.pages.available == engine.pages.total


# The same answers


@built
@pytest.mark.parametrize(
    "family",
    few(["llama", "gpt2", "gemma2", "mistral", "deepseek_v3", "gpt_oss"], ["llama", "gemma2", "deepseek_v3"]),
)
def test_answers_have_the_same_bits_with_and_without_drafts(family: str) -> None:
    model = paged(random_model(family))
    sampled = [Request(prompt, SAMPLED, number=number) for number, prompt in enumerate(prompts_of(30, 1))]
    assert_same_with_drafts(model, [*(Request(prompt, GREEDY) for prompt in prompts_of(16, 5)), *sampled])


@built
@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(
            replace(SAMPLED, repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.3), id="penalties"
        ),
        pytest.param(
            replace(GREEDY, repetition_penalty=1.7, logit_bias={9: 3.0}), id="greedy with a penalty and a bias"
        ),
        pytest.param(replace(SAMPLED, top_k=5, min_p=0.1, temperature=2.0), id="cuts"),
        pytest.param(replace(GREEDY, top_logprobs=3), id="alternatives"),
        pytest.param(replace(SAMPLED, max_new_tokens=3), id="three tokens"),
    ],
)
def test_every_way_of_sampling_draws_the_same_tokens_with_drafts(model: PagedModel, sampling: Sampling) -> None:
    requests = [Request(prompt, sampling, number=number) for number, prompt in enumerate(prompts_of(20, 33, 7))]
    assert_same_with_drafts(model, requests)


@built
def test_samples_of_one_prompt_and_adapters_have_the_same_bits_with_drafts(model: PagedModel, tmp_path: Path) -> None:
    (prompt,) = prompts_of(40)
    assert_same_with_drafts(model, [Request(prompt, SAMPLED, number=number) for number in range(4)])
    tuned = randomize(
        get_peft_model(random_model("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    )
    tuned.save_pretrained(tmp_path)
    requests = [
        Request(prompt, GREEDY, adapter="mine"),
        Request(prompt, GREEDY),
        Request(prompt, SAMPLED, adapter="mine"),
    ]
    assert_same_with_drafts(model, requests, adapter=tmp_path)


@built
@pytest.mark.parametrize("pages", [4, 7])
def test_a_small_cache_holds_drafts_too(model: PagedModel, pages: int) -> None:
    requests = [Request(prompt, GREEDY) for prompt in prompts_of(40, 12, 16, 30)]
    assert_same_with_drafts(model, requests, cache_bytes=pages * model.bytes_per_page())


@built
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_answers_after_virtual_tokens_are_drafted_from_their_texts(
    model: PagedModel, kind: str, tmp_path: Path
) -> None:
    randomize(method_of(kind, tokens=5).apply(random_model("llama"), seed=0)).save_pretrained(tmp_path)
    assert_same_with_drafts(
        model, [Request(prompt, GREEDY, adapter="mine") for prompt in prompts_of(3, 20)], adapter=tmp_path
    )


@built
def test_tokens_that_were_rejected_are_not_known_as_the_beginning_of_a_text(model: PagedModel) -> None:
    (prompt,) = prompts_of(15)
    (answer,) = fresh([Request(prompt, replace(GREEDY, max_new_tokens=40))])
    Engine(model, cache_bytes=CACHE).run([answer])
    text = [*prompt, *answer.tokens]
    wrong = [*text[:20], *((token + 1) % VOCABULARY for token in text[20:])]

    class Wrong(PromptLookup):
        def drafts(self, texts: Sequence[Sequence[int]], counts: Sequence[int]) -> list[Sequence[int]]:
            return [wrong[len(each) : len(each) + count] for each, count in zip(texts, counts, strict=True)]

    engine = Engine(model, cache_bytes=CACHE)
    (again,) = fresh([answer], Wrong())
    engine.run([again])
    assert outcome(again) == outcome(answer)
    for beginning, cached in ((text, 48), (wrong[:48], 16)):
        follow = Request([*beginning, 7], GREEDY)
        engine.run([follow])
        assert follow.cached_tokens == cached
        alone = fresh([follow])
        Engine(model, cache_bytes=CACHE).run(alone)
        assert outcome(alone[0]) == outcome(follow)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of six layers, of which the last five change little, and a model of its first layer."""
    directory = tmp_path_factory.mktemp("pair")
    torch.manual_seed(0)
    options = {"initializer_range": 0.2, "eos_token_id": None, "pad_token_id": None}
    large, small = (
        AutoModelForCausalLM.from_config(config_of("llama", len(TOKENIZER), num_hidden_layers=layers, **options)).eval()
        for layers in (6, 1)
    )
    with torch.no_grad():
        for name, parameter in large.named_parameters():
            if "layers." in name and "layers.0." not in name:
                parameter.mul_(0.5)
    small.load_state_dict({name: large.state_dict()[name] for name in small.state_dict()})
    for name, model in (("large", large), ("small", small)):
        model.save_pretrained(directory / name)
        TOKENIZER.save_pretrained(directory / name)
    return directory / "large", directory / "small"


def anew(answers: Sequence[tunesmith.Generation]) -> list[tunesmith.Generation]:
    """The answers without what they found in the cache."""
    return [replace(answer, cached_tokens=0) for answer in answers]


@built
@pytest.mark.parametrize("source", ["lookup", "model"])
def test_texts_schemas_stops_and_samples_are_the_same_with_both_sources(
    source: str, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tunesmith.load(pair[0])
    draft = "lookup" if source == "lookup" else str(pair[1])
    questions = ["ab ab ab ab ab ab", "Why is it so, and why is it so?"]
    cases: list[dict[str, Any]] = [
        {},
        {"temperature": 0.7, "n": 3, "seed": 5},
        {"schema": SCHEMA, "temperature": 1.0},
        {"regex": "(ab){3,9}c"},
        {"best_of": 2, "temperature": 0.5, "top_logprobs": 2, "stop": ["e", "5", "\ufffdx"]},
    ]
    for options in cases:
        without, drafted = (
            model.generate(questions, draft=each, max_new_tokens=40, **options) for each in (None, draft)
        )
        assert anew(drafted) == anew(without)
        assert "stop" not in options or "stop" in {answer.finish_reason for answer in drafted}
    pieces: list[str] = []
    rows = watched(model.generator.paged.model, monkeypatch)
    sampling = Sampling(max_new_tokens=40)
    assert (
        model.stream(model.prompt([{"role": "user", "content": questions[0]}]), sampling, pieces.append, None, draft)
        == (model.generate(questions[0], draft=draft, max_new_tokens=40)[0])
    )
    assert "".join(pieces) == model.generate(questions[0], draft=None, max_new_tokens=40)[0].text
    assert len(rows) < 80, "there are fewer steps than tokens"
    assert max(rows) <= DRAFTED_ROWS + 16


# How much is drafted


def test_tokens_are_drafted_only_while_a_step_has_few_rows(model: PagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = watched(model, monkeypatch)
    for count, drafts in ((1, True), (3, True), (DRAFTED_ROWS // 2, True), (DRAFTED_ROWS // 2 + 1, False)):
        requests = [Request(prompt, GREEDY) for prompt in prompts_of(*[9] * count)]
        expected = fresh(requests)
        Engine(model, cache_bytes=CACHE).run(expected)
        guesses = Guesses([[*each.prompt, *each.tokens] for each in expected])
        rows.clear()
        Engine(model, cache_bytes=CACHE).run(fresh(requests, guesses))
        assert (guesses.drafted > 0) == drafts
        assert max(rows[2:]) <= max(DRAFTED_ROWS, count), "after a trial and the prompts"


def test_nothing_is_drafted_where_graphs_replay_steps_of_one_token(model: PagedModel) -> None:
    guesses = Guesses([])
    engine = Engine(model, cache_bytes=CACHE)
    engine.graphs = CudaGraphs(model, 1, 1, engine.pages.total)
    engine.graphs.failure = "a CPU has none"
    engine.run([Request(prompts_of(9)[0], GREEDY, drafter=guesses)])
    assert guesses.drafted == 0


def test_nothing_is_drafted_beside_a_long_prompt(model: PagedModel) -> None:
    (first,) = fresh([Request(prompts_of(DRAFTED_ROWS)[0], GREEDY)])
    Engine(model, cache_bytes=CACHE).run([first])
    guesses = Guesses([[*first.prompt, *first.tokens]])
    engine = Engine(model, cache_bytes=CACHE, prompt_tokens=12)
    (again,) = fresh([first], guesses)
    engine.submit(again)
    engine.step()
    engine.submit(Request(prompts_of(60)[0], GREEDY))
    for _ in range(4):
        engine.step()
    assert (len(again.tokens), guesses.drafted) == (5, 0)
    engine.run([])
    assert guesses.drafted > 0


def test_more_is_drafted_while_drafts_are_right_and_nothing_when_it_does_not_pay() -> None:
    acceptance = Acceptance()
    assert acceptance.length(11, 0.05) == 3
    for _ in range(30):
        acceptance.add(5, 5)
    assert acceptance.length(11, 0.05) == 11
    assert acceptance.length(4, 0.05) == 4
    assert acceptance.length(11, 2.0) == 0
    for _ in range(60):
        acceptance.add(3, 0)
    assert acceptance.length(11, 0.1) == 0
    waited = 0
    while not acceptance.length(11, 0.1):
        acceptance.add(0, 0)
        waited += 1
    assert 0 < waited < 20, "it tries again"


@given(rate=st.floats(0.01, 0.99), cost=st.floats(0.01, 2), most=st.integers(0, 11))
def test_the_length_of_a_draft_is_the_one_with_the_most_tokens_per_time(rate: float, cost: float, most: int) -> None:
    def speed(count: int) -> float:
        return sum(rate**each for each in range(count + 1)) / (1 + cost * count)

    found = Acceptance(100 * rate, 100).length(most, cost)
    assert 0 <= found <= most
    assert speed(found) == pytest.approx(max(map(speed, range(most + 1))))


@settings(max_examples=200)
@given(text=st.lists(st.integers(0, 2), min_size=1, max_size=40), count=st.integers(1, 6))
def test_look_up_finds_what_followed_the_longest_of_the_last_tokens(text: list[int], count: int) -> None:
    expected: list[int] = []
    for length in NGRAMS:
        places = [at for at in range(len(text) - length) if text[at : at + length] == text[-length:]]
        if places:
            expected = text[places[0] + length : places[0] + length + count]
            break
    assert list(looked_up(text, count)) == expected


# A draft model


def test_a_draft_model_writes_its_own_greedy_answer_within_its_room(model: PagedModel) -> None:
    engine = Engine(model, cache_bytes=4 * model.bytes_per_page())
    long, short, foreign = prompts_of(62, 9, 9)
    expected = Request(short, replace(GREEDY, max_new_tokens=4))
    Engine(model, cache_bytes=CACHE).run([expected])
    foreign[3] = VOCABULARY
    drafter = DraftModel(engine, None, 0.5)
    assert drafter.drafts([long, short, foreign], [3, 4, 5]) == [[], expected.tokens, []]
    context = Engine(paged(random_model("llama", max_position_embeddings=20)), cache_bytes=CACHE)
    assert DraftModel(context, None, 0.5).drafts([long, short[:5]], [3, 2])[0] == []


def test_a_draft_model_that_costs_as_much_as_the_model_is_not_asked(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tunesmith.load(pair[1])
    rows = watched(model.generator.paged.model, monkeypatch)
    model.generate("ab", raw=True, max_new_tokens=9, draft=str(pair[1]))
    assert rows == [2] + [1] * 8


def test_what_cannot_draft_is_refused_by_name(pair: tuple[Path, Path], tmp_path: Path) -> None:
    model = tunesmith.load(pair[0])
    classes = AutoModelForSequenceClassification.from_config(config_of("llama", len(TOKENIZER), pad_token_id=0))
    unpaged = AutoModelForCausalLM.from_config(config_of("bloom", len(TOKENIZER)))
    for name, other in (("classes", classes), ("unpaged", unpaged)):
        other.save_pretrained(tmp_path / name)
        TOKENIZER.save_pretrained(tmp_path / name)
    for name, message in [
        (str(tmp_path / "classes"), "classes does not write text. Use a causal language model, or lookup"),
        ("embedded", "embedded has another tokenizer than the model. Use one of the same family, or lookup"),
        (str(tmp_path / "unpaged"), "unpaged keeps a state that cannot be paged. Leave draft out"),
    ]:
        with pytest.raises(UserError, match=message):
            model.generate("a", draft=name)
    padded = tunesmith.load(tmp_path / "unpaged")
    with pytest.raises(UserError, match="BloomForCausalLM keeps a state that cannot"):
        padded.generate("a", draft=str(pair[1]))
    looked, plain = (padded.generate("a", draft=each, max_new_tokens=3)[0].text for each in ("lookup", None))
    assert looked == plain
