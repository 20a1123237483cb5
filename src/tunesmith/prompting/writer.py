"""Candidates written by a model: system prompts from a few training rows (Zhou et al. 2023, "APE")."""

from collections.abc import Callable, Sequence

import numpy as np

from tunesmith.data.example import Example
from tunesmith.data.reasoning import final_answer
from tunesmith.errors import UserError
from tunesmith.inference.sampling import Sampling
from tunesmith.prompting.candidates import Candidate
from tunesmith.prompting.prompt import Prompt
from tunesmith.prompting.reading import Reading
from tunesmith.prompting.template import literal
from tunesmith.subjects.subject import Chat, Subject

ASK = (
    "Here are questions that an assistant was asked, with good answers. Write the system prompt that makes an "
    "assistant answer new questions of this kind as well: what it does, in which form, and how long its answers are. "
    "Do not repeat the questions or the answers. Reply with the system prompt and nothing else."
)

ROWS = 6
"""Rows that the model reads for each prompt; other rows for each, so that it does not write the same one."""

CHARACTERS = 600
"""Of a question or an answer that it reads."""

SAMPLING = Sampling(max_new_tokens=256, temperature=0.8, top_p=0.95)
"""Different prompts need random numbers."""


def written(
    subject: Subject, rows: Sequence[Example], count: int, seed: int, done: Callable[[int], None] = lambda count: None
) -> list[Candidate]:
    """System prompts that a model writes.

    Args:
        subject: the model.
        rows: training rows, each a question and its answer.
        count: how many it is asked for.
        seed: of the choice of rows.
        done: called with the number of replies so far.

    Returns:
        Those that are not empty and not the same as another.

    Raises:
        UserError: the model cannot be asked, or wrote nothing.
    """
    reading = Reading.of(subject.model)
    draw = np.random.default_rng(seed)
    chats = [_asking([rows[index] for index in draw.permutation(len(rows))[:ROWS]], reading) for _ in range(count)]
    replies = subject.answers(chats, SAMPLING, done)
    texts = list(dict.fromkeys(_plain(final_answer(reply.text)) for reply in replies))
    texts = [text for text in texts if text]
    if not texts:
        raise UserError(f"{subject.name} wrote no prompt in {count} attempts. Use another model to write.")
    return [
        Candidate(f"written {number}", Prompt(system=literal(text)), "written") for number, text in enumerate(texts, 1)
    ]


def _asking(rows: Sequence[Example], reading: Reading) -> Chat:
    """The chat that asks for a prompt, with as many rows as fit."""
    for count in range(len(rows), 0, -1):
        pairs = "\n\n".join(_shown(row) for row in rows[:count])
        chat = [{"role": "user", "content": f"{ASK}\n\n{pairs}"}]
        if reading.fits(chat, SAMPLING.max_new_tokens):
            break
    return chat


def _shown(row: Example) -> str:
    assert row.messages is not None
    question, answer = (str(turn["content"])[:CHARACTERS] for turn in row.messages)
    return f"[Question]\n{question}\n[Answer]\n{answer}"


def _plain(text: str) -> str:
    """A reply without a fence or quotation marks around it."""
    text = text.strip().removeprefix("```").removesuffix("```").strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text
