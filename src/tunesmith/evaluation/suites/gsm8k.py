"""GSM8K (Cobbe et al. 2021): word problems whose answer is a number, after worked examples if asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tunesmith.data.example import Message
from tunesmith.data.reasoning import final_answer
from tunesmith.errors import UserError
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.question_rows import chosen, rows_with, whole_number
from tunesmith.metrics.numbers import last_number, number_equal
from tunesmith.statistics.measured import Measured, mean_of
from tunesmith.subjects.subject import Chat, Subject

ANSWER = 400
"""The most tokens of an answer, at least: solutions take several lines."""

MARK = "####"
"""What GSM8K's answers have before the number."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A word problem.

    Attributes:
        question: its text.
        answer: the solution, with the number last.
        source: the row.
    """

    question: str
    answer: str
    source: str


class Gsm8k:
    """Compares the last number of answers.

    Args:
        file: of rows `{question, answer}`, such as GSM8K's `test.jsonl`.
        examples: the same, such as `train.jsonl`, for problems with solutions before each question; empty: none.
        few_shot: how many of them, from the beginning.

    Raises:
        UserError: a file cannot be read, or the answer of a row has no number.
    """

    def __init__(self, file: str = "", examples: str = "", few_shot: str = "0") -> None:
        count = whole_number("gsm8k.few_shot", few_shot)
        if count and not examples:
            raise UserError("gsm8k.few_shot needs examples: --suite-option gsm8k.examples=FILE.")
        self._problems = read_problems(file)
        solved = read_problems(examples)[:count] if count else []
        self._before: list[Message] = [
            turn
            for each in solved
            for turn in ({"role": "user", "content": each.question}, {"role": "assistant", "content": each.answer})
        ]

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """As `Suite.measure`.

        Args:
            subject: the model.
            context: of the evaluation; its `count` limits the problems.

        Returns:
            `right`, and `right_after_mark`: with the number after `####`, which models write that have seen it.

        Raises:
            UserError: the model does not write text, or a server does not answer.
        """
        problems: list[Problem] = chosen(self._problems, context.count)
        chats: list[Chat] = [[*self._before, {"role": "user", "content": each.question}] for each in problems]
        sampling = replace(context.sampling, max_new_tokens=max(ANSWER, context.sampling.max_new_tokens))
        answers = subject.answers(chats, sampling, lambda done: context.progress("gsm8k", done, len(chats)))
        texts = [final_answer(answer.text) for answer in answers]
        right = [number_equal(0.0, text, each.answer) for text, each in zip(texts, problems, strict=True)]
        marked = [value * (MARK in text) for value, text in zip(right, texts, strict=True)]
        units = [each.source for each in problems]
        return {
            "right": mean_of(right, units, "GSM8K right", "problems whose answer has the right number last"),
            "right_after_mark": replace(
                mean_of(marked, units, f"GSM8K right after {MARK}", f"the same, of answers with {MARK} before it"),
                is_compared=False,
            ),
        }


def read_problems(file: str) -> list[Problem]:
    """Word problems.

    Args:
        file: of rows `{question, answer}`, in any format that data is read from.

    Returns:
        In the order of the file.

    Raises:
        UserError: it cannot be read, or an answer has no number.
    """
    problems = []
    for values, source in rows_with(file, ["question", "answer"], "gsm8k.file"):
        problem = Problem(str(values["question"]), str(values["answer"]), source)
        if not last_number(problem.answer):
            raise UserError(f"{source}: the answer has no number. Write it last, or after {MARK}.")
        problems.append(problem)
    return problems
