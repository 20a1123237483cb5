"""llama.cpp splits texts and chats into the same tokens as the tokenizer that a GGUF file was written from."""

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from bytewise import CHATML
from llama_cpp import LlamaCpp
from small_gguf import SPECIAL, TEXTS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tunesmith.errors import UserError
from tunesmith.exporting.export import export
from tunesmith.exporting.gguf_pre_tokenizer import _NAMES, pre_tokenizer_name
from tunesmith.exporting.gguf_tokenizer import without_mask_tags, write_tokenizer
from tunesmith.models.bases import embedded_base

MORE = [
    "It's 'several' 'SO WE'LL; they've 3 33 333 4444 x12y, don't! I'D",
    "a\n\n \n b\t\tc  \r\n d   ",
    "naïve Ünïcode éé CamelCaseWORDS snake_case //comment **bold** ---===",
    "日本語のテキスト、한국어 텍스트 и русский 🙂👩‍👩‍👧 ½ ²³",
]
CORPUS = [*TEXTS, *MORE, "the other brown weather is there, and user and what", "it's 'tis 12 345 WE'LL don't"] * 3


def drawn_texts(count: int = 60) -> list[str]:
    """Random texts of what rules for splitting look at."""
    draw = random.Random(0)
    signs = [
        *"abZ éß日한я",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "1",
        "23",
        "'s",
        "'LL",
        "'",
        ".",
        "...",
        "!?",
        "/",
        "_",
        "🙂",
    ]
    return ["".join(draw.choices(signs, k=draw.randint(1, 30))) for _ in range(count)]


def bytes_tokenizer(rules: tuple[str, ...], ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on a few texts split by these rules."""
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in rules]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.model.ignore_merges = ignore_merges
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[0]
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    fast.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    fast.chat_template = CHATML
    return fast


def pieces_tokenizer(with_prefix: bool) -> PreTrainedTokenizerFast:
    """BPE over characters with bytes for unknown ones, as transformers converts SentencePiece's: a token can be merged
    from any two others."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator([f" {text}" for text in CORPUS[:20]], trainers.BpeTrainer(vocab_size=260))
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names = list(dict.fromkeys([*special, *[piece for piece in pieces if len(piece) > 1], *pieces]))
    vocabulary = {name: id for id, name in enumerate(names)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in names[len(special) :]
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    mark = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), mark]) if with_prefix else mark
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def unigram_tokenizer(pre_tokenizer: Any, normalizer: Any = None) -> PreTrainedTokenizerFast:
    """Unigram, trained on a few texts."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", *SPECIAL[1:]]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=SPECIAL[1:],
    )  # fmt: skip
    fast.chat_template = CHATML
    return fast


def charsmap(changes: dict[str, str]) -> bytes:
    """A map of characters as SentencePiece compiles it: the size of a trie, the trie, and the new texts.

    The trie is a double array (Darts): a child is at its parent's place xor the parent's offset xor the byte.
    """
    texts, keys = b"", {}
    for old, new in changes.items():
        keys[old.encode()] = len(texts)
        texts += new.encode() + b"\0"
    units, taken = [0] * 4096, {0}
    nodes = [(0, b"", 0)]
    while nodes:
        place, prefix, label = nodes.pop()
        nexts = sorted({key[len(prefix)] for key in keys if key.startswith(prefix) and key != prefix})
        ends = prefix in keys
        labels = [*([0] if ends else []), *nexts]
        offset = next(o for o in range(1, 4096) if not any((place ^ o ^ each) in taken for each in labels))
        units[place] = offset << 10 | ends << 8 | label
        taken |= {place ^ offset ^ each for each in labels}
        if ends:
            units[place ^ offset] = keys[prefix] | 1 << 31
        nodes += [(place ^ offset ^ each, prefix + bytes([each]), each) for each in nexts]
    return struct.pack("<I4096I", 4 * 4096, *units) + texts


SIGNS = {"Ａ": "A", "１": "1", "ﬁ": "fi", "½": "1⁄2", "e\u0301": "é", "\t": " ", "\n": " ", "\u3000": " ", "\u200b": ""}
"""Some of what SentencePiece's rules (NFKC) change."""

CHANGED = ["ﬁne Ａ１２ ½ ²", "cafe\u0301 e\u0301", "tab\there\nline", "x\u3000y\u200bz", "e\u0302 ﬃ"]


UNIGRAMS = {
    "a space before each part": (pre_tokenizers.Metaspace(prepend_scheme="always"), None),
    "words": (pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]), None),
    "no space before a text": (pre_tokenizers.Metaspace(prepend_scheme="never"), None),
}


