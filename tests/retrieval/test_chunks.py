"""Chunks: what stays together, what is cut and how, and that nothing is lost."""

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.documents.read import read
from tunesmith.retrieval.chunk import Chunk, chunks_of, word_counts
from tunesmith.retrieval.sentences import sentence_spans


def chunks(markdown: str, size: int) -> list[Chunk]:
    return chunks_of(read("a.md", markdown.encode()), size)


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


def test_a_chunk_never_crosses_a_heading_and_knows_those_above_it() -> None:
    found = chunks("intro\n\n# A\n\na text\n\n## B\n\nb text\n\n## C\n\n### D\n\nd text\n\n# E\n", 50)
    assert [(chunk.headings, chunk.text) for chunk in found] == [
        ((), "intro"),
        (("A",), "a text"),
        (("A", "B"), "b text"),
        (("A", "C", "D"), "d text"),
        (("E",), "# E"),
    ], "a heading without a text is a chunk itself, unless the next one is below it"


def test_blocks_that_fit_are_together_and_a_longer_one_is_cut_between_sentences() -> None:
    found = chunks("One two three.\n\nFour five.\n\nSix seven eight. Nine ten eleven twelve. Last one.\n", 5)
    texts = [chunk.text for chunk in found]
    assert texts == ["One two three.\n\nFour five.", "Six seven eight.", "Nine ten eleven twelve.", "Last one."]


def test_the_headings_of_a_chunk_count() -> None:
    assert [chunk.text for chunk in chunks("# One two\n\nThree four.\n\nFive six.\n", 6)] == [
        "Three four.\n\nFive six."
    ]
    assert len(chunks("# One two\n\nThree four.\n\nFive six.\n", 5)) == 2


def test_a_cut_table_keeps_the_rows_that_name_its_columns() -> None:
    table = "| a | b |\n|---|---|\n" + "".join(f"| {row} | x |\n" for row in range(6))
    found = chunks(f"# T\n\n{table}", 26)
    assert len(found) > 1
    assert all(chunk.text.startswith("| a | b |\n|---|---|\n|") for chunk in found)
    assert [int(row) for chunk in found for row in re.findall(r"\| (\d) \|", chunk.text)] == list(range(6))
    assert [chunk.lines for chunk in found][:2] == [(3, 7), (8, 10)]
    assert found[1].sentences[-1].first == 8


def test_code_stays_whole_however_long_it_is() -> None:
    code = "```python\n" + "x = 1\n\n" * 50 + "```"
    assert [chunk.text for chunk in chunks(f"Before.\n\n{code}\n\nAfter.\n", 20)] == ["Before.", code, "After."]


def test_only_a_sentence_longer_than_a_chunk_is_cut_inside_with_overlap() -> None:
    words = [f"w{n}" for n in range(100)]
    found = chunks(" ".join(words), 40)
    parts = [chunk.text.split() for chunk in found]
    assert all(len(part) <= 40 for part in parts)
    for before, after in pairwise(parts):
        shared = len([word for word in after if word in before])
        assert shared == 5
        assert before[-shared:] == after[:shared]
    assert dict.fromkeys(word for part in parts for word in part) == dict.fromkeys(words)


def test_sentences_end_at_marks_but_not_within_abbreviations_or_numbers() -> None:
    assert sentences(
        "It costs 3.5 euros, e.g. today. Is it? Yes! See Fig. 2 by J. Smith.\n\n- item one\n- item two"
    ) == [
        "It costs 3.5 euros, e.g. today.",
        "Is it?",
        "Yes!",
        "See Fig. 2 by J. Smith.",
        "- item one",
        "- item two",
    ]
    assert sentences("他来了。她走了！") == ["他来了。", "她走了！"]
    assert sentences("He said “no.” Then he left.") == ["He said “no.”", "Then he left."]


BLOCKS = st.lists(
    st.one_of(
        st.builds(lambda level, words: f"{'#' * level} {words}", st.integers(1, 4), st.text("ab é", min_size=1)),
        st.lists(st.sampled_from("Word. word, ünd. X! 3.5 (z) – longer-word".split()), min_size=1, max_size=30).map(
            " ".join
        ),
        st.just("```\ncode  here\n\nx\n```"),
        st.integers(1, 9).map(lambda rows: "| a | b |\n|---|---|\n" + "| 1 | 2 2 |\n" * rows),
        st.just("- a b c\n- d\n  - e"),
    ),
    max_size=8,
).map("\n\n".join)


@given(BLOCKS, st.integers(4, 40))
def test_every_word_is_in_a_chunk_and_every_chunk_is_in_the_file(markdown: str, size: int) -> None:
    data = markdown.encode()
    if not markdown.strip():
        return
    found = chunks(markdown, size)
    held = " ".join(" ".join((*chunk.headings, chunk.text)) for chunk in found)
    words = [word for word in markdown.split() if set(word) - set("#-`|")]
    assert set(words) <= {word for part in (held, held.replace("#", "")) for word in part.split()}
    for chunk in found:
        assert chunk.text.endswith(data[slice(*chunk.bytes)].decode())
        before = data[: chunk.bytes[0]].count(b"\n")
        assert chunk.lines == (before + 1, before + 1 + data[slice(*chunk.bytes)].count(b"\n"))
        for sentence in chunk.sentences:
            text = chunk.text[sentence.start : sentence.end]
            assert text.split("\n")[0] in markdown.split("\n")[sentence.first - 1]
        if not chunk.text.startswith(("```", "|")):
            assert word_counts([chunk.text])[0] <= max(size, 20)
