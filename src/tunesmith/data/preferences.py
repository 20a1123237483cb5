"""Row formats of human feedback: two answers of which one was chosen, ranked or rated answers, thumbs up or down."""

import math
import re
from collections.abc import Sequence
from typing import Any

from tunesmith.data.example import Completion, Message
from tunesmith.data.row_format import RowFormat, Values, required, text_of
from tunesmith.data.turns import MalformedRowError, chat, in_words, parsed, tools_of, turns_of

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_ANSWERS = ("completion", "response", "answer", "output")
STEP_END = "\n\n"
"""Between the steps of an answer."""

PREFERRED, OTHER = 1.0, 0.0
"""The scores of a chosen and a rejected completion, and of thumbs up and down."""


def _preference(values: Values) -> dict[str, Any]:
    """`chosen` and `rejected`: texts, turns, or full chats, after `prompt` if there is one (TRL, LLaMA-Factory's
    `conversations`); or transcripts with `Human:` and `Assistant:` (Bai et al. 2022). `margin`, or a score of each,
    says by how much; `tie` that neither is better."""
    prompt = _prompt(values)
    answers = [_answer(values, field, prompt) for field in ("chosen", "rejected")]
    if not prompt:
        prompt, answers = _common_beginning(answers)
    if answers[0] == answers[1]:
        raise MalformedRowError("chosen and rejected are the same")
    return _example(values, prompt, list(zip(answers, _pair_scores(values), strict=True)))


def _ranking(values: Values) -> dict[str, Any]:
    """`completions`: a list of answers to `prompt`, the best one first; or in any order, with `scores` or `ranks` (1 is
    the best), or with a score in each (`overall_score` in UltraFeedback)."""
    prompt = _prompt(values)
    if not prompt:
        raise MalformedRowError("prompt is missing")
    items = parsed(required(values, "completions"), "completions")
    if not isinstance(items, list) or len(items) < 2:
        raise MalformedRowError(f"completions is {in_words(items)}, not a list of two answers or more")
    answers, own = zip(*(_ranked(item, f"completion {number}") for number, item in enumerate(items, 1)), strict=True)
    return _example(values, prompt, list(zip(answers, _scores_of(values, own), strict=True)))


def _rating(values: Values) -> dict[str, Any]:
    """An answer and whether it is good: `completion` and `label` (true or false) after `prompt`, as in TRL; or a chat
    with `label`, or with LLaMA-Factory's `kto_tag`; or feedback that Tunesmith's server kept, with `thumb`."""
    label = _truth(required(values, "label"))
    if values.get("answers") is not None:
        return _feedback(values, label)
    column = next((name for name in _ANSWERS if values.get(name) is not None), None)
    if column is not None:
        prompt, answer = _prompt(values), _turns(values[column], column)
    else:
        name = "messages" if values.get("conversations") is None else "conversations"
        turns = list(chat(turns_of(required(values, name), name)))
        last = _start_of_answer(turns)
        prompt, answer = turns[:last], turns[last:]
    return _example(values, prompt, [(answer, PREFERRED if label else OTHER)])


def _feedback(values: Values, label: bool) -> dict[str, Any]:
    """A response of the server with a thumb, and the better answer if somebody wrote one, which is good."""
    answers = parsed(values["answers"], "answers")
    if not isinstance(answers, list) or len(answers) != 1:
        count = f"{len(answers)} answers" if isinstance(answers, list) else in_words(answers)
        raise MalformedRowError(f"answers is {count}, and the thumb does not say of which one")
    found = [(_turns(answers[0], "answers"), PREFERRED if label else OTHER)]
    if values.get("better") is not None:
        found.append((_turns(values["better"], "better"), PREFERRED))
    return _example(values, turns_of(required(values, "messages"), "messages"), found)


def _steps(values: Values) -> dict[str, Any]:
    """`completions`: the steps of one answer to `prompt`, and `labels`: whether each is right (TRL's stepwise rows).
    Steps are joined by a blank line."""
    prompt = _prompt(values)
    steps, labels = (parsed(required(values, field), field) for field in ("completions", "labels"))
    if not prompt:
        raise MalformedRowError("prompt is missing")
    if not isinstance(steps, list) or not all(isinstance(step, str) and step.strip() for step in steps) or not steps:
        raise MalformedRowError("completions is not a list of steps, each a text")
    if not isinstance(labels, list) or len(labels) != len(steps):
        raise MalformedRowError(f"labels is not a list with true or false for each of the {len(steps)} steps")
    texts = (*(f"{step}{STEP_END}" for step in steps[:-1]), steps[-1])
    answer = {"role": "assistant", "content": "".join(texts)}
    fields = _example(values, prompt, [])
    truths = tuple(str(int(_truth(label))) for label in labels)
    return {**fields, "messages": (*fields["messages"], answer), "others": texts, "label": truths, "completions": ()}


