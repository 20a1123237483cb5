"""`tunesmith parity A B`: whether a stored or served form of a model is still that model."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.engine.allocator import keep_freed_memory
from tunesmith.errors import UserError
from tunesmith.evaluation.figures import answer_figures
from tunesmith.evaluation.rows import Task
from tunesmith.evaluation.summary import with_interval
from tunesmith.exporting.gguf_quantizer import require_llama_cpp
from tunesmith.inference.held_out import RowLosses
from tunesmith.inference.openai_client import OpenAIClient
from tunesmith.metrics import METRICS
from tunesmith.proving.http import Served
from tunesmith.proving.huggingface import HuggingFace
from tunesmith.proving.llama_cpp import LlamaCpp
from tunesmith.proving.material import Material, material
from tunesmith.proving.mlx import Mlx, is_mlx
from tunesmith.proving.reader import Agreement, Ids, Reader
from tunesmith.proving.trained import Trained
from tunesmith.run import Events, Subscriber, atomic_write, resolve_run
from tunesmith.server_address import is_address
from tunesmith.statistics.differences import paired
from tunesmith.subjects.subject import Answer

ROWS = 32
"""Rows that are compared."""

FILE = "parity.json"


@keep_freed_memory()
def parity(
    a: str | Path,
    b: str | Path,
    *,
    rows: int = ROWS,
    data: str | Path | None = None,
    max_new_tokens: int = 128,
    device: str = "auto",
    api_key: str | None = None,
    subscribers: Sequence[Subscriber] = (),
) -> dict[str, Any]:
    """Compare a form of a model with the model, each read by its own program, and write `parity.json` beside the form.

    The two are in memory one after the other; the model's log-probabilities wait in a temporary file beside the form.

    Args:
        a: the model: a run, an adapter, a model directory or a name of a base, read by Tunesmith.
        b: a form of it: a GGUF file, read by llama.cpp; a directory of `--to ollama`, of which the GGUF file is read; a
            directory of `--to mlx`, read by mlx-lm, or another model directory, read by transformers; `http://…`, a
            server with OpenAI's protocol; or as `a`.
        rows: how many rows are compared: of `data`, else held-out rows of `a`'s run, else built-in questions.
        data: a file of rows.
        max_new_tokens: the most tokens of an answer.
        device: for Tunesmith and transformers.
        api_key: for a server.
        subscribers: receive `progress` events (what, done, total).

    Returns:
        The content of `parity.json`: token_ids_equal (None: the program reports no ids), differing (chats with other
        ids), not_rendered (chats that the template rejects), top1_agreement and kl (mean over positions, nats) with
        intervals, loss and metrics (a, b and their paired difference, with 95 % intervals), answers and same_answers,
        kind (how exactly the weights are stored) with limits, failed (what is beyond them), not_checked, passed.

    Raises:
        UserError: one of them cannot be read, does not write text, or reports no log-probabilities.
    """
    events = Events(*subscribers)
    first = Trained(str(a), device)
    found = material(str(a), first.renderer, rows, None if data is None else str(data))
    if not found.rows:
        raise UserError(f"There is nothing to compare: the chat template rejects all of {found.origin}. Give --data.")
    open_second = _reader(str(b), first, found, max_new_tokens, device, api_key)
    form = resolve_run(Path(b).expanduser())
    beside_form = form.parent if form.exists() else None
    with tempfile.TemporaryDirectory(dir=beside_form, prefix=".parity.") as directory:
        expected = _expected(first, found, max_new_tokens, Path(directory), events)
        first.close()
        second = open_second()
        try:
            result = {"a": str(a), "b": str(b)}
            result |= _compared(first, expected, second, found, max_new_tokens, events)
        finally:
            second.close()
    if form.exists():
        write_parity(beside(form), result)
    return result


def write_parity(file: Path, result: dict[str, Any]) -> None:
    """Write `parity.json`."""
    with atomic_write(file) as out:
        json.dump(result, out, indent=2, ensure_ascii=False)


def beside(form: Path) -> Path:
    """Where `parity.json` of a form is: in its directory or run, or beside its file as `NAME.parity.json`."""
    return form / FILE if form.is_dir() else form.with_suffix(f".{FILE}")


def _reader(
    name: str, first: Trained, found: Material, max_new_tokens: int, device: str, api_key: str | None
) -> Callable[[], Reader]:
    """Opens the form in its own program.

    Raises:
        UserError: nothing of that name exists, or its program is not installed.
    """
    if is_address(name):
        return lambda: Served(OpenAIClient(name, key=api_key), first.renderer.tokenizer)
    path = Path(name).expanduser()
    if (path / "Modelfile").exists():
        path = next(path.glob("*.gguf"))
    if path.suffix == ".gguf" and path.is_file():
        prompts = [len(first.chat_ids(chat.messages, chat.tools)) for chat in found.chats]
        longest = max([*prompts, *(len(row.ids) for row in found.rows)])
        require_llama_cpp(f"Reading {path}")
        return partial(LlamaCpp, path, -(-(longest + max_new_tokens + 64) // 256) * 256)
    if is_mlx(path):
        return partial(Mlx, path)
    if (path / "config.json").exists() and not (path / "recipe.yaml").exists():
        return partial(HuggingFace, path, device)
    other = Trained(name, device)
    return lambda: other


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the first model gives.

    Attributes:
        files: of each row, (marks, vocabulary) fp32: its log p.
        answers: to each task.
    """

    files: Sequence[Path]
    answers: Sequence[str]

    def log_probabilities(self, row: int) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.load(self.files[row], mmap_mode="c")
        return found


