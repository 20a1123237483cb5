"""Multiple choice, such as MMLU and ARC: the answer is the choice that the model finds the likeliest, as in lm-eval."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from tunesmith.data.example import Source
from tunesmith.errors import UserError
from tunesmith.evaluation.raw_text import RawText
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.question_rows import chosen, delimited, rows_with, whole_number
from tunesmith.statistics.measured import Measured, mean_of
from tunesmith.subjects.subject import NO_LOG_PROBABILITIES, Subject

TEXTS, LETTERS = "texts", "letters"
"""What is scored: the text of each choice, or its letter after a list of all."""

RAW, CHAT = "raw", "chat"
"""How a question is asked: as raw text, or as a turn of a chat, rendered with the model's chat template."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with choices.

    Attributes:
        text: the question.
        choices: two at least.
        answer: the index of the right one.
        source: the row.
        subject: what it is about; empty: unknown.
    """

    text: str
    choices: tuple[str, ...]
    answer: int
    source: str
    subject: str = ""


class MultipleChoice:
    """Scores choices by their log-probability.

    Args:
        file: the questions.
        examples: a file of questions with answers that are put before each; empty: none.
        few_shot: how many of them, from the beginning, of the question's subject if rows name subjects.
        scored: `texts` (as ARC), or `letters` (as MMLU).
        asked: `raw`, or `chat`: examples and question are a user's turn, and a choice is the answer, as lm-eval does it
            with `apply_chat_template`.

    Raises:
        UserError: a file cannot be read, or an option is not one of these.
    """

    def __init__(
        self, file: str = "", examples: str = "", few_shot: str = "0", scored: str = TEXTS, asked: str = RAW
    ) -> None:
        for option, value, known in (("scored", scored, (TEXTS, LETTERS)), ("asked", asked, (RAW, CHAT))):
            if value not in known:
                raise UserError(f"--suite-option multiple_choice.{option}={value} is not one of {' and '.join(known)}.")
        self._scored, self._asked = scored, asked
        self._few_shot = whole_number("multiple_choice.few_shot", few_shot)
        if self._few_shot and not examples:
            raise UserError("multiple_choice.few_shot needs examples: --suite-option multiple_choice.examples=FILE.")
        self._questions = read_questions(file)
        self._examples = read_questions(examples) if self._few_shot else []

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """As `Suite.measure`.

        Args:
            subject: the model.
            context: of the evaluation; its `count` limits the questions.

        Returns:
            `accuracy`, and if texts are scored `accuracy_normalized`; `accuracy_SUBJECT` if there are several subjects.
            None of a server, which reports no log-probabilities.

        Raises:
            UserError: the model does not write text, or is an encoder–decoder.
        """
        if subject.model is None:
            context.leave_out(OPTION, NO_LOG_PROBABILITIES)
            return {}
        questions: list[Question] = chosen(self._questions, context.count)
        raw = RawText(subject)
        prompts = [self._asked_of(raw, self._prompt(question)) for question in questions]
        pairs = [
            raw.pair(prompt, continuation if self._asked == RAW else continuation.removeprefix(" "))
            for prompt, question in zip(prompts, questions, strict=True)
            for continuation in continuations(question, self._scored)
        ]
        totals = [each.total for each in raw.scores(pairs, lambda done: context.progress(NAME, done, len(pairs)))]
        return figures(questions, totals, self._scored)

    def _asked_of(self, raw: RawText, prompt: str) -> str:
        """What a choice follows: the prompt, or the prompt in a chat up to where the model answers."""
        return prompt if self._asked == RAW else raw.generator.prompt_of([{"role": "user", "content": prompt}])

    def _prompt(self, question: Question) -> str:
        """What the choices follow: the examples and the question."""
        examples = [each for each in self._examples if each.subject == question.subject][: self._few_shot]
        solved = [
            f"{rendered(each, self._scored)}{continuations(each, self._scored)[each.answer]}\n\n" for each in examples
        ]
        return f"{introduction(question, self._scored)}{''.join(solved)}{rendered(question, self._scored)}"


NAME = "multiple choice"


def introduction(question: Question, scored: str) -> str:
    """What is before the examples: nothing, or MMLU's sentence.

    Args:
        question: the question.
        scored: `texts` or `letters`.
    """
    about = f" about {question.subject.replace('_', ' ')}" if question.subject else ""
    return "" if scored == TEXTS else f"The following are multiple choice questions (with answers){about}.\n\n"


def rendered(question: Question, scored: str) -> str:
    """The question up to where its answer follows.

    Args:
        question: the question.
        scored: `texts` or `letters`.
    """
    if scored == TEXTS:
        return f"Question: {question.text}\nAnswer:"
    listed = [f"{letter}. {choice}\n" for letter, choice in zip(ascii_uppercase, question.choices, strict=False)]
    return f"{question.text.strip()}\n{''.join(listed)}Answer:"


def continuations(question: Question, scored: str) -> list[str]:
    """What is scored after the question.

    Args:
        question: the question.
        scored: `texts` or `letters`.
    """
    choices = question.choices if scored == TEXTS else ascii_uppercase[: len(question.choices)]
    return [f" {choice}" for choice in choices]


def figures(questions: Sequence[Question], totals: Sequence[float], scored: str) -> dict[str, Measured]:
    """How often the likeliest choice is the right one, and how often the likeliest by character.

    Args:
        questions: the questions.
        totals: log p of each choice, of the first question's choices first.
        scored: `texts` or `letters`.

    Returns:
        `accuracy`; of texts also `accuracy_normalized`; `accuracy_SUBJECT` if there are several subjects.
    """
    right, right_by_character, start = [], [], 0
    for question in questions:
        logs = np.array(totals[start : start + len(question.choices)])
        start += len(question.choices)
        lengths = np.array([len(choice) for choice in question.choices])
        right.append(float(logs.argmax() == question.answer))
        right_by_character.append(float((logs / lengths).argmax() == question.answer))
    units = [question.source for question in questions]
    chance = np.mean([1 / len(question.choices) for question in questions])
    explanation = f"questions whose right choice is the likeliest one; {chance:.0%} by chance"
    found = {"accuracy": mean_of(right, units, f"{NAME} right", explanation)}
    if scored == TEXTS:
        explanation = "the same by the log-probability of a character, so that long choices have no disadvantage"
        title = f"{NAME} right, normalized"
        found["accuracy_normalized"] = mean_of(right_by_character, units, title, explanation)
    return found | _by_subject(questions, right, units)


def _by_subject(questions: Sequence[Question], right: Sequence[float], units: Sequence[str]) -> dict[str, Measured]:
    """The share of right answers by subject, if there are several. Models are compared by all questions only."""
    rows: dict[str, list[int]] = {}
    for row, question in enumerate(questions):
        rows.setdefault(question.subject or "without_subject", []).append(row)
    if len(rows) == 1:
        return {}
    found = {}
    for name, own in sorted(rows.items()):
        title = f"{NAME} right: {name.replace('_', ' ')}"
        figure = mean_of([right[row] for row in own], [units[row] for row in own], title, "of the questions about it")
        found[f"accuracy_{'_'.join(name.lower().split())}"] = replace(figure, is_compared=False)
    return found


def read_questions(file: str) -> list[Question]:
    """Questions with choices.

    Args:
        file: of rows `{question, choices, answer}`, in any format that data is read from, and optionally `subject`;
            ARC's rows, `{question, choices: {text, label}, answerKey}`; or a CSV file as MMLU's, without names of
            columns: the question, its choices, the letter of the right one.

    Returns:
        In the order of the file.

    Raises:
        UserError: it cannot be read, or the answer of a row is none of its choices; the message names the row.
    """
    path = Path(file).expanduser()
    if path.suffix.lower() == ".csv" and path.exists() and not _names_columns(path):
        return [_of_record(record, source) for record, source in delimited(path)]
    return [_of_row(values, source) for values, source in rows_with(file, ["question", "choices"], f"{OPTION}.file")]


OPTION = "multiple_choice"


def _names_columns(path: Path) -> bool:
    first = next(delimited(path), None)
    return first is not None and {"question", "choices"} <= set(first[0])


def _of_record(record: Sequence[str], source: Source) -> Question:
    text, *choices, answer = record if len(record) > 1 else [*record, ""]
    return _question(text, choices, [*ascii_uppercase], answer.strip(), str(source), "")


def _of_row(values: Mapping[str, Any], source: str) -> Question:
    choices: Any = values["choices"]
    if isinstance(choices, str):  # a field of a CSV file
        try:
            choices = json.loads(choices)
        except ValueError:
            raise UserError(f"{source}: choices is not a list of texts in JSON.") from None
    labels: Any = [*ascii_uppercase]
    if isinstance(choices, dict):
        choices, labels = choices.get("text"), choices.get("label")
    if not isinstance(choices, list) or not isinstance(labels, list):
        raise UserError(f"{source}: choices is not a list of texts.")
    answer = values.get("answer", values.get("answerKey"))
    subject = str(values.get("subject") or "")
    return _question(str(values["question"]), choices, labels, answer, source, subject)


def _question(
    text: str, choices: Sequence[Any], labels: Sequence[Any], answer: Any, source: str, subject: str
) -> Question:
    """A question whose answer is the index, the label or the text of a choice."""
    texts = tuple(str(choice) for choice in choices)
    if not 2 <= len(texts) <= len(ascii_uppercase) or "" in texts:
        raise UserError(f"{source} has {len(texts)} choices. A question has 2 to 26, none of them empty.")
    names = [str(label) for label in labels[: len(texts)]]
    given = str(answer)
    if isinstance(answer, int) and 0 <= answer < len(texts):
        return Question(text, texts, answer, source, subject)
    for known in (names, texts, [str(index) for index in range(len(texts))]):
        if given in known:
            return Question(text, texts, list(known).index(given), source, subject)
    raise UserError(
        f"{source}: the answer {given} is none of the choices. Write the index from 0 on, the letter, or the text."
    )
