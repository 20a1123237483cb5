"""Each benchmark script runs, on shapes and data that take seconds."""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running_server import served
from small_models import config_for

from tunesmith.config.base import Base
from tunesmith.config.pipeline import Pipeline
from tunesmith.config.recipe import Recipe
from tunesmith.data.pack import Batches
from tunesmith.data.prepare import prepare
from tunesmith.models.load import load_tokenizer
from tunesmith.serving.service import Limits
from tunesmith.statistics.measured import Measured, mean_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHAPE = {
    "kind": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 8192,
}  # fmt: skip
CHATS = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}."} for n in range(60)]

Script = Callable[[str], Any]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    """Imports a script; what it would write into `benchmarks/` or a shared temporary directory goes to `tmp_path`."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    data = tmp_path / "data"
    write(data / "gsm8k" / "train.jsonl", *map(json.dumps, CHATS))
    write(data / "gsm8k" / "test.jsonl", *map(json.dumps, CHATS[:8]))
    write(data / "wikitext2" / "valid.txt", *("The tower is old and made of stone. " * 20 for _ in range(4)))
    write(data / "wikitext2" / "test.txt", *("The river is long and runs to the sea. " * 20 for _ in range(4)))
    legal = {str(n): {"original_text": f"Party {n} shall pay.", "reference_summary": f"{n} pays."} for n in range(10)}
    write(data / "legal_summarization" / "all.json", json.dumps(legal))
    for label, word in (("neg", "bad"), ("pos", "good")):
        write(data / "rotten_tomatoes" / f"rt-polarity.{label}", *(f"a {word} film, number {n}" for n in range(20)))

    def imported(name: str) -> Any:
        module = import_module(name)
        for constant, value in (("DATA", data), ("WORK", tmp_path / "work"), ("RAW", tmp_path / "raw")):
            if hasattr(module, constant):
                monkeypatch.setattr(module, constant, value)
        (tmp_path / "work").mkdir(exist_ok=True)
        return module

    return imported


def write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def test_every_script_prints_its_help_or_is_a_module_of_others(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in sorted(BENCHMARKS.glob("*.py")):
        module = script(file.stem)
        assert module.__doc__, file.name
        if "ArgumentParser" in file.read_text(encoding="utf-8"):
            monkeypatch.setattr(sys, "argv", [file.name, "--help"])
            with pytest.raises(SystemExit) as ended:
                module.main()
            assert ended.value.code == 0
            assert "usage" in capsys.readouterr().out, file.name


@pytest.mark.parametrize(("family", "paged"), [("llama", True), ("deepseek_v3", True), ("bloom", False), ("t5", False)])
def test_families_are_listed_by_the_trial_that_a_loaded_model_gets(family: str, paged: bool, script: Script) -> None:
    assert script("paged_families").is_paged(family) == paged


@pytest.mark.parametrize("name", ["few_quality", "stage_quality", "distillation_quality", "evaluation_study"])
def test_a_stored_table_is_the_one_that_its_stored_results_give(name: str, script: Script) -> None:
    module = script(name)
    stored = (BENCHMARKS / "results" / f"{name}.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in module.table(module.done()).splitlines() if line.startswith("|")]
    assert rows == [line for line in stored if line.startswith("|")]
    assert len(rows) > 3


def test_matrix_rate_gives_a_rate(script: Script) -> None:
    assert script("matrix_rate").rate((8, 8, 8), torch.float32, "cpu", seconds=0.0) > 0


def test_startup_times_a_command_and_refuses_one_that_fails(script: Script, tmp_path: Path) -> None:
    module = script("startup")
    assert module.seconds_of([sys.executable, "-c", "pass"], module.OWN, tmp_path) > 0
    with pytest.raises((SystemExit, RuntimeError)):
        module.seconds_of([sys.executable, "-c", "raise SystemExit(3)"], module.OWN, tmp_path)


@pytest.fixture(scope="module")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """generation_speed's random Llama, with fewer weights."""
    directory = tmp_path_factory.mktemp("llama") / "llama"
    sizes = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        models = import_module("generation_models")
        models.make_llama(directory, {**models.LLAMA_SHAPE, **sizes})
    return directory


def generation_job(model: Path, engine: str, directory: Path, adapters: int = 0) -> dict[str, Any]:
    requests = [{"ids": list(range(300, 300 + 5 * n)), "tokens": n} for n in (1, 4, 9)]
    alone = [{"ids": list(range(40)), "tokens": 8}]
    return {
        "engine": engine,
        "model": str(model),
        "directory": str(directory),
        "most_tokens": 80,
        "settings": {"flash_attention": True, "unified": False},
        "cells": [
            {"at_once": 2, "adapters": adapters, "requests": requests},
            {"at_once": 1, "adapters": 0, "requests": alone, "limits": True},
        ],
    }


@pytest.mark.parametrize(
    ("engine", "adapters"),
    [
        ("tunesmith, fp32", 2),
        pytest.param("tunesmith, int8", 0, marks=pytest.mark.long),
        pytest.param("transformers, fp32", 0, marks=pytest.mark.long),
        pytest.param("transformers continuous, fp32", 0, marks=pytest.mark.long),
        pytest.param("llama.cpp, F32", 0, marks=pytest.mark.long),
    ],
)
def test_each_engine_of_generation_speed_writes_the_tokens_that_are_asked_for(
    engine: str, adapters: int, script: Script, small_llama: Path, tmp_path: Path
) -> None:
    if engine.startswith("llama.cpp"):
        pytest.importorskip("xllamacpp")
        models = script("generation_models")
        models.write_gguf(small_llama, models.gguf_file(tmp_path, small_llama, "F32"), "F32")
    many, alone = script("generation_engines").measured(generation_job(small_llama, engine, tmp_path, adapters))
    assert (many["tokens"], many["prompt_tokens"], many["requests"]) == (14, 70, 3)
    assert 0 < alone["first_token"] < alone["seconds"]
    assert alone["read_seconds"] > 0
    cache = 44 * 2 * 2 * 2 * 16 * 4
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96) + 64 * 512
    assert alone["step_bytes"] >= cache + weights


