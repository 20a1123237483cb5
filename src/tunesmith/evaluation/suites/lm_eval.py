"""Tasks of EleutherAI's lm-eval, as their files define them, in the generation engine. Needs the extra `lm-eval`."""

import io
import logging
import random
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tunesmith.errors import UserError
from tunesmith.evaluation.raw_text import RawText
from tunesmith.evaluation.rows import spread
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.question_rows import whole_number
from tunesmith.statistics.measured import Better, Measured, mean_of
from tunesmith.subjects.subject import NO_LOG_PROBABILITIES, Subject

SEED = 1234
"""Of few-shot examples, numpy and torch, as in lm-eval; `random` has 0."""

BETTER: dict[bool | None, Better] = {True: "higher", False: "lower"}

NO_FILTER = "none"
"""lm-eval's name for answers that are scored as they are."""


class LmEval:
    """Runs lm-eval's tasks.

    Args:
        tasks: names of tasks or groups, task files, or directories of these, separated by commas.
        few_shot: examples before each question; empty: as each task says.
        chat: `yes` renders questions with the model's chat template; `no` leaves them as they are.

    Raises:
        UserError: lm-eval is not installed, there is no such task, or its data cannot be read.
    """

    def __init__(self, tasks: str = "", few_shot: str = "", chat: str = "no") -> None:
        if find_spec("lm_eval") is None:
            raise UserError("The suite lm-eval needs lm-eval. Install it: pip install 'tunesmith[lm-eval]'")
        if chat not in ("yes", "no"):
            raise UserError(f"--suite-option lm-eval.chat={chat} is not yes or no.")
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        if not names:
            raise UserError("The suite lm-eval needs tasks: --suite-option lm-eval.tasks=FILE, a directory, or names.")
        self._is_chat = chat == "yes"
        self._few_shot = whole_number("lm-eval.few_shot", few_shot) if few_shot else None
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._loaded = load_tasks(names)

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """As `Suite.measure`.

        Args:
            subject: the model.
            context: of the evaluation; its `count` limits the rows of each task.

        Returns:
            Each task's metrics as `TASK_METRIC`, and those of groups; none of a server, which lm-eval's own
            `local-completions` measures.

        Raises:
            UserError: the model is no decoder, or a task fails.
        """
        if subject.model is None:
            context.leave_out("lm-eval", NO_LOG_PROBABILITIES)
            return {}
        from lm_eval.evaluator import evaluate

        from tunesmith.evaluation.lm_eval_model import EngineLM

        model = EngineLM(RawText(subject), lambda done, total: context.progress("lm-eval", done, total))
        tasks, groups = self._loaded["tasks"], self._loaded["groups"]
        rows = None
        if context.count is not None:
            rows = {name: spread(len(task.eval_docs), context.count) for name, task in tasks.items()}
        seed_tasks(tasks.values(), self._few_shot)
        try:
            with redirect_stderr(io.StringIO()):  # its progress bars, beside ours
                found = evaluate(
                    model, self._loaded, samples=rows, bootstrap_iters=0, apply_chat_template=self._is_chat
                )
        except UserError:
            raise
        except Exception as error:  # of a task's templates, filters and metrics, which are its author's code
            raise UserError(f"lm-eval cannot run {', '.join(tasks)}: {type(error).__name__}: {error}") from error
        scored = {name: scores_of(found["samples"][name]) for name in tasks}
        figures = {
            _name(name, metric, way): figure_of(tasks[name], metric, way, values, rows_of(name, found["samples"][name]))
            for name, by_metric in scored.items()
            for (metric, way), values in by_metric.items()
        }
        return figures | group_figures(groups.values(), figures)


