"""Prompts as files: templates with variables, guardrails, versions, what is refused."""

import json
from pathlib import Path

import pytest

from tunesmith import Recipe, UserError
from tunesmith.data.example import Source
from tunesmith.data.examples import held_out_examples
from tunesmith.prompting.prompt import Prompt, example_of
from tunesmith.prompting.prompted import render
from tunesmith.prompting.sections import Examples, Given, Guardrails


def written(directory: Path, text: str, name: str = "p.yaml") -> Path:
    file = directory / name
    file.write_text(text, encoding="utf-8")
    return file


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_variables_and_doubled_braces_are_filled_and_values_left_as_they_are(tmp_path: Path) -> None:
    file = written(
        tmp_path, 'system: "{who} writes {{}} as {form}."\nuser: "{input} ({who})"\nvariables: {who: "{x}", form: 3}'
    )
    prompt = Prompt.load(file)
    assert prompt.system_text == "{x} writes {} as 3."
    assert prompt.user_text("a {b} {input}") == "a {b} {input} ({x})"


def test_guardrails_are_in_the_system_prompt_in_words() -> None:
    prompt = Prompt(
        system="Be brief.",
        guardrails=Guardrails(topics=["{name} billing", "invoices"], refusal="Not my job."),
        variables={"name": "Acme"},
    )
    assert prompt.system_text is not None
    first, rules = prompt.system_text.split("\n\n")
    assert first == "Be brief."
    assert "Acme billing; invoices." in rules
    assert rules.endswith(": Not my job.")
    assert Prompt(guardrails=Guardrails(topics=["a"])).system_text is not None