def _grades(values: Values) -> dict[str, Any]:
    """`response` to `prompt`; the grades are in other columns (`helpfulness`: 4), which are kept (HelpSteer)."""
    prompt, answer = _prompt(values), text_of(values, "response")
    if not prompt:
        raise MalformedRowError("prompt is missing")
    if not answer.strip():
        raise MalformedRowError("the response is empty")
    fields = _example(values, prompt, [])
    turn = {"role": "assistant", "content": answer}
    return {**fields, "messages": (*fields["messages"], turn), "others": (answer,)}


PREFERENCES: dict[str, RowFormat] = {
    "preference": RowFormat(
        "pairs of a chosen and a rejected answer",
        (("chosen", "rejected"),),
        (
            "prompt", "instruction", "input", "question", "conversations", "messages", "system", "tools", "margin",
            "tie", "score_chosen", "score_rejected",
        ),
        _preference,
        "dpo",
        detected=False,
    ),
    "ranking": RowFormat(
        "ranked or rated answers",
        (("completions",), ("responses",), ("answers",)),
        ("prompt", "instruction", "question", "messages", "system", "tools", "scores", "ranks"),
        _ranking,
        "dpo",
        detected=False,
    ),
    "steps": RowFormat(
        "answers with labels of their steps",
        (("completions", "labels"),),
        ("prompt", "instruction", "question", "messages", "system", "tools"),
        _steps,
        "process_reward",
        detected=False,
    ),
    "grades": RowFormat(
        "answers with grades",
        (("prompt", "response"), ("prompt", "completion"), ("question", "response"), ("question", "answer")),
        ("system", "tools"),
        _grades,
        "graded_reward",
        detected=False,
        keeps_columns=True,
    ),
    "rating": RowFormat(
        "answers rated good or bad",
        (("label",), ("kto_tag",), ("thumb",)),
        (
            "prompt", "instruction", "input", "question", "messages", "conversations", *_ANSWERS, "system", "tools",
            "answers", "better",
        ),
        _rating,
        "kto",
        detected=False,
    ),
}  # fmt: skip
"""The row formats of human feedback."""


def _prompt(values: Values) -> list[Message]:
    """The turns before the answers, from whichever column has them."""
    for field in ("prompt", "messages", "conversations", "instruction", "question"):
        value = values.get(field)
        if value is None:
            continue
        if not isinstance(value, str) or value.lstrip().startswith(("[{", "[ {")):
            return turns_of(value, field)
        if _SPEAKER.search(value):
            return _transcript(value, field)
        more = text_of(values, "input", "") if field == "instruction" else ""
        return [{"role": "user", "content": f"{value}\n{more}" if more else value}]
    return []


def _answer(values: Values, field: str, prompt: Sequence[Message]) -> list[Message]:
    """The turns of an answer, without the prompt if they begin with it."""
    value = required(values, field)
    turns = _turns(value, field)
    if not prompt:
        return turns
    if turns[0]["role"] != "assistant":  # a full chat: the prompt is there twice (UltraFeedback)
        before, rest = turns[: len(prompt)], turns[len(prompt) :]
        system = [turn for turn in prompt if turn["role"] == "system"]
        if [turn["content"] for turn in before] != [turn["content"] for turn in prompt] or not rest:
            raise MalformedRowError(
                f"{field} is a full chat that does not begin with the prompt{' and its system turn' if system else ''}"
            )
        turns = rest
    return turns


def _turns(value: Any, field: str) -> list[Message]:
    """Turns from a list, one turn, a transcript, or a text, which is an answer."""
    if isinstance(value, dict):
        return turns_of([value], field)
    if not isinstance(value, str) or value.lstrip().startswith(("[{", "[ {")):
        return turns_of(value, field)
    if _SPEAKER.match(value):
        return _transcript(value, field)
    if not value.strip():
        raise MalformedRowError(f"the {field} is empty")
    return [{"role": "assistant", "content": value}]


def _transcript(text: str, field: str) -> list[Message]:
    """The turns of a transcript in Anthropic's form: each begins with a blank line and `Human:` or `Assistant:`."""
    before, *rest = _SPEAKER.split(text)
    if before.strip():
        raise MalformedRowError(f"{field} has text before the first Human: or Assistant:")
    turns = [
        {"role": _ROLES[speaker], "content": said.strip()} for speaker, said in zip(rest[::2], rest[1::2], strict=True)
    ]
    while len(turns) > 1 and turns[-1]["role"] == "user" and not turns[-1]["content"]:
        turns.pop()
    return turns


