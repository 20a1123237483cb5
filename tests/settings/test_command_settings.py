"""Every option and argument of every command does what its help says, tested through the command line."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from bigram import drawn_by_hand, letters_model, scores_of
from bytewise import byte_tokenizer
from command import output_of, typed
from exportable import FAMILIES, saved
from matrix import word_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from running_server import served
from safetensors.torch import load_file
from scripted_server import scripted
from settings_coverage import shows
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import tunesmith
from tunesmith.config.recipe import Recipe
from tunesmith.config.schema import recipe_reference, recipe_schema
from tunesmith.demo.functions import packages
from tunesmith.errors import UserError
from tunesmith.inference.paged_model import PagedModel
from tunesmith.inference.sampling import Sampling, random_stream
from tunesmith.models.bases import embedded_base
from tunesmith.models.precision import dtype_of
from tunesmith.planner.device import known_devices

TOKENIZER = byte_tokenizer()
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


# Writing: generate, chat, answer


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes letters with known scores, the same in every precision."""
    directory = tmp_path_factory.mktemp("letters") / "model"
    letters_model().save_pretrained(directory)
    TOKENIZER.save_pretrained(directory)
    return directory


SAMPLING = Sampling(max_new_tokens=13, temperature=0.9, top_p=0.6, repetition_penalty=1.5, seed=3)
OPTIONS = "--max-new-tokens 13 --temperature 0.9 --top-p 0.6 --repetition-penalty 1.5 --seed 3".split()


@pytest.fixture(scope="module")
def by_hand(letters: Path) -> Callable[[Any, Sampling], str]:
    """The expected continuation of a chat or of raw text with all sampling options."""
    scores = scores_of(AutoModelForCausalLM.from_pretrained(letters, dtype=torch.float32))

    def continuation(prompt: Any, sampling: Sampling) -> str:
        ids: Any = TOKENIZER(prompt) if isinstance(prompt, str) else None
        if ids is None:
            ids = TOKENIZER.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
        return str(TOKENIZER.decode(drawn_by_hand(scores, ids["input_ids"], sampling)))

    return continuation


def each_left_out(default: Sampling) -> Iterator[Sampling]:
    """`SAMPLING` with one of `OPTIONS` after the other at its default."""
    for option in OPTIONS[::2]:
        name = option.removeprefix("--").replace("-", "_")
        yield replace(SAMPLING, **{name: getattr(default, name)})


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@shows(
    "tunesmith generate model",
    "tunesmith generate prompts",
    "tunesmith generate --max-new-tokens",
    "tunesmith generate --temperature",
    "tunesmith generate --top-p",
    "tunesmith generate --repetition-penalty",
    "tunesmith generate --seed",
)
def test_generate_applies_every_sampling_option_to_each_prompt(letters: Path, by_hand: Any) -> None:
    chats = [[user("What is 2 + 2?")], [user("Why?")]]
    expected = "".join(by_hand(chat, SAMPLING) + "\n" for chat in chats)
    assert output_of("generate", letters, "What is 2 + 2?", "Why?", *OPTIONS) == expected
    assert output_of("generate", letters, *OPTIONS, given=" Why?\n") == by_hand(chats[1], SAMPLING) + "\n"
    assert all(by_hand(chats[0], other) != by_hand(chats[0], SAMPLING) for other in each_left_out(Sampling()))
    plain = output_of("generate", letters, "Why?")
    assert plain == by_hand(chats[1], Sampling()) + "\n"
    assert len(plain) == 257


@shows("tunesmith generate --top-k", "tunesmith generate --min-p", "tunesmith generate --stop")
def test_generate_cuts_the_choice_and_the_answer(letters: Path) -> None:
    options = ("--temperature", "3", "--seed", "5", "--max-new-tokens", "16")
    greedy = output_of("generate", letters, "Why?", "--max-new-tokens", "16")
    plain = output_of("generate", letters, "Why?", *options)
    assert plain != greedy
    assert output_of("generate", letters, "Why?", *options, "--top-k", "1") == greedy
    assert output_of("generate", letters, "Why?", *options, "--min-p", "1") == greedy
    assert output_of("generate", letters, "Why?", *options, "--top-k", "3") not in (plain, greedy)
    stops = ("--stop", plain[9:11], "--stop", plain[4])
    end = plain.index(plain[4])
    assert output_of("generate", letters, "Why?", *options, *stops) == plain[:end] + "\n"


@shows("tunesmith generate --schema")
def test_generate_follows_a_schema_from_a_file(letters: Path, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"enum": ["yes", "no"]}', encoding="utf-8")
    assert output_of("generate", letters, "Why?", "--schema", file) in ('"yes"\n', '"no"\n')
    refused = typed("generate", str(letters), "Why?", "--schema", str(tmp_path / "other.json"))
    assert refused.returncode == 2
    assert "other.json cannot be read" in " ".join(refused.stderr.split())


