"""What was left of a web page or of another chat template in a text."""

import re

from tunesmith.checks.check import RowCheck
from tunesmith.checks.record import Record
from tunesmith.checks.traits import Trait

_TAG = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|em|strong|font|table|tr|td|th|ul|ol|li|h[1-6]|img|hr|center|small|sup|sub|"
    r"blockquote|script|style|iframe|form|input|button|body|head|html|meta|link|nav|section|article)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:nbsp|amp|lt|gt|quot|apos|ndash|mdash|hellip|[lr][sd]quo|#\d{2,5}|#x[0-9a-fA-F]{2,4});")
_ABOUT_MARKUP = re.compile(
    r"\b(?:html5?|xml|css|jsx|svg|markup|php|javascript|react|web ?(?:page|site)|tags?)\b", re.IGNORECASE
)
"""Rows that are about markup have it by purpose."""

_CONTROL_TOKEN = re.compile(
    r"<\|[\w\- ]{1,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:bos|eos|pad|unk|mask|start_of_turn|end_of_turn|endoftext)>|"
    r"\[(?:PAD|UNK|CLS|SEP|MASK|BOS|EOS)\]|<\uff5c[^<>\uff5c]{1,40}\uff5c>|<turn\|>|<\|turn>|"
    r"^(?:### (?:Instruction|Response|Human|Assistant):)",
    re.MULTILINE,
)


def _html(record: Record) -> str | None:
    for place, text in record.places():
        found = _first_leftover(text)
        if found and "```" not in text and not any(_ABOUT_MARKUP.search(each) for each in record.texts):
            return f"“{found[:40]}” in {place}"
    return None


def _first_leftover(text: str) -> str | None:
    tag = _TAG.search(text) if "<" in text and ">" in text else None
    found = tag or (_ENTITY.search(text) if "&" in text and ";" in text else None)
    return found[0] if found else None


def _control_tokens(record: Record) -> str | None:
    for place, text in record.places():
        if "<" not in text and "[" not in text and "###" not in text:
            continue
        if (token := _CONTROL_TOKEN.search(text)) is not None:
            return f"“{token[0]}” in {place}"
    return None


HTML = RowCheck(
    name="html",
    title="HTML leftovers",
    severity="note",
    advice="Extract the text again, or remove the tags, unless the model is to write them.",
    find=_html,
    traits=Trait.TAG | Trait.ENTITY,
)

CONTROL_TOKENS = RowCheck(
    name="control_tokens",
    title="Control tokens in texts",
    severity="warning",
    advice="Remove them: the chat template writes them itself, and in a text they end turns where none ends.",
    find=_control_tokens,
    traits=Trait.TAG | Trait.BRACKET | Trait.HEADING,
)