def _common_beginning(answers: Sequence[list[Message]]) -> tuple[list[Message], list[list[Message]]]:
    """The turns that full chats have in common, before the first answer that differs, and the rest of each.

    Raises:
        MalformedRowError: they begin with different questions, or one ends before its answer.
    """
    shared = 0
    while all(shared < len(turns) - 1 for turns in answers) and answers[0][shared] == answers[1][shared]:
        shared += 1
    while shared and answers[0][shared - 1]["role"] == "assistant":
        shared -= 1
    if shared == 0 and answers[0][0]["role"] != "assistant":
        raise MalformedRowError("chosen and rejected begin with different turns, so they answer different questions")
    return answers[0][:shared], [turns[shared:] for turns in answers]


def _start_of_answer(turns: Sequence[Message]) -> int:
    """The index of the first turn after the last question."""
    questions = [index for index, turn in enumerate(turns) if turn["role"] not in ("assistant", "tool")]
    return questions[-1] + 1 if questions else 0


def _pair_scores(values: Values) -> tuple[float, float]:
    """The scores of chosen and rejected: their difference is the margin."""
    if _truth(values.get("tie") or False):
        return OTHER, OTHER
    if values.get("margin") is not None:
        margin = _number(values["margin"], "margin")
        if margin < 0:
            raise MalformedRowError(f"margin is {margin:g}; it is how much better chosen is than rejected")
        return margin, 0.0
    if values.get("score_chosen") is None or values.get("score_rejected") is None:
        return PREFERRED, OTHER
    scores = (_number(values["score_chosen"], "score_chosen"), _number(values["score_rejected"], "score_rejected"))
    if scores[0] < scores[1]:
        raise MalformedRowError(f"score_chosen ({scores[0]:g}) is lower than score_rejected ({scores[1]:g})")
    return scores


def _ranked(item: Any, what: str) -> tuple[list[Message], float | None]:
    """An answer of a list, and its own score if it has one."""
    if isinstance(item, dict) and "role" not in item and "from" not in item:
        text = next((item[key] for key in ("response", "completion", "text", "content", "answer") if key in item), None)
        if text is None:
            raise MalformedRowError(f"{what} has no text; it has {', '.join(map(str, item)) or 'nothing'}")
        score = next((item[key] for key in ("overall_score", "score", "rating") if item.get(key) is not None), None)
        return _turns(text, what), None if score is None else _number(score, f"the score of {what}")
    return _turns(item, what), None


def _scores_of(values: Values, own: Sequence[float | None]) -> list[float]:
    """A score for each answer: from `scores`, from `ranks`, from the answers, or from their order."""
    count = len(own)
    for field, sign in (("scores", 1.0), ("ranks", -1.0)):
        if values.get(field) is not None:
            found = parsed(values[field], field)
            if not isinstance(found, list) or len(found) != count:
                raise MalformedRowError(f"{field} is not a list with a number for each of the {count} answers")
            return [sign * _number(value, f"one of {field}") for value in found]
    rated = [score for score in own if score is not None]
    if not rated:
        return [float(count - 1 - number) for number in range(count)]
    if len(rated) < count:
        raise MalformedRowError(f"{count - len(rated)} of its {count} answers have no score")
    return rated


def _number(value: Any, what: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise MalformedRowError(f"{what} is {in_words(value)}, not a finite number")
    return number


def _truth(value: Any) -> bool:
    """A truth value, also as text or number (as in CSV files)."""
    good, bad = ("true", "1", "yes", "good", "up"), ("false", "0", "no", "bad", "down")
    known = dict.fromkeys(good, True) | dict.fromkeys(bad, False)
    found = value if isinstance(value, bool) else known.get(str(value).strip().lower())
    if found is None:
        raise MalformedRowError(f"label is {in_words(value)}, not true or false")
    return found


def _example(
    values: Values, prompt: Sequence[Message], answers: Sequence[tuple[list[Message], float]]
) -> dict[str, Any]:
    """The fields of the example.

    Raises:
        MalformedRowError: an answer has no text, or there are two system turns.
    """
    system = text_of(values, "system", "")
    before = [{"role": "system", "content": system}, *prompt] if system else list(prompt)
    if sum(turn["role"] in ("system", "developer") for turn in before) > 1:
        raise MalformedRowError("it has both a system column and a system turn")
    return {
        "messages": tuple(before),
        "completions": tuple(Completion(chat(turns), score) for turns, score in answers),
        "tools": tools_of(values.get("tools")),
    }
