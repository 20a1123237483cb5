"""Every option of `tunesmith prompt`, and `--prompt` of the commands that use a model, does what its help says."""

import json
from pathlib import Path
from typing import Any

import pytest
from bigram import letters_model
from bytewise import byte_tokenizer
from command import typed
from scripted_server import Body, scripted
from settings_coverage import shows

from tunesmith.prompting.prompt import Prompt
from tunesmith.subjects.subject import NO_LOG_PROBABILITIES

TOKENIZER = byte_tokenizer()
SYSTEM = "Pack my box with five dozen liquor jugs, QUICKLY."
SAMPLED = ["--max-new-tokens", "12", "--temperature", "0.8", "--repetition-penalty", "3"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(
        "rows.jsonl",
        "".join(json.dumps({"question": f"What is w{n}?", "answer": f"w{n} it is"}) + "\n" for n in range(80)),
    )
    write("p.txt", SYSTEM)
    write("q.yaml", 'system: Talk.\nexamples: {given: [{question: "1?", answer: "2"}]}\n')
    return tmp_path


@pytest.fixture
def letters(here: Path) -> Path:
    """A model whose samples depend, by the repetition penalty, on all that it has read."""
    letters_model(TOKENIZER, eos_token_id=TOKENIZER.eos_token_id).save_pretrained(here / "model")
    TOKENIZER.save_pretrained(here / "model")
    return here / "model"


def write(name: str, text: str) -> None:
    Path(name).write_text(text, encoding="utf-8")


def printed(*arguments: Any, given: str = "") -> str:
    """The standard output of a command that succeeds."""
    result = typed(*map(str, arguments), given=given)
    assert result.returncode == 0, result.stderr
    return result.stdout


def answer(body: Body) -> str:
    question = body["messages"][-1]["content"]
    return "Go." if question.startswith("Here are") else question.removeprefix("What is ").rstrip("?") + " it is"


def shown_first(bodies: list[Body]) -> dict[str, str]:
    """The first example of each question that has one."""
    turns = (body["messages"] for body in bodies if len(body["messages"]) > 1)
    return {messages[-1]["content"]: messages[0]["content"] for messages in turns}


@shows("tunesmith prompt show file", "tunesmith prompt show question")
def test_prompt_show_prints_version_and_turns() -> None:
    lines = printed("prompt", "show", "q.yaml", "Who?").splitlines()
    assert lines == [
        f"version {Prompt.load('q.yaml').version}",
        "system:", "Talk.", "user:", "1?", "assistant:", "2", "user:", "Who?",
    ]  # fmt: skip
    write("r.yaml", "examples: {rows: rows.jsonl, k: 1, choose: similar}")
    write("rows.jsonl", '{"question": "a", "answer": "b"}\n{"question": "A?", "answer": "c"}\n')
    out = " ".join(printed("prompt", "show", "r.yaml").split())
    assert "0 rows without a plain question and answer, and 1 repeated questions, are never shown." in out


@shows("tunesmith generate --prompt", "tunesmith chat --prompt", "tunesmith answer --prompt")
def test_generate_chat_and_answer_put_the_prompt_before_the_question(letters: Path) -> None:
    plain, with_system, with_prompt = (
        printed("generate", letters, "Why?", *SAMPLED, *more)
        for more in ([], ["--system", SYSTEM], ["--prompt", "p.txt"])
    )
    assert with_prompt == with_system != plain
    both = printed("generate", letters, "Why?", *SAMPLED, "--system", "Own.", "--prompt", "p.txt")
    assert both == printed("generate", letters, "Why?", *SAMPLED, "--system", f"{SYSTEM}\n\nOwn.")
    chats = [
        printed("chat", letters, *SAMPLED, *more, given="Why?\nSo?\n\n")
        for more in (["--system", SYSTEM], ["--prompt", "p.txt"])
    ]
    assert chats[0] == chats[1]
    write("asked.jsonl", '{"question": "Why?"}\n')
    printed("answer", letters, "asked.jsonl", "--output", "out.jsonl", "--prompt", "p.txt", *SAMPLED)
    row = json.loads(Path("out.jsonl").read_text(encoding="utf-8"))
    assert row == {"question": "Why?", "answer": with_prompt.strip()}, "the prompt is not in the rows"
    refused = typed("generate", str(letters), "Why?", "--raw", "--prompt", "p.txt")
    assert (refused.returncode, "takes no --prompt" in refused.stderr) == (2, True)


def test_examples_that_do_not_fit_are_counted_where_a_prompt_is_used(tiny_model: Path) -> None:
    write("long.yaml", "examples: {rows: rows.jsonl, k: 40, choose: similar}")
    done = typed("generate", str(tiny_model), "Why?", "--max-new-tokens", "8", "--prompt", "long.yaml")
    note = "A chat has fewer examples than 40"
    assert (done.returncode, note in done.stderr, note in done.stdout) == (0, True, False)
    write("asked.jsonl", '{"question": "Why?"}\n')
    out = printed(
        "answer", tiny_model, "asked.jsonl", "--output", "out.jsonl", "--prompt", "long.yaml", "--max-new-tokens", 8
    )
    assert note in out
    write("few.jsonl", "".join(json.dumps({"question": f"What is {n}?", "answer": f"{n} it is"}) + "\n" for n in "abc"))
    out = printed(
        "evaluate", tiny_model, "--data", "few.jsonl", "--rows", 2, "--prompt", "long.yaml", "--max-new-tokens", 8
    )
    note = "llama: 3 chats have fewer examples than 40"
    assert note in " ".join(out.split()), "two are answered, and all have a loss"


@shows("tunesmith evaluate --prompt")
def test_evaluate_puts_the_prompt_before_all_chats_and_names_its_version(letters: Path, here: Path) -> None:
    with scripted(answer) as server:
        options = ["--data", "rows.jsonl", "--rows", 3, "--max-new-tokens", 4]
        result = json.loads(printed("evaluate", letters, server.url, *options, "--prompt", "q.yaml", "--json"))
        assert {tuple(turn["content"] for turn in body["messages"][:-1]) for body in server.asked} == {
            ("Talk.", "1?", "2")
        }
    version = Prompt.load("q.yaml").version
    assert result["prompt"] == {
        "version": version, "system": "Talk.", "user": "{input}", "examples": {"k": 1, "choose": "random"}, "notes": {},
    }  # fmt: skip
    plain = json.loads(printed("evaluate", letters, *options, "--json"))
    (own, hosted), names = result["models"].values(), list(result["models"])
    assert own["loss"]["rows"] == result["rows"] == 80, "the loss is of all rows"
    assert "loss" not in hosted
    assert result["left_out"] == {f"loss of {names[1]}": NO_LOG_PROBABILITIES}
    out = printed("evaluate", letters, *options, "--prompt", "q.yaml", "--output", "out")
    assert f"With the prompt of version {version} before each chat." in " ".join(out.split())
    assert version in Path("out/report.html").read_text(encoding="utf-8")
    assert Prompt.load("out").version == version
    assert plain["prompt"] is None


def test_a_run_keeps_the_prompt_that_it_was_evaluated_with(tiny_model: Path) -> None:
    write("recipe.yaml", f"base: {tiny_model}\ndata: {{train: rows.jsonl, held_out: 0.2}}\ntrain: {{steps: 1}}\n")
    printed("train", "recipe.yaml", "--run", "run")
    printed("evaluate", "run", "--rows", 2, "--max-new-tokens", 2, "--prompt", "q.yaml")
    version = Prompt.load("q.yaml").version
    assert Prompt.load("run").version == version
    assert f"With the prompt of version {version}" in Path("run/adapter/README.md").read_text(encoding="utf-8")
    assert json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))["prompt"]["version"] == version
    refused = typed("evaluate", "run", "--prompt", "q.yaml", "--checkpoints")
    assert (refused.returncode, "Leave --prompt out" in refused.stderr) == (2, True)


