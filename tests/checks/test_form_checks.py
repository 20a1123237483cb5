"""Broken characters, markup, cut answers and languages: what is found in a row, and what looks like it and is fine."""

import pytest

from tunesmith.checks.encoding import encoding_problem
from tunesmith.checks.endings import ENDED, NOT_PROSE, OPEN, ending
from tunesmith.checks.language import language
from tunesmith.checks.markup import CONTROL_TOKENS, HTML
from tunesmith.checks.record import Record
from tunesmith.data.example import Source


def row(answer: str, prompt: str = "A question?") -> Record:
    return Record(Source("rows.jsonl", 1), prompt, answer)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Nice cafÃ© in town", "“cafÃ© in town” for “café in town”"),
        ("itâ€™s fine", "for “it"),
        ("Das ist schÃ¶n und grÃ¼n", "“schÃ¶n"),
        ("РџСЂРёРІРµС‚, РєР°Рє РґРµР»Р°?", "“"),
        ("a\ufffdb", "replacement character"),
        ("a\x00b", "U+0000"),
        ("a\ud800b", "U+D800"),
        ("a\x85b \x9d", "U+009D"),
    ],
)
def test_broken_characters_are_quoted(text: str, part: str) -> None:
    problem = encoding_problem(text)
    assert problem is not None
    assert part in problem


@pytest.mark.parametrize(
    "text",
    [
        "plain\tascii\r\n",
        "Café, naïve, Ångström, SÃO PAULO, Ã",
        "“Quotes” – and dashes … €5 ½ ™",
        "Привет, как дела? Сегодня Россия",
        "東京は晴れです。",
        "😀👍🏽",
    ],
)
def test_text_in_any_language_is_not_broken(text: str) -> None:
    assert encoding_problem(text) is None


@pytest.mark.parametrize("text", ["Fish &amp; chips", "One<br>two", '<a href="x">here</a>', "It&#39;s"])
def test_html_leftovers_are_found(text: str) -> None:
    assert HTML.find(row(text)) is not None


@pytest.mark.parametrize(
    "text", ["if a < b and c > d: pass", "AT&T; R&D", "Write HTML: <p>one</p>", "```\n<p>\n```", "List<String> x"]
)
def test_what_is_about_markup_or_no_tag_is_not_found(text: str) -> None:
    assert HTML.find(row(text)) is None


@pytest.mark.parametrize("text", ["Hello<|im_end|>", "<s>[INST] Hi", "a</s>", "### Response:\nYes", "<｜User｜>hi"])
def test_control_tokens_are_found(text: str) -> None:
    assert CONTROL_TOKENS.find(row(text)) is not None


def test_comparisons_and_links_are_no_control_tokens() -> None:
    assert CONTROL_TOKENS.find(row("a <|> b, [link](x), ### Heading, |x| < |y|")) is None


CUT = [
    "The train leaves at noon. After that you can still take the bus, but it is slow and",
    "First, open the settings. Then choose the account that you want to remove, and click on the but",
    "Dies ist der erste Satz. Und der zweite Satz hört hier einfach",
    "This is because, as everyone knows,",
    "1. Open the door.\n2. Close the window.\n3. Turn off the light and",
    "这是第一句话。第二句话在这里突然就",
]
WHOLE = [
    "It does.",
    "Is it?",
    "She said “yes.”",
    "これはペンです。",
    "यह ठीक है।",
    "**It is done.**",
]
NO_PROSE = [
    "billing",
    "New York",
    "72",
    "48/2 = <<48/2=24>>24\n#### 72",
    "See https://example.org/a/b",
    "The code is:\n```python\nprint(1)\n```",
    '{"a": 1, "b": [1, 2]}',
    "- apples\n- pears\n- plums from the garden",
    "Roses are red\nViolets are blue\nSugar is sweet\nAnd so are you",
    '"A Title That Has No Period At Its End At All"',
    "Kind regards,\nAnn Miller",
    "Let us think. Both are true. The answer is: True",
    "วันนี้อากาศดีมากและฉันอยากไปเที่ยวทะเลกับเพื่อนของฉัน",
    "Use def f(x): return x",
]


@pytest.mark.parametrize("answer", CUT)
def test_answers_cut_in_mid_sentence_are_open(answer: str) -> None:
    assert ending(row(answer)) == OPEN


@pytest.mark.parametrize("answer", WHOLE)
def test_sentences_end_in_the_punctuation_of_their_language(answer: str) -> None:
    assert ending(row(answer)) == ENDED


@pytest.mark.parametrize("answer", NO_PROSE)
def test_labels_lists_code_numbers_and_titles_are_no_cut_sentences(answer: str) -> None:
    assert ending(row(answer)) == NOT_PROSE


def test_raw_text_has_no_answer() -> None:
    assert ending(row("A text that goes on in the next file and", prompt="")) == NOT_PROSE


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The cat sat on the mat and looked at the birds in the garden.", "en"),
        ("How can I change the PIN of my card before I travel abroad?", "en"),
        ("Ich möchte bitte meine Karte sperren lassen, weil sie gestohlen wurde.", "de"),
        ("¿Dónde puedo cambiar dinero antes de viajar a otro país?", "es"),
        ("Je voudrais savoir pourquoi mon paiement a été refusé hier soir.", "fr"),
        ("Как мне изменить свой пароль в приложении?", "ru"),
        ("我的银行卡丢了，应该怎么办？", "zh"),
        ("ok", ""),
        ("12345 67890 12345", ""),
        ("```python\nimport numpy as np\nx = np.zeros(3)\n```", ""),
    ],
)
def test_a_language_is_named_where_it_is_sure(text: str, name: str) -> None:
    assert language(text) == name