def load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """Tasks with their data.

    Args:
        names: of tasks or groups, files, or directories.

    Returns:
        `tasks` and `groups` by name, as lm-eval loads them.

    Raises:
        UserError: there is no such task, or it cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    files, directories, others = _sorted_out(names)
    seed_tasks((), None)
    # Its index of all tasks takes some seconds, and files and directories do without it.
    manager = TaskManager(include_path=directories or None, include_defaults=bool(others))
    inside = [_tasks_in(directory, manager.task_index) for directory in directories]
    unknown = [name for name in others if name not in manager.task_index]
    if unknown:
        raise UserError(f"lm-eval has no task {unknown[0]}, and no such file exists. List its tasks: lm-eval ls tasks")
    try:
        with redirect_stderr(io.StringIO()):
            loaded = [manager.load([name]) for name in (*map(str, files), *chain(*inside), *others)]
    except Exception as error:  # of the task's file, its data, or the network
        raise UserError(f"lm-eval cannot load {', '.join(names)}: {type(error).__name__}: {error}") from error
    loaded.sort(key=lambda each: len(each["groups"]))  # a task that is in a group too is the group's
    return {kind: {name: each for part in loaded for name, each in part[kind].items()} for kind in ("tasks", "groups")}


def _sorted_out(names: Sequence[str]) -> tuple[list[Path], list[Path], list[str]]:
    """Task files, directories of them, and names of tasks."""
    files, directories, others = list[Path](), list[Path](), list[str]()
    for name in names:
        path = Path(name).expanduser().absolute()
        if path.is_dir():
            directories.append(path)
        elif path.suffix in (".yaml", ".yml"):
            if not path.exists():
                raise UserError(f"{name} does not exist. Name a task file, a directory of them, or a task of lm-eval.")
            files.append(path)
        else:
            others.append(name)
    return files, directories, others


def _tasks_in(directory: Path, index: Mapping[str, Any]) -> list[str]:
    """The tasks and groups whose files are below a directory.

    Raises:
        UserError: there are none.
    """
    found = [
        name for name, entry in index.items() if entry.yaml_path is not None and directory in entry.yaml_path.parents
    ]
    if not found:
        raise UserError(f"{directory} has no task file. lm-eval's tasks are files *.yaml with the field task.")
    return found


def seed_tasks(tasks: Any, few_shot: int | None) -> None:
    """Set lm-eval's seeds, so that each model gets the same few-shot examples, and how many of these a task has.

    Args:
        tasks: of lm-eval.
        few_shot: examples; None: as each task says.
    """
    random.seed(0)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    for task in tasks:
        own = task.get_config("num_fewshot")
        if own != 0 and few_shot is not None:  # a task that says 0 is meant so
            task.set_config(key="num_fewshot", value=few_shot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)


def scores_of(samples: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Any]]:
    """What each row of a task adds to each metric.

    Args:
        samples: of lm-eval, each of a row and a filter of answers.

    Returns:
        By metric and filter.
    """
    scores: dict[tuple[str, str], list[Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            scores.setdefault((metric, sample["filter"]), []).append(sample[metric])
    return scores


def rows_of(task: str, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the rows of a task are called.

    Args:
        task: its name.
        samples: of lm-eval.
    """
    return [f"{task} row {number + 1:,}" for number in dict.fromkeys(sample["doc_id"] for sample in samples)]


def figure_of(task: Any, metric: str, way: str, values: Sequence[Any], units: Sequence[str]) -> Measured:
    """A metric of a task.

    Args:
        task: of lm-eval.
        metric: its name.
        way: the filter of answers.
        values: what each row adds to it.
        units: what the rows are called.

    Returns:
        The figure, summed up as the task says.
    """
    from lm_eval.api.metrics import mean

    aggregate: Callable[[Sequence[Any]], float] = task.aggregation().get(metric, mean)
    better = BETTER.get(task.higher_is_better().get(metric), "neither")
    title = f"{task.config.task_alias or task.config.task}: {metric}" + ("" if way == NO_FILTER else f" ({way})")
    explanation = f"{metric} of lm-eval's task {task.config.task}"
    if aggregate is mean:
        array = np.array(values, np.float64)
        unit = "share" if ((array >= 0) & (array <= 1)).all() else ""
        return mean_of(array, units, title, explanation, better, unit)
    return Measured(title, explanation, lambda rows: float(aggregate([values[row] for row in rows])), units, better, "")


def group_figures(groups: Any, figures: Mapping[str, Measured]) -> dict[str, Measured]:
    """The metrics of groups of tasks, such as MMLU's, and those of their tasks, by which models are not compared then.

    Args:
        groups: of lm-eval.
        figures: of the tasks.

    Returns:
        The figures by name.
    """
    found: dict[str, Measured] = {}
    for group in groups:
        names = [task.task_name for task in group.get_all_tasks()]
        for aggregated in group.aggregate_metric_list or ():
            for way in aggregated.filter_list or [NO_FILTER]:
                parts = {name: figures.get(_name(name, aggregated.metric, way)) for name in names}
                known = {name: part for name, part in parts.items() if part is not None and part.values is not None}
                if known:
                    title = f"{group.alias or group.name}: {aggregated.metric}"
                    key = _name(group.name, aggregated.metric, way)
                    found[key] = _pooled(title, list(known.values()), aggregated.weight_by_size)
                    found |= {
                        _name(name, aggregated.metric, way): replace(part, is_compared=False)
                        for name, part in known.items()
                    }
    return found


def _pooled(title: str, parts: Sequence[Measured], by_size: bool) -> Measured:
    """The mean over all rows, or the mean of the tasks' means."""
    values = np.concatenate([part.values for part in parts if part.values is not None])
    units = [unit for part in parts for unit in part.units]
    explanation = f"mean over {len(parts)} tasks of lm-eval"
    if by_size:
        return mean_of(values, units, title, explanation, parts[0].better, parts[0].unit)
    task = np.repeat(np.arange(len(parts)), [len(part.units) for part in parts])

    def of(rows: NDArray[np.int64]) -> float:
        means = [values[rows[task[rows] == each]].mean() for each in np.unique(task[rows])]
        return float(np.mean(means))

    return Measured(title, explanation, of, units, parts[0].better, parts[0].unit)


def _name(task: str, metric: str, way: str) -> str:
    """A figure's name: letters, digits and `_`, as gates write it."""
    return re.sub(r"\W+", "_", "_".join([task, metric, *([] if way == NO_FILTER else [way])]))