@shows(
    "tunesmith prompt search model",
    "tunesmith prompt search source",
    "tunesmith prompt search --candidates",
    "tunesmith prompt search --k",
    "tunesmith prompt search --choose",
    "tunesmith prompt search --metric",
    "tunesmith prompt search --rows",
    "tunesmith prompt search --max-new-tokens",
    "tunesmith prompt search --output",
    "tunesmith prompt search --json",
)
def test_prompt_search_prints_what_was_tried_and_writes_the_winner() -> None:
    options = ["--candidates", "p.txt", "--candidates", "q.yaml", "--k", "0,2", "--choose", "random,diverse"]
    with scripted(answer) as server:
        command = ["prompt", "search", server.url, "rows.jsonl", *options, "--rows", 9, "--max-new-tokens", 7]
        result = json.loads(printed(*command, "--metric", "word_f1", "--output", "best.yaml", "--json"))
        assert {body["max_completion_tokens"] for body in server.asked} == {7}
        out = " ".join(printed(*command).split())
    names = [
        "plain",
        "p",
        "q",
        *(f"{name} + 2 {choose}" for choose in ("random", "diverse") for name in ("plain", "p")),
    ]
    assert [each["name"] for each in result["candidates"]] == names
    assert (result["metric"]["name"], result["development"]["rows"]) == ("word_f1", 9)
    assert (result["winner"], result["verdict"], Path("best.yaml").read_text()) == ("plain", "no prompt", "{}\n")
    for part in ("plain 100% [", "p + 2 random", "Winner: plain, version ", "held-out rows of rows.jsonl"):
        assert part in out
    refused = typed("prompt", "search", "embedded", "rows.jsonl", "--k", "two")
    assert (refused.returncode, refused.stderr) == (2, "error: --k two is not a list of numbers such as 0,2,4.\n")


