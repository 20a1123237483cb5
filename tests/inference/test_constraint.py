"""An answer that has a schema, an expression or a grammar follows it, whatever the model prefers."""

import json
import re
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch
from bytewise import byte_tokenizer
from families import config_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tunesmith.errors import UserError
from tunesmith.inference.generate import Generator
from tunesmith.inference.sampling import Sampling
from tunesmith.ops import native

TOKENIZER = byte_tokenizer()
GREEDY = Sampling(max_new_tokens=120)
SAMPLED = Sampling(max_new_tokens=120, temperature=1.2, seed=3)
some = settings(max_examples=12)


@pytest.fixture(scope="module")
def generator() -> Generator:
    """A model with random weights, which by itself writes any bytes."""
    torch.manual_seed(0)
    config = config_of("llama", len(TOKENIZER), eos_token_id=None, pad_token_id=None, initializer_range=0.2)
    return Generator(AutoModelForCausalLM.from_config(config).eval(), TOKENIZER)


def scalars(draw: Any) -> dict[str, Any]:
    return draw(  # type: ignore[no-any-return]
        st.sampled_from(
            [
                {"type": "boolean"},
                {"type": "null"},
                {"type": "integer", "minimum": 0, "maximum": 99},
                {"type": "number", "minimum": -1, "maximum": 1},
                {"type": "string", "maxLength": 5},
                {"type": "string", "pattern": "^[a-c]{2,3}$"},
                {"enum": ["red", "green", 3]},
                {"const": "é语"},
            ]
        )
    )


@st.composite
def schemas(draw: Any, depth: int = 1) -> dict[str, Any]:
    kind = draw(st.sampled_from(["scalar", "object", "array", "either"])) if depth else "scalar"
    if kind == "object":
        names = draw(st.lists(st.sampled_from(["a", "b", "long name"]), unique=True, min_size=1, max_size=2))
        required = [name for name in names if draw(st.booleans())]
        properties = {name: draw(schemas(depth=depth - 1)) for name in names}
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "array":
        least = draw(st.integers(0, 2))
        return {"type": "array", "items": draw(schemas(depth=depth - 1)), "minItems": least, "maxItems": least + 1}
    if kind == "either":
        return {"anyOf": [draw(schemas(depth=depth - 1)), draw(schemas(depth=depth - 1))]}
    return scalars(draw)


@some
@given(schema=schemas(), seed=st.integers(0, 99), temperature=st.sampled_from([0.0, 1.2]))
def test_answers_with_a_schema_parse_and_validate(
    generator: Generator, schema: dict[str, Any], seed: int, temperature: float
) -> None:
    sampling = Sampling(200, temperature, seed=seed, schema=json.dumps(schema))
    for answer in generator.continuations(["What?\n", "Write:"], sampling):
        assert answer.finish_reason == "stop", answer.text
        jsonschema.validate(json.loads(answer.text), schema)


def test_a_schema_allows_only_little_white_space(generator: Generator) -> None:
    space = {TOKENIZER.convert_tokens_to_ids(token): 100.0 for token in ("Ġ", "Ċ")}
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
    sampling = replace(GREEDY, logit_bias=space, schema=json.dumps(schema))
    (answer,) = generator.continuations(["What?\n"], sampling)
    assert len(json.loads(answer.text)) == 2
    assert re.search(r"\s{8}", answer.text)
    assert not re.search(r"\s{9}", answer.text)


@pytest.mark.parametrize("expression", ["(yes|no|maybe)", "[0-9]{3}-[a-f]{2,5}", "(é|语|🙂){2}x?", "a{0,3}b"])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_answers_match_a_regular_expression(generator: Generator, expression: str, sampling: Sampling) -> None:
    for answer in generator.continuations(["What?\n", "Write:"], replace(sampling, regex=expression), n=2):
        assert answer.finish_reason == "stop"
        assert re.fullmatch(expression, answer.text)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_answers_follow_a_grammar(generator: Generator, sampling: Sampling) -> None:
    grammar = 'start: NUMBER (SIGN NUMBER){1,3}\nNUMBER: /[1-9][0-9]?/\nSIGN: "+" | "*"\n'
    for answer in generator.continuations(["What?\n"], replace(sampling, grammar=grammar), n=3):
        assert answer.finish_reason == "stop"
        assert re.fullmatch(r"[1-9][0-9]?([+*][1-9][0-9]?){1,3}", answer.text)


def test_an_answer_that_reaches_its_limit_is_the_beginning_of_one_that_follows(generator: Generator) -> None:
    (answer,) = generator.continuations(["What?\n"], Sampling(4, regex="abcdefgh"))
    assert (answer.text, answer.finish_reason) == ("abcd", "length")


