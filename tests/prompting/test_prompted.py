"""A prompt before a model's chats: identities, fitting into the context, templates without a system turn."""

import json
from pathlib import Path

import pytest
from bytewise import byte_tokenizer
from scripted_server import Body, scripted
from small_models import stored_base

from tunesmith import Sampling, UserError, load
from tunesmith.data.example import Source
from tunesmith.evaluation.subjects import SubjectName, open_subject
from tunesmith.prompting.prompt import Prompt, example_of
from tunesmith.prompting.prompted import Prompted, PromptRenderer, render, without_system
from tunesmith.prompting.reading import Reading
from tunesmith.prompting.shots import Shots
from tunesmith.subjects.local_subject import LocalSubject

REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
LEAVES_OUT = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
ROWS = [example_of(f"What is {n} and {n}?", f"{2 * n}", Source("rows", n)) for n in range(20)]


def chat(question: str = "What is this?") -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def prompted(subject: LocalSubject, k: int, choose: str = "random") -> Prompted:
    return Prompted(subject, Prompt(system="Be brief."), Shots(ROWS, k, choose), "prompted")


@pytest.fixture
def subject(tiny_model: Path) -> LocalSubject:
    return LocalSubject("tiny", load(tiny_model))


def test_answers_scores_and_timings_are_those_of_the_rendered_chats(subject: LocalSubject) -> None:
    with_prompt = prompted(subject, 2)
    shots = Shots(ROWS, 2, "random").for_chat(chat())
    rendered = render(with_prompt.prompt, chat(), shots)
    sampling = Sampling(4)
    assert with_prompt.answers([chat()], sampling) == subject.answers([rendered], sampling)
    (ours,), (theirs,) = with_prompt.scores(["What is this?"], ["A cat."]), subject.scores([rendered], ["A cat."])
    assert ours.log_probabilities.tolist() == theirs.log_probabilities.tolist()
    assert ours.total != subject.scores(["What is this?"], ["A cat."])[0].total
    (ours,), (theirs,) = with_prompt.scores(None, ["A cat."]), subject.scores(None, ["A cat."])
    assert ours.total == theirs.total
    assert [timing.tokens for timing in with_prompt.timings([chat()] * 2, sampling, 2)] == [4, 4]
    assert (with_prompt.model, with_prompt.scores_texts) == (subject.model, True)


def test_the_identity_is_of_model_prompt_and_examples(subject: LocalSubject, tiny_model: Path) -> None:
    same, other = prompted(subject, 2), prompted(subject, 3)
    assert same.identity == prompted(subject, 2).identity
    text = Prompted(subject, Prompt(system="Be long."), Shots(ROWS, 2, "random"), "other")
    assert (
        len({subject.identity, same.identity, other.identity, text.identity, prompted(subject, 2, "similar").identity})
        == 5
    )
    assert prompted(LocalSubject("tiny", load(tiny_model), keeps=False), 2).identity is None
    assert same.uncached().identity is None


def test_chats_that_do_not_fit_have_fewer_examples_and_are_counted(subject: LocalSubject) -> None:
    with_prompt = prompted(subject, 16, "similar")
    (short, long) = (with_prompt.renderer.chat(each, 8) for each in (chat(), chat("What? " * 50)))
    reading = Reading.of(subject.model)
    assert reading.count is not None
    assert reading.room == 512, "tokens are bytes"
    for messages in (short, long):
        assert reading.count(messages) + 8 <= 512
        assert messages[0]["content"] == "Be brief."
        one_more = render(
            with_prompt.prompt,
            messages[-1:],
            Shots(ROWS, (len(messages) - 2) // 2 + 1, "similar").for_chat(messages[-1:]),
        )
        assert reading.count(one_more) + 8 > 512, "as many as fit"
    assert len(long) < len(short) < 34
    assert with_prompt.renderer.note == (
        f"2 chats have fewer examples than 16 ({(len(long) - 2) // 2} at least), since the model reads 512 tokens."
    )
    kept = Shots(ROWS, 16, "similar").for_chat(chat())[-((len(short) - 2) // 2) :]
    assert short == render(with_prompt.prompt, chat(), kept), "the most similar ones stay"
    few = prompted(subject, 1)
    assert len(few.renderer.chat(chat(), 8)) == 4
    assert few.renderer.note is None


@pytest.mark.parametrize("template", [REFUSES, LEAVES_OUT], ids=["refuses", "leaves out"])
def test_a_template_without_a_system_turn_reads_it_at_the_head_of_the_first_question(
    template: str, tmp_path: Path
) -> None:
    base = stored_base(tmp_path / "base")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template + tokenizer.chat_template
    tokenizer.save_pretrained(base)
    model = load(base)
    renderer = PromptRenderer.of(Prompt(system="Be brief."), model)
    messages = renderer.chat(chat("Hello?"), 8)
    assert messages == ({"role": "user", "content": "Be brief.\n\nHello?"},)
    assert "Be brief." in model.prompt(messages)


def test_the_system_text_goes_to_the_first_users_turn_whichever_it_is() -> None:
    system = {"role": "system", "content": "s"}
    assert without_system([system, {"role": "assistant", "content": "a"}, *chat("q")]) == (
        {"role": "assistant", "content": "a"},
        *chat("s\n\nq"),
    )
    assert without_system([system]) == ({"role": "user", "content": "s"},)
    assert without_system(chat("q")) == tuple(chat("q"))


def test_an_encoder_decoder_reads_a_prompt_but_no_examples(tmp_path: Path) -> None:
    from families import config_of
    from transformers import AutoModelForSeq2SeqLM

    tokenizer = byte_tokenizer()
    AutoModelForSeq2SeqLM.from_config(config_of("t5", len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load(tmp_path)
    renderer = PromptRenderer.of(Prompt(system="Be brief."), model)
    assert model.prompt(renderer.chat(chat("Hello?"), 8)) == "Be brief.\n\nHello?"
    with pytest.raises(UserError, match="has examples, which are turns, and an encoder–decoder reads one text"):
        PromptRenderer.of(Prompt().with_given(ROWS[:1]), model)


def test_a_served_model_reads_the_same_messages() -> None:
    def reply(body: Body) -> str:
        return json.dumps(body["messages"])

    with scripted(reply) as server:
        served = open_subject(SubjectName.parse(server.url), "served")
        with_prompt = Prompted(served, Prompt(system="Be brief."), Shots(ROWS, 1, "random"), "prompted")
        (answer,) = with_prompt.answers([chat()], Sampling(4))
        expected = render(with_prompt.prompt, chat(), Shots(ROWS, 1, "random").for_chat(chat()))
        assert json.loads(answer.text) == list(expected)
        assert with_prompt.identity is None
        with pytest.raises(UserError, match="no log-probabilities"):
            with_prompt.scores(["a"], ["b"])


def test_a_model_that_writes_no_text_takes_no_prompt(reading: Path) -> None:
    with pytest.raises(UserError, match="does not write text"):
        PromptRenderer.of(Prompt(system="Be brief."), load(reading / "classes"))