def _expected(first: Trained, found: Material, max_new_tokens: int, directory: Path, events: Events) -> _Expected:
    """Compute with the first model, and write its log-probabilities."""
    files = [directory / f"{number}.npy" for number in range(len(found.rows))]
    for done, (row, file) in enumerate(zip(found.rows, files, strict=True)):
        events.emit("progress", what="parity: next tokens of the model", done=done, total=len(found.rows))
        np.save(file, first.log_probabilities(row))
    events.emit("progress", what="parity: next tokens of the model", done=len(found.rows), total=len(found.rows))
    events.emit("progress", what="parity: answers", done=0, total=2)
    chats = [task.chat for task in found.tasks]
    return _Expected(files, first.answers(chats, max_new_tokens) if chats else [])


def _compared(
    first: Trained, expected: _Expected, second: Reader, found: Material, max_new_tokens: int, events: Events
) -> dict[str, Any]:
    """The result, without the names."""
    ids = _ids(first, second, found)
    agreements = []
    for done, row in enumerate(found.rows):
        events.emit("progress", what="parity: next tokens", done=done, total=len(found.rows))
        agreements.append(second.agreement(row, expected.log_probabilities(done)))
    events.emit("progress", what="parity: next tokens", done=len(found.rows), total=len(found.rows))
    if not any(each.positions for each in agreements):
        raise UserError(f"{second.program} reports no log-probabilities, so that nothing can be compared.")
    figures = _figures(agreements)
    events.emit("progress", what="parity: answers", done=1, total=2)
    answers = second.answers([task.chat for task in found.tasks], max_new_tokens) if found.tasks else []
    events.emit("progress", what="parity: answers", done=2, total=2)
    result = {
        "program": second.program,
        "rows_from": found.origin,
        "rows": len(found.rows),
        "unusable_rows": found.unusable,
        **ids,
        **figures,
        **(_answers(expected.answers, answers, found.tasks) if found.tasks else {}),
        "kind": second.kind.name,
        "limits": {"top1_agreement": second.kind.top1_agreement, "kl": second.kind.kl},
        "not_rendered": list(found.not_rendered),
        "not_checked": list(second.unchecked),
    }
    result["failed"] = _failed(result)
    result["passed"] = not result["failed"]
    return result