@pytest.mark.parametrize("case", UNIGRAMS)
def test_unigrams_are_chosen_by_their_scores(case: str, tmp_path: Path) -> None:
    tokenizer = unigram_tokenizer(*UNIGRAMS[case])
    read = in_llama_cpp(tokenizer, tmp_path)
    for text in [*TEXTS, *MORE, *drawn_texts()]:
        bare = text.strip() if case == "a space before each part" else text  # llama.cpp adds one before other spaces
        if case == "words":  # SentencePiece's map of characters makes spaces of these
            bare = " ".join(text.split())
        assert read.tokens(bare) == tokenizer(bare, add_special_tokens=False)["input_ids"], bare


@pytest.mark.parametrize("form", ["T5", "XLM-R"])
def test_a_map_of_characters_changes_texts_in_both_alike(form: str, tmp_path: Path) -> None:
    mapped = normalizers.Precompiled(charsmap(SIGNS))
    if form == "T5":
        tokenizer = unigram_tokenizer(*UNIGRAMS["words"][:1], mapped)
    else:
        merged = normalizers.Replace(Regex(" {2,}"), "▁")
        steps = normalizers.Sequence([mapped, normalizers.Strip(left=False, right=True), merged])
        tokenizer = unigram_tokenizer(pre_tokenizers.Metaspace(), steps)
    read = in_llama_cpp(tokenizer, tmp_path)
    assert tokenizer("ﬁ Ａ")["input_ids"] == tokenizer("fi A")["input_ids"]
    for text in [*CHANGED, *TEXTS[:3], *drawn_texts(30)]:
        bare = text.replace("\r\n", "\n")  # tokenizers maps these two as one character, SentencePiece each
        assert read.tokens(bare) == tokenizer(bare, add_special_tokens=False)["input_ids"], bare


def in_llama_cpp(tokenizer: Any, directory: Path) -> LlamaCpp:
    """llama.cpp with a small model that has this tokenizer."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, vocab_size=len(tokenizer) + 5,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    return LlamaCpp(export(directory / "model", directory / "model.gguf", "gguf:f16").path)


def check_tokens(tokenizer: Any, read: LlamaCpp) -> None:
    for text in [*TEXTS, *MORE, *drawn_texts()]:
        assert read.tokens(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text
        assert read.tokens(text, special=True) == tokenizer(text)["input_ids"], text


@pytest.mark.parametrize(
    ("rules", "ignore_merges"), _NAMES, ids=[f"{index}-{name}" for index, name in enumerate(_NAMES.values())]
)
def test_byte_level_tokenizers_are_split_by_their_own_rules(rules: Any, ignore_merges: bool, tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer(rules, ignore_merges)
    assert pre_tokenizer_name(tokenizer) == _NAMES[rules, ignore_merges]
    check_tokens(tokenizer, in_llama_cpp(tokenizer, tmp_path))


def test_added_pieces_of_spaces_are_found_in_the_text(tmp_path: Path) -> None:
    tokenizer = pieces_tokenizer(with_prefix=False)
    tokenizer.add_tokens([AddedToken("▁▁▁▁▁", special=False, normalized=True)])
    read = in_llama_cpp(tokenizer, tmp_path)
    ids = tokenizer("a     b", add_special_tokens=False)["input_ids"]
    assert len(tokenizer) - 1 in ids
    assert read.tokens("a     b") == ids


@pytest.mark.parametrize("with_prefix", [True, False])
def test_sentence_pieces_are_merged_in_their_order(with_prefix: bool, tmp_path: Path) -> None:
    tokenizer = pieces_tokenizer(with_prefix)
    check_tokens(tokenizer, in_llama_cpp(tokenizer, tmp_path))


def test_the_embedded_bases_chats_are_rendered_to_the_same_tokens(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_base())
    read = LlamaCpp(export("embedded", tmp_path / "embedded.gguf", "gguf").path)
    chat = [
        {"role": "system", "content": "Be  brief.\n"},
        {"role": "user", "content": "It's <b>this</b>, isn't it? 12 'several"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "  Why?"},
    ]
    for messages in (chat[1:2], chat[:2], chat):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert read.chat(messages) == text
        assert read.tokens(text, special=True) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_marks_of_what_is_learned_leave_the_text_as_it_is() -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_base())
    chat = [{"role": "user", "content": " a "}, {"role": "assistant", "content": " b "}]
    spaced = "{% for m in messages %}\n  {%- generation -%}  {{ m['content'] }}\n {% endgeneration %}\n{% endfor %}"
    for template in (tokenizer.chat_template, CHATML, spaced):
        assert "generation %}" not in without_mask_tags(template).replace("add_generation", "")
        texts = [
            tokenizer.apply_chat_template(chat, chat_template=each, tokenize=False)
            for each in (template, without_mask_tags(template))
        ]
        assert texts[0] == texts[1]


def fields(directory: Path, tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """The tokenizer's metadata in an exported file."""
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    file = gguf.GGUFReader(export(directory, directory / "model.gguf", "gguf").path)
    return {name.removeprefix("tokenizer.ggml."): field.contents() for name, field in file.fields.items()}