@pytest.mark.long
@shows("tunesmith generate --draft", "tunesmith answer --draft")
def test_generate_and_answer_draft_by_look_up_or_a_model_or_not_at_all(
    letters: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    compute = PagedModel.compute

    def counted(model: PagedModel, pieces: Any, *others: Any) -> Tensor:
        steps.append(len(pieces))
        return compute(model, pieces, *others)

    monkeypatch.setattr(PagedModel, "compute", counted)
    source = write_rows(here / "asked.jsonl", [{"question": "Why?"}])
    counts, outputs = [], []
    for options in ([], ["--draft", "lookup"], ["--draft", "none"]):
        steps.clear()
        outputs.append(output_of("generate", letters, "Why?", "--max-new-tokens", "200", *options))
        counts.append(len(steps))
        steps.clear()
        target = f"{len(counts)}.jsonl"
        output_of("answer", letters, source, "--output", target, "--max-new-tokens", "200", *options)
        outputs.append((here / target).read_text(encoding="utf-8"))
        counts.append(len(steps))
    assert outputs[:2] == outputs[2:4] == outputs[4:]
    assert max(counts[:4]) < 150
    assert min(counts[4:]) > 200
    for command in (["generate", letters, "Why?"], ["answer", letters, source, "--output", "other.jsonl"]):
        refused = typed(*map(str, command), "--draft", "embedded")
        assert "embedded has another tokenizer than the model" in " ".join(refused.stderr.split())


@shows("tunesmith generate --cache", "tunesmith answer --cache")
def test_generate_and_answer_store_keys_and_values_in_int8(
    letters: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[torch.dtype] = []
    compute = PagedModel.compute

    def seen(model: PagedModel, *arguments: Any) -> Tensor:
        out = compute(model, *arguments)
        stored.append(model.caches[0].keys.dtype)
        return out

    monkeypatch.setattr(PagedModel, "compute", seen)
    source = write_rows(here / "asked.jsonl", [{"question": "Why?"}])
    for options, dtype in (([], torch.float32), (["--cache", "int8"], torch.int8)):
        stored.clear()
        output_of("generate", letters, "Why?", "--max-new-tokens", "5", *options)
        target = f"{len(options)}.jsonl"
        output_of("answer", letters, source, "--output", target, "--max-new-tokens", "5", *options)
        assert set(stored) == {dtype}
    refused = typed("generate", str(letters), "Why?", "--cache", "int4")
    assert "cache: int4 is not one of auto and int8" in " ".join(refused.stderr.split())


@shows("tunesmith generate --raw", "tunesmith generate --system")
def test_generate_continues_raw_text_or_puts_a_system_prompt_first(letters: Path, by_hand: Any) -> None:
    system = [{"role": "system", "content": "Be brief."}, user("Why?")]
    outputs = {
        "raw": output_of("generate", letters, "Why?", "--raw", *OPTIONS),
        "system": output_of("generate", letters, "Why?", "--system", "Be brief.", *OPTIONS),
        "plain": output_of("generate", letters, "Why?", *OPTIONS),
    }
    prompts = {"raw": "Why?", "system": system, "plain": [user("Why?")]}
    assert outputs == {name: by_hand(prompt, SAMPLING) + "\n" for name, prompt in prompts.items()}
    assert len(set(outputs.values())) == 3


@shows(
    "tunesmith chat model",
    "tunesmith chat --system",
    "tunesmith chat --max-new-tokens",
    "tunesmith chat --temperature",
    "tunesmith chat --top-p",
    "tunesmith chat --repetition-penalty",
    "tunesmith chat --seed",
)
def test_chat_applies_its_options_and_keeps_the_conversation(letters: Path, by_hand: Any) -> None:
    system = [{"role": "system", "content": "Be brief."}]
    first = by_hand([*system, user("Hi")], SAMPLING)
    second = by_hand([*system, user("Hi"), {"role": "assistant", "content": first}, user("So?")], SAMPLING)
    again = by_hand([*system, user("So?")], SAMPLING)
    out = output_of("chat", letters, "--system", "Be brief.", *OPTIONS, given="Hi\nSo?\n/new\nSo?\n\nnever\n")
    head, *turns = out.split("> ")
    assert head == f"Chatting with {letters}. /new starts a new conversation, an empty line ends.\n"
    assert turns == [f"{first}\n", f"{second}\n", "", f"{again}\n", ""]
    assert second != again
    assert first != by_hand([user("Hi")], SAMPLING)
    defaults = Sampling(temperature=0.7, top_p=0.9)
    assert all(by_hand([*system, user("Hi")], other) != first for other in each_left_out(defaults))
    assert output_of("chat", letters, given="Hi\n\n").split("> ")[1] == by_hand([user("Hi")], defaults) + "\n"


@shows(
    "tunesmith answer model",
    "tunesmith answer source",
    "tunesmith answer --output",
    "tunesmith answer --max-new-tokens",
    "tunesmith answer --temperature",
    "tunesmith answer --top-p",
    "tunesmith answer --repetition-penalty",
    "tunesmith answer --seed",
    "tunesmith answer --concurrent",
)
def test_answer_applies_every_option_and_writes_one_answer_per_row(
    letters: Path, by_hand: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: list[int] = []
    compute = PagedModel.compute

    def counted(model: PagedModel, pieces: Any, *others: Any) -> Tensor:
        at_once.append(len(pieces))
        return compute(model, pieces, *others)

    monkeypatch.setattr(PagedModel, "compute", counted)
    questions = ["Why is that?", "Hm?", "So and so?"]
    source = write_rows(here / "asked.jsonl", [{"question": question, "answer": "gone"} for question in questions])
    out = output_of("answer", letters, source, "--output", "out.jsonl", *OPTIONS, "--concurrent", "2")
    assert out == "Wrote 3 answers to out.jsonl.\n"
    assert max(at_once) == 2
    rows = [json.loads(line) for line in (here / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    chats = [[user(question)] for question in questions]
    streams = [random_stream(SAMPLING.seed, number).initial_seed() for number in range(3)]
    assert streams[0] == SAMPLING.seed
    assert len(set(streams)) == 3, "each answer has its own random numbers"
    assert rows == [
        {"question": question, "answer": by_hand(chat, replace(SAMPLING, seed=seed))}
        for question, chat, seed in zip(questions, chats, streams, strict=True)
    ]
    at_once.clear()
    output_of("answer", letters, source, "--output", "same.jsonl", *OPTIONS)
    assert max(at_once) == 3
    assert (here / "same.jsonl").read_bytes() == (here / "out.jsonl").read_bytes()

    source = write_rows(here / "one.jsonl", [{"question": questions[0]}])
    output_of("answer", letters, source, "--output", "one_out.jsonl", *OPTIONS)
    (row,) = (json.loads(line) for line in (here / "one_out.jsonl").read_text(encoding="utf-8").splitlines())
    assert row["answer"] == by_hand(chats[0], SAMPLING)
    assert all(by_hand(chats[0], other) != row["answer"] for other in each_left_out(Sampling()))


# Reading: classify, embed


TEXTS = ["good film w3", "bad w7 w8 w1", "it is w2"]


@shows("tunesmith classify model", "tunesmith classify texts")
@torch.no_grad()
def test_classify_predicts_the_same_classes_as_transformers(reading: Path) -> None:
    dtype = dtype_of("auto", CPU)
    model = AutoModelForSequenceClassification.from_pretrained(reading / "classes", dtype=dtype)
    lines = output_of("classify", reading / "classes", *TEXTS).splitlines()
    assert (
        lines == output_of("classify", reading / "classes", given="\n".join([TEXTS[0], " ", *TEXTS[1:]])).splitlines()
    )
    for line, text in zip(lines, TEXTS, strict=True):
        probabilities = (
            model(input_ids=word_tokenizer()(text, return_tensors="pt")["input_ids"]).logits[0].float().softmax(-1)
        )
        label, probability, printed = line.split("\t")
        assert (label, printed) == (("no", "perhaps", "yes")[int(probabilities.argmax())], text)
        assert float(probability) == pytest.approx(float(probabilities.max()), abs=0.0051)
    assert len({line.split("\t")[1] for line in lines}) == 3


@shows("tunesmith embed model", "tunesmith embed texts")
@torch.no_grad()
def test_embed_writes_the_pooled_and_normalized_vector_of_each_text(reading: Path) -> None:
    model = AutoModel.from_pretrained(reading / "vectors", dtype=dtype_of("auto", CPU))
    out = output_of("embed", reading / "vectors", *TEXTS)
    assert out == output_of("embed", reading / "vectors", given="\n\n".join(TEXTS))
    for line, text in zip(out.splitlines(), TEXTS, strict=True):
        states = model(input_ids=word_tokenizer()(text, return_tensors="pt")["input_ids"]).last_hidden_state[0].float()
        vector = torch.nn.functional.normalize(states.mean(0), dim=0)
        row = json.loads(line)
        assert row["text"] == text
        torch.testing.assert_close(torch.tensor(row["vector"]), vector, rtol=0, atol=1e-6)


# Adapters: merge, combine


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of rank 4 on the same base, with random values."""
    directory = tmp_path_factory.mktemp("adapters")
    for name, seed in (("one", 1), ("two", 2)):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        get_peft_model(base, config).save_pretrained(directory / name)
        TOKENIZER.save_pretrained(directory / name)
    return [directory / "one", directory / "two"]


WEIGHT = "model.layers.1.mlp.down_proj"


def lora_matrices(adapter: Path) -> tuple[Tensor, Tensor]:
    """A and B of the layer `WEIGHT`."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{WEIGHT}.lora_{part}.weight"].double() for part in "AB")
    return a, b


@pytest.fixture(scope="module")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that llama.cpp reads."""
    directory = tmp_path_factory.mktemp("readable") / "base"
    saved(directory, *FAMILIES["llama"])
    return directory


@shows("tunesmith export run", "tunesmith export --to", "tunesmith export --output")
def test_export_writes_the_model_in_the_given_numbers(readable: Path, here: Path) -> None:
    written = output_of("export", readable, "--to", "gguf:f16", "--output", "a.gguf")
    assert written.splitlines()[-1] == "Wrote a.gguf (gguf:f16), and its model card a.md."
    name = "blk.0.ffn_up.weight"
    tensor = next(tensor for tensor in gguf.GGUFReader(here / "a.gguf").tensors if tensor.name == name)
    assert tensor.tensor_type.name == "F16"
    weight = load_file(readable / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].double()
    found = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).double()
    torch.testing.assert_close(found, weight, rtol=2**-11, atol=2**-25)
    refused = typed("export", str(readable), "--to", "gguf:q9", "--output", "b.gguf")
    assert refused.returncode == 2
    assert "--to gguf:q9 does not exist. Use one of f32, f16" in refused.stderr


@shows(
    "tunesmith export --accept-loss", "tunesmith export --rows", "tunesmith export --data",
    "tunesmith parity model", "tunesmith parity form", "tunesmith parity --rows", "tunesmith parity --data",
    "tunesmith parity --max-new-tokens", "tunesmith parity --json",
)  # fmt: skip
def test_an_export_is_compared_with_the_model_on_the_given_rows(readable: Path, here: Path) -> None:
    rows = write_rows(here / "rows.jsonl", [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(3)])
    arguments = ("export", str(readable), "--to", "gguf:q4_0", "--rows", "2", "--data", str(rows))
    plain = typed(*arguments, "--output", "plain.gguf")
    kept = typed(*arguments, "--output", "kept.gguf", "--accept-loss")
    assert (plain.returncode, (here / "plain.gguf").exists()) == (2, False)
    assert (kept.returncode, (here / "kept.gguf").exists()) == (0, True)
    stored = json.loads((here / "kept.parity.json").read_text())
    assert (stored["rows"], stored["rows_from"], stored["answers"]) == (2, str(rows), 2)
    more = ("--rows", "3", "--data", str(rows), "--max-new-tokens", "1", "--json")
    found = json.loads(typed("parity", str(readable), "kept.gguf", *more).stdout)
    assert (found["rows"], found["a"], found["b"]) == (3, str(readable), "kept.gguf")
    assert found["top1_agreement"] < 1
    assert json.loads(typed("parity", str(readable), str(readable), *more).stdout)["top1_agreement"] == 1


@shows("tunesmith parity --api-key")
def test_parity_gives_the_key_to_the_server(adapters: list[Path], here: Path) -> None:
    keys = here / "keys.json"
    secret = output_of("keys", "add", keys, "me").split()[-1]
    with served(adapters[1], api_key_file=keys) as server:
        refused = typed("parity", str(adapters[1]), server.address, "--rows", "1")
        found = typed("parity", str(adapters[1]), server.address, "--rows", "1", "--api-key", secret)
    assert "answers 401" in refused.stderr
    assert found.returncode == 0, found.stderr


@shows("tunesmith export --adapter-only")
def test_export_writes_the_adapter_alone(adapters: list[Path], here: Path) -> None:
    output_of("export", adapters[1], "--to", "gguf", "--output", "a.gguf", "--adapter-only")
    file = gguf.GGUFReader(here / "a.gguf")
    assert file.fields["general.type"].contents() == "adapter"
    assert all(".lora_" in tensor.name for tensor in file.tensors)


@pytest.mark.long
@shows("tunesmith export --importance-rows")
def test_export_weights_errors_by_the_rows_of_the_run(readable: Path, here: Path) -> None:
    rows = write_rows(here / "rows.jsonl", [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(20)])
    recipe = {"base": str(readable), "data": {"train": str(rows), "held_out": 0}, "train": {"steps": 1}}
    tunesmith.train(recipe, here / "run")
    for name, option in (("plain", []), ("two", ["--importance-rows", "2"]), ("ten", ["--importance-rows", "10"])):
        output_of("export", "run", "--to", "gguf:q4_0", "--output", f"{name}.gguf", "--accept-loss", *option)
    plain, two, ten = (
        bytes(next(t.data for t in gguf.GGUFReader(here / f"{name}.gguf").tensors if t.name == "blk.1.ffn_up.weight"))
        for name in ("plain", "two", "ten")
    )
    assert len({plain, two, ten}) == 3
    refused = typed("export", "run", "--to", "hf", "--output", "model", "--importance-rows", "2")
    assert "--to hf takes neither --importance-rows nor --adapter-only" in refused.stderr


@shows("tunesmith export --precision")
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [(None, torch.float32), ("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_export_to_hf_writes_the_sum_in_the_given_precision_or_the_bases(
    precision: str | None, dtype: torch.dtype, adapters: list[Path], tiny_model: Path, here: Path
) -> None:
    option = [] if precision is None else ["--precision", precision]
    # A random model's likeliest tokens are nearly ties, which rounding decides.
    output_of("export", adapters[1], "--to", "hf", "--output", "merged", "--rows", "1", "--accept-loss", *option)
    weight = load_file(tiny_model / "model.safetensors")[f"{WEIGHT}.weight"].double()
    a, b = lora_matrices(adapters[1])
    merged = load_file(here / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in merged.values()} == {dtype}
    torch.testing.assert_close(
        merged[f"{WEIGHT}.weight"].double(), weight + 1.5 * b @ a, rtol=torch.finfo(dtype).eps, atol=1e-6
    )
    refused = typed("export", str(adapters[1]), "--to", "hf", "--output", "other", "--precision", "int8")
    assert refused.returncode == 2
    assert "--precision int8 does not exist. Use one of fp32, bf16, fp16." in refused.stderr


@shows(
    "tunesmith combine adapters",
    "tunesmith combine --output",
    "tunesmith combine --how",
    "tunesmith combine --weights",
    "tunesmith combine --density",
)
def test_combine_gives_the_same_adapters_as_peft_with_every_option(
    adapters: list[Path], tiny_model: Path, here: Path
) -> None:
    def theirs(how: str, weights: list[float], **more: float) -> tuple[Tensor, Tensor]:
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, adapters[0], "one")
        model.load_adapter(adapters[1], "two")
        model.add_weighted_adapter(["one", "two"], weights, "both", combination_type=how, **more)
        layer = model.get_base_model().get_submodule(WEIGHT)
        return layer.lora_A["both"].weight.double(), layer.lora_B["both"].weight.double()

    cases = {
        "default": [],
        "ties": ["--how", "ties", "--weights", "0.3,1.4", "--density", "0.25"],
        "thin": ["--how", "ties", "--weights", "0.3,1.4"],
        "equal": ["--how", "ties", "--density", "0.25"],
    }
    for name, options in cases.items():
        assert output_of("combine", *adapters, "--output", name, *options) == f"Wrote {name}.\n"
    torch.testing.assert_close(lora_matrices(here / "default"), theirs("cat", [0.5, 0.5]))
    torch.testing.assert_close(lora_matrices(here / "ties"), theirs("ties", [0.3, 1.4], density=0.25))
    torch.testing.assert_close(lora_matrices(here / "thin"), theirs("ties", [0.3, 1.4], density=0.5))
    torch.testing.assert_close(lora_matrices(here / "equal"), theirs("ties", [0.5, 0.5], density=0.25))
    refused = typed("combine", *map(str, adapters), "--output", "none", "--weights", "0.3;1.4")
    assert (refused.returncode, "--weights 0.3;1.4 is not a list of numbers" in refused.stderr) == (2, True)


# Runs: train, evaluate, runs


@pytest.fixture(scope="module")
def recipe(letters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recipe")
    rows = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}, of course."} for n in range(24)]
    values = {
        "base": str(letters),
        "data": {"train": str(write_rows(directory / "rows.jsonl", rows)), "held_out": 0.25, "cache": False},
        "method": {"kind": "lora", "rank": 2, "target_modules": ["down_proj"]},
        "train": {"steps": 3, "tokens_per_step": 256, "learning_rate": 0.001, "precision": "fp32"},
    }
    (directory / "recipe.yaml").write_text(json.dumps(values), encoding="utf-8")
    return directory / "recipe.yaml"


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    """A run with one field set, interrupted after its first step."""

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint":
            raise KeyboardInterrupt

    directory = recipe.with_name("run")
    with pytest.raises(KeyboardInterrupt):
        tunesmith.train(recipe, directory, ["train.checkpoint_every=1"], [interrupt])
    return directory


def steps_of(directory: Path) -> list[int]:
    events = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event["step"] for event in events if event["event"] == "step"]


@shows("tunesmith train recipe", "tunesmith train --run", "tunesmith train --set")
def test_train_runs_the_recipe_with_overrides_in_the_given_directory(recipe: Path, here: Path) -> None:
    output_of("train", recipe, "--run", "mine", "--set", "train.steps=1", "--set", "train.learning_rate=0.02")
    resolved, original = Recipe.load(here / "mine" / "recipe.yaml"), Recipe.load(recipe)
    assert steps_of(here / "mine") == [1]
    assert (resolved.train.steps, resolved.train.learning_rate) == (1, 0.02)
    assert (resolved.base.path, resolved.method.rank, resolved.data.held_out) == (original.base.path, 2, 0.25)
    assert [path.name for path in here.iterdir() if path.is_dir() and path.name != "cache"] == ["mine"]
    for options in (["--run", "other"], ["--set", "train.steps=2"]):
        refused = typed("train", "--resume", "mine", *options)
        assert (refused.returncode, "takes no --set and no --run" in refused.stderr) == (2, True)


@shows("tunesmith train --resume", "tunesmith evaluate models", "tunesmith evaluate --rows")
@shows("tunesmith evaluate --max-new-tokens", "tunesmith evaluate --repetition-penalty", "tunesmith evaluate --metric")
def test_a_run_is_resumed_and_then_evaluated_with_the_given_options(run: Path, by_hand: Any, here: Path) -> None:
    assert steps_of(run) == [1]
    output_of("train", "--resume", run)
    assert steps_of(run) == [1, 2, 3]
    assert (run / "adapter").exists()

    out = output_of("evaluate", run, "--rows", "3", "--max-new-tokens", "6", "--repetition-penalty", "1.7")
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert (evaluation["rows"], evaluation["generated_rows"], len(evaluation["samples"])) == (6, 3, 3)
    options = Sampling(6, repetition_penalty=1.7)
    for sample in evaluation["samples"]:
        chat = [user(sample["prompt"])]
        assert sample["answers"]["base"] == by_hand(chat, options)
        assert sample["answers"]["base"] != by_hand(chat, Sampling(6))
        assert len(sample["answers"]["tuned"]) == 6
    assert f"Written to {run}/evaluation.json and {run}/report.html" in out
    (here / "mymetrics.py").write_text("def always(answer, expected):\n    return 0.25\n", encoding="utf-8")
    output_of("evaluate", run, "--metric", "mymetrics:always")
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert (evaluation["rows"], evaluation["generated_rows"], len(evaluation["samples"])) == (6, 6, 5)
    figure = evaluation["models"]["tuned"]["mymetrics:always"]
    assert (figure["value"], evaluation["figures"]["mymetrics:always"]["title"]) == (0.25, "always")
    assert "rouge_l" in evaluation["models"]["tuned"]
    assert evaluation["samples"][0]["answers"]["base"] == by_hand(
        [user(evaluation["samples"][0]["prompt"])], Sampling(128)
    )


@shows("tunesmith evaluate --rows")
def test_evaluate_answers_all_rows_if_asked_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def evaluate(models: list[str], rows: int | None, *_: Any, **options: Any) -> None:
        asked.append(rows)
        raise UserError("enough")

    monkeypatch.setattr("tunesmith.evaluation.compare.evaluate", evaluate)
    for options in ([], ["--rows", "7"], ["--rows", "all"]):
        assert typed("evaluate", "run", *options).stderr == "error: enough\n"
    assert asked == [200, 7, None]


@shows(
    "tunesmith evaluate models", "tunesmith evaluate --data", "tunesmith evaluate --json", "tunesmith evaluate --output"
)
@shows("tunesmith evaluate --cache")
def test_models_named_together_are_evaluated_on_files_and_kept_where_asked(
    letters: Path, tiny_model: Path, here: Path
) -> None:
    file = write_rows(here / "asked.jsonl", [{"question": f"{n}?", "answer": "a"} for n in range(5)])
    options = ["--data", file, "--rows", "3", "--max-new-tokens", "4"]
    output_of("evaluate", letters, tiny_model, *options, "--no-cache")
    assert not (here / "cache" / "evaluation").exists()
    found = json.loads(output_of("evaluate", letters, tiny_model, *options, "--json"))
    assert (here / "cache" / "evaluation").exists()
    assert list(found["models"]) == ["model", "llama"]
    assert (found["rows"], found["generated_rows"], found["data"]) == (5, 3, "rows of asked.jsonl")
    out = output_of("evaluate", letters, tiny_model, *options, "--output", "out")
    assert "Written to out/evaluation.json and out/report.html" in out
    assert json.loads((here / "out" / "evaluation.json").read_text(encoding="utf-8")) == found
    assert "exact match" in (here / "out" / "report.html").read_text(encoding="utf-8")


@shows("tunesmith evaluate --gate", "tunesmith evaluate --suite", "tunesmith evaluate --concurrent")
@shows("tunesmith evaluate --budget", "tunesmith evaluate --suite-option")
def test_suites_gates_and_how_many_answers_at_once_are_passed_on(
    letters: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORDS", (8,)), ("CONCURRENT", (1,)), ("ANSWER", 2)):
        monkeypatch.setattr(f"tunesmith.evaluation.suites.latency.{name}", value)
    (here / "gate.yaml").write_text(
        "limits:\n- {figure: latency.first_token_p99_1x8, at_most: 1e-9}\n", encoding="utf-8"
    )
    done = typed("evaluate", str(letters), "--suite", "latency", "--rows", "0", "--gate", "gate.yaml")
    assert (done.returncode, "is not at most 1e-09" in done.stdout) == (3, True)
    assert "1 at once, 8 words" in done.stdout

    refused = typed("evaluate", str(letters), "--suite", "latency", "--rows", "0", "--suite-option", "latency.word=3")
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: word is not an option of the suite latency. It has: none.\n",
    )

    def evaluate(*_: Any, concurrent: int, budget: str | None, **others: Any) -> None:
        raise UserError(f"{concurrent} at once in {budget}")

    monkeypatch.setattr("tunesmith.evaluation.compare.evaluate", evaluate)
    assert typed("evaluate", "run").stderr == "error: 64 at once in None\n"
    assert typed("evaluate", "run", "--concurrent", "3", "--budget", "2min").stderr == "error: 3 at once in 2min\n"


@shows("tunesmith evaluate --judge", "tunesmith evaluate --rubric")
@shows("tunesmith evaluate --judge-pairs", "tunesmith evaluate --labels")
def test_a_served_judge_scores_and_compares_by_the_rubric_and_is_corrected_by_labels(
    letters: Path, tiny_model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(body: dict[str, Any]) -> str:
        rubric = body["messages"][0]["content"]
        return json.dumps({"score": 4 if "Be brief." in rubric else 2, "better": "tie"})

    monkeypatch.setenv("TUNESMITH_API_KEY", "secret")
    file = write_rows(here / "asked.jsonl", [{"question": f"{n}?", "answer": "a"} for n in range(3)])
    options = ["evaluate", letters, tiny_model, "--data", file, "--max-new-tokens", "4", "--judge"]
    (here / "rubric.md").write_text("Be brief.\n", encoding="utf-8")
    with scripted(reply) as server:
        own = json.loads(output_of(*options, server.url, "--rubric", "rubric.md", "--json"))
        assert set(server.keys) == {"Bearer secret"}
        sources = list(own["judge"]["models"]["llama"]["verdicts"])
        labels = [{"source": source, "model": "llama", "score": 3} for source in sources[:2]]
        write_rows(here / "labels.jsonl", labels)
        out = output_of(*options, server.url, "--labels", "labels.jsonl")
        pairs = json.loads(output_of(*options, server.url, "--judge-pairs", "--json"))
    assert own["models"]["llama"]["judge.score"]["value"] == 4
    assert own["judge"]["rubric"] == "rubric.md"
    found = {line.strip().split("  ")[0]: line.split() for line in out.splitlines()}
    assert found["judge.score"][1::3] == ["2.00", "2.00"]
    assert found["labels"] == ["labels", "0", "2"]
    assert found["agrees with people"][3:5] == ["–", "0%"]
    assert "Rubric: the default one." in out
    assert pairs["models"]["llama"]["judge.wins"]["value"] == 0.5
    assert set(pairs["judge"]["models"]) == {"llama"}


@shows("tunesmith evaluate --checkpoints", "tunesmith evaluate --how-to-keep")
@shows("tunesmith evaluate --rerun-steps", "tunesmith evaluate --tolerance")
def test_checkpoints_and_reruns_are_measured_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("checkpoints", "how_to_keep", "rerun_steps", "tolerance")

    def evaluate(*_: Any, **options: Any) -> None:
        raise UserError(" ".join(str(options[name]) for name in names))

    monkeypatch.setattr("tunesmith.evaluation.compare.evaluate", evaluate)
    assert typed("evaluate", "run").stderr == "error: False False None 0.01\n"
    assert typed("evaluate", "run", "--checkpoints", "--tolerance", "0.1").stderr == "error: True False None 0.1\n"
    options = ("--how-to-keep", "--rerun-steps", "7")
    assert typed("evaluate", "run", *options).stderr == "error: False True 7 0.01\n"


@shows("tunesmith report run", "tunesmith report --open")
def test_report_writes_the_runs_page_and_opens_it_if_asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "recipe.yaml").write_text("base: b\n", encoding="utf-8")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    page = here / "mine" / "report.html"
    assert output_of("report", "mine") == f"Wrote {page}.\n"
    assert (page.exists(), opened) == (True, [])
    output_of("report", "mine", "--open")
    assert opened == [page.as_uri()]


@shows("tunesmith runs directory", "tunesmith runs --json")
def test_runs_lists_a_directory_as_a_table_or_json(here: Path) -> None:
    for directory, name in (("runs", "first"), ("elsewhere", "second")):
        run = here / directory / name
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(f"base: b-{name}\nmethod: full\n", encoding="utf-8")
        write_rows(run / "metrics.jsonl", [{"event": "step", "step": 3, "total_steps": 7, "loss": 2.5, "seconds": 4.0}])
    for directory, name, other in (([], "first", "second"), (["elsewhere"], "second", "first")):
        (listed,) = json.loads(output_of("runs", *directory, "--json"))
        assert (listed["name"], listed["base"], listed["method"]) == (name, f"b-{name}", "full")
        assert (listed["step"], listed["total_steps"], listed["loss"]) == (3, 7, 2.5)
        table = output_of("runs", *directory)
        assert name in table
        assert other not in table
        assert "2.500" in table


# Looking: data show, methods, schema, init, the version


@shows(
    "tunesmith data show source",
    "tunesmith data show --rows",
    "tunesmith data show --start",
    "tunesmith data show --tokens",
    "tunesmith data show --base",
    "tunesmith data show --set",
)
def test_data_show_prints_the_selected_rows_as_the_base_reads_them(letters: Path, here: Path) -> None:
    rows = write_rows(here / "rows.jsonl", [{"question": f"Q{n}?", "answer": f"A{n}."} for n in range(1, 8)])

    def shown(*options: Any, source: Path = rows) -> list[str]:
        out = output_of("data", "show", source, "--base", letters, *options)
        return [line for line in out.splitlines() if line.strip()]

    text = ["<|im_start|>user", "Q1?<|im_end|><|im_start|>assistant", "«A1.<|im_end|>»"]
    length = len(TOKENIZER("\n".join(text).replace("«", "").replace("»", ""))["input_ids"])
    first = shown("--rows", 1)
    assert first[0].startswith(f"rows.jsonl row 1 · {length} tokens, 4 with loss ")
    assert first[1:] == text
    assert [line.split(" ·")[0] for line in shown() if line.startswith("rows.jsonl")] == [
        f"rows.jsonl row {n}" for n in (1, 2, 3)
    ]
    later = shown("--start", 5, "--rows", 2)
    assert [line.split(" ·")[0] for line in later if line.startswith("rows.jsonl")] == [
        "rows.jsonl row 5",
        "rows.jsonl row 6",
    ]
    separated = shown("--rows", 1, "--tokens")
    assert separated[2] == "·Q·1·?·<|im_end|>·<|im_start|>·a·s·s·i·s·t·a·n·t·↵"
    everything = shown("--rows", 1, "--set", "objective={kind: instruction, learn: all}")
    assert everything[1].startswith("«")
    (here / "recipe.yaml").write_text(json.dumps({"base": str(letters), "data": {"train": str(rows)}}))
    from_recipe = shown("--rows", 1, source=here / "recipe.yaml")
    assert from_recipe == first
    other = output_of("data", "show", rows, "--rows", 1)  # the embedded base's tokens are larger
    assert int(other.split("row 1 · ")[1].split()[0]) < length


@shows("tunesmith methods --base", "tunesmith methods --json")
def test_methods_counts_the_trained_parameters_on_the_base(tiny_model: Path) -> None:
    listing = json.loads(output_of("methods", "--base", tiny_model, "--json"))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    trained = {method["kind"]: method["trained_parameters"] for method in listing["methods"]}
    assert (listing["base"], listing["parameters"]) == (str(tiny_model), model.num_parameters())
    assert trained["full"] == model.num_parameters()
    per_block = 16 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert trained["lora"] == 2 * per_block
    table = output_of("methods", "--base", tiny_model)
    assert f"On {tiny_model}" in " ".join(table.split()).replace(" /", "/") or str(tiny_model.name) in table
    assert json.loads(output_of("methods", "--json"))["base"] == "embedded"


@shows("tunesmith schema --markdown", "tunesmith schema --output")
def test_schema_prints_or_writes_json_or_markdown(here: Path) -> None:
    schema, page = json.dumps(recipe_schema(), indent=2) + "\n", recipe_reference()
    assert json.loads(schema)["properties"]["train"]
    assert page.startswith("# The recipe\n")
    assert (output_of("schema"), output_of("schema", "--markdown")) == (schema, page)
    assert output_of("schema", "--output", "schema.json") == ""
    assert output_of("schema", "--markdown", "--output", "page.md") == ""
    assert (here / "schema.json").read_text(encoding="utf-8") == schema
    assert (here / "page.md").read_text(encoding="utf-8") == page


@shows("tunesmith init data", "tunesmith init --output", "tunesmith init --base")
def test_init_writes_a_recipe_with_the_given_files_and_base(letters: Path, here: Path) -> None:
    for name, count in (("one.jsonl", 30), ("two.jsonl", 12)):
        write_rows(here / name, [{"question": f"Q{n}?", "answer": "Yes."} for n in range(count)])
    out = output_of("init", "one.jsonl", "two.jsonl", "--output", "first.yaml", "--base", letters)
    assert "42 rows in the format question_answer" in out
    assert "Wrote first.yaml. Next: tunesmith train first.yaml" in out
    suggested = Recipe.load(here / "first.yaml")
    assert suggested.base.path == str(letters)
    assert [Path(path).name for path in suggested.data.train] == ["one.jsonl", "two.jsonl"]
    output_of("init", "one.jsonl")
    assert Recipe.load(here / "recipe.yaml").base.path == "embedded"


@shows("tunesmith --version")
def test_version_prints_the_version_and_runs_no_command() -> None:
    assert output_of("--version") == f"tunesmith {tunesmith.__version__}\n"
    assert output_of("--version", "runs", "nowhere") == f"tunesmith {tunesmith.__version__}\n"


# Planning


SMALL = ["--set", "data.max_length=64", "--set", "train.tokens_per_step=256"]


@shows(
    "tunesmith plan base",
    "tunesmith plan --set",
    "tunesmith plan --device",
    "tunesmith plan --json",
    "tunesmith plan --context",
    "tunesmith plan --concurrency",
    "tunesmith plan --cache",
)
def test_plan_counts_weights_gradients_and_serving_memory_on_the_given_device(tiny_model: Path) -> None:
    serving = ["--context", "100000", "--concurrency", "3"]
    planned = json.loads(
        output_of("plan", tiny_model, "--device", "l4", *SMALL, "--set", "method=full", "--json", *serving)
    )
    weights = AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()
    assert planned["device"] == "l4"
    assert planned["memory"]["parts"]["weights"] == pytest.approx(2 * weights, rel=0.01)
    assert planned["memory"]["parts"]["gradients"] == pytest.approx(4 * weights, rel=0.01)  # of fp32 masters
    assert planned["serving"]["key–value cache"] == 3 * 100000 * 2 * 2 * (8 + 16) * 2  # values: multiples of 16
    assert planned["generating"]["bytes_per_token"] == 2 * 2 * (8 + 16) * 2
    assert planned["merging"] is None
    text = output_of("plan", tiny_model, "--device", "h100", *SMALL, *serving)
    assert "h100: 85" in text
    assert "3 concurrent requests of 100,000 tokens" in text
    plain = output_of("plan", tiny_model, "--device", "h100", *SMALL)
    assert "one request of 4,096 tokens" in plain
    assert "0.192 kB per token" in plain
    narrow = output_of("plan", tiny_model, "--device", "h100", *SMALL, "--cache", "int8")
    assert "0.128 kB per token" in narrow  # a byte a number, and a scale for each key and value


@shows("tunesmith plan --recipe", "tunesmith plan --data", "tunesmith plan --price", "tunesmith plan --chart")
def test_plan_of_a_recipe_uses_its_rows_or_others_and_shows_cost_and_chart(recipe: Path, here: Path) -> None:
    other_rows = write_rows(here / "more.jsonl", [{"question": f"Why {n}?", "answer": "So " * 40} for n in range(50)])
    command = ["plan", "--recipe", recipe, "--device", "l4", "--set", "train.steps=null", "--set", "train.epochs=2"]
    alone, other = (json.loads(output_of(*command, "--json", *data)) for data in ([], ["--data", other_rows]))
    for printed, rows in ((alone, None), (other, other_rows)):
        plan = tunesmith.plan(recipe=recipe, data=rows, device="l4", overrides=["train.steps=null", "train.epochs=2"])
        assert printed["memory"] == json.loads(json.dumps(plan.to_dict()["memory"]))
        assert printed["time"]["total_seconds"] == pytest.approx(plan.time.total_seconds)
    assert other["time"]["parts"]["training"] > 2 * alone["time"]["parts"]["training"]
    text = output_of(*command, "--price", 1e9, "--chart", "chart.html")
    dollars = float(text.split("cost")[1].split()[0].removeprefix("$").replace(",", ""))
    assert dollars == pytest.approx(1e9 * alone["time"]["total_seconds"] / 3600, rel=1e-4)
    own = output_of(*command)
    assert float(own.split("cost")[1].split()[0].removeprefix("$")) == 0.0
    page = (here / "chart.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "lora" in page
    assert "chart: chart.html" in text


@shows("tunesmith plan --fit")
def test_plan_proposes_a_recipe_that_fits_the_given_memory(tiny_model: Path) -> None:
    command = [
        "plan",
        tiny_model,
        "--device",
        "l4",
        *SMALL,
        "--set",
        "base.weights=nf4",
        "--set",
        "method=lora",
        "--fit",
    ]
    text = output_of(*command, "3GB")
    assert "llama within 3GB" in text
    assert "gives up  nothing" in text
    assert "lora on" in text
    for limit, message in (("600MB", "fits into 0.6 GB"), ("much", "much is not an amount of memory")):
        refused = typed(*map(str, command), limit)
        assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr


@shows("tunesmith plan --devices", "tunesmith plan --price")
def test_plan_lists_every_known_device_at_the_given_price(tiny_model: Path) -> None:
    lines = output_of("plan", tiny_model, *SMALL, "--devices", "--price", "36e9").splitlines()
    cells = {line.split()[0]: line.split() for line in lines if line.split()}
    for device in known_devices():
        cards, speed, dollars = cells[device][-3:]
        assert cards == "1"
        assert float(dollars[1:].replace(",", "")) == pytest.approx(1e13 / float(speed.replace(",", "")), rel=1e-4)


# The demo


@pytest.fixture
def few_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation of 24 small packages."""
    place = tmp_path / "installed"
    place.mkdir()
    for number in range(24):
        functions = (
            f'def f{number}_{each}(x: int, y: str = "a") -> None:\n'
            f'    """Return the value of {number}.\n\n    Args:\n        x: The count.\n        y: The name.\n    """\n'
            for each in range(3)
        )
        (place / f"package{number}.py").write_text("\n".join(functions), encoding="utf-8")
    found = packages([place])
    monkeypatch.setattr("tunesmith.demo.functions.packages", lambda: found)


@pytest.mark.long
@shows("tunesmith demo --directory", "tunesmith demo --set", "tunesmith demo --base", "tunesmith demo --ask")
def test_the_demo_runs_in_the_given_directory_on_the_given_base_and_asks(
    letters: Path, here: Path, few_functions: None
) -> None:
    settings = ["train.steps=1", "train.tokens_per_step=512", "train.precision=fp32", "data.max_length=2048"]
    options = ["--directory", "mine", "--base", str(letters), "--ask", "def look_up(word: str): ..."]
    out = output_of("demo", *options, *(part for setting in settings for part in ("--set", setting)))
    resolved = Recipe.load(here / "mine" / "run" / "recipe.yaml")
    assert (resolved.base.path, resolved.train.steps, resolved.method.rank) == (str(letters), 1, 16)
    assert set(json.loads((here / "mine" / "run" / "evaluation.json").read_text())["differences"]["tuned"]) == {
        "loss", "exactly_right", "fields", "valid_definition", "valid_json",
    }  # fmt: skip
    assert steps_of(here / "mine" / "run") == [1]
    assert not (here / "runs").exists()
    assert "def look_up(word: str)" in out
    assert "tunesmith chat mine/run" in out
    again = output_of("demo", "--directory", "mine", "--ask", "def other(x: int): ...")
    assert "def other(x: int)" in again
    assert "1. The data" not in again
    refused = typed("demo", "--ask", "import os")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)


@shows("tunesmith bases families --json")
def test_families_are_listed_by_the_cache_that_generation_keeps_for_them() -> None:
    known = json.loads(output_of("bases", "families", "--json"))
    assert "llama" in known["paged"]
    assert "t5" in known["own"]
    printed = output_of("bases", "families")
    assert all(name in printed.replace("\n", "") for name in known["paged"] + known["own"] + known["not_tried"])
    assert f"transformers {known['transformers']}" in printed


@shows("tunesmith bases --json", "tunesmith bases get name")
def test_bases_are_printed_as_a_table_or_as_json() -> None:
    listed = json.loads(output_of("bases", "--json"))
    assert next(base for base in listed if base["name"] == "embedded")["parameters"] == 7_212_288
    table = output_of("bases")
    assert all(base["name"] in table for base in listed)
    assert output_of("bases", "get", "embedded").strip() == str(embedded_base())
    refused = typed("bases", "get", "nobody")
    assert (refused.returncode, "`tunesmith bases` lists them" in refused.stderr) == (2, True)