def _ids(first: Trained, second: Reader, found: Material) -> dict[str, Any]:
    """Whether all chats and texts have the same ids, and the first of those that do not."""
    pairs: list[tuple[str, list[int], Ids]] = [
        *(
            (each.name, first.chat_ids(each.messages, each.tools), second.chat_ids(each.messages, each.tools))
            for each in found.chats
        ),
        *((repr(text[:20]), first.text_ids(text), second.text_ids(text)) for text in found.texts),
    ]
    reported = [(name, one, two) for name, one, two in pairs if two is not None]
    differing = [_difference(name, one, two) for name, one, two in reported if two not in (one, len(one))]
    by_count = any(isinstance(two, int) for *_, two in reported)
    equal = False if differing else None if by_count or not reported else True
    return {"token_ids_equal": equal, "chats": len(reported), "differing": differing}


def _difference(name: str, one: Sequence[int], two: Sequence[int] | int) -> dict[str, Any]:
    if isinstance(two, int):
        return {"chat": name, "tokens": [len(one), two]}
    at = next((k for k, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two)))
    return {"chat": name, "at": at, "a": list(one[at : at + 8]), "b": list(two[at : at + 8])}


def _figures(agreements: Sequence[Agreement]) -> dict[str, Any]:
    """Means over positions, and the losses. Intervals are over rows, paired for the difference."""
    counts = np.array([each.positions for each in agreements])

    def mean(of: Callable[[Agreement], float]) -> RowLosses:
        return RowLosses(np.array([of(each) for each in agreements], np.float64), counts)

    same, divergence = mean(lambda each: each.same), mean(lambda each: each.divergence)
    one, two = mean(lambda each: each.losses[0]), mean(lambda each: each.losses[1])
    difference, interval = one.difference(two)
    return {
        "positions": int(counts.sum()),
        "top1_agreement": same.loss,
        "top1_agreement_interval": same.interval(),
        "kl": divergence.loss,
        "kl_interval": divergence.interval(),
        "loss": {
            "a": one.loss,
            "a_interval": one.interval(),
            "b": two.loss,
            "b_interval": two.interval(),
            "difference": difference,
            "difference_interval": interval,
        },
    }


def _answers(one: Sequence[str], two: Sequence[str], tasks: Sequence[Task]) -> dict[str, Any]:
    """The task's metrics of both sides' answers."""
    before, after = (answer_figures([Answer(text) for text in texts], tasks, METRICS) for texts in (one, two))
    metrics = {}
    for name, measured in before.items():
        difference = paired(measured, after[name])
        assert difference is not None  # of the same tasks
        metrics[name] = {
            "title": measured.title,
            "a": with_interval(measured),
            "b": with_interval(after[name]),
            "difference": {"value": difference.value, "interval": difference.interval},
        }
    same = sum(x == y for x, y in zip(one, two, strict=True))
    return {"metrics": metrics, "answers": len(one), "same_answers": same}


def _failed(result: dict[str, Any]) -> list[str]:
    """What is beyond the limits with its whole interval, in words."""
    limits, failed = result["limits"], []
    if result["differing"]:
        first = result["differing"][0]
        where = f"at token {first['at']}" if "at" in first else f"{first['tokens'][1]} tokens for {first['tokens'][0]}"
        failed.append(
            f"{len(result['differing'])} of {result['chats']} chats have other token ids ({first['chat']}: {where})"
        )
    if result["top1_agreement_interval"][1] < limits["top1_agreement"]:
        failed.append(
            f"the most likely token is the same at {result['top1_agreement']:.2%} of the positions, and the limit for "
            f"{result['kind']} is {limits['top1_agreement']:.0%}"
        )
    if not result["kl_interval"][0] <= limits["kl"]:
        failed.append(f"KL is {result['kl']:.2g} nats per token, and the limit for {result['kind']} is {limits['kl']}")
    return failed