def test_generation_speed_writes_gguf_files_with_the_models_own_numbers(
    script: Script, small_llama: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from tunesmith.models.gguf import convert_gguf

    script("generation_models").write_gguf(small_llama, tmp_path / "model.gguf", "BF16")
    convert_gguf(tmp_path / "model.gguf", tmp_path / "again")
    stored, again = (load_file(path / "model.safetensors") for path in (small_llama, tmp_path / "again"))
    assert stored.keys() == again.keys()
    assert all(torch.equal(stored[name], again[name]) for name in stored)


def test_generation_speed_draws_prompts_and_answers_from_the_whole_range(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = script("generation_speed")
    chats = [{"question": "Why? " * n, "answer": "So."} for n in range(1, 200)]
    monkeypatch.setattr(module, "SMOLLM2", "embedded")
    requests = module.requests_of([write(tmp_path / "chats.jsonl", *map(json.dumps, chats))])
    assert {count: len(own) for count, own in requests.items()} == module.AT_ONCE
    own = requests[64]
    assert len({tuple(each["ids"]) for each in own}) == 64
    assert min(len(each["ids"]) for each in own) < 40
    assert max(len(each["ids"]) for each in own) > 150
    assert min(each["tokens"] for each in own) < 8
    assert 200 < max(each["tokens"] for each in own) <= 300


def test_generation_speed_reports_means_with_intervals(script: Script, tmp_path: Path) -> None:
    report = script("generation_report")
    one = {"adapters": 0, "tokens": 100, "prompt_tokens": 50, "cached_tokens": 0, "first_token": 0.5, "peak_bytes": 2e9}
    runs = []
    for number, seconds in enumerate((1.0, 2.0, 4.0)):
        limits = {"bytes_per_second": 1e9, "fp32": 1e5, "bf16": 2e5}
        alone = {**one, "at_once": 1, "seconds": 100.5, "limits": True, "step_bytes": 1e6, "read_seconds": 0.5}
        cells = [{**one, "at_once": count, "seconds": seconds} for count in (1, 4)]
        with_adapters = [
            {**one, "at_once": 4, "seconds": seconds},
            {**one, "at_once": 4, "seconds": 2 * seconds, "adapters": 3},
        ]
        jobs = {"limits": [limits], f"{report.SMOLLM2}, tunesmith, fp32": [*cells, alone], "adapters": with_adapters}
        runs += [{"round": number, "job": job, "cells": own} for job, own in jobs.items()]
    runs.append({"round": 0, "job": f"{report.SMOLLM2}, llama.cpp, F32", "failed": "no such library"})
    done = {
        "machine": {"cores": 2, "processor": "any", "instructions": []},
        "versions": dict.fromkeys(("torch", "transformers", "xllamacpp"), "1"),
        "date": "2026-01-01",
        "at_once": {"1": 4, "4": 4},
        "weights": {report.SMOLLM2: {"prompt": 1000, "answer": 1500}},
        "runs": runs,
    }
    text = report.tables(done)
    half = 4.303 * 38.19 / 3**0.5
    assert f"| tunesmith, fp32 | 58 ± {half:.0f} | 58 ± {half:.0f} | 0.50 ± 0.00 | 2.0 ± 0.0 |" in text
    share = 100 * 2 * (50 * 1000 + 500) / 0.5 / 1e5
    assert f"| tunesmith, fp32 | {share:.0f} ± 0 | 50 ± 0 | 1010.1 ± 0.0 | 1 |" in text
    assert "| 3 | 29 ± 47 | 50 ± 0 | 2.0 ± 0.0 |" in text
    assert f"{report.SMOLLM2}, llama.cpp, F32 does not run: no such library" in text
    report.plot(done, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def test_serve_load_counts_times_that_had_not_ended_as_longer(script: Script) -> None:
    percentiles = script("serve_client").percentiles
    assert percentiles([0.1 * n for n in range(1, 101)], []) == {
        "50": pytest.approx(5.0), "95": pytest.approx(9.5), "99": pytest.approx(9.9), "longest": pytest.approx(10.0),
    }  # fmt: skip
    half_open = percentiles([1.0, 2.0, 3.0], [4.0, 4.0])
    assert (half_open["50"], half_open["95"], half_open["longest"]) == (3.0, None, 4.0)
    assert percentiles([1.0, 5.0], [2.0])["50"] == 5.0  # two thirds are beyond 2, and the one that ended took 5
    assert percentiles([], [3.0]) == {"50": None, "95": None, "99": None, "longest": 3.0}


@pytest.mark.long
def test_serve_load_measures_each_server_and_the_engine_alone(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    module, report = script("serve_load"), script("serve_report")
    limits = {"bytes_per_second": 1e9, "fp32": 1e11, "bf16": 1e11}
    for name, value in (
        ("ADAPTED_STREAMS", 2),
        ("TRIAL_SECONDS", 0.5),
        ("LLAMA_CPP_SETTINGS", [{"slots": 2, "flash_attention": True}]),
        ("in_own_process", lambda job: {"cells": [limits]}),
    ):
        monkeypatch.setattr(module, name, value)
    options = argparse.Namespace(
        chats=[write(tmp_path / "chats.jsonl", *map(json.dumps, CHATS))],
        model="embedded",
        servers=(report.OWN, "llama.cpp, F32", report.ALONE),
        levels=[3],
        adapters=[2],
        rounds=1,
        seconds=4.0,  # on a busy machine the slowest server writes a token a second
        results=tmp_path / "load.json",
    )
    (tmp_path / "files").mkdir()
    done = module.measure(options, tmp_path / "files")
    cells = [run for run in done["runs"] if run["server"] != "limits"]
    assert [(run["server"], run["streams"], run["adapters"]) for run in cells] == [
        (report.OWN, 3, 0), (report.OWN, 2, 2), ("llama.cpp, F32", 3, 0), (report.ALONE, 3, 0),
    ]  # fmt: skip
    for run in cells:
        assert not run["refused"], run
        if run["server"] == "tunesmith":  # others close connections now and then, which is counted
            assert not run["wrong"], run
        assert run["tokens"] >= 2, run
        assert 0 < run["first_token"]["50"] <= run["first_token"]["longest"], run
    assert json.loads((tmp_path / "load.json").read_text(encoding="utf-8")) == done


def client_job(address: str, streams: int, ends: list[int], seconds: float = 1.5) -> dict[str, Any]:
    def request(tokens: int, prompt_tokens: int = 0) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": "What is new?"}], "max_tokens": 4}
        return {"body": body, "tokens": tokens, "prompt_tokens": prompt_tokens}

    bias = {str(token): -100 for token in ends}
    return {
        "address": f"{address}/v1",
        "body": {"temperature": 0.0, "stream": True, "stream_options": {"include_usage": True}, "logit_bias": bias},
        "models": ["tiny"],
        "streams": streams,
        "seconds": seconds,
        "requests": [request(4)] * streams,
        "warm_up": request(4),
    }


@pytest.mark.long
def test_serve_loads_client_counts_refused_requests_and_answers_that_are_not_as_asked_for(script: Script) -> None:
    measured = script("serve_client").measured
    with served("embedded", concurrent=1, limits=Limits(queue=1)) as running:
        ends = sorted(running.service.model.generator.stops)
        good = asyncio.run(measured(client_job(running.address, 1, ends)))
        assert good["answers"] >= 3
        assert good["tokens"] >= 4 * good["answers"]
        assert not good["refused"]
        assert not good["wrong"]
        assert good["first_token"]["longest"] > 0

        many = asyncio.run(measured(client_job(running.address, 12, ends)))
        assert many["refused"].keys() == {"429"}
        assert 2 <= many["refused"]["429"] <= 24, "a stream waits as long as the server asks for"
        assert not many["wrong"]

        job = client_job(running.address, 2, ends)
        job["requests"][0] = {**job["requests"][0], "tokens": 5}
        job["requests"][1] = {**job["requests"][1], "prompt_tokens": 3}
        wrong = asyncio.run(measured(job))
        assert wrong["answers"] == 0
        reasons = sorted(wrong["wrong"])
        assert reasons[0] == "4 tokens in place of 5"
        assert reasons[1].startswith("a prompt of ")


def test_serve_load_reports_means_with_intervals_and_times_that_were_too_long(script: Script, tmp_path: Path) -> None:
    report = script("serve_report")

    def cell(
        server: str, number: int, streams: int, rate: float, p99: float | None = 0.4, **more: Any
    ) -> dict[str, Any]:
        first = {"50": 0.1 * (number + 1), "95": 0.3, "99": p99, "longest": 7.0}
        return {
            "round": number, "server": server, "streams": streams, "adapters": 0, "planned": 2.0, "seconds": 2.0,
            "answers": 3,
            "tokens": 2 * rate, "prompt_tokens": 100, "complete_prompt_tokens": 100, "cached_tokens": 20,
            "first_token": first, "between": first, "refused": {}, "wrong": {}, "client_cpu": 0.05, **more,
        }  # fmt: skip

    runs = [{"round": n, "server": "limits", "bytes_per_second": 1e9, "fp32": 1e6, "bf16": 1e6} for n in range(2)]
    for number in range(2):
        runs += [cell(report.OWN, number, 1, 50.0), cell(report.OWN, number, 8, 100.0 + 20 * number)]
        runs += [cell(report.ALONE, number, 8, 125.0 + 25 * number), cell(report.OWN, number, 8, 60.0, adapters=4)]
        runs += [cell("transformers", number, 8, 10.0, p99=None if number else 0.4, refused={"503": 2})]
    runs.append({"round": 0, "server": "llama.cpp, F32", "streams": 8, "adapters": 0, "failed": "no such library"})
    done = {
        "machine": {"cores": 2, "processor": "any", "instructions": []},
        "versions": dict.fromkeys(("torch", "transformers", "xllamacpp"), "1"),
        "date": "2026-01-01",
        "answers": {"tokens": [8, 128], "exponent": 2},
        "chats": ["chats.jsonl"],
        "weights": {"prompt": 1000, "answer": 1500},
        "runs": runs,
    }
    text = report.tables(done)
    half = 12.706 * 10 / 2**0.5 * 2**0.5
    times = "0.15 ± 0.64 | 0.30 ± 0.00 | 0.40 ± 0.00 | 150 ± 635 | 300 ± 0 | 400 ± 0"
    assert f"| tunesmith | 8 | 110 ± {half:.0f} | {times} | 6 | 0 |" in text
    unknown = "0.15 ± 0.64 | 0.30 ± 0.00 | > 7.00 | 150 ± 635 | 300 ± 0 | > 7000"
    assert f"| transformers | 8 | 10 ± 0 | {unknown} | 6 | 4 × status 503 |" in text
    read = 100 * 2 * 1500 * 50 / 1e9
    product = 100 * 2 * (80 * 1000 + 100 * 1500) / 2 / 1e6
    assert f"| tunesmith | {read:.0f} ± 0 | {product:.0f} ± 0 |" in text
    assert f"| 8 | 138 ± 159 | 110 ± {half:.0f} | 80 ± 0 | 150.0 ± 635.3 | 150.0 ± 635.3 |" in text
    assert "| 4 | 60 ± 0 | 55 ± 64 |" in text
    assert "llama.cpp, F32 with 8 streams was not possible: no such library" in text
    report.plot(done, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def test_serve_load_takes_chats_without_tools_up_to_a_users_message(script: Script, tmp_path: Path) -> None:
    module = script("serve_requests")
    chats = [
        {"messages": [{"role": "user", "content": f"Is {n} even?"}, {"role": "assistant", "content": "Yes."}]}
        for n in range(30)
    ]
    long = {"messages": [{"role": "user", "content": "word " * 500}, {"role": "assistant", "content": "Yes."}]}
    file = write(tmp_path / "chats.jsonl", *map(json.dumps, [*chats, long, chats[0]]))
    tokenizer = load_tokenizer(Base(path="embedded"))
    found = module.chats_of(tokenizer, [file])
    assert len(found) == 30
    requests = module.requests_of(found, 320)
    assert len({json.dumps(each["body"]["messages"]) for each in requests[:30]}) == 30
    lengths = sorted(each["tokens"] for each in requests[:160])
    assert (lengths[0], lengths[-1]) >= (8, 60)
    assert lengths[len(lengths) // 2] < 20
    assert len(module.chats_of(tokenizer, [])) > 2000, "made-up chats are different ones"


@pytest.mark.long
def test_startup_takes_the_time_to_a_first_token_apart(script: Script, tmp_path: Path) -> None:
    module = script("startup")
    parts = module.parts_of("embedded", tmp_path)
    assert len(parts) == 5
    assert min(parts.values()) > 0
    assert module.seconds_to_first_token("embedded", module.OWN, tmp_path) > 0.3 * sum(parts.values())


@pytest.mark.long
def test_data_speed_counts_the_tokens_that_the_library_has(script: Script, tmp_path: Path) -> None:
    module = script("data_speed")
    rows = module.make_rows(write(tmp_path / "source.jsonl", *map(json.dumps, CHATS)), 70, tmp_path)
    theirs, ours = module.encode(rows), module.prepared(rows)
    assert ours["tokens"] == theirs["tokens"] > 70
    table = module.table({"rows": {"70": {"prepare": ours, "encode_batch": theirs}}})
    assert table.splitlines()[-1].startswith("| 70 |")


@pytest.fixture(scope="module")
def random_mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gpu_speed's tiny model."""
    directory = tmp_path_factory.mktemp("mistral")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import_module("gpu_speed").make_model(directory, "tiny", "cpu")
    return directory


@pytest.mark.parametrize(
    ("trainer", "method"),
    [
        ("tunesmith", "lora"),
        pytest.param("tunesmith", "qlora", marks=pytest.mark.long),
        pytest.param("peft", "lora", marks=pytest.mark.long),
    ],
)
def test_gpu_speed_trains_on_a_cpu_too(
    trainer: str, method: str, random_mistral: Path, script: Script, tmp_path: Path
) -> None:
    options = argparse.Namespace(
        model=random_mistral,
        trainer=trainer,
        method=method,
        device="cpu",
        length=32,
        steps=4,
        out=tmp_path / "out.json",
    )
    script("gpu_speed").work(options)
    found = json.loads(options.out.read_text(encoding="utf-8"))
    assert len(found["seconds"]) >= 3
    assert found["tokens_per_second"] > 0


def test_gpu_generation_writes_on_a_cpu_too(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--shape", "tiny", "--device", "cpu", "--length", "9", "--new", "3", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu_generation.py", *options])
    module = script("gpu_generation")
    monkeypatch.setattr(module, "AT_ONCE", (1, 3))
    module.main()
    found = json.loads((tmp_path / "gpu_generation.json").read_text(encoding="utf-8"))["found"]
    assert [row["at once"] for row in found] == [1, 3] * 3
    assert all(row["tokens_per_second"] > 0 for row in found), found
    table = (tmp_path / "gpu_generation.md").read_text(encoding="utf-8")
    assert table.splitlines()[4].startswith("| tunesmith | ")


@pytest.mark.long
def test_quantized_memory_loads_and_trains(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("quantized_memory")
    sizes = {name: size for name, size in SHAPE.items() if name != "kind"}
    monkeypatch.setattr(module, "SHAPE", {**module.SHAPE, **sizes})
    monkeypatch.setattr(module, "WIDTH", 32)
    try:
        module.make(tmp_path / "model")
    finally:
        torch.set_default_dtype(torch.float32)
    loaded, trained = (act(str(tmp_path / "model"), "nf4") for act in (module.loading, module.training))
    assert loaded["arithmetic"] > 0
    assert trained["tokens_per_second"] > 0


@pytest.fixture
def planned(script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Any, dict[str, Any]]:
    """plan_accuracy with one tiny run, its base and its rows in `tmp_path`."""
    module = script("plan_accuracy")
    monkeypatch.setitem(module.BASES, "llama-5m", SHAPE)
    module.write_text(tmp_path)
    module.make_base("llama-5m", tmp_path)
    return module, {"base": "llama-5m", "method": "lora", "length": 32, "twice": False, "optimizer": "adamw"}


@pytest.mark.long
def test_plan_accuracy_and_arena_set_a_run_beside_its_plan(
    planned: tuple[Any, dict[str, Any]], script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, run = planned
    module.one_run(run, tmp_path)
    found = json.loads(capsys.readouterr().out.split("RESULT ")[1].splitlines()[0])
    assert min(*found["memory"], found["measured"], found["after"]) > 0
    arena = script("arena")
    glibc = arena.environments(tmp_path)["glibc, one arena"]
    peak, seconds = arena.measured(run, tmp_path, glibc)
    assert min(peak, seconds) > 0
    assert arena.summary([[peak, seconds]] * 3) == {"peak_bytes": peak, "seconds": seconds}
    runs = {"arena": [[2e6, 1.0]] * 3, "glibc": [[3e6, 0.5], [1e6, 0.9], [1e6, 0.8]]}
    assert arena.table([run | runs]).splitlines()[2] == (
        "| llama-5m, lora, 32 tokens | 2 MB, 1.00 s | 3 MB, 0.50 s (× 1.50, × 0.50) |"
    )


def preference_pairs(count: int) -> list[dict[str, Any]]:
    def answer(text: str) -> dict[str, str]:
        return {"from": "gpt", "value": text}

    return [
        {
            "conversations": [{"from": "human", "value": f"Question {n}: {'why? ' * 20}"}],
            "chosen": answer(f"Since {n} {'so ' * (60 + 20 * (n % 5))}"),
            "rejected": answer("no " * (60 + n % 7)),
        }
        for n in range(count)
    ]


def test_preference_speed_trains_on_the_rows_of_its_plan_in_each_step(
    script: Script, tiny_model: Path, tmp_path: Path
) -> None:
    work, module = script("preference_work"), script("preference_speed")
    pairs = work.pairs_of(preference_pairs(30))
    (tmp_path / "model").symlink_to(tiny_model)
    work.write_work(pairs, "made up", tmp_path / "model", tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    texts = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert len(texts) == plan["rows"] >= 6
    assert all(each["chosen"].startswith("Since") for each in texts)
    setting = module.settings_of("bf16")[0]
    recipe = Recipe.model_validate(module.recipe_of(setting, tmp_path, 3, "fp32"))
    table = prepare(recipe, load_tokenizer(Base(path=str(tiny_model)))).train
    assert table.lengths.tolist() == plan["tokens"][: 3 * plan["rows_per_step"]]
    batches = Batches(table, tokens_per_step=2048, tokens_per_batch=2048, pack=recipe.data.pack, shuffle=False, seed=0)
    assert [[row for rows in step for row in rows] for step in batches.epoch(0)] == plan["steps"][:3]


def test_preference_speed_makes_pairs_of_questions_with_answers(script: Script) -> None:
    first, second = script("preference_work").pairs_of(CHATS[:2])
    assert first["prompt"] == [{"role": "user", "content": CHATS[0]["question"]}]
    assert first["chosen"] == second["rejected"] == [{"role": "assistant", "content": CHATS[0]["answer"]}]


def test_preference_speed_counts_the_reference_and_compares_by_round(script: Script, tmp_path: Path) -> None:
    report = script("preference_speed_report")

    def result(peer: str, seconds: float, before: float, objective: str = "dpo", loss: float = 0.5) -> dict[str, Any]:
        steps = [{"seconds": 9.0, "tokens": 100, "loss": 0.6931}] * 2 + [
            {"seconds": seconds, "tokens": 100, "loss": loss}
        ] * 2
        return {
            "name": f"{peer}-{objective}", "label": {"ours": "Tunesmith"}.get(peer, "TRL"), "peer": peer,
            "objective": objective, "description": "as it is", "versions": {"torch": "2"}, "pairs_per_step": 4,
            "peak_rss_bytes": 1e9 if peer == "ours" else 2e9, "before": [[2, before]] if before else [], "steps": steps,
        }  # fmt: skip

    assert report.pairs_per_second([result("ours", 1.0, 0.5)]) == pytest.approx(4 / (1.0 + 4 * 0.25))
    assert report.pairs_per_second([result("trl", 1.0, 0.0)]) == pytest.approx(4.0)
    assert report.tokens_per_second(result("trl", 1.0, 0.0)) == pytest.approx(100.0)
    parameters = {
        "works": {"reference": "work"}, "date": "2026-01-01", "precision": "bf16", "steps": 4, "rounds": 2,
        "products_per_second": {"bf16": 4e6},
    }  # fmt: skip
    config = config_for("llama", layers=1, tie_word_embeddings=True)
    config.save_pretrained(tmp_path / "work" / "model")
    write(tmp_path / "run.json", json.dumps(parameters))
    plan = {"data_set": "any", "rows": 8, "rows_in_the_file": 9, "rows_per_step": 4, "parts": [[1, 2, 3]] * 8}
    write(tmp_path / "work" / "plan.json", json.dumps(plan))
    for number, seconds in enumerate((1.0, 2.0)):
        for peer, slower in (("ours", 1), ("trl", 4)):
            measured = result(peer, slower * seconds, 0.0)
            write(tmp_path / "reference" / f"{peer}-dpo-{number}.json", json.dumps(measured))
    for peer, loss in (("ours", 0.5), ("trl", 0.50001)):
        write(tmp_path / "reference" / f"{peer}-check-0.json", json.dumps(result(peer, 1.0, 0.0, "check", loss)))
    write(tmp_path / "reference" / "other-0.json", json.dumps({"name": "other", "failed": "no memory"}))
    found = report.summarize(tmp_path, tmp_path)
    text = report.table(found)
    assert "| Tunesmith | 3.00 ± 12.71 | 75 ± 318 |  | 1.00 GB |  |" in text
    assert "| TRL, as it is | 0.75 ± 3.18 | 19 ± 79 | 4.00 ± 0.00 × | 2.00 GB | 0.50 × |" in text
    assert "| reference other | did not run: no memory |" in text
    assert "differ by at most 1.0e-05; the first one is 0.6931" in text
    width, kept, inner = config.hidden_size, config.num_key_value_heads * config.head_dim, config.intermediate_size
    block = 2 * width * width + 2 * width * kept + 3 * width * inner
    rate = 4e6 / (6 * (6 * block + 5 * width * config.vocab_size))
    assert f"at {rate:.2f} pairs/s (Llama, 125 M random weights), at" in text
    assert f"Tunesmith has {400 / rate:.0f} % of that" in text


def test_preference_speed_times_a_step_of_rollouts_with_its_sampling(script: Script, tmp_path: Path) -> None:
    module, report = script("preference_speed"), script("preference_speed_report")
    steps = [{"seconds": 0.5, "tokens": 100, "loss": 0.0} for _ in range(4)]
    found = module.of_rollouts({"steps": steps, "seconds_between_events": [2.0, 4.0, 4.0], "before": []})
    assert [step["seconds"] for step in found["steps"]] == [0.5, 2.0, 4.0, 4.0]
    assert report.pairs_per_second([found]) == module.GRPO_PROMPTS * module.GRPO_GROUP / 4.0
    rows = [{"prompt": [{"role": "user", "content": str(n)}], "chosen": [], "rejected": []} for n in range(20)]
    write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path / "plan.json", json.dumps({"rows_per_step": 2}))
    (setting,) = (each for each in module.settings_of("bf16") if each.name == "ours-grpo")
    recipe = Recipe.load(module.recipe_of(setting, tmp_path, 3, "bf16"))
    assert recipe.objective.rollouts is not None
    assert recipe.objective.rollouts.prompts * 3 == len(Path(recipe.data.train[0]).read_text().splitlines())


def test_the_pipeline_of_preference_quality_is_one_recipe_that_samples_as_often_in_each_way(script: Script) -> None:
    module = script("preference_pipeline")
    pipeline = Pipeline.load(module.recipe_of("embedded", Path("rows"), 3))
    assert pipeline is not None
    assert pipeline.names == ("task", "preferences", *module.WAYS)
    policies = [recipe for recipe in pipeline.recipes if recipe.objective.rollouts is not None]
    assert len(policies) == len(module.WAYS)
    assert {recipe.objective.rollouts.samples for recipe in policies} == {module.GROUP}
    assert {recipe.train.steps for recipe in policies} == {module.PHASES}
    assert [recipe.base.path for recipe in policies][-2:] == ["stage:task", "stage:grpo"]


@pytest.mark.parametrize("name", ["sums", "animals"])
def test_no_question_of_preference_checks_is_both_trained_on_and_measured(script: Script, name: str) -> None:
    module = script("preference_checks")
    held_out, examples, prompts = module.rows_of(module.TASKS[name], 1)
    assert (len(held_out), len(examples), len(prompts)) == (module.HELD_OUT, module.EXAMPLES, module.PROMPTS)
    questions = [row["question"] for row in (*held_out, *examples, *prompts)]
    assert len(set(questions)) == len(questions)
    for row in held_out:
        if name == "animals":
            words = row["question"].partition(": ")[2].rstrip("?").split(", ")
            assert row["answer"].split(", ") == [word for word in words if word in module.ANIMALS]
            assert 0 < len(row["answer"].split(", ")) < len(words) == module.WORDS
        else:
            first, second = row["question"].removeprefix("What is ").removesuffix("?").split(" + ")
            assert int(row["answer"]) == int(first) + int(second)


def test_preference_checks_shows_by_how_much_grpo_is_better(script: Script) -> None:
    quality, module = script("preference_quality"), script("preference_checks")
    figures = {"base": 0.0, "best_of_n": 0.3, "expert": 0.45, "any_of_n": 0.5}
    trials = [{**figures, "examples": 0.2, "grpo": 0.4}, {**figures, "examples": 0.2, "grpo": 0.44}]
    lines = module.checked_table("animals", trials, quality._over)
    assert lines[4:7] == [
        "| 96 examples | 20% | 22 ± 25 points |",
        "| best-of-n, trained on once | 30% | 12 ± 25 points |",
        "| expert iteration | 45% | -3 ± 25 points |",
    ]


def test_ranking_coverage_counts_intervals_that_hold_the_truth(script: Script) -> None:
    module = script("ranking_coverage")
    settings = [module.Setting(3, 30, 2, 0.5)]
    (row,) = module.run(40, settings)["rows"]
    assert 0.8 <= row["strength"] <= 1
    assert row["called_different"] <= 0.2
    strengths = np.array([3.0, 0.0, -3.0])
    first, second, outcomes, questions = module.votes_of(settings[0], strengths, np.random.default_rng(0))
    assert len(outcomes) == 3 * 30 * 2
    assert (outcomes[(first == 0) & (second == 2)] == 0).mean() > 0.9
    assert set(questions) == set(range(30))


@pytest.mark.long
def test_afterwards_memory_reads_the_plan_and_the_peak(
    planned: tuple[Any, dict[str, Any]], script: Script, tmp_path: Path
) -> None:
    accuracy, run = planned
    module = script("afterwards_memory")
    base = module.stored_in_fp32(tmp_path / "llama-5m")
    recipe = accuracy.recipe_of(run, base, tmp_path / "text.jsonl")
    file = write(tmp_path / "recipe.json", json.dumps(recipe))
    plan = module.predicted(file)
    assert sum(plan["merging"].values()) > 0
    assert sum(plan["serving"].values()) > 0
    assert module.peak_of("schema") > 0


@pytest.mark.long
def test_the_quality_scripts_run_a_trial(script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    methods = script("method_quality")
    for module in (methods, script("stage_quality"), script("distillation_quality")):
        monkeypatch.setattr(module, "STEPS", 5)
    trial = methods.trial("gsm8k", "lora", None, 0)
    assert trial["after"] < trial["before"]
    assert trial["general"] > 0

    stages = script("stage_quality")
    stages.write_data()
    assert stages.trial("slices", "five slices in turn, with replay", 0)["task"] > 0

    distillation = script("distillation_quality")
    for constant, value in (("ROWS", 20), ("QUESTIONS", 4), ("TESTED", 4), ("TEACHER_STEPS", 2)):
        monkeypatch.setattr(distillation, constant, value)
    distillation.write_data()
    distillation.teacher()
    for way in distillation.WAYS:
        assert distillation.trial(way, 0)["loss"] > 0

    encoder = script("encoder_quality")
    monkeypatch.setattr(encoder, "TASKS", {"rotten tomatoes": (20, 8, 1)})
    for by in encoder.BY:
        assert 0 <= encoder.trial(by, "rotten tomatoes", "full", None, 0)["accuracy"] <= 1

    few = script("few_quality")
    monkeypatch.setattr(few, "TESTED", 8)
    monkeypatch.setattr(few, "EPOCHS", {4: 1})
    for way in few.WAYS:
        if way != "SetFit":  # it runs in an environment of its own
            assert 0 <= few.trial("rotten tomatoes", way, 4, 0)["accuracy"] <= 1


@pytest.mark.long
def test_demo_quality_makes_a_row_for_base_and_tuned_model_and_resumes(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("demo_quality")
    monkeypatch.setattr(module, "STEPS", {"embedded": 1})
    monkeypatch.setattr(module, "RESULTS", tmp_path / "demo_quality.jsonl")
    arguments = ["demo_quality.py", "--held-out", "4", "--seeds"]
    monkeypatch.setattr("sys.argv", [*arguments, "1"])
    module.main()
    (one,) = map(json.loads, capsys.readouterr().out.splitlines()[-1:])
    assert one["steps"] == 1
    assert one["base"].keys() == one["tuned"].keys() == module.COLUMNS.keys()
    module.main()
    assert not capsys.readouterr().out  # the trial is not repeated

    stored = [json.loads(line) for line in module.RESULTS.read_text(encoding="utf-8").splitlines()]
    assert stored == [one] == module.finished([("embedded", one["setting"])])
    assert module.finished([("embedded", "another recipe")]) == []
    monkeypatch.setattr(module, "STEPS", {"embedded": 2})
    assert module.finished([("embedded", one["setting"])]) == []

    other = {**one, "seed": 1, "tuned": {**one["tuned"], "loss": one["tuned"]["loss"] + 0.2}}
    lines = module.table([one, other]).splitlines()
    assert lines[2].startswith(f"| embedded | {one['base']['loss']:.3f} |")
    half = 12.706 * 0.2 / 2**0.5 / 2**0.5
    assert lines[3].startswith(f"| tuned, 1 steps, 2 seeds | {one['tuned']['loss'] + 0.1:.3f} ± {half:.3f} |")


@pytest.mark.long
def test_evaluation_study_evaluates_each_trial_once_and_writes_tables_and_plot(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("evaluation_study")
    numbers = ("one", "two", "three", "four", "five", "six", "seven", "eight")
    write(module.DATA / "commongen" / "train.concepts.txt", *(f"dog run {each}" for each in numbers for _ in "ab"))
    write(module.DATA / "commongen" / "train.sentences.txt", *(f"{each} dogs run ." for each in numbers for _ in "ab"))
    tales = (f"Tale {n} is about a king who had {n} daughters and one horse .\n " for n in range(9))
    write(module.DATA / "wikitext2" / "test.txt", *tales)
    pair = "He was poor,She was poor,stereo,gender"
    write(
        module.DATA / "crows_pairs" / "crows_pairs_anonymized.csv",
        "sent_more,sent_less,stereo_antistereo,bias_type",
        *[pair] * 4,
    )
    intents = [f"where is my {thing} number {n},{thing}" for thing in ("card", "money") for n in range(4)]
    for part in ("train", "test"):
        write(module.DATA / "banking77" / f"{part}.csv", "text,category", *intents)
    monkeypatch.setattr(module, "SIZES", module.Sizes(2, 128, 4, 4, 2, 4, 2, 2, 4))
    monkeypatch.setattr(module, "BASE", "embedded")
    monkeypatch.setattr(module, "METHOD", "lora")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "evaluation_study.jsonl")
    tasks = {name: replace(module.TASKS[name], rates=(1e-3,)) for name in ("commongen", "banking77")}
    monkeypatch.setattr(module, "TASKS", tasks)
    monkeypatch.setattr("sys.argv", ["evaluation_study.py"])
    module.main()
    assert capsys.readouterr().out.count(": done") == 3
    module.main()
    assert not capsys.readouterr().out, "no trial is repeated"

    plain, replayed, classified = module.done()
    assert [each["replay"] for each in (plain, replayed, classified)] == [False, True, False]
    suites = {name.partition(".")[0] for name in plain["figures"] if "." in name}
    assert suites == {"forgetting", "bias", "topic", "memorization"}
    assert {"loss", "coverage", "rouge_l"} <= plain["figures"].keys()
    assert 0 <= classified["figures"]["accuracy"]["tuned"]["value"] <= 1
    assert module.RESULTS.with_suffix(".md").read_text(encoding="utf-8") == module.table(module.done())
    assert module.RESULTS.with_suffix(".svg").stat().st_size > 1000


def test_faults_are_planted_in_a_share_of_the_rows(script: Script) -> None:
    module = script("training_faults")
    rows = [{"question": f"q{n}", "answer": "One two three four five six.", "label": "ab"[n % 2]} for n in range(50)]
    for fault in module.FAULTS:
        made, faulty = module.planted(rows, fault, 0.2, 0)
        assert len(faulty) == 10
        assert {n for n in range(50) if made[n] != rows[n]} == set(faulty)
        assert module.planted(rows, fault, 0.2, 1)[1] != faulty
    assert len({json.dumps(row) for row in module.planted(rows, "duplicates", 0.2, 0)[0]}) == 40


def test_data_quality_says_what_faults_add_and_how_much_of_it_is_won_back(script: Script, tmp_path: Path) -> None:
    report, module = script("data_quality_report"), script("data_quality")
    rows, faulty = [{"a": "x"}, {"a": "y"}, {"a": "x"}, {"a": "z"}], [2]
    assert module.outcome(rows, {0, 3}, faulty) == {"found": 1, "wrongly_dropped": 1}
    about = {"share": 0.2, "setting": asdict(module.SIZES), "date": "2026-11-30", "machine": "here", "accuracy": None}
    counts = {"rows": 90, "planted": 20, "found": 9, "wrongly_dropped": 1}
    losses = {("", "clean"): 1.0, ("cut answers", "dirty"): 1.4, ("cut answers", "cleaned"): 1.1}
    trials = [
        {"task": "problems", "fault": fault, "arm": arm, "seed": seed, "loss": loss + 0.01 * seed, **about, **counts}
        for seed in (0, 1) for (fault, arm), loss in losses.items()
    ]  # fmt: skip
    assert report.table(trials).splitlines()[-1] == (
        "| word problems, embedded base | cut answers | 1.005 | +0.400 ± 0.000 | +0.100 ± 0.000 | 75% |  | 45% | 1.2% |"
    )
    report.plot(trials, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def write_small_sets(directory: Path) -> None:
    """Messages with two intents, and word problems."""
    intents = [f"where is my {thing} number {n},{thing}" for thing in ("card", "money") for n in range(12)]
    problem = {"question": "Why does the number {} grow?", "answer": "It <<1+1=2>>2 grows by one.\n#### {}"}
    problems = [json.dumps({name: text.format(n) for name, text in problem.items()}) for n in range(20)]
    for part in ("train", "test"):
        write(directory / "banking77" / f"{part}.csv", "text,category", *intents)
        write(directory / "gsm8k" / f"{part}.jsonl", *problems)


@pytest.mark.long
def test_data_quality_trains_each_arm_once(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("data_quality")
    write_small_sets(module.DATA)
    sizes = module.Sizes(2, 10, 6, 12, 4, (1, 1), (64, 128))
    monkeypatch.setattr(module, "SIZES", sizes)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "data_quality.jsonl")
    monkeypatch.setattr("sys.argv", ["data_quality.py", "--seeds", "1"])
    module.main()
    assert capsys.readouterr().out.count(": done") == 12
    module.main()
    assert not capsys.readouterr().out, "no trial is repeated"
    cleaned = {each["fault"]: each for each in module.done() if each["arm"] == "cleaned" and each["task"] == "problems"}
    assert cleaned["duplicates"]["found"] >= cleaned["duplicates"]["planted"]
    assert module.RESULTS.with_suffix(".svg").stat().st_size > 1000


def test_data_selection_shows_each_way_beside_random_rows(script: Script) -> None:
    module = script("data_selection")
    about = {"task": "intents", "rows": 150, "date": "2026-11-30", "machine": "here"}
    losses = {"random": 1.0, "quality": 1.25, "diversity": 0.75}
    trials = [
        {"way": way, "seed": seed, "loss": loss + 0.01 * seed, **about}
        for seed in (0, 1)
        for way, loss in losses.items()
    ]
    assert module.table(trials).splitlines()[-3:] == [
        "| intents, MiniLM | 150 | random | 1.005 |  |",
        "| intents, MiniLM | 150 | diversity | 0.755 | -0.250 ± 0.000 |",
        "| intents, MiniLM | 150 | quality | 1.255 | +0.250 ± 0.000 |",
    ]


@pytest.mark.long
def test_data_selection_trains_each_way_once(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quality, module = script("data_quality"), script("data_selection")
    write_small_sets(quality.DATA)
    for each in (quality, module):
        monkeypatch.setattr(each, "SIZES", quality.Sizes(2, 10, 6, 12, 4, (1, 1), (64, 128)))
    monkeypatch.setattr(module, "RESULTS", tmp_path / "data_selection.jsonl")
    monkeypatch.setattr("sys.argv", ["data_selection.py", "--seeds", "1"])
    module.main()
    assert capsys.readouterr().out.count(": done") == len(module.done()) == 9
    module.main()
    assert not capsys.readouterr().out, "no trial is repeated"


def test_evaluation_study_says_which_data_is_not_there(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("evaluation_study")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "evaluation_study.jsonl")
    monkeypatch.setattr(module, "DATA", tmp_path / "none")
    monkeypatch.setattr("sys.argv", ["evaluation_study.py"])
    module.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(module.TASKS)
    assert all("is left out: there is no " in line for line in lines)
    assert not list(tmp_path.glob("evaluation_study.*"))


def test_evaluation_study_reports_falls_of_the_loss_as_gains(script: Script) -> None:
    report = script("evaluation_study_report")

    def figure(value: float, low: float, high: float, verdict: str, unit: str = "share") -> dict[str, Any]:
        own = {"value": 0.5, "interval": [0.4, 0.6], "rows": 9}
        change = {"value": value, "interval": [low, high], "verdict": verdict}
        return {"unit": unit, "base": own, "tuned": own, "difference": change}

    figures = {
        "loss": figure(-0.3, -0.4, -0.1, "better", "nats"),
        "coverage": figure(0.2, -0.1, 0.5, "not shown"),
        "forgetting.general_loss": figure(0.05, 0.01, 0.09, "worse", "bits"),
        "forgetting.general_divergence": figure(0.0, 0.0, 0.0, "not shown", "nats") | {"base": None},
    }
    setting = {"steps": 1, "tokens_per_step": 2, "trained": 3, "held_out": 4, "answered": 5, "suite_rows": 6}
    trial = {
        "task": "commongen", "rate": 3e-4, "replay": True, "setting": setting, "date": "2026-01-01", "machine": "any",
        "figures": figures,
    }  # fmt: skip
    point = report.point_of(trial)
    assert (point.name, point.gain, point.gain_interval) == ("3e-4 + replay", 0.3, (0.1, 0.4))
    assert (point.forgetting, point.forgetting_interval) == (0.05, (0.01, 0.09))
    text = report.table([trial])
    assert (
        "| commongen | 3e-4 + replay | **0.300** (0.100 to 0.400) | coverage 50 → 50 % (+20; -10 to 50) | "
        "**0.050** (0.010 to 0.090) |  | 0.50 (0.40 to 0.60) |"
    ) in text
    others = {**figures, "loss": {**figures["loss"], "base": {**figures["loss"]["base"], "value": 0.7}}}
    with pytest.raises(ValueError, match="The trials of commongen have different rows"):
        report.table([trial, trial | {"rate": 1e-3, "figures": others}])
    first = text.index("| commongen | 3e-4 + replay |")
    text = report.table([trial | {"rate": 1e-3}, trial])
    assert text.index("| commongen | 3e-4 + replay |") == first, "in the order of the rates"


@pytest.mark.long
def test_compare_study_runs_all_ways_to_a_need(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path, reading: Path
) -> None:
    module = script("compare_study")
    legal = {str(n): {"original_text": f"Party {n} pays.", "reference_summary": f"{n} pays."} for n in range(36)}
    write(module.DATA / "legal_summarization" / "all.json", json.dumps(legal))
    style = replace(module.NEEDS["style"], answer=2, steps=1, shots=(1,))
    values = {"BASE": str(tiny_model), "ENCODER": str(reading / "vectors"), "HELD_OUT": 10, "METHOD": {"kind": "lora"}}
    for name, value in values.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "NEEDS", {"style": style})
    result = module.compared("style", tmp_path / "study")
    assert set(module.KEPT) <= result.keys()
    assert {"plain", "prompt", "few_shot", "tuned"} <= result["ways"].keys()
    kept = json.dumps({key: result[key] for key in module.KEPT})
    assert str(tmp_path) not in kept.replace(str(tiny_model), ""), "what is stored names no file"


def test_compare_study_stores_each_need_once_with_table_and_plot(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("compare_study")
    way = {"rouge_l": {"value": 0.25, "interval": [0.2, 0.3]}, "latency": {"p50": 1.5}, "cost": {"seconds": 1.5}}
    found = dict.fromkeys(module.KEPT) | {
        "rows": 3, "training_rows": 6, "development_rows": 1, "metric": "rouge_l",
        "figures": {"rouge_l": {"title": "R"}},
        "ways": {"plain": way, "tuned": way | {"rouge_l": {"value": 0.5, "interval": [0.4, 0.6]}}},
        "recommendation": {"way": "tuned", "certain": True, "because": ["tuned is better."]},
    }  # fmt: skip

    def compared(name: str, directory: Path) -> dict[str, Any]:
        directory.mkdir(parents=True)
        module.NEEDS[name].write(directory)
        rows = [
            (directory / f"{part}.jsonl").read_text(encoding="utf-8").splitlines() for part in ("train", "held_out")
        ]
        assert [len(each) for each in rows] == [6, 4], "every third is held out"
        assert not set(rows[0]) & set(rows[1])
        return found | {"not kept": str(directory)}

    monkeypatch.setattr(module, "compared", compared)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "compare_study.json")
    arguments = ["--work", str(tmp_path / "study"), "--needs", "classification", "style"]
    module.main(arguments)
    assert "classification is left out: " in capsys.readouterr().out
    stored = json.loads(module.RESULTS.read_text(encoding="utf-8"))
    assert list(stored) == ["style"]
    assert set(stored["style"]) == {*module.KEPT, "machine", "date"}
    table = module.RESULTS.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    assert table[2:8] == [
        "| way | style (terms in plain English): R |",
        "|---|---:|",
        "| plain | 25 % [20, 30], 1.5 s |",
        "| tuned | **50 % [40, 60], 1.5 s** |",
        "| rows: training / development / held-out | 6 / 1 / 3 |",
        "| verdict | **tuned** |",
    ]
    assert module.RESULTS.with_suffix(".svg").stat().st_size > 1000
    monkeypatch.setattr(module, "compared", None)
    module.main(arguments)
    assert json.loads(module.RESULTS.read_text(encoding="utf-8")) == stored, "no need is repeated"


def test_prompt_search_study_runs_the_race_on_the_same_answers_in_other_orders(script: Script) -> None:
    module = script("prompt_search_study")
    names = [str(row) for row in range(32)]

    def figure(*right: int) -> Measured:
        return mean_of([float(row in right) for row in range(32)], names, "right", "")

    assert module.on(figure(1, 3), np.array([3, 5])).value == 0.5
    best = {"best": figure(*range(32)), **{name: figure(*range(8)) for name in "abc"}}
    assert module.raced_again(best, 0) == (0, 16 * 4), "all others are shown to be worse in the first round"
    order = np.random.default_rng(0).permutation(32)
    early, late = figure(*order[:16]), figure(*order[8:])
    below, answers = module.raced_again({"early": early, "late": late, "b": early, "c": early}, 0)
    assert (below, answers) == (0.25, 16 * 4 + 16 * 2), (
        "it left after the first round, though it is the best on all rows"
    )


def test_prompt_search_study_has_a_row_for_each_seed(script: Script) -> None:
    shown = {"value": 0.3, "interval": [0.1, 0.5], "verdict": "better"}
    sides = {side: {"value": value} for side, value in (("plain", 0.2), ("raced", 0.5), ("best", 0.45))}
    trial = {
        "need": "intents", "seed": 1, "setting": {"development": 48}, "date": "2026-01-01", "machine": "any",
        "candidates": 12, "answers": [200, 576], "raced": "a", "best": "b", "orders": [[0.0, 200], [0.1, 210]],
        "held_out": {"rows": 100, **sides, "gain": shown},
    }  # fmt: skip
    same = trial | {"best": "a", "held_out": trial["held_out"] | {"gain": None}}
    assert script("prompt_search_study").table([trial, same]).splitlines()[-2:] == [
        "| intents, 1 | 200 of 576 (35%) | 50% (5.0; 10.0) | a | b | 20 → 50 % | **+30** (10 to 50) | 45 % |",
        "| intents, 1 | 200 of 576 (35%) | 50% (5.0; 10.0) | a | the same | 20 → 50 % |  | 45 % |",
    ]


@pytest.mark.long
def test_prompt_search_study_races_and_tries_everything_once(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("prompt_search_study")
    for part in ("train", "test"):
        intents = [f"{part} where is my {thing} number {n},{thing}" for thing in ("card", "money") for n in range(20)]
        write(module.DATA / "banking77" / f"{part}.csv", "text,category", *intents)
    values = {"BASE": "embedded", "SIZES": module.Sizes(12, 40, 6, 1, 2, 3), "RESULTS": tmp_path / "study.jsonl"}
    for name, value in values.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("sys.argv", ["prompt_search_study.py", "--seeds", "1"])
    module.main()
    printed = capsys.readouterr().out
    assert "intents, 0: done" in printed
    assert "sentences is left out: there is no " in printed
    (trial,) = module.done()
    raced, every = trial["answers"]
    assert (trial["candidates"], every) == (12, 144)
    assert raced < every
    assert trial["values"][trial["best"]] == max(trial["values"].values())
    assert trial["held_out"]["rows"] == 6
    module.main()
    assert ": done" not in capsys.readouterr().out, "no trial is repeated"
    assert module.RESULTS.with_suffix(".md").read_text(encoding="utf-8") == module.table([trial])


def test_retrieval_speed_builds_many_chunks_and_times_each_way(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: Path
) -> None:
    module = script("retrieval_speed")
    text = "".join(f"# Part {n}\n\nw{n} w{n * 3 % 17} good film.\n\n" for n in range(40))
    write(tmp_path / "documents" / "a.md", text)
    values = {"documents": lambda: tmp_path / "documents", "ENCODER": str(reading / "vectors"), "CHUNKS": 400,
              "DOCUMENTS": 4, "VECTORS": 20, "QUESTIONS": ("w3 good", "w9"), "REPEATS": 1, "K": 3}  # fmt: skip
    for name, value in values.items():
        monkeypatch.setattr(module, name, value)
    found = {"rate": module.rate(), "encoded": module.encoded(), "million": module.million()}
    assert found["million"]["chunks"] == 400
    hits = module.own_search("text")("chunk123")
    assert [hit.text.split()[0] for hit in hits] == ["chunk123"]
    first = module.own_search("dense")("w3 good")[0].chunk
    assert module.numpy_search()("w3 good")[0] == first
    assert module.bm25s_search()("chunk123")[0][0][0] == hits[0].chunk
    found |= {way: module.queries(way) for way in ("text", "dense", "weighted", "bm25s", "numpy")}
    for part in found.values():
        part |= {"peak_bytes": 1e9, "load": 0.0}
    assert module.table(found).count("\n| ") == 8 + 1


def test_retrieval_quality_finds_what_brute_force_finds(
    script: Script, monkeypatch: pytest.MonkeyPatch, reading: Path
) -> None:
    module = script("retrieval_quality")
    monkeypatch.setattr(module, "ENCODER", str(reading / "vectors"))
    passages = {str(n): f"w{n} w{n * 3 % 17} good film" for n in range(40)}
    found = {"words": module.quality("words", passages, [(f"which is w{n}", [str(n)]) for n in range(40)])}
    same = found["words"]["same"]
    assert same["text"] == same["dense"] == same["questions"] > 10
    assert module.table(found).count("\n") == 2 + len(module.WAYS) + 1


def test_quantization_table_has_a_row_for_each_form_with_what_it_lost(script: Script) -> None:
    def form(loss: float, memory: float, speed: float | None) -> dict[str, Any]:
        figures = {"loss": {"value": loss}, "fields": {"value": 0.5, "interval": [0.25, 0.75]}}
        figures["quantization.memory"] = {"value": memory}
        return figures if speed is None else {**figures, "quantization.tokens_per_second": {"value": speed}}

    rose = {"loss": {"value": 0.1, "interval": [0.05, 0.2], "verdict": "worse"}}
    found = {
        "date": "2026-01-01", "setting": {"steps": 1, "tokens_per_step": 2, "rows": 3, "answered": 4},
        "models": {"fp32": form(1.0, 540.4, 30.0), "nf4": form(1.1, 180.0, None)}, "differences": {"nf4": rose},
    }  # fmt: skip
    assert script("quantization_table").table(found).splitlines()[-2:] == [
        "| fp32 | 1.000 |  | 50% (25% to 75%) | 540 | 30 |",
        "| nf4 | 1.100 | **+0.1000** (+0.0500 to +0.2000) | 50% (25% to 75%) | 180 |  |",
    ]


@pytest.mark.long
def test_quantization_table_trains_and_measures_each_form(
    script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = script("quantization_table")
    for name, value in {"BASE": "embedded", "METHOD": "lora", "KINDS": "fp32,int8", "STEPS": 2}.items():
        monkeypatch.setattr(module, name, value)
    for name, value in {"ANSWERED": 2, "ANSWER": 4, "HELD_OUT": 4}.items():
        monkeypatch.setattr(module, name, value)
    found = module.measured(tmp_path)
    assert list(found["models"]) == ["fp32", "int8"]
    assert list(found["differences"]) == ["int8"]
    assert len(module.table(found).splitlines()) == 6


@pytest.mark.long
def test_a_small_chat_model_is_shown_to_be_a_poor_judge(script: Script, tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct, on answers that a rule labels; `test_judging` has a judge of random weights."""
    module = script("judge_trust")
    found = module.judged(tmp_path)
    about = found["about"]
    assert about["labels"] + about["unread"] >= found["questions"]
    assert about["itself"]["value"] < 0.8, "its verdict depends on the order of the answers"
    assert about["kappa"]["value"] < 0.6, "and it seldom says what the rule says"
    assert "agrees with the labels" in module.table(found)


def test_judge_trust_shows_agreement_and_what_the_labels_say(script: Script) -> None:
    entry = {"value": 0.5, "interval": [0.25, 0.75]}
    about = {"unread": 1, "replies": 48, "itself": {**entry, "chance": 0.4}, "people": entry, "kappa": entry}
    found = {
        "date": "2026-01-01", "questions": 24, "right": [1, 12], "by_labels": 0.7, "wins": entry,
        "about": {**about, "corrected": entry},
    }  # fmt: skip
    rows = [line for line in script("judge_trust").table(found).splitlines() if line.startswith("| ")]
    assert rows[1:4] == [
        "| replies that could not be read | 1 of 48 |",
        "| agrees with itself, the answers in the other order | 50% (25% to 75%) |",
        "| by chance it would | 40% |",
    ]
    assert rows[-1] == "| beyond chance (kappa) | 0.50 (0.25 to 0.75) |"
