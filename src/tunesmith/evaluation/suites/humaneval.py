"""HumanEval (Chen et al. 2021): functions written from their beginning and docstring, which tests then call.

It runs what a model wrote, as `tunesmith.metrics.sandbox` says, and only if the suite is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunesmith.data.reasoning import final_answer
from tunesmith.errors import UserError
from tunesmith.evaluation.raw_text import RawText
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.question_rows import chosen, rows_with, whole_number
from tunesmith.metrics.code import code_of
from tunesmith.metrics.sandbox import Limits, isolation, run_python
from tunesmith.statistics.measured import Measured, mean_of
from tunesmith.subjects.subject import Chat, Subject

ANSWER = 512
"""The most tokens of a function."""

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where a continuation has left the function (Chen et al. 2021, section 2.2)."""

TEMPERATURE = 0.8
"""Of several samples, unless another one is given: the best for pass@100 in the paper."""

RAW, CHAT = "raw", "chat"
"""How a function is asked for: its beginning is continued, or sent as a question."""

ASK = "Complete this Python function. Answer with the whole function in a code block.\n\n```python\n{prompt}```"


@dataclass(frozen=True, slots=True)
class Problem:
    """A function to write.

    Attributes:
        prompt: its beginning, with imports and docstring.
        test: code that defines `check(candidate)`.
        entry_point: the function's name.
        source: the row.
    """

    prompt: str
    test: str
    entry_point: str
    source: str


class HumanEval:
    """Runs tests on functions that models wrote.

    Args:
        file: of rows `{prompt, test, entry_point}`, such as `HumanEval.jsonl.gz`.
        samples: functions for each problem.
        k: for which pass@k is estimated; several separated by commas, none above `samples`.
        temperature: of the samples; empty: 0 (the likeliest tokens) for a single one, else 0.8.
        asked: `raw` continues the function's beginning, as in the paper; `chat` asks a chat model for the function.
        seconds: of the processor, for each function with its tests.

    Raises:
        UserError: the file cannot be read, or an option has no such value.
    """

    def __init__(
        self,
        file: str = "",
        samples: str = "1",
        k: str = "1",
        temperature: str = "",
        asked: str = RAW,
        seconds: str = "5",
    ) -> None:
        self._samples = whole_number("humaneval.samples", samples, 1)
        self._ks = sorted({whole_number("humaneval.k", each.strip(), 1) for each in k.split(",")})
        if self._ks[-1] > self._samples:
            raise UserError(f"humaneval.k={self._ks[-1]} needs as many samples: --suite-option humaneval.samples=N.")
        if asked not in (RAW, CHAT):
            raise UserError(f"--suite-option humaneval.asked={asked} is not one of {RAW} and {CHAT}.")
        self._asked, self._limits = asked, Limits(seconds=whole_number("humaneval.seconds", seconds, 1))
        self._temperature = _temperature(temperature, self._samples)
        self._problems = [
            Problem(values["prompt"], values["test"], values["entry_point"], str(values.get("task_id", source)))
            for values, source in rows_with(file, ["prompt", "test", "entry_point"], "humaneval.file")
        ]

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """As `Suite.measure`.

        Args:
            subject: the model.
            context: of the evaluation; its `count` limits the problems.

        Returns:
            `pass_at_K` for each k; with `raw` none of a server.

        Raises:
            UserError: the model does not write text, or a server does not answer.
        """
        if self._asked == RAW and subject.model is None:
            context.leave_out("humaneval", "a server continues no raw text; ask it with humaneval.asked=chat")
            return {}
        problems: list[Problem] = chosen(self._problems, context.count)
        programs = self._programs(subject, context, [each for each in problems for _ in range(self._samples)])
        passed = []
        for number, program in enumerate(programs, 1):
            passed.append(run_python(program, self._limits).passed)
            context.progress("humaneval: tests", number, len(programs))
        counts = np.array(passed).reshape(len(problems), self._samples).sum(1)
        units = [each.source for each in problems]
        return {f"pass_at_{k}": self._figure(counts.tolist(), units, k) for k in self._ks}

    def _figure(self, counts: Sequence[int], units: Sequence[str], k: int) -> Measured:
        network = "without a network" if isolation() == "namespace" else "with Python's sockets blocked"
        explanation = f"problems that one of {k} samples solves, estimated from {self._samples}; run {network}"
        values = [pass_at_k(self._samples, count, k) for count in counts]
        return mean_of(values, units, f"HumanEval pass@{k}", explanation)

    def _programs(self, subject: Subject, context: SuiteContext, problems: Sequence[Problem]) -> list[str]:
        """Functions as the model wrote them, each followed by its tests."""
        sampling = replace(context.sampling, max_new_tokens=ANSWER, temperature=self._temperature)

        def report(done: int) -> None:
            context.progress("humaneval", done, len(problems))

        if self._asked == RAW:
            stopped = replace(sampling, stop=STOPS)
            texts = RawText(subject).written([each.prompt for each in problems], [stopped] * len(problems), report)
            bodies = [each.prompt + text for each, text in zip(problems, texts, strict=True)]
        else:
            chats: list[Chat] = [[{"role": "user", "content": ASK.format(prompt=each.prompt)}] for each in problems]
            answers = subject.answers(chats, sampling, report)
            bodies = [with_beginning(each, answer.text) for each, answer in zip(problems, answers, strict=True)]
        return [
            f"{body}\n\n{each.test}\n\ncheck({each.entry_point})\n" for body, each in zip(bodies, problems, strict=True)
        ]


def with_beginning(problem: Problem, answer: str) -> str:
    """The code of a chat's answer, after the imports of the prompt, or after all of it if it has only the body.

    Args:
        problem: the problem.
        answer: of the model.
    """
    code = code_of(final_answer(answer))
    before, defines, _ = problem.prompt.partition(f"def {problem.entry_point}(")
    if defines and defines in code:
        return f"{before}\n{code}"
    is_body = defines and not code[:1].isspace()  # an answer has no space at its start
    return problem.prompt + (f"    {code}" if is_body else code)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The probability that one of k samples passes, estimated without bias: 1 − C(n−c, k) / C(n, k) (Chen et al. 2021,
    eq. 1).

    Args:
        samples: n.
        passed: c, how many of them pass.
        k: at most n.

    Returns:
        From 0 to 1.
    """
    if samples - passed < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1)))


def _temperature(text: str, samples: int) -> float:
    if not text:
        return 0.0 if samples == 1 else TEMPERATURE
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2 or (value == 0 and samples > 1):
        least = "above 0" if samples > 1 else "from 0"
        raise UserError(f"--suite-option humaneval.temperature={text} is not a number {least} to 2.")
    return value
