"""A file of questions to a file of a model's answers: for looking at them, and for a smaller model to learn from."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.data.example import Malformed, Message
from tunesmith.data.read import Row, read
from tunesmith.data.row_formats import detect, to_example
from tunesmith.engine.precision import device_of, dtype_of
from tunesmith.errors import UserError
from tunesmith.models.attention import use_cached_attention
from tunesmith.models.generate import Sampling, answers
from tunesmith.models.model_reference import ModelReference
from tunesmith.models.prompts import plain_model
from tunesmith.run import Events, Subscriber, atomic_write

QUESTIONS = ("question", "prompt", "instruction", "query", "problem", "q")
"""Columns that ask, in a row that has no answer."""

ANSWERS = {"answer", "response", "completion", "output", "solution", "a", "messages", "conversations"}
"""Columns that answer, or hold both."""

ROWS = 256
"""Rows that are answered before they are written: sorted by length, so that batches hold little padding."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What `answer` did.

    Attributes:
        path: the file.
        rows: that were answered.
        empty: rows to which the model said nothing; they are left out.
    """

    path: Path
    rows: int
    empty: int


def answer(
    model: str,
    source: str | Path,
    output: str | Path,
    sampling: Sampling = Sampling(),  # noqa: B008  # frozen
    batch_size: int = 32,
    subscribers: Sequence[Subscriber] = (),
) -> Answered:
    """Let a model answer every row's last question; write its answers in place of the rows' own, if any: as questions
    and answers where that is all there is, else as chats.

    A run that was killed goes on behind the last answer that it wrote.

    Args:
        model: a run, an adapter, a model's directory or a hub name.
        source: rows of any form that chats come in, with or without answers.
        output: a JSONL file, which must not exist; it appears when it is whole.
        sampling: how tokens are chosen.
        batch_size: rows at once.
        subscribers: told of `progress` events (what, done, total).

    Raises:
        UserError: the model does not write, a row asks nothing, or the output is there already.
    """
    target = Path(output)
    if target.exists():
        raise UserError(f"{target} is there already. Name a file that is not.")
    usable = ModelReference.find(model)
    if usable.ending.kind != "vocabulary":
        raise UserError(f"{model} writes no text, so it answers nothing. Name a model that does.")
    chats = list(_chats(str(source)))
    partial = target.with_name(f".{target.name}.partial")
    try:
        done, empty = _so_far(partial, {"model": model, "sampling": asdict(sampling), "rows": _digest(chats)})
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}.") from None
    events = Events(*subscribers)
    device = device_of("auto")
    events.emit("progress", what="answers", done=done, total=len(chats))
    loaded = usable.model(dtype_of("auto", device), device)
    use_cached_attention(plain_model(loaded))
    tokenizer = usable.tokenizer()
    plain = all(len(chat) == 1 for chat in chats)
    waiting = iter(chats[done:])
    while part := list(islice(waiting, ROWS)):
        here = replace(sampling, seed=sampling.seed + done)
        said = answers(loaded, tokenizer, part, here, batch_size)
        with partial.open("a", encoding="utf-8") as file:
            for chat, text in zip(part, said, strict=True):
                file.write(json.dumps(_answered(chat, text, plain) if text else {}, ensure_ascii=False) + "\n")
        done, empty = done + len(part), empty + said.count("")
        events.emit("progress", what="answers", done=done, total=len(chats))
    whole = [line for line in _lines(partial)[1:] if line != "{}"]
    with atomic_write(target) as out:
        out.writelines(line + "\n" for line in whole)
    partial.unlink()
    return Answered(target, len(whole), empty)


def _answered(chat: Sequence[Message], text: str, plain: bool) -> dict[str, Any]:
    if plain:
        return {"question": chat[0]["content"], "answer": text}
    return {"messages": [*chat, {"role": "assistant", "content": text}]}


def _so_far(partial: Path, about: dict[str, Any]) -> tuple[int, int]:
    """How many rows an earlier run answered, and how many of them with nothing; its first line says whose they are.

    Raises:
        UserError: they are of another model, sampled otherwise, or of other rows.
    """
    first, *lines = _lines(partial) if partial.exists() else [json.dumps(about)]
    if first != json.dumps(about):
        raise UserError(f"{partial} holds answers of another run ({first[:200]}). Remove it, or name another output.")
    with atomic_write(partial) as out:  # without a line that was cut while it was written
        out.writelines(line + "\n" for line in (first, *lines))
    return len(lines), lines.count("{}")


def _lines(file: Path) -> list[str]:
    """Those that are whole; only a line feed ends one, as JSONL has it."""
    return file.read_text(encoding="utf-8").split("\n")[:-1]


def _digest(chats: Sequence[Sequence[Message]]) -> str:
    return hashlib.sha256(json.dumps([list(chat) for chat in chats], sort_keys=True).encode()).hexdigest()


def _chats(source: str) -> Iterator[tuple[Message, ...]]:
    """Each row up to its last question."""
    for row in read([source], Path.cwd()):
        if isinstance(row, Malformed):
            raise UserError(f"{row.source}: {row.reason}. Mend it, so that every row gets its answer.")
        asking = _with_answer(row)
        example = to_example(asking, detect([asking]))
        if isinstance(example, Malformed) or example.messages is None:
            raise UserError(f"{row.source} asks nothing: {getattr(example, 'reason', 'it is raw text')}.")
        if example.tools:
            raise UserError(f"{row.source} has tools to call, which are not called here. Remove such rows.")
        last = max(place for place, turn in enumerate(example.messages) if turn["role"] == "assistant")
        yield example.messages[:last]


def _with_answer(row: Row) -> Row:
    """The row with an answer to be replaced, where it has none."""
    if isinstance(row.values, str):
        return row
    values: dict[str, Any] = dict(row.values)
    turns = values.get("messages")
    if isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "user":
        return Row({**values, "messages": [*turns, {"role": "assistant", "content": "…"}]}, row.source)
    own = {str(column).lower(): value for column, value in values.items() if value is not None}
    asked = next((column for column in QUESTIONS if column in own), None)
    if asked is None or own.keys() & ANSWERS:
        return row
    if asked == "instruction":
        return Row({**own, "output": "…"}, row.source)
    beside = {column: own[column] for column in ("context", "system") if column in own}
    return Row({"question": own[asked], "answer": "…"} | beside, row.source)
