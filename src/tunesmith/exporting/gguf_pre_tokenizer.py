"""llama.cpp's name of how a byte-level BPE tokenizer splits a text before it merges bytes.

llama.cpp has the rules of each known tokenizer in its code, under a name (`tokenizer.ggml.pre`). Its converter finds
the name by the SHA-256 of the token ids of one text (https://github.com/ggml-org/llama.cpp/pull/6920), which depends on
the vocabulary. A tokenizer that was trained anew splits as a known one, and has another hash: then the rules
themselves, from tokenizer.json, decide.
"""

import json
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from tunesmith.errors import UserError

CHECKED = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n"
    "🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 "
    "3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български "
    "''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? "
    "'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
"""The text whose token ids llama.cpp's converter hashes."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_OPENING = r"[^\r\n\p{L}\p{N}]?"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_LAST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

Rules = tuple[str, ...]
"""Expressions that split a text one after the other, each within the parts of the one before."""

_NAMES: dict[tuple[Rules, bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGIT, _GPT2), False): "smollm",
    ((_ENGLISH + _WORDS + r"\p{N}{1,3}" + _REST,), True): "llama-bpe",
    ((_ENGLISH + _WORDS + r"\p{N}{1,3}" + _REST,), False): "dbrx",
    ((_ENGLISH + _WORDS + _DIGIT + _REST,), False): "qwen2",
    (
        (
            _ENGLISH + r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        False,
    ): "qwen35",
    ((f"{_OPENING}{_UPPER}*{_LOWER}+|{_OPENING}{_UPPER}+{_LOWER}*|{_DIGIT}{_LAST}",), True): "tekken",
    (
        (f"{_OPENING}{_UPPER}*{_LOWER}+{_ENDING}|{_OPENING}{_UPPER}+{_LOWER}*{_ENDING}|\\p{{N}}{{1,3}}{_LAST}",),
        False,
    ): "gpt-4o",
    ((_WORDS + _DIGIT + _REST,), False): "ufakzeka",
    # The embedded base. What its first alternative matches, the next one matches too: a mark and then letters up to
    # the end of the word. So it splits as the rules above, which recent builds of llama.cpp have.
    ((r"'(?:[sdmt]|ll|ve|re)\b|" + _WORDS + _DIGIT + _REST,), False): "ufakzeka",
}
"""By the rules, and whether a part that is a token as a whole is not merged from bytes."""


def pre_tokenizer_name(tokenizer: PreTrainedTokenizerFast) -> str:
    """llama.cpp's name of a byte-level BPE tokenizer's rules.

    Raises:
        UserError: llama.cpp does not know the rules.
    """
    digest = sha256(str(tokenizer.encode(CHECKED)).encode()).hexdigest()
    known = _known_hashes().get(digest)
    if known is not None:
        return known
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = rules_of(stored["pre_tokenizer"])
    name = None if rules is None else _NAMES.get((rules, stored["model"].get("ignore_merges", False)))
    if name is None:
        raise UserError(
            "A GGUF file cannot be written: llama.cpp has no rules that split texts as this tokenizer does (hash "
            f"{digest[:12]}…, {_described(stored['pre_tokenizer'])}). Export the model to hf, or use a base with a "
            "tokenizer that llama.cpp knows, such as GPT-2's, Llama 3's or Qwen's."
        )
    return name


def rules_of(step: dict[str, Any] | None) -> Rules | None:
    """The expressions that a pre-tokenizer of tokenizer.json splits by; None if it does something else."""
    kind = None if step is None else step["type"]
    if step is None or (kind == "ByteLevel" and step.get("add_prefix_space")):
        return None
    if kind == "Sequence":
        parts = [rules_of(each) for each in step["pretokenizers"]]
        return None if None in parts else tuple(rule for part in parts for rule in part or ())
    if kind == "ByteLevel":
        return (_GPT2,) if step.get("use_regex", True) else ()
    if kind == "Digits" and step["individual_digits"]:
        return (_DIGIT,)
    # All expressions above match every character, so that nothing is removed.
    is_split = kind == "Split" and (step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True))
    expression = step["pattern"].get("Regex") if is_split else None
    return None if expression is None else (expression,)


def _described(step: dict[str, Any] | None) -> str:
    kinds = [each["type"] for each in (step or {}).get("pretokenizers", [step] if step else [])]
    return " and ".join(kinds) or "no pre-tokenizer"


@cache
def _known_hashes() -> dict[str, str]:
    """llama.cpp's names by hash."""
    names: dict[str, list[str]] = json.loads(Path(__file__).with_name("pre_tokenizers.json").read_text("utf-8"))
    return {digest: name for name, digests in names.items() for digest in digests}
