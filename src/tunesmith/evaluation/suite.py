"""A suite: figures beyond the task's own, such as speed, of every model under evaluation; and the registry of suites.

A new one is a class with `measure`, in a file of its own in `suites`, and a line in `SUITES`; a user's is named as
`module:Class`, or registered by an installed package. Its options are the keyword arguments of the class.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tunesmith.config.extensions import failures_named, is_path
from tunesmith.config.registry import Registry
from tunesmith.errors import UserError
from tunesmith.evaluation.rows import EvaluationRows, Task
from tunesmith.inference.sampling import Sampling
from tunesmith.statistics.measured import Measured
from tunesmith.subjects.subject import Subject

SUITES = Registry(
    "tunesmith.suites",
    {
        "latency": "tunesmith.evaluation.suites.latency:Latency",
        "topic": "tunesmith.evaluation.suites.topic:Topic",
        "bias": "tunesmith.evaluation.suites.bias:Bias",
        "robustness": "tunesmith.evaluation.suites.robustness:Robustness",
        "forgetting": "tunesmith.evaluation.suites.forgetting:Forgetting",
        "memorization": "tunesmith.evaluation.suites.memorization:Memorization",
        "quantization": "tunesmith.evaluation.suites.quantization:Quantization",
        "multiple_choice": "tunesmith.evaluation.suites.multiple_choice:MultipleChoice",
        "gsm8k": "tunesmith.evaluation.suites.gsm8k:Gsm8k",
        "humaneval": "tunesmith.evaluation.suites.humaneval:HumanEval",
        "lm-eval": "tunesmith.evaluation.suites.lm_eval:LmEval",
    },
)
"""Suites by name → the class, imported on first use."""


@dataclass(frozen=True)
class SuiteContext:
    """What the evaluation that a suite is part of has beside the model.

    Attributes:
        rows: what else the models are evaluated on; None if that is nothing.
        tasks: questions of these rows, with expected answers.
        sampling: how answers are written elsewhere in the evaluation.
        count: how many prompts of its own the suite has at most; None: all.
        progress: called with what is done, how much of it, and how much there is.
        run: the directory of the first run among the models, whose training rows are known; None: there is none.
        leave_out: called with what of the suite cannot be measured of the model, and why; tables then say so.
    """

    rows: EvaluationRows | None
    tasks: Sequence[Task]
    sampling: Sampling
    count: int | None
    progress: Callable[[str, int, int], None]
    run: Path | None = None
    leave_out: Callable[[str, str], None] = lambda what, why: None


class Suite(Protocol):
    """Measures one model after another. It may keep what it needs of the first, which the others are compared with.

    A suite of the forms of one model also has `storages`, what follows `@` in their names. They are then the models. A
    suite may have `most_rows`: beyond so many rows it takes no more time, which `--budget` then knows.
    """

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """The figures of a model.

        Args:
            subject: the model; the first call has the one that the others are compared with.
            context: of the evaluation.

        Returns:
            The figures by name; none if the model cannot be measured (a server that reports no log-probabilities), with
            the reason passed to `context.leave_out`. In tables and gates, a figure is called `suite.name`.

        Raises:
            UserError: the user can do something about it.
        """


def open_suites(
    names: Sequence[str], options: Mapping[str, Mapping[str, str]] | None = None, also: Sequence[str] = ()
) -> dict[str, Suite]:
    """New suites.

    Args:
        names: of `SUITES`, or `module:Class`, in the working directory or installed.
        options: by suite, then by the keyword argument of its class.
        also: suites whose options something else reads, whether they are measured or not.

    Returns:
        By name.

    Raises:
        UserError: there is no such suite or option, or an option of a suite that is not among them.
    """
    options = options or {}
    for name in options:
        if name not in (*names, *also):
            raise UserError(f"There are options of the suite {name}, which is not measured. Add --suite {name}.")
    suites: dict[str, Suite] = {}
    for name in names:
        if name not in SUITES and not is_path(name):
            raise UserError(f"The suite {name} is not known. Known: {', '.join(SUITES)}; or your own as module:Class.")
        suites[name] = _opened(name, options.get(name, {}))
    return suites


def _opened(name: str, options: Mapping[str, str]) -> Suite:
    made = SUITES.load(name, Path.cwd())
    known = list(inspect.signature(made).parameters)
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else f"It has: {', '.join(known) or 'none'}."
            raise UserError(f"{option} is not an option of the suite {name}. {hint}")
    suite: Suite = made(**options)
    return suite


def parsed_options(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Options of suites, as they are typed.

    Args:
        texts: each `suite.option=value`.

    Returns:
        By suite, then by option.

    Raises:
        UserError: a text is not of this form.
    """
    options: dict[str, dict[str, str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        suite, _, option = key.strip().rpartition(".")
        if not (equals and suite and option):
            raise UserError(f"--suite-option {text} is not of the form suite.option=value.")
        options.setdefault(suite, {})[option] = value
    return options


def storages_of(suites: Mapping[str, Suite]) -> tuple[str, ...]:
    """The forms of a model that suites ask for.

    Args:
        suites: by name.

    Returns:
        What follows `@` in their names, each once; none if no suite asks for any.
    """
    return tuple(dict.fromkeys(storage for suite in suites.values() for storage in getattr(suite, "storages", ())))


def measure_suite(name: str, suite: Suite, subject: Subject, context: SuiteContext) -> dict[str, Measured]:
    """A suite's figures of a model, under the names that tables and gates have for them.

    Args:
        name: of the suite.
        suite: itself.
        subject: the model.
        context: of the evaluation.

    Returns:
        The figures by `suite.name`.

    Raises:
        UserError: as `Suite.measure`, or a user's suite fails.
    """
    own = {f"The suite {name}": SUITES.path(name)} if SUITES.is_users(name) else {}
    short = name.rpartition(":")[2].lower()
    with failures_named(own):
        return {f"{short}.{figure}": measured for figure, measured in suite.measure(subject, context).items()}
