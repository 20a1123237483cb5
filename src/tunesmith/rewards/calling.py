"""Calls a reward function and checks what it returns: one number or None for each completion, in time."""

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.config.extensions import UsersCodeError, in_one_line, is_path, place_of_failure
from tunesmith.errors import UserError
from tunesmith.rewards.function import EXTRAS, Text

BATCH = ("prompts", "completions", "completion_ids")
"""What a reward function receives besides the rows' columns."""


@dataclass(frozen=True)
class TrainerState:
    """How far the training is, for a reward that changes with it.

    Attributes:
        global_step: optimizer steps so far.
        max_steps: of the run.
    """

    global_step: int = 0
    max_steps: int = 0


@dataclass(frozen=True)
class Sampled:
    """Completions to score.

    Attributes:
        prompts: (completions,) texts or lists of messages.
        completions: (completions,) of the same kind; a chat's completion is a list with the assistant's message.
        columns: the rows' other columns, each (completions,).
        completion_ids: (completions,) their tokens; None: not known.
        sources: (completions,) the rows, for errors; None: completions are counted.
        state: how far the training is.
    """

    prompts: Sequence[Text]
    completions: Sequence[Text]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    completion_ids: Sequence[Sequence[int]] | None = None
    sources: Sequence[str] | None = None
    state: TrainerState = TrainerState()

    def __len__(self) -> int:
        return len(self.completions)

    def row(self, index: int) -> str:
        """What a completion is called in errors.

        Args:
            index: of the completion.
        """
        number = f"completion {index + 1}"
        return number if self.sources is None else f"{self.sources[index]} ({number})"

    def only(self, index: int) -> "Sampled":
        """One of the completions.

        Args:
            index: of the completion.
        """
        part = slice(index, index + 1)
        return Sampled(
            self.prompts[part],
            self.completions[part],
            {name: values[part] for name, values in self.columns.items()},
            None if self.completion_ids is None else self.completion_ids[part],
            None if self.sources is None else self.sources[part],
            self.state,
        )