def test_every_token_that_ends_an_answer_is_named(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_base())
    found = fields(tmp_path, tokenizer)
    assert tokenizer.convert_ids_to_tokens([found["eos_token_id"], found["eot_token_id"]]) == [
        "<|im_end|>",
        "<|endoftext|>",
    ]
    assert "eom_token_id" not in found


TURNS = "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [(None, True), ("{{ bos_token }}" + TURNS, True), (TURNS, False)],
)
def test_a_text_begins_with_bos_where_chats_do_too(template: str | None, expected: bool, tmp_path: Path) -> None:
    assert fields(tmp_path, pieces_tokenizer(True), chat_template=template)["add_bos_token"] == expected


def test_tokens_that_a_user_added_are_not_control_tokens(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer((r"\p{N}",))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = fields(tmp_path, tokenizer)
    kinds = dict(zip(found["tokens"], found["token_type"], strict=True))
    assert (kinds["<tool>"], kinds["<|im_end|>"], kinds["a"]) == (4, 3, 1)


def lowercase_unigram(backend: Any) -> None:
    backend.model, backend.normalizer = models.Unigram([("a", -1.0)], 0), normalizers.Lowercase()


def first_space_unigram(backend: Any) -> None:
    backend.model = models.Unigram([("a", -1.0)], 0)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")


def merging_unigram(backend: Any) -> None:
    backend.model = models.Unigram([("a", -1.0)], 0)
    backend.normalizer = normalizers.Replace(Regex(" {2,}"), " ")


REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "rules": (
        lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.Whitespace()),
        "no rules that split texts as this tokenizer does .*Whitespace.*Export the model to hf",
    ),
    "prefix": (
        lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "no rules that split texts",
    ),
    "normalizer": (
        lambda backend: setattr(backend, "normalizer", normalizers.Lowercase()),
        r"does not change texts as this tokenizer does \(Lowercase\)",
    ),
    "model": (
        lambda backend: setattr(backend, "model", models.WordLevel({"a": 0})),
        "a tokenizer of the kind WordLevel is not supported",
    ),
    "bytes of Unigram": (
        lambda backend: setattr(backend, "model", models.Unigram([("a", -1.0)], 0, byte_fallback=True)),
        "does not write unknown characters as bytes, as this Unigram tokenizer does",
    ),
    "no unknown Unigram": (
        lambda backend: setattr(backend, "model", models.Unigram([("a", -1.0)])),
        "does not do without a token for unknown characters",
    ),
    "splits of Unigram": (
        lambda backend: setattr(backend, "model", models.Unigram([("a", -1.0)], 0)),
        "does not split texts by Split and ByteLevel, as this Unigram tokenizer does",
    ),
    "normalizer of Unigram": (lambda backend: lowercase_unigram(backend), "does not change texts as Lowercase"),
    "last space of Unigram": (
        lambda backend: merging_unigram(backend),
        "does not keep a space at the end of a text where several spaces become one",
    ),
    "first space of Unigram": (
        lambda backend: first_space_unigram(backend),
        "does not put a space before the first part of a text only",
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_other_tokenizers_are_refused_with_what_to_do(reason: str, tmp_path: Path) -> None:
    change, message = REFUSED[reason]
    tokenizer = bytes_tokenizer((r"\p{N}",))
    change(tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match=message):
        write_tokenizer(gguf.GGUFWriter(tmp_path / "a.gguf", "llama"), tokenizer, 999)


def test_a_tokenizer_larger_than_the_embeddings_is_refused(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer((r"\p{N}",))
    with pytest.raises(UserError, match=r"but the model has 30 embeddings. Resize"):
        write_tokenizer(gguf.GGUFWriter(tmp_path / "a.gguf", "llama"), tokenizer, 30)