@pytest.mark.parametrize("name", ["p.txt", "p.md"])
def test_a_text_file_is_the_system_prompt_word_for_word(name: str, tmp_path: Path) -> None:
    prompt = Prompt.load(written(tmp_path, '\nWrite {"a": 1}, {name} and {{x}}.\n', name))
    assert prompt.system_text == 'Write {"a": 1}, {name} and {{x}}.'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("systm: Hello", r"p.yaml: systm is not a field. Did you mean system\?"),
        ("system: Hello {name}", r"p.yaml: system: the variable \{name\} has no value. None is given"),
        ("system: '{nam}'\nvariables: {name: x}", r"system: the variable \{nam\} has no value. Given: name"),
        ("system: '{name.real}'\nvariables: {name: x}", r"system: \{name.real\} is not \{name\}"),
        ("system: '{name[0]}'\nvariables: {name: x}", r"system: \{name\[0\]\} is not"),
        ("system: '{name!r}'\nvariables: {name: x}", r"system: \{name!r\} is not"),
        ("system: '{name:>9}'\nvariables: {name: x}", r"system: \{name:>9\} is not"),
        ("system: '{}'", r"system: \{\} is not \{name\}"),
        ("system: 'a } b'", r"system: a brace is alone"),
        ("system: '{input}'", r"system: the variable \{input\} has no value"),
        ("user: Answer.", r"user: it has no \{input\}"),
        ("variables: {input: x}", r"variables.input: choose another name"),
        ("guardrails: {topics: []}", r"guardrails.topics: list should have at least 1 item"),
        ("guardrails: {topics: [a], refusl: b}", r"guardrails.refusl is not a field. Did you mean refusal\?"),
        ("guardrails: {topics: ['{a}']}", r"guardrails: the variable \{a\} has no value"),
        ("examples: {k: 2}", r"examples: give either given \(pairs\) or rows"),
        ("examples: {rows: r.jsonl}", r"examples: rows needs k"),
        ("examples: {given: [{question: a, anser: b}]}", r"examples.given.0.anser is not a field. Did you mean answer"),
        ("examples: {rows: r.jsonl, k: 1, choose: best}", r"examples.choose: input should be 'random'"),
        ("- 1", r"p.yaml: a prompt is a mapping with system, user"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_prompt_is_refused_by_field(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        Prompt.load(written(tmp_path, text))


def test_a_missing_or_empty_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml cannot be read as a prompt: No such file"):
        Prompt.load(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"p.txt is empty"):
        Prompt.load(written(tmp_path, " \n", "p.txt"))
    with pytest.raises(UserError, match=r"has no prompt.yaml"):
        Prompt.load(tmp_path)


def test_the_prompt_of_a_run_is_found_by_its_directory(tmp_path: Path) -> None:
    written(tmp_path, "system: Hi.", "prompt.yaml")
    assert Prompt.load(tmp_path).system_text == "Hi."


def test_the_version_changes_with_all_that_determines_the_text_and_nothing_else(tmp_path: Path) -> None:
    rows = written(tmp_path, '{"question": "a", "answer": "b"}\n{"question": "c", "answer": "d"}\n', "r.jsonl")
    text = "system: Hi {name}.\nvariables: {name: x}\nexamples: {rows: r.jsonl, k: 2}\n"
    prompt = Prompt.load(written(tmp_path, text))
    given = prompt.model_copy(
        update={"examples": Examples(given=[Given(question="a", answer="b"), Given(question="c", answer="d")])}
    )
    assert Prompt.load(written(tmp_path, f"# a note\n{text}")).version == prompt.version == given.version
    changed = [
        text.replace("Hi", "Ho"),
        text.replace("name: x", "name: y"),
        text.replace("k: 2", "k: 1"),
        text + "user: '{input}!'",
    ]
    versions = {Prompt.load(written(tmp_path, each)).version for each in changed}
    assert len(versions | {prompt.version}) == 5
    rows.write_text('{"question": "a", "answer": "B"}\n{"question": "c", "answer": "d"}\n')
    assert Prompt.load(written(tmp_path, text)).version not in versions | {prompt.version}


@pytest.mark.parametrize("count", [3, 40])
def test_a_saved_prompt_is_read_back_with_the_same_version(count: int, tmp_path: Path) -> None:
    rows = [example_of(f"q{n}", f"a{n}", Source("r", n)) for n in range(count)]
    prompt = Prompt(system="{x}", variables={"x": "{1}"}).with_given(rows, 2, "similar")
    (tmp_path / "run").mkdir()
    prompt.save(tmp_path / "run" / "prompt.yaml")
    again = Prompt.load(tmp_path / "run")
    assert (again.version, again.system_text) == (prompt.version, "{1}")
    assert (tmp_path / "run" / "prompt.examples.jsonl").exists() == (count == 40)
    with pytest.raises(UserError, match="cannot be written"):
        prompt.save(tmp_path / "none" / "prompt.yaml")


def test_rows_of_a_recipe_are_its_training_rows(tmp_path: Path) -> None:
    rows = [{"question": f"What is {n}?", "answer": f"{n}"} for n in range(50)]
    written(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "rows.jsonl")
    written(tmp_path, "data: {train: rows.jsonl, held_out: 0.5}", "recipe.yaml")
    held_out = held_out_examples(Recipe.load(tmp_path / "recipe.yaml").data, ())
    for where in ("recipe.yaml", "."):
        pool = Prompt.load(written(tmp_path, f"examples: {{rows: {where}, k: 3}}")).pool
        assert len(pool) + len(held_out) == 50
        assert not set(map(str, pool)) & set(map(str, held_out))
    assert len(Prompt.load(written(tmp_path, "examples: {rows: rows.jsonl, k: 3}")).pool) == 50


def test_the_prompt_comes_before_a_chats_own_system_turn_and_examples_before_its_turns() -> None:
    prompt = Prompt(system="Be brief.", user="Q: {input}")
    shots = [example_of("a", "b", Source("r", 1))]
    answer = {"role": "assistant", "content": "B"}
    chat = [{"role": "system", "content": "Own."}, user("A"), answer, user("C")]
    system = {"role": "system", "content": "Be brief.\n\nOwn."}
    shown = (user("Q: a"), {"role": "assistant", "content": "b"})
    assert render(prompt, chat, shots) == (system, *shown, user("A"), answer, user("Q: C"))
    assert render(Prompt(), chat, []) == tuple(chat)
    assert render(prompt, chat[1:], [])[0] == {"role": "system", "content": "Be brief."}