def test_the_other_settings_apply_to_what_may_follow(generator: Generator) -> None:
    bias = {TOKENIZER.convert_tokens_to_ids(letter): 100.0 for letter in "nz"}
    (answer,) = generator.continuations(["What?\n"], replace(GREEDY, regex="(yes|no)", logit_bias=bias))
    assert answer.text == "no"
    cut = replace(SAMPLED, regex="[0-9]{20}", top_k=1)
    greedy, sampled = (generator.continuations(["What?\n"], each)[0] for each in (replace(cut, temperature=0.0), cut))
    assert greedy.text == sampled.text
    (ended,) = generator.continuations(["What?\n"], replace(GREEDY, regex="abXYcd", stop=("XY",)))
    assert (ended.text, ended.finish_reason) == ("ab", "stop")


@pytest.mark.skipif(native.library() is None, reason="bits are the same by the native kernels only")
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_answers_are_the_same_alone_and_in_a_batch(generator: Generator, sampling: Sampling) -> None:
    sampling = replace(sampling, regex="[a-z]{3,12}")
    texts = ["What?\n", "Write a word:", "x", "And now, after some more text:"]
    together = generator.continuations(texts, sampling)
    generator.paged.pages.forget_all()
    (alone,) = generator.continuations(texts[:1], sampling)
    assert alone == together[0]
    greedy = replace(sampling, temperature=0.0)
    expected = [generator.continuations([text], greedy)[0].tokens for text in texts]
    assert [answer.tokens for answer in generator.continuations(texts, greedy)] == expected


def test_a_family_that_is_not_paged_follows_a_schema_too() -> None:
    torch.manual_seed(0)
    config = config_of("bloom", len(TOKENIZER), eos_token_id=None, pad_token_id=None, initializer_range=0.2)
    generator = Generator(AutoModelForCausalLM.from_config(config).eval(), TOKENIZER)
    assert not generator.is_paged
    for answer in generator.continuations(["What?\n", "Write a long word:"], replace(GREEDY, regex="(yes|no!|maybe)")):
        assert answer.text in ("yes", "no!", "maybe")
        assert answer.finish_reason == "stop"


def test_a_model_without_a_token_that_ends_answers_ends_when_nothing_can_follow() -> None:
    torch.manual_seed(0)
    endless = byte_tokenizer()
    endless.eos_token, endless.chat_template = None, None
    config = config_of("llama", len(endless), eos_token_id=None, pad_token_id=None)
    generator = Generator(AutoModelForCausalLM.from_config(config).eval(), endless)
    (answer,) = generator.continuations(["What?\n"], replace(GREEDY, regex="(yes|no|maybe)"))
    assert answer.text in ("yes", "no", "maybe")
    assert answer.finish_reason == "stop"


def test_tokens_that_only_the_model_has_never_follow() -> None:
    """Many models have more rows of embeddings than their tokenizer has tokens."""
    torch.manual_seed(0)
    config = config_of("llama", len(TOKENIZER) + 13, eos_token_id=None, pad_token_id=None)
    generator = Generator(AutoModelForCausalLM.from_config(config).eval(), TOKENIZER)
    bias = dict.fromkeys(range(len(TOKENIZER), len(TOKENIZER) + 13), 100.0)
    (answer,) = generator.continuations(["What?\n"], replace(GREEDY, regex="[0-9]{4}", logit_bias=bias))
    assert re.fullmatch("[0-9]{4}", answer.text)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        pytest.param({"schema": "{"}, "^schema is not JSON: ", id="no JSON"),
        pytest.param({"schema": '{"type": "number", "minimum": "x"}'}, "is not valid: .*minimum", id="no schema"),
        pytest.param({"schema": '{"type": "strange"}'}, "is not valid: .*strange", id="an unknown type"),
        pytest.param({"schema": "[1]"}, "^schema is a list and not a JSON object", id="a list"),
        pytest.param({"schema": "true"}, "^schema is a bool and not a JSON object", id="a truth value"),
        pytest.param({"schema": '{"uniqueItems": true}'}, "is not valid: .*uniqueItems", id="what is not supported"),
        pytest.param({"regex": "(a"}, "is not valid: ", id="no expression"),
        pytest.param({"grammar": "start: MISSING"}, "is not valid: .*MISSING", id="no grammar"),
        pytest.param({"schema": "{}", "regex": "a"}, "^An answer has schema and regex. Give one", id="two constraints"),
    ],
)
def test_what_is_not_valid_is_refused_in_one_line(
    generator: Generator, constraint: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        generator.continuations(["What?\n"], replace(GREEDY, **constraint))
    assert "\n" not in str(refusal.value)
    assert generator.paged.is_idle
