"""A tokenizer as llama.cpp stores it: tokens and their types, merges or scores, special tokens, chat template."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tunesmith.errors import UserError
from tunesmith.exporting.gguf_pre_tokenizer import pre_tokenizer_name
from tunesmith.exporting.gguf_unigram import write_unigrams
from tunesmith.exporting.gguf_vocabulary import Vocabulary

_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_MASK_TAG = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
"""The tags of transformers' chat templates that mark what the model writes. llama.cpp does not know them."""


def write_tokenizer(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int, ends: Sequence[int] = ()
) -> None:
    """Write a tokenizer, its special tokens and its chat template.

    Args:
        writer: of the file.
        tokenizer: with a tokenizer.json.
        size: the number of embeddings.
        ends: the ids that end an answer; the tokenizer's own end of a text comes first.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError("A GGUF file cannot be written: the tokenizer has no tokenizer.json. Export the model to hf.")
    vocabulary = Vocabulary.of(tokenizer, size)
    _writer_of(vocabulary.stored)(writer, tokenizer, vocabulary)
    writer.add_token_types(vocabulary.types)
    _write_special_tokens(writer, tokenizer, ends)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(without_mask_tags(tokenizer.chat_template))


def without_mask_tags(template: str) -> str:
    """The chat template without `{% generation %}`, for engines that do not know it, with the same text.

    The tags become an empty condition, so that the white space around them is treated as before.
    """
    return _MASK_TAG.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template)


_Write = Callable[[GGUFWriter, PreTrainedTokenizerFast, Vocabulary], None]


def _writer_of(stored: dict[str, Any]) -> _Write:
    """The function that writes this kind of tokenizer."""
    model = stored["model"]
    if model["type"] == "WordPiece":
        return _write_word_pieces
    if model["type"] == "BPE" and not model.get("byte_fallback"):
        return _write_bytes
    if model["type"] == "BPE":
        return _write_sentence_pieces
    if model["type"] == "Unigram":
        return write_unigrams
    raise UserError(
        f"A GGUF file cannot be written: a tokenizer of the kind {model['type']} is not supported. Export the model "
        "to hf."
    )


def _write_bytes(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> None:
    """Byte-level BPE, as GPT-2's (llama.cpp's `gpt2`)."""
    stored = vocabulary.stored
    normalizer = (stored["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC"):  # llama.cpp does not normalize; texts are composed (NFC) as a rule
        raise UserError(
            f"A GGUF file cannot be written: llama.cpp does not change texts as this tokenizer does ({normalizer}). "
            "Export the model to hf."
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_with_separator(tokenizer, pre_tokenizer_name(tokenizer)))
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_merges([" ".join(merge) for merge in _merges(stored)])


def _with_separator(tokenizer: PreTrainedTokenizerFast, name: str) -> str:
    """RoBERTa's tokenizer splits as GPT-2's, and has a name of its own for its separators."""
    return "roberta-bpe" if name == "gpt-2" and _adds_both_ends(tokenizer) else name


def _adds_both_ends(tokenizer: PreTrainedTokenizerBase) -> bool:
    own = tokenizer("")["input_ids"]
    return len(own) > 1 and own[0] == tokenizer.cls_token_id and own[-1] == tokenizer.sep_token_id


def _write_sentence_pieces(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> None:
    """BPE over characters with bytes for unknown ones, as Llama 2's (llama.cpp's `llama`).

    llama.cpp merges the pair of neighbors whose token has the highest score, tokenizer.json the pair with the first
    merge. So a token's score is how late its first merge is, below zero.
    """
    stored = vocabulary.stored
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(stored)):
        first.setdefault(left + right, rank)
    last = -float(len(first) + 1)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    # Tokens that the user defined are compared with the text, in which spaces are not yet marked.
    added = vocabulary.added
    writer.add_token_list(
        [token.replace(_SPACE, " ") if id in added else token for id, token in enumerate(vocabulary.tokens)]
    )
    writer.add_token_scores([-float(first[token]) if token in first else last for token in vocabulary.tokens])
    for id, token in enumerate(vocabulary.tokens):
        if _BYTE.fullmatch(token) and id not in added:
            vocabulary.types[id] = TokenType.BYTE
    unknown = stored["model"].get("unk_token")
    if unknown in vocabulary.tokens:
        vocabulary.types[vocabulary.tokens.index(unknown)] = TokenType.UNKNOWN
    writer.add_add_space_prefix(_begins_with_space(stored))


def _begins_with_space(stored: dict[str, Any]) -> bool:
    """Whether a space is put before a text."""
    normalizer, pre_tokenizer = stored["normalizer"] or {}, stored["pre_tokenizer"] or {}
    steps = normalizer.get("normalizers", [normalizer])
    return any(step.get("type") == "Prepend" for step in steps) or (
        pre_tokenizer.get("type") == "Metaspace" and pre_tokenizer.get("prepend_scheme") in ("always", "first")
    )


def _write_word_pieces(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> None:
    """WordPiece, as BERT's (llama.cpp's `bert`), which marks the starts of words in place of their continuations."""
    prefix = vocabulary.stored["model"]["continuing_subword_prefix"]
    special = {token["id"] for token in vocabulary.stored["added_tokens"] if token["special"]}
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(
        [
            token if id in special else token.removeprefix(prefix) if token.startswith(prefix) else _SPACE + token
            for id, token in enumerate(vocabulary.tokens)
        ]
    )
    normalizer = vocabulary.stored["normalizer"] or {}
    lowercase = bool(normalizer.get("lowercase"))
    accents = normalizer.get("strip_accents")
    writer.add_bool("tokenizer.ggml.normalizer.lowercase", lowercase)
    writer.add_bool("tokenizer.ggml.normalizer.strip_accents", lowercase if accents is None else accents)


def _merges(stored: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs, the first one merged first."""
    merges = stored["model"]["merges"]
    return [tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in merges]


_SPECIAL = ("unk", "sep", "pad", "mask")


def _write_special_tokens(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> None:
    """Write the special tokens, those that end an answer, and whether a text begins and ends with one."""
    own = tokenizer("")["input_ids"]
    bos = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    eos = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if bos is not None:
        writer.add_bos_token_id(bos)
    last = list(dict.fromkeys(id for id in (eos, *ends) if id is not None))
    if len(last) > 3:
        raise UserError(
            f"A GGUF file names up to three tokens that end an answer, and this model has {len(last)}. Remove some "
            "from eos_token_id in generation_config.json."
        )
    for add, end in zip(
        (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), last, strict=False
    ):
        add(end)
    for name in _SPECIAL:
        id = getattr(tokenizer, f"{name}_token_id")
        if id is not None:
            getattr(writer, f"add_{name}_token_id")(id)
    writer.add_add_bos_token(begins_with_bos(tokenizer))
    writer.add_add_eos_token(len(own) > 1 and own[-1] == eos and tokenizer.chat_template is None)
    if _adds_both_ends(tokenizer):
        writer.add_add_sep_token(True)


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether llama.cpp and Ollama put the token that begins a text before every text.

    They put it before a rendered chat too, so that a chat template without it decides.
    """
    bos = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    own = tokenizer("")["input_ids"]
    if not own or own[0] != bos:
        return False
    if tokenizer.chat_template is None:
        return True
    chat = [{"role": "user", "content": "?"}]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    return text.startswith(str(tokenizer.bos_token))