@shows(
    "tunesmith prompt search --template", "tunesmith prompt search --writer", "tunesmith prompt search --writer-count"
)
def test_prompt_search_tries_templates_and_what_a_model_writes() -> None:
    write("t.yaml", "system: '{how}'\nvariables: {how: [A, B]}")
    with scripted(answer) as server:
        more = ["--template", "t.yaml", "--writer", server.url, "--writer-count", 3, "--k", 0, "--rows", 8]
        result = json.loads(printed("prompt", "search", server.url, "rows.jsonl", *more, "--json"))
    assert [each["name"] for each in result["candidates"]] == ["plain", "t how=A", "t how=B", "written 1"]
    assert (result["writer"]["asked"], result["writer"]["different"]) == (3, 1)


@shows("tunesmith prompt search --seed", "tunesmith prompt search --encoder")
def test_prompt_search_draws_rows_by_the_seed_and_compares_questions_by_an_encoder(reading: Path) -> None:
    def asked(*more: Any) -> list[Body]:
        with scripted(answer) as server:
            printed("prompt", "search", server.url, "rows.jsonl", "--k", "0,1", "--rows", 8, *more)
            return list(server.asked)

    first, again, other = ({body["messages"][-1]["content"] for body in asked("--seed", seed)} for seed in (0, 0, 1))
    assert first == again != other
    words, vectors = asked(), asked("--encoder", reading / "vectors")
    assert shown_first(words) != shown_first(vectors)


@shows("tunesmith prompt search --cache", "tunesmith prompt search --concurrent")
def test_prompt_search_keeps_answers_unless_told_not_to(tiny_model: Path, here: Path) -> None:
    command = [
        "prompt",
        "search",
        tiny_model,
        "rows.jsonl",
        "--candidates",
        "p.txt",
        "--k",
        0,
        "--rows",
        8,
        "--max-new-tokens",
        2,
    ]
    one = json.loads(printed(*command, "--no-cache", "--concurrent", 1, "--json"))
    assert not (here / "cache" / "evaluation").exists()
    assert one == json.loads(printed(*command, "--json"))
    assert (here / "cache" / "evaluation").exists()
    refused = typed(*map(str, command), "--concurrent", "0")
    assert refused.returncode == 2
