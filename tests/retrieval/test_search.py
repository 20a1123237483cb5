"""Search: BM25, cosines and their fusion against brute force and bm25s."""

from pathlib import Path

import bm25s
import numpy as np
import pytest
import torch
from families import config_of
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import word_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tunesmith
from tunesmith.errors import UserError
from tunesmith.retrieval import full_text_writer
from tunesmith.retrieval.dense import Dense, coded, write_vectors
from tunesmith.retrieval.encoder import Encoder
from tunesmith.retrieval.full_text import K1, B, FullText, words_of
from tunesmith.retrieval.full_text_writer import write_full_text
from tunesmith.retrieval.lines import Lines, write_lines
from tunesmith.retrieval.ranking import WAYS, WEIGHT, best, by_ranks, by_sum
from tunesmith.retrieval.search import Index

TEXTS = st.lists(st.lists(st.sampled_from("ab cd ef gh ij kl mn Cd".split()), max_size=9).map(" ".join), min_size=1)
SCORES = st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=30)


def full_text(directory: Path, texts: list[str]) -> FullText:
    write_full_text(directory, len(texts), enumerate(texts))
    return FullText(directory)


@given(texts=TEXTS, question=st.sampled_from(["ab", "cd CD ef", "xx", "ij kl mn ab cd"]))
@settings(max_examples=30)
def test_full_text_scores_are_those_of_bm25s(
    texts: list[str], question: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ours = full_text(tmp_path_factory.mktemp("words") / "a", texts).scores(question)
    tokens = [words_of(text) for text in texts]
    if not any(tokens):
        assert not ours.any()
        return
    reference = bm25s.BM25(k1=K1, b=B, method="lucene")
    reference.index(tokens, show_progress=False)
    known = [word for word in words_of(question) if word in reference.vocab_dict]
    expected = reference.get_scores(known) if known else np.zeros(len(texts))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_words_are_compared_without_case_and_read_in_every_script() -> None:
    assert words_of("Read_text (ﬁle), STRASSE straße 3.5") == ["read", "text", "file", "strasse", "strasse", "3", "5"]
    assert words_of("Read_text 3.5 -x") == words_of("Read_text 3.5 -x–")
    assert words_of("東京に行く。한국어") == ["東", "京", "に", "行", "く", "한국어"]


def test_full_text_with_parts_of_an_older_one_equals_a_new_one(tmp_path: Path) -> None:
    texts = ["one two two", "three", "", "two four", "five one"]
    old = full_text(tmp_path / "old", texts)
    numbers = np.array([2, -1, -1, -1, 1], np.int32)
    write_full_text(tmp_path / "updated", 3, [(0, "six two")], old, numbers)
    full_text(tmp_path / "new", ["six two", texts[4], texts[0]])
    for file in sorted((tmp_path / "new").iterdir()):
        assert (tmp_path / "updated" / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_full_text_that_is_written_in_blocks_equals_one_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(3)
    texts = [" ".join(f"w{n}" for n in draw.zipf(1.5, 12) % 50) for _ in range(60)]
    whole = full_text(tmp_path / "whole", texts)
    monkeypatch.setattr(full_text_writer, "BLOCK", 50)
    full_text(tmp_path / "blocks", texts)
    shuffled = [(number, texts[number]) for number in draw.permutation(60).tolist()]
    write_full_text(tmp_path / "shuffled", 60, shuffled)
    write_full_text(
        tmp_path / "half",
        60,
        shuffled[:30],
        whole,
        np.array([n if n not in dict(shuffled[:30]) else -1 for n in range(60)], np.int32),
    )
    for file in sorted((tmp_path / "whole").iterdir()):
        for other in ("blocks", "shuffled", "half"):
            assert (tmp_path / other / file.name).read_bytes() == file.read_bytes(), (other, file.name)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_scores_by_columns_are_those_by_entries(share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["the cat the", "the dog", "a cat", "the"]
    expected = full_text(tmp_path / "a", texts).scores("the cat the zebra")
    monkeypatch.setattr(full_text_writer, "SHARE", share)
    other = full_text(tmp_path / "b", texts)
    np.testing.assert_array_equal(other.scores("the cat the zebra"), expected)
    for name in ("common", "columns"):
        (tmp_path / "b" / f"{name}.npy").unlink()
    older = FullText(tmp_path / "b")
    np.testing.assert_array_equal(older.scores("the cat the zebra"), expected)


@pytest.mark.parametrize("spread", [1.0, 0.02], ids=["apart", "almost equal"])
@pytest.mark.parametrize("has_kernels", [True, False], ids=["native", "without kernels"])
def test_dense_search_finds_what_brute_force_in_float64_finds(
    spread: float, has_kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(1)
    rows = draw.normal(size=(1, 48)) + spread * draw.normal(size=(5000, 48)) * draw.exponential(size=48)
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    write_vectors(tmp_path, 5000, 48, np.split(vectors, [7, 4000]))
    dense = Dense(tmp_path)
    if not has_kernels:
        monkeypatch.setattr("tunesmith.ops.inner_products.is_available", lambda: False)
    for question in vectors[:20] + 0.1 * draw.normal(size=(20, 48)).astype(np.float32):
        question /= np.linalg.norm(question)
        found = dense.best(question, 100)
        cosines = vectors.astype(np.float64) @ question
        expected = np.sort(cosines)[::-1][:100]
        np.testing.assert_allclose(cosines[found.chunks], expected, atol=3e-7)  # of equal ones in fp32, any
        np.testing.assert_allclose(found.scores, expected, atol=3e-7)


def test_codes_differ_from_their_vector_by_at_most_half_a_step() -> None:
    vectors = np.random.default_rng(2).normal(size=(50, 32)).astype(np.float32)
    vectors[3] = 0
    codes, scales = coded(vectors)
    assert (np.abs(vectors - codes * scales[:, None]) <= 0.5001 * scales[:, None]).all()
    assert np.abs(codes).max() == 127


def test_the_coverage_of_a_question_weights_words_by_rarity(tmp_path: Path) -> None:
    found = full_text(tmp_path / "a", ["the cat", "the dog", "the"])
    assert found.coverage("the cat", 0) == pytest.approx(1)
    the, cat = (found.rarity(word) for word in ("the", "cat"))
    assert found.coverage("the cat", 1) == pytest.approx(the / (the + cat))
    assert found.coverage("The zebra", 0) == pytest.approx(the / (the + cat)), "as if it were in one chunk"
    assert found.coverage("?!", 0) == 0


def test_lines_are_found_by_number_and_sorted_ones_by_content(tmp_path: Path) -> None:
    rows = sorted(f"{n * 7 % 50:03}é".encode() for n in range(50))
    write_lines(tmp_path / "a.txt", rows)
    lines = Lines(tmp_path / "a.txt")
    assert list(lines) == rows
    assert [lines.find(row) for row in rows] == list(range(50))
    assert lines.find(b"004") is None
    write_lines(tmp_path / "b.txt", [])
    assert (len(Lines(tmp_path / "b.txt")), Lines(tmp_path / "b.txt").find(b"x")) == (0, None)


@given(SCORES, st.integers(1, 40), st.sampled_from([-np.inf, 0.0]), st.integers(1, 4000))
def test_the_best_chunks_are_those_of_a_full_sort(values: list[float], count: int, above: float, repeats: int) -> None:
    scores = np.tile(np.array(values, np.float32), repeats)
    found = best(scores, count, above)
    chunks = np.lexsort((np.arange(len(scores)), -scores))
    expected = chunks[scores[chunks] > above][:count].tolist()
    assert found.chunks.tolist() == expected
    assert found.scores.tolist() == scores[expected].tolist()


@given(st.lists(st.tuples(st.floats(0, 9, width=16), st.floats(-1, 1, width=16)), min_size=1, max_size=30))
def test_fusions_follow_their_formulas(pairs: list[tuple[float, float]]) -> None:
    text, cosines = (np.array(column, np.float32) for column in zip(*pairs, strict=True))
    by_score = [
        sorted(range(len(pairs)), key=lambda chunk, side=side: (-side[chunk], chunk)) for side in (text, cosines)
    ]
    ranks = [{chunk: rank for rank, chunk in enumerate(order, 1)} for order in by_score]
    found = by_ranks(text, cosines, 0.5, 10)
    for chunk, score in zip(found.chunks.tolist(), found.scores.tolist(), strict=True):
        by_text = 1 / (60 + ranks[0][chunk]) if text[chunk] > 0 else 0
        assert score == pytest.approx(by_text + 1 / (60 + ranks[1][chunk]), rel=1e-5)
    summed = by_sum(text, cosines, 0.3, 10)
    whole = 0.3 * (cosines + 1) / max(cosines.max() + 1, 1e-6) + 0.7 * text / max(text.max(), 1e-6)
    assert summed.scores.tolist() == pytest.approx(sorted(whole.tolist(), reverse=True)[:10], rel=1e-4, abs=1e-5)
    assert summed.scores.tolist() == sorted(summed.scores.tolist(), reverse=True)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("documents")
    rows = [f"w{n} w{n * 3 % 17} w{n * 5 % 11} good" for n in range(40)]
    (directory / "a.md").write_text("".join(f"# H{n}\n\n{row}\n\n" for n, row in enumerate(rows)), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def index(documents: Path, reading: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    path = tmp_path_factory.mktemp("index") / "index"
    tunesmith.index(documents, path, encoder=str(reading / "vectors"))
    return Index(path)


def test_each_way_finds_what_brute_force_finds(index: Index, reading: Path) -> None:
    question, encoder = "w3 w9 film", Encoder(str(reading / "vectors"))
    chunks = [index.version.chunk(number) for number in range(len(index.version))]
    vectors = encoder.chunks([f"{' › '.join(chunk['headings'])}\n{chunk['text']}" for chunk in chunks])
    cosines = vectors @ encoder.question(question)
    by_cosine = sorted(range(len(chunks)), key=lambda number: -cosines[number])
    found = index.search(question, 7, "dense")
    assert [hit.chunk for hit in found] == by_cosine[:7]
    assert [hit.score for hit in found] == pytest.approx(sorted(cosines, reverse=True)[:7], abs=1e-6)
    words = index.search(question, 40, "text")
    assert {hit.chunk for hit in words} == {
        n for n, chunk in enumerate(chunks) if {"w3", "w9"} & set(chunk["text"].split())
    }
    assert index.relevance(question, found) == pytest.approx(max(cosines), abs=1e-6)
    for mode in ("rrf", "weighted"):
        scores = index.version.full_text.scores(question), cosines.astype(np.float32)
        expected = WAYS[mode](*scores, WEIGHT, 5)
        assert [hit.chunk for hit in index.search(question, 5, mode)] == expected.chunks.tolist()
    assert index.search(question, 5) == index.search(question, 5, "weighted")


def test_a_hit_names_file_lines_bytes_and_headings(index: Index, documents: Path) -> None:
    hit = index.search("w39", 1, "text")[0]
    data = (documents / "a.md").read_bytes()
    assert (hit.file, hit.headings, hit.page) == ("a.md", ("H39",), None)
    assert data[slice(*hit.bytes)].decode() == hit.text
    assert data.decode().split("\n")[hit.lines[0] - 1] == hit.text
    assert set(hit.described()) == {"file", "lines", "score", "text", "headings", "bytes"}


def test_what_cannot_be_searched_is_refused(index: Index, documents: Path, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"--mode best is not one of auto, text, dense, rrf, weighted\."):
        index.search("w1", mode="best")
    with pytest.raises(UserError, match="There is no question"):
        index.search(" ")
    with pytest.raises(UserError, match=r"is not an index\. Build one: tunesmith index DIR --output"):
        tunesmith.search(tmp_path, "w1")
    tunesmith.index(documents, tmp_path / "text", encoder="none")
    with pytest.raises(UserError, match=r"has no vectors, which --mode dense needs\. Build it with an encoder: "):
        tunesmith.search(tmp_path / "text", "w1", mode="dense")
    assert tunesmith.search(tmp_path / "text", "w1")[0].text.startswith("w1 ")
    assert tunesmith.search(tmp_path / "text", "zebra") == []
    with pytest.raises(UserError, match="does not embed texts"):
        tunesmith.index(documents, tmp_path / "other", encoder=str(tiny_model))


@pytest.fixture(scope="module")
def crossing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder with random weights."""
    directory = tmp_path_factory.mktemp("crossing")
    tokenizer = word_tokenizer()
    config = config_of("bert", len(tokenizer), initializer_range=0.3)
    config.num_labels = 1
    torch.manual_seed(4)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_a_re_ranker_orders_what_another_way_found(index: Index, crossing: Path, reading: Path) -> None:
    question = "w3 w9 film"
    first = index.search(question, 40, "text")
    found = index.search(question, 3, "text", rerank=str(crossing))
    model = AutoModelForSequenceClassification.from_pretrained(crossing).eval()
    tokenizer = AutoTokenizer.from_pretrained(crossing)
    scores = {}
    for hit in first:
        pair = tokenizer(question, f"{hit.headings[0]}\n{hit.text}", return_tensors="pt")
        scores[hit.chunk] = float(model(**pair).logits)
    expected = sorted(scores, key=lambda chunk: -scores[chunk])[:3]
    assert [hit.chunk for hit in found] == expected
    assert [hit.score for hit in found] == pytest.approx([scores[chunk] for chunk in expected], abs=1e-5)
    with pytest.raises(UserError, match=r"has 3 outputs, and a re-ranker has one\. Name a cross-encoder"):
        index.search(question, rerank=str(reading / "classes"))
    with pytest.raises(UserError, match="not_there"):
        index.search(question, rerank="./not_there")
