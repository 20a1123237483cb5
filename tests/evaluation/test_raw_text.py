"""Raw text as lm-eval has it: where a beginning ends, what is cut off, and what does not fit."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bytewise import byte_tokenizer

import tunesmith
from tunesmith.errors import UserError
from tunesmith.evaluation.raw_text import RawText
from tunesmith.inference.sampling import Sampling
from tunesmith.subjects.local_subject import LocalSubject


@pytest.fixture(scope="module")
def raw(tiny_model: Path) -> RawText:
    """Of a model whose tokenizer has bytes, and no token that begins a text."""
    return RawText(LocalSubject("tiny", tunesmith.load(tiny_model, precision="fp32"), keeps=False))


def of(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer().encode(text, add_special_tokens=False)
    return ids


def test_white_space_before_a_continuation_belongs_to_it(raw: RawText) -> None:
    assert raw.first_token == byte_tokenizer().eos_token_id
    assert raw.pair("a b", " c") == (of("a b"), of(" c"))
    assert raw.pair("a b \n", "c") == (of("a b"), of(" \nc"))
    for empty in ("", " "):
        assert raw.pair(empty, "c") == ([raw.first_token], of(f"{empty}c"))
    end = byte_tokenizer().eos_token
    assert raw.pair("", f"{end}c") == ([raw.first_token], of("c"))
    assert raw.ids(f"{end}a") == [raw.first_token, *of("a")]


def test_the_beginning_is_cut_where_it_leaves_no_room_and_a_continuation_never(raw: RawText) -> None:
    """A continuation's last token needs no room."""
    context = raw.context
    before, after = of("ab" * context)[:context], of("c")
    done: list[int] = []
    whole, short, doubled = raw.scores([(before, after), (before[1:], after), ([7, *before], after)], done.append)
    assert whole == doubled
    assert whole.total != short.total
    assert done[-1] == 2, "two of them are the same"
    (longest,) = raw.scores([(of("a"), of("c" * context))])
    assert longest.total < 0
    with pytest.raises(UserError, match=rf"^A continuation of {context + 1:,} tokens is longer than the context"):
        raw.scores([(of("a"), of("c" * (context + 1)))])
    with pytest.raises(UserError, match=rf"^{context:,} new tokens take the whole context of {context:,}\.$"):
        raw.written(["a"], [Sampling(context)])
    ((text,), count) = raw.written(["a"], [Sampling(context - 1)], done.append), done[-1]
    assert isinstance(text, str)
    assert count == 1


def test_the_same_beginning_sampled_twice_has_two_continuations_and_one_if_it_is_greedy(raw: RawText) -> None:
    one, two = raw.written(["a", "a"], [Sampling(8, temperature=2.0)] * 2)
    assert one != two
    assert raw.written(["a", "a"], [Sampling(8, temperature=2.0)] * 2) == [one, two]
    done: list[int] = []
    first, second = raw.written(["a", "a"], [Sampling(8)] * 2, done.append)
    assert (first == second, done[-1]) == (True, 1)


def test_what_is_no_decoder_of_this_process_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"^vllm is a server, and raw text is scored by models of this process only"):
        RawText(SimpleNamespace(name="vllm"))  # type: ignore[arg-type]
    local: Any = LocalSubject("tiny", tunesmith.load(tiny_model), keeps=False)
    assert RawText(SimpleNamespace(name="prompted", subject=local)).tokenizer is local.tokenizer  # type: ignore[arg-type]
    local.tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"The tokenizer of tiny has no token that begins or ends a text"):
        RawText(local).first_token  # noqa: B018


def test_scores_that_are_interrupted_are_kept_by_the_256(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    raw = RawText(LocalSubject("tiny", tunesmith.load(tiny_model, precision="fp32")))
    pairs = [(of(str(n)), of("c")) for n in range(260)]

    def interrupt(count: int) -> None:
        if count > 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        raw.scores(pairs, interrupt)
    done: list[int] = []
    assert len(raw.scores(pairs[:256], done.append)) == 256
    assert done == [256], "all of them were known"
