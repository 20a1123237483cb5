"""A Unigram tokenizer (Kudo 2018), as SentencePiece's, as llama.cpp stores it.

Both choose the pieces of a text with the highest sum of scores. llama.cpp does it over the whole text, in its tokenizer
`t5`, which knows two changes of a text before that: SentencePiece's precompiled map of characters, and spaces.
"""

import base64
from collections.abc import Iterator
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerFast

from tunesmith.errors import UserError
from tunesmith.exporting.gguf_vocabulary import Vocabulary

_NEVER = -1e6
"""The score of a token that is in no text."""


def write_unigrams(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> None:
    """Write the pieces and their scores, and how texts are changed before they are split.

    Args:
        writer: of the file.
        tokenizer: of the model.
        vocabulary: its tokens, of which the unknown one gets its type.

    Raises:
        UserError: llama.cpp does not change or split texts as this tokenizer does.
    """
    stored = vocabulary.stored
    model = stored["model"]
    if model.get("byte_fallback"):
        raise _refusal("write unknown characters as bytes")
    if model.get("unk_id") is None:
        raise _refusal("do without a token for unknown characters")
    charsmap, merges_by_replacing = _normalization(stored["normalizer"])
    prepends, merges_by_splitting = _spaces(stored["pre_tokenizer"])
    scores = dict(model["vocab"])
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores([float(scores.get(token, _NEVER)) for token in vocabulary.tokens])
    vocabulary.types[model["unk_id"]] = TokenType.UNKNOWN
    writer.add_add_space_prefix(prepends)
    writer.add_remove_extra_whitespaces(merges_by_replacing or merges_by_splitting)
    if charsmap:
        writer.add_precompiled_charsmap(charsmap)


def _normalization(normalizer: dict[str, Any] | None) -> tuple[bytes, bool]:
    """The map of characters, empty if there is none, and whether several spaces become one."""
    charsmap, merges, strips = b"", False, False
    for step in _steps(normalizer, "normalizers"):
        if step["type"] == "Precompiled" and not charsmap:
            charsmap = base64.b64decode(step["precompiled_charsmap"])
        elif step["type"] == "Replace" and step["pattern"] == {"Regex": " {2,}"} and step["content"] in (" ", "▁"):
            merges = True
        elif step["type"] == "Strip":
            strips = step["strip_right"]
        else:
            raise _refusal(f"change texts as {step['type']}")
    if merges and not strips:
        raise _refusal("keep a space at the end of a text where several spaces become one")
    return charsmap, merges


def _spaces(pre_tokenizer: dict[str, Any] | None) -> tuple[bool, bool]:
    """Whether a space is put before a text, and whether several spaces become one."""
    steps = list(_steps(pre_tokenizer, "pretokenizers"))
    kinds = [step["type"] for step in steps]
    if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]) or steps[-1]["replacement"] != "▁":
        raise _refusal(f"split texts by {' and '.join(kinds) or 'nothing'}")
    scheme = steps[-1].get("prepend_scheme", "always")
    if scheme == "first":
        raise _refusal("put a space before the first part of a text only")
    return scheme == "always", len(kinds) > 1


def _steps(step: dict[str, Any] | None, inner: str) -> Iterator[dict[str, Any]]:
    if step is not None and step["type"] == "Sequence":
        for each in step[inner]:
            yield from _steps(each, inner)
    elif step is not None:
        yield step


def _refusal(what: str) -> UserError:
    return UserError(
        f"A GGUF file cannot be written: llama.cpp does not {what}, as this Unigram tokenizer does. Export the model "
        "to hf."
    )
