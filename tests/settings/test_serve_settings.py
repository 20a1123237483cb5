"""Every option of `tunesmith serve` and `tunesmith keys` does what its help says, tested through the command line."""

import io
import json
import os
import re
import shlex
import signal
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import openai
import pytest
import torch
from bigram import letters_model
from bytewise import byte_tokenizer
from command import typed
from running_server import save_adapter
from settings_coverage import shows
from torch import Tensor

from tunesmith.cli import main
from tunesmith.data.example import Example
from tunesmith.data.format_detection import chosen_format
from tunesmith.data.read import Row, read
from tunesmith.data.row_formats import to_example
from tunesmith.inference.model import load
from tunesmith.inference.paged_model import PagedModel
from tunesmith.objectives.kto import KTO
from tunesmith.serving.server import listen

QUESTION: list[Any] = [{"role": "user", "content": "Hi"}]
TLS = Path(__file__).parent.parent / "serving"


def serve(*arguments: Any, then: Callable[[str], None] = lambda address: None) -> tuple[str, str]:
    """Run `tunesmith serve ARGUMENTS` until `then`, which gets the address, returns; SIGTERM ends it.

    Returns:
        What is on standard output and in the log.
    """
    out, log = io.StringIO(), io.StringIO()
    errors: list[BaseException] = []

    def use() -> None:
        try:
            while (found := re.search(r"at (\S+)/v1\.", out.getvalue())) is None:
                time.sleep(0.01)
            then(found[1])
        except BaseException as error:
            errors.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=use, daemon=True)
    with patch("sys.argv", ["tunesmith", "serve", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(log):
        thread.start()
        with pytest.raises(SystemExit) as end:
            main()
    thread.join()
    assert not end.value.code, log.getvalue()
    for error in errors:
        raise error
    return out.getvalue(), log.getvalue()


def chat(address: str, key: str = "none", **more: Any) -> Any:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60) as client:
        options = {"model": "llama", "messages": QUESTION, "max_completion_tokens": 6, **more}
        return client.chat.completions.create(**options)


def text(address: str, **more: Any) -> str:
    return str(chat(address, **more).choices[0].message.content)


@shows("tunesmith serve model", "tunesmith serve --port", "tunesmith serve --name", "tunesmith serve --temperature")
def test_serve_answers_on_the_port_as_the_name_with_the_temperature(tiny_model: Path) -> None:
    expected = load(tiny_model).generate("Hi", max_new_tokens=6)[0].text

    def use(address: str) -> None:
        assert text(address, model="mine") == expected

    out, _ = serve(tiny_model, "--port", 0, "--name", "mine", "--temperature", 0, then=use)
    assert re.fullmatch(
        rf"Serving {re.escape(str(tiny_model))} at http://127\.0\.0\.1:\d+/v1\. Ctrl-C stops it\.\n", out
    )
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        refused = typed("serve", str(tiny_model), "--port", str(port))
    assert refused.returncode == 2
    assert f"127.0.0.1:{port} cannot be used: Address already in use" in refused.stderr


@shows("tunesmith serve --adapter", "tunesmith serve --adapters")
def test_serve_has_adapters_by_name_and_in_a_directory(tiny_model: Path, tmp_path: Path) -> None:
    one = save_adapter(tiny_model, tmp_path / "a", "up_proj")
    save_adapter(tiny_model, tmp_path / "more" / "two", "down_proj")
    loaded = load(tiny_model)
    loaded.load_adapter("one", one)
    loaded.load_adapter("two", tmp_path / "more" / "two")

    def use(address: str) -> None:
        for name in ("one", "two"):
            expected = loaded.generate("Hi", max_new_tokens=6, adapter=name)[0].text
            assert text(address, model=name, temperature=0) == expected

    serve(tiny_model, "--port", 0, "--adapter", f"one={one}", "--adapters", tmp_path / "more", then=use)
    refused = typed("serve", str(tiny_model), "--adapter", "one")
    assert refused.stderr == "error: --adapter one is not NAME=RUN.\n"
    assert refused.returncode == 2


@shows("tunesmith serve --host", "tunesmith serve --api-key-file")
@shows("tunesmith keys add file", "tunesmith keys add name", "tunesmith keys add --model")
@shows("tunesmith keys add --tokens-per-minute", "tunesmith keys list file")
@shows("tunesmith keys remove file", "tunesmith keys remove name")
def test_an_address_that_others_can_reach_needs_keys(tiny_model: Path, tmp_path: Path) -> None:
    refused = typed("serve", str(tiny_model), "--host", "0.0.0.0")
    assert refused.returncode == 2
    assert "host 0.0.0.0 can be reached from other machines, so clients need a key" in refused.stderr
    file = str(tmp_path / "keys.json")
    rights = ["--model", "llama", "--tokens-per-minute", "500"]
    key, other = (typed("keys", "add", file, name, *rights).stdout.strip() for name in ("mine", "other"))
    assert typed("keys", "add", file, "mine").returncode == 2
    listed = typed("keys", "list", file).stdout.splitlines()
    assert listed == ["mine: llama; 500 tokens a minute", "other: llama; 500 tokens a minute"]
    typed("keys", "remove", file, "other")
    assert len(typed("keys", "list", file).stdout.splitlines()) == 1

    def use(address: str) -> None:
        local = address.replace("0.0.0.0", "127.0.0.1")
        assert chat(local, key=key).model == "llama"
        with pytest.raises(openai.AuthenticationError):
            chat(local, key=other)

    serve(tiny_model, "--port", 0, "--host", "0.0.0.0", "--api-key-file", file, then=use)


@shows("tunesmith serve --tls-certificate", "tunesmith serve --tls-key")
def test_serve_speaks_https_with_a_certificate(tiny_model: Path) -> None:
    def use(address: str) -> None:
        assert address.startswith("https://")
        trusted = ssl.create_default_context(cafile=TLS / "localhost.pem")
        with urllib.request.urlopen(f"{address}/ready", context=trusted, timeout=20) as response:
            assert json.load(response) == {"status": "ready"}

    files = ["--tls-certificate", TLS / "localhost.pem", "--tls-key", TLS / "localhost.key"]
    serve(tiny_model, "--port", 0, *files, then=use)
    refused = typed("serve", str(tiny_model), "--port", "0", "--tls-certificate", str(TLS / "no.pem"))
    assert refused.returncode == 2
    assert "no.pem" in refused.stderr


@shows("tunesmith serve --weights")
def test_serve_stores_the_base_in_the_asked_for_precision(tiny_model: Path) -> None:
    expected = load(tiny_model, weights="int8").generate("Hi", max_new_tokens=6)[0]
    plain = load(tiny_model).generate("Hi", max_new_tokens=6)[0]

    def use(address: str) -> None:
        found = [each.logprob for each in chat(address, temperature=0, logprobs=True).choices[0].logprobs.content]
        assert found == pytest.approx(list(expected.logprobs), abs=1e-6)
        assert found != pytest.approx(list(plain.logprobs), abs=1e-6)

    serve(tiny_model, "--port", 0, "--weights", "int8", then=use)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes letters with known scores, again and again the same."""
    directory = tmp_path_factory.mktemp("letters") / "letters"
    letters_model().save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[PagedModel]:
    """The model of each step, as they are computed."""
    models: list[PagedModel] = []
    compute = PagedModel.compute

    def seen(model: PagedModel, *arguments: Any) -> Tensor:
        models.append(model)
        return compute(model, *arguments)

    monkeypatch.setattr(PagedModel, "compute", seen)
    return models


@pytest.mark.long
@shows("tunesmith serve --draft")
def test_serve_drafts_by_look_up_or_a_model_or_not_at_all(letters: Path, computed: list[PagedModel]) -> None:
    answers, steps, models = set(), [], []

    def use(address: str) -> None:
        answers.add(text(address, model="letters", max_completion_tokens=200, temperature=0))

    for options in ([], ["--draft", "lookup"], ["--draft", "none"], ["--draft", letters]):
        computed.clear()
        serve(letters, "--port", 0, *options, then=use)
        models.append(len(set(map(id, computed))))
        steps.append(len(computed))
    assert len(answers) == 1
    assert max(steps[:2]) < 150
    assert steps[2] > 200
    assert models == [1, 1, 1, 2]
    refused = typed("serve", str(letters), "--port", "0", "--draft", "embedded")
    assert refused.returncode == 2
    assert "embedded has another tokenizer than the model" in " ".join(refused.stderr.split())


@shows("tunesmith serve --cache")
def test_serve_stores_keys_and_values_in_int8(letters: Path, computed: list[PagedModel]) -> None:
    answers: list[str] = []
    for options, dtype in (([], torch.float32), (["--cache", "int8"], torch.int8)):
        computed.clear()
        serve(letters, "--port", 0, *options, then=lambda address: answers.append(text(address, model="letters")))
        assert {model.caches[0].keys.dtype for model in computed} == {dtype}
    refused = typed("serve", str(letters), "--cache", "int4")
    assert "cache: int4 is not one of auto and int8" in " ".join(refused.stderr.split())


@shows("tunesmith serve --concurrent", "tunesmith serve --queue", "tunesmith serve --max-tokens")
@shows("tunesmith serve --timeout")
def test_serve_takes_on_no_more_than_its_limits(tiny_model: Path) -> None:
    def use_up_the_time(address: str) -> None:
        with pytest.raises(openai.BadRequestError, match="writes at most 400"):
            chat(address, max_completion_tokens=401)
        with pytest.raises(openai.APIStatusError, match="more than 1 seconds"):
            chat(address, n=100, max_completion_tokens=400, extra_body={"regex": "[a-z]{400}"})

    def fill_the_queue(address: str) -> None:
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            fields: dict[str, Any] = {"model": "llama", "messages": QUESTION, "max_completion_tokens": 400}
            events = iter(client.chat.completions.create(**fields, n=20, stream=True))
            next(events)
            with pytest.raises(openai.RateLimitError, match="wait already"):
                chat(address, n=20)

    limits = ["--concurrent", 1, "--max-tokens", 400]
    serve(tiny_model, "--port", 0, *limits, "--timeout", 1, then=use_up_the_time)
    serve(tiny_model, "--port", 0, *limits, "--queue", 20, then=fill_the_queue)


@shows("tunesmith serve --prompt")
def test_serve_puts_the_prompt_before_all_chats(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        'system: Be brief.\nexamples: {given: [{question: "1?", answer: "2"}]}', encoding="utf-8"
    )
    turns = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}]
    found: list[Any] = []

    def use(address: str, system: str) -> None:
        found.append(chat(address, messages=[{"role": "system", "content": system}, *turns, *QUESTION]))

    def use_prompted(address: str) -> None:
        found.append(chat(address))
        found.append(chat(address, messages=[{"role": "system", "content": "Own."}, *QUESTION]))
        found.append(chat(address, messages=[{"role": "user", "content": "Hi " * 150}]))

    serve(tiny_model, "--port", 0, then=lambda address: (use(address, "Be brief."), use(address, "Be brief.\n\nOwn.")))
    _, log = serve(tiny_model, "--port", 0, "--prompt", tmp_path / "p.yaml", then=use_prompted)
    tokens = [each.usage.prompt_tokens for each in found]
    assert tokens[:2] == tokens[2:4]
    assert found[0].system_fingerprint != found[2].system_fingerprint
    assert log.count("A chat has fewer examples than 1 (0 at least), since the model reads 512 tokens.") == 1


def assert_is_a_rating(file: Path, expected: list[tuple[str, float]]) -> None:
    """The row is read as the objective kto reads it."""
    rows = [row for row in read([str(file)], file.parent) if isinstance(row, Row)]
    example = to_example(rows[0], chosen_format(rows, "auto", KTO.formats, {}))
    assert isinstance(example, Example)
    assert [turn["content"] for turn in example.messages or ()] == [turn["content"] for turn in QUESTION]
    assert [(str(each.messages[0]["content"]), each.score) for each in example.completions] == expected


@shows("tunesmith serve --feedback", "tunesmith serve --log-prompts", "tunesmith serve --quiet")
def test_serve_keeps_feedback_and_logs_prompts_only_if_asked(tiny_model: Path, tmp_path: Path) -> None:
    file, answers = tmp_path / "new" / "feedback.jsonl", []

    def use(address: str) -> None:
        answers.append(chat(address))
        body = json.dumps({"id": answers[-1].id, "thumb": "down", "better": "Hello!"}).encode()
        request = urllib.request.Request(f"{address}/v1/feedback", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as response:
            assert json.load(response)["stored"]
        unknown = urllib.request.Request(
            f"{address}/v1/feedback", b'{"id": "x", "thumb": "up"}', {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.request.HTTPError, match="404"):
            urllib.request.urlopen(unknown, timeout=20)

    _, log = serve(tiny_model, "--port", 0, "--feedback", file, then=use)
    (row,) = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert (row["thumb"], row["better"], row["model"], row["messages"]) == ("down", "Hello!", "llama", QUESTION)
    assert row["answers"][0]["content"] == answers[0].choices[0].message.content
    assert_is_a_rating(file, [(row["answers"][0]["content"], 0), ("Hello!", 1)])
    assert "POST /v1/chat/completions 200" in log
    assert '"Hi"' not in log
    _, log = serve(tiny_model, "--port", 0, "--log-prompts", then=lambda address: answers.append(chat(address)))
    assert '"content": "Hi"' in log
    _, log = serve(tiny_model, "--port", 0, "--quiet", then=lambda address: answers.append(chat(address)))
    assert "POST" not in log


@shows("tunesmith serve --engine", "tunesmith serve --dry-run")
def test_vllm_is_started_with_the_model_its_adapters_and_its_template(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = save_adapter(tiny_model, tmp_path / "one")
    options = ["--engine", "vllm", "--adapter", f"one={one}", "--port", "8123"]
    words = shlex.split(typed("serve", str(tiny_model), *options, "--dry-run").stdout)
    template = Path(words[words.index("--chat-template") + 1])
    assert template.read_text(encoding="utf-8") == byte_tokenizer().chat_template
    assert words == [
        "vllm", "serve", str(tiny_model), "--served-model-name", "llama", "--host", "127.0.0.1", "--port", "8123",
        "--chat-template", str(template), "--enable-lora", "--max-lora-rank", "8", "--max-loras", "1",
        "--lora-modules", f"one={one}",
    ]  # fmt: skip
    monkeypatch.setenv("PATH", "")
    missing = typed("serve", str(tiny_model), *options)
    assert (missing.returncode, "vLLM is not installed" in missing.stderr) == (2, True)
    assert "Set VLLM_API_KEY" in typed("serve", str(tiny_model), *options, "--host", "0.0.0.0").stderr
    refused = typed("serve", str(tiny_model), *options, "--weights", "int8")
    assert refused.stderr == "error: --weights cannot be used with --engine vllm.\n"
    for option, value in (("--draft", "embedded"), ("--cache", "int8")):  # vLLM has its own, and no int8 cache
        refused = typed("serve", str(tiny_model), *options, option, value)
        assert refused.stderr == f"error: {option} cannot be used with --engine vllm.\n"
    config = json.loads((one / "adapter_config.json").read_text())
    for change, reason in (({"use_dora": True}, "DoRA"), ({"r": 600}, "rank 600"), ({"bias": "all"}, "trained biases")):
        (one / "adapter_config.json").write_text(json.dumps(config | change))
        refused = typed("serve", str(tiny_model), *options, "--dry-run")
        assert f"vLLM cannot take {one}: it has {reason}" in refused.stderr
        assert "tunesmith export RUN --to hf" in refused.stderr
    own = typed("serve", str(one), "--engine", "vllm", "--dry-run", "--name", "mine")
    assert own.returncode == 2
    (one / "adapter_config.json").write_text(json.dumps(config))
    words = shlex.split(typed("serve", str(one), "--engine", "vllm", "--dry-run", "--name", "mine").stdout)
    assert words[words.index("--served-model-name") + 1] == "mine-base"
    assert words[-1] == f"mine={one}"
