"""The requests of serve_load.py: real or made-up chats, and how many tokens their answers have."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from generation_speed import drawn_by

MOST_PROMPT_TOKENS, ANSWER_TOKENS = 400, (8, 128)
EXPONENT = 2
"""Of the density of the answers' lengths, length ** -EXPONENT."""

STRATA = 16
"""So many answers in a row have a length from each of as many equal parts of the distribution."""

MADE_UP = 4000
WORDS = (
    "river stone bridge market winter garden letter window travel music kitchen forest engine island teacher harbor "
    "summer village doctor camera mountain library ticket orange silver morning paper school cloud history"
).split()

Job = dict[str, Any]


def request_of(messages: Sequence[Job], prompt_tokens: int, tokens: int) -> Job:
    body: Job = {"messages": list(messages), "max_tokens": tokens}
    return {"body": body, "prompt_tokens": prompt_tokens, "tokens": tokens}


def requests_of(chats: Sequence[tuple[list[Job], int]], count: int) -> list[Job]:
    """So many requests, with chats in a random order; they repeat only if there are too few."""
    draw = random.Random(0)
    order = draw.sample(range(len(chats)), len(chats))
    lengths = range(ANSWER_TOKENS[0], ANSWER_TOKENS[1] + 1)
    draw_answer = drawn_by([length**-EXPONENT for length in lengths])
    found: list[Job] = []
    while len(found) < count:
        answers = [lengths[draw_answer((part + draw.random()) / STRATA)] for part in range(STRATA)]
        draw.shuffle(answers)
        for tokens in answers:
            messages, prompt_tokens = chats[order[len(found) % len(chats)]]
            found.append(request_of(messages, prompt_tokens, tokens))
    return found[:count]


def chats_of(tokenizer: Any, files: Sequence[Path]) -> list[tuple[list[Job], int]]:
    """Different chats that end with a message of the user's, and how many tokens their prompts have.

    Raises:
        SystemExit: the files have none that is short enough.
    """
    import tunesmith
    from tunesmith.data.render import Renderer

    renderer = Renderer(tokenizer)
    found: dict[str, tuple[list[Job], int]] = {}
    for messages in read_chats(files) if files else made_up_chats():
        try:
            text = renderer.prompt(messages)
        except (tunesmith.UserError, ValueError):
            continue
        count = len(renderer.tokenizer(text, add_special_tokens=False)["input_ids"])
        if count <= MOST_PROMPT_TOKENS:
            found[text] = (messages, count)
    if not found:
        raise SystemExit(
            f"--chats: no chat ends with a message of the user's and has up to {MOST_PROMPT_TOKENS} tokens."
        )
    return list(found.values())


def read_chats(files: Sequence[Path]) -> Iterator[list[Job]]:
    """The chats in files of rows, each without its last message; those with tools are left out."""
    from tunesmith.data.example import Malformed
    from tunesmith.data.format_detection import detect
    from tunesmith.data.read import read
    from tunesmith.data.row_formats import to_example

    for file in files:
        for row in read([str(file)], Path.cwd()):
            example = None if isinstance(row, Malformed) else to_example(row, detect([row]))
            if example is None or isinstance(example, Malformed) or not example.messages:
                continue
            messages = [dict(message) for message in example.messages[:-1]]
            is_plain = all(each.keys() == {"role", "content"} and isinstance(each["content"], str) for each in messages)
            if is_plain and messages and messages[-1]["role"] == "user":
                yield messages


def made_up_chats() -> Iterator[list[Job]]:
    """Questions about a few random words, of 10 to 200 words."""
    draw = random.Random(0)
    for number in range(MADE_UP):
        words = " ".join(draw.choice(WORDS) for _ in range(draw.randrange(10, 200)))
        yield [{"role": "user", "content": f"Question {number}: write about {words}."}]
