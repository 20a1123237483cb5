"""Answer a file of questions with a model, to inspect the answers or to train a smaller model on them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.data.example import Message
from tunesmith.errors import UserError
from tunesmith.evaluation.questions import questions
from tunesmith.inference.drafts import LOOKUP
from tunesmith.inference.generate import Generator
from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.model import Model
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.sampling import Sampling
from tunesmith.models.precision import device_of, writing_dtype
from tunesmith.run import Events, Subscriber, atomic_write, writing
from tunesmith.run_lock import output_lock
from tunesmith.subjects.subject import ChatPrompt

ROWS = 256
"""Rows that are answered before they are written."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The result of `answer`.

    Attributes:
        path: the output file.
        rows: how many rows were answered and written.
        empty: how many rows got an empty answer; they are not written.
        note: what of the prompt the model's context had no room for, in a sentence; None: nothing.
    """

    path: Path
    rows: int
    empty: int
    note: str | None = None


def answer(
    model: str,
    source: str | Path,
    output: str | Path,
    sampling: Sampling = Sampling(),  # noqa: B008  # frozen
    concurrent: int = CONCURRENT,
    subscribers: Sequence[Subscriber] = (),
    draft: str | None = LOOKUP,
    cache: str = "auto",
    prompt: ChatPrompt | None = None,
) -> Answered:
    """Generate an answer to the last question of every row, and write the questions with these answers.

    Answers in the rows are replaced. The output has `question` and `answer` if every row is a single question, and
    `messages` otherwise. After an interruption, the same call resumes after the last answer that was written.

    Args:
        model: a run, an adapter, a model directory or a hub name.
        source: rows in any chat format, with or without answers.
        output: a JSONL file, which must not exist. It appears only when it is complete.
        sampling: how tokens are sampled.
        concurrent: the most rows that are answered at the same time.
        subscribers: receive `progress` events (what, done, total).
        draft: what guesses the next tokens, as in `Model.generate`.
        cache: how keys and values are stored, as in `load`.
        prompt: put before each chat, a `tunesmith.Prompt`. It is not in the output, so that a model that is trained on
            that answers as if it had read the prompt.

    Returns:
        The path, and how many rows were answered or left out.

    Raises:
        UserError: the model does not generate text, a row has no question, or the output exists already.
    """
    target = Path(output)
    with output_lock(target):
        if target.exists():
            raise UserError(f"{target} exists already. Use another output path.")
        return _answer(model, source, target, sampling, concurrent, Events(*subscribers), draft, cache, prompt)


def _answer(
    model: str,
    source: str | Path,
    target: Path,
    sampling: Sampling,
    concurrent: int,
    events: Events,
    draft: str | None,
    cache: str,
    prompt: ChatPrompt | None,
) -> Answered:
    """As `answer`, of an output that no other process writes."""
    reference = ModelReference.find(model)
    if not reference.head.generates_text:
        raise UserError(f"{model} does not generate text, so it cannot answer. Use a causal language model instead.")
    chats = [question.chat for question in questions([str(source)])]
    partial = target.with_name(f".{target.name}.partial")
    header = {"model": model, "sampling": asdict(sampling), "cache": cache, "rows": _digest(chats)}
    header |= {} if prompt is None else {"prompt": prompt.version}
    with writing(target):
        done, empty = _answered_so_far(partial, header)
    device = device_of("auto")
    events.emit("progress", what="answers", done=done, total=len(chats))
    generator = Generator.of(reference, writing_dtype("auto", device), device, concurrent, cache=cache)
    renderer = None if prompt is None else prompt.renderer(Model(model))
    single = all(len(chat) == 1 for chat in chats)
    remaining = iter(chats[done:])
    while part := list(islice(remaining, ROWS)):
        part_sampling = replace(sampling, seed=sampling.seed + done)
        asked = part if renderer is None else [renderer.chat(chat, sampling.max_new_tokens) for chat in part]
        texts = generator.answers(asked, part_sampling, draft=draft)
        with partial.open("a", encoding="utf-8") as file:
            for chat, text in zip(part, texts, strict=True):
                file.write(json.dumps(_answered_row(chat, text, single) if text else {}, ensure_ascii=False) + "\n")
        done, empty = done + len(part), empty + texts.count("")
        events.emit("progress", what="answers", done=done, total=len(chats))
    answered = [line for line in _lines(partial)[1:] if line != "{}"]
    with atomic_write(target) as out:
        out.writelines(line + "\n" for line in answered)
    partial.unlink()
    return Answered(target, len(answered), empty, None if renderer is None else renderer.note)


def _answered_row(chat: Sequence[Message], text: str, single: bool) -> dict[str, Any]:
    if single:
        return {"question": chat[0]["content"], "answer": text}
    return {"messages": [*chat, {"role": "assistant", "content": text}]}


def _answered_so_far(partial: Path, header: dict[str, Any]) -> tuple[int, int]:
    """Read what an interrupted run wrote. The first line of the file identifies its model, sampling and rows.

    Returns:
        How many rows were answered, and how many of these answers are empty.

    Raises:
        UserError: the file comes from another model, other sampling options or other rows.
    """
    first, *lines = _lines(partial) if partial.exists() else [json.dumps(header)]
    if first != json.dumps(header):
        raise UserError(
            f"{partial} has answers from another run ({first[:200]}). Remove it, or use another output path."
        )
    with atomic_write(partial) as out:  # drops a line that was cut off while it was written
        out.writelines(line + "\n" for line in (first, *lines))
    return len(lines), lines.count("{}")


def _lines(file: Path) -> list[str]:
    """The complete lines. Only a line feed ends a line, as in JSONL."""
    return file.read_text(encoding="utf-8").split("\n")[:-1]


def _digest(chats: Sequence[Sequence[Message]]) -> str:
    return hashlib.sha256(json.dumps([list(chat) for chat in chats], sort_keys=True).encode()).hexdigest()
