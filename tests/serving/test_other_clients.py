"""The server, used through other clients than OpenAI's: LangChain, the `llm` command, and plain HTTP."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import Served, save_adapter, served

from tunesmith.inference.model import load
from tunesmith.serving.feedback import Feedback


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Served]:
    with served(tiny_model) as running:
        yield running


def expected(tiny_model: Path, question: str = "Hi", **options: Any) -> str:
    return load(tiny_model, precision="fp32").generate(question, **options)[0].text


def test_langchain_chats_streams_and_reads_json(server: Served, tiny_model: Path) -> None:
    from langchain_openai import ChatOpenAI

    options: dict[str, Any] = {"base_url": f"{server.address}/v1", "api_key": "none", "model": "tiny"}
    chat = ChatOpenAI(**options, temperature=0, max_tokens=8)
    whole = chat.invoke([("system", "Be short."), ("user", "Hi")])
    assert whole.content == expected(tiny_model, system="Be short.", max_new_tokens=8)
    assert whole.usage_metadata["output_tokens"] == 8
    assert "".join(piece.content for piece in chat.stream([("system", "Be short."), ("user", "Hi")])) == whole.content
    schema = {"title": "n", "type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    schema["additionalProperties"] = False
    number = ChatOpenAI(**options, max_tokens=60).with_structured_output(schema, method="json_schema").invoke("n?")
    assert number["n"] in (1, 2)
    responses = ChatOpenAI(**options, temperature=0, max_tokens=8, use_responses_api=True)
    assert responses.invoke("Hi").text == expected(tiny_model, max_new_tokens=8)


def test_the_llm_command_asks_the_server(
    server: Served, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    entry = {"model_id": "mine", "model_name": "tiny", "api_base": f"{server.address}/v1", "api_key_name": "none"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([entry]))  # JSON is YAML
    from click.testing import CliRunner
    from llm.cli import cli

    for more in ([], ["--no-stream"]):
        options = ["-o", "temperature", "0", "-o", "max_tokens", "8", "--key", "none", "--no-log", *more]
        result = CliRunner().invoke(cli, ["prompt", "Hi", "-m", "mine", *options])
        assert result.exit_code == 0, result.output
        assert result.output.rstrip("\n") == expected(tiny_model, max_new_tokens=8).rstrip("\n")


def read(server: Served, path: str, body: Any = None) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.address + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()
    except urllib.request.HTTPError as error:
        return error.code, error.read()


def samples(server: Served) -> dict[tuple[str, ...], float]:
    """The values of the metrics' page by name, model, endpoint and status."""
    from prometheus_client.parser import text_string_to_metric_families

    text = read(server, "/metrics")[1].decode()
    return {
        (sample.name, *(sample.labels[label] for label in ("model", "endpoint", "status") if label in sample.labels)): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


def test_metrics_count_requests_and_tokens_by_adapter(tiny_model: Path, tmp_path: Path) -> None:
    chats = "/v1/chat/completions"
    with served(tiny_model, adapters={"one": save_adapter(tiny_model, tmp_path / "one")}) as server:
        assert read(server, "/health") == (200, b'{"status":"ok"}')
        assert read(server, "/ready") == (200, b'{"status":"ready"}')
        bias = {str(stop): -100 for stop in server.service.model.generator.stops}
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 7, "temperature": 0, "logit_bias": bias}
        for model, count in (("tiny", 1), ("one", 2)):
            assert read(server, chats, {**body, "model": model, "n": count})[0] == 200
        assert read(server, chats, {**body, "model": "one", "tool_choice": "required"})[0] == 400
        assert read(server, chats, {**body, "model": "other"})[0] == 404
        found = samples(server)
    requests = {key[1:]: value for key, value in found.items() if key[0] == "tunesmith_requests_total"}
    assert requests == {
        ("", "/health", "200"): 1,
        ("", "/ready", "200"): 1,
        ("tiny", chats, "200"): 1,
        ("one", chats, "200"): 1,
        ("one", chats, "400"): 1,
        ("", chats, "404"): 1,
    }
    for model, count in (("tiny", 1), ("one", 2)):
        prompt = found["tunesmith_prompt_tokens_total", model]
        assert 0 <= found["tunesmith_cached_tokens_total", model] < prompt < 100
        assert found["tunesmith_answer_tokens_total", model] == 7 * count
        assert found["tunesmith_first_token_seconds_count", model] == count
        assert 0 < found["tunesmith_first_token_seconds_sum", model] < 60 * count
        assert found["tunesmith_token_seconds_count", model] == count
        assert found["tunesmith_open_answers", model] == 0
    assert found["tunesmith_prompt_tokens_total", "tiny"] == found["tunesmith_prompt_tokens_total", "one"]
    assert found["tunesmith_requests_running",] == found["tunesmith_requests_waiting",] == 0


def test_feedback_is_only_taken_on_own_recent_responses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.serving.feedback.MOST_BYTES", 100)
    feedback = Feedback(tmp_path / "feedback.jsonl")
    for number in range(3):
        feedback.remember(str(number), {"client": "mine", "answers": [f"{number}" * 20]})
    assert feedback.row("0", "mine", {"thumb": "up"}) is None  # too old
    assert feedback.row("2", "other", {"thumb": "up"}) is None
    row = feedback.row("2", "mine", {"thumb": "up"})
    assert row is not None
    assert feedback.append(row)
    assert [row] == list(map(json.loads, (tmp_path / "feedback.jsonl").read_text().splitlines()))
    assert (row["id"], row["answers"], row["thumb"]) == ("2", ["2" * 20], "up")


def test_without_a_file_feedback_is_refused(server: Served) -> None:
    status, body = read(server, "/v1/feedback", {"id": "x", "thumb": "up"})
    assert (status, b"Start it with --feedback FILE" in body) == (404, True)