@dataclass
class Noted:
    """What reward functions noted through `log_extra` and `log_metric`.

    Attributes:
        columns: values of each completion, by name.
        metrics: the numbers, by name.
    """

    columns: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Note a value of each completion.

        Args:
            column: its name.
            values: (completions,).
        """
        self.columns[column] = list(values)

    def log_metric(self, name: str, value: float) -> None:
        """Note a number, which is averaged.

        Args:
            name: of the figure.
            value: the number.
        """
        self.metrics.setdefault(name, []).append(float(value))


class Caller:
    """A reward function, called and checked.

    Args:
        name: what its figures are called.
        path: `module:function`, or a name of ours.
        function: to be called.
        timeout: seconds that one call may take; None: no limit.
    """

    def __init__(self, name: str, path: str, function: Callable[..., Any], timeout: float | None) -> None:
        self.name, self.path, self.timeout = name, path, timeout
        self.function = function
        self._takes = _parameters(function)

    def __call__(self, sampled: Sampled, noted: Noted) -> list[float]:
        """Score completions.

        Args:
            sampled: the completions.
            noted: takes what the function notes.

        Returns:
            (completions,) rewards; NaN: the function does not apply.

        Raises:
            UserError: the function fails, takes too long, or returns something else.
        """
        outcome = self._run(sampled, noted)
        if isinstance(outcome, Exception):
            raise self._failure(sampled, outcome) from outcome
        return self._checked(sampled, outcome)

    def _run(self, sampled: Sampled, noted: Noted) -> Any:
        """What the function returns, or the exception that it raises.

        Raises:
            UserError: it takes too long.
        """
        arguments: dict[str, Any] = {
            **{name: values for name, values in sampled.columns.items() if name not in (*BATCH, *EXTRAS)},
            "prompts": sampled.prompts,
            "completions": sampled.completions,
            "completion_ids": sampled.completion_ids,
            "trainer_state": sampled.state,
            "log_extra": noted.log_extra,
            "log_metric": noted.log_metric,
        }
        if self._takes is not None:
            arguments = {name: value for name, value in arguments.items() if name in self._takes}
        if self.timeout is None:
            return _outcome(self.function, arguments)
        outcome: list[Any] = []
        # A thread cannot be stopped, so one that hangs stays until the process ends; nothing waits for a daemon.
        thread = threading.Thread(target=lambda: outcome.append(_outcome(self.function, arguments)), daemon=True)
        thread.start()
        thread.join(self.timeout)
        if not outcome:
            raise UserError(
                f"The reward function {self.path} took longer than {self.timeout:g} s for {_count(len(sampled))} "
                f"({sampled.row(0)} and after). Make it faster, or set its timeout."
            )
        return outcome[0]

    def _failure(self, sampled: Sampled, error: Exception) -> UserError:
        """The error that names the function, the row, and where in the code it is."""
        if isinstance(error, UserError):
            return UserError(f"The reward function {self.path}: {error}")
        row = sampled.row(0) if len(sampled) == 1 else f"{_count(len(sampled))} ({sampled.row(0)} and after)"
        found = error
        for index in range(len(sampled)) if len(sampled) > 1 else ():
            alone = self._run(sampled.only(index), Noted())
            if isinstance(alone, Exception):
                row, found = sampled.row(index), alone
                break
        place = place_of_failure({self.path: self.path}, found) if is_path(self.path) else None
        where = f" ({place})" if place else ""
        return UsersCodeError(
            f"The reward function {self.path} failed on {row}: {in_one_line(found)}{where}. Correct it."
        )

    def _checked(self, sampled: Sampled, returned: Any) -> list[float]:
        values = returned.tolist() if hasattr(returned, "tolist") else returned  # arrays and tensors
        if not isinstance(values, list | tuple):
            raise UserError(
                f"The reward function {self.path} returned {type(returned).__name__}. Return a list of numbers, one "
                "for each completion."
            )
        if len(values) != len(sampled):
            raise UserError(
                f"The reward function {self.path} returned {len(values):,} rewards for {_count(len(sampled))} "
                f"({sampled.row(0)} and after). Return one for each, in their order; None where it does not apply."
            )
        return [self._number(sampled, index, value) for index, value in enumerate(values)]

    def _number(self, sampled: Sampled, index: int, value: Any) -> float:
        if value is None:
            return math.nan
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:39]}…"
            raise UserError(
                f"The reward function {self.path} returned {shown} for {sampled.row(index)}. Return a finite number, "
                "or None where it does not apply."
            )
        return number


def opened(path: str, found: Any, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The reward function that code of a user stands for.

    Args:
        path: `module:function`, for errors.
        found: what it is: a reward function; or what makes one of the options: a class, or a function that takes none
            of `prompts`, `completions` and `completion_ids`, as `trl.rewards:get_soft_overlong_punishment`.
        options: of the recipe.

    Returns:
        The function.

    Raises:
        UserError: it is neither, or takes other options.
    """
    if not callable(found):
        raise UserError(f"{path} is {type(found).__name__}, not a function. Name one that returns rewards.")
    takes = _parameters(found)
    if not isinstance(found, type) and (takes is None or takes & set(BATCH)):
        if takes is not None and set(options) - takes:
            unknown = sorted(set(options) - takes)[0]
            raise UserError(f"{path} has no parameter {unknown}. Remove it from options.")
        return _With(found, options) if options else found
    try:
        made = found(**options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be made with its options: {in_one_line(error)}.") from error
    if not callable(made):
        raise UserError(
            f"{path} takes none of {', '.join(BATCH)} and makes no function, but {type(made).__name__}. Write it as "
            "function(prompts, completions, **columns)."
        )
    return made  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _With:
    """A function with options."""

    function: Callable[..., Any]
    options: Mapping[str, Any]

    def __call__(self, **arguments: Any) -> Any:
        return self.function(**arguments, **self.options)


def _parameters(function: Callable[..., Any]) -> set[str] | None:
    """The names of a function's parameters; None if it takes any."""
    target = function.function if isinstance(function, _With) else function
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return None
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        return None
    given = set(function.options) if isinstance(function, _With) else set()
    return {each.name for each in parameters} - given


def _outcome(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """What it returns, also if it is a coroutine; or the exception that it raises."""
    try:
        returned = function(**arguments)
        return asyncio.run(returned) if inspect.iscoroutine(returned) else returned
    except (Exception, SystemExit) as error:
        return error if isinstance(error, Exception) else RuntimeError(f"SystemExit: {error}")


def _count(number: int) -> str:
    return "1 completion" if number == 1 else f"{number:,} completions"
