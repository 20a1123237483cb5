"""Bias: whether a prompt is answered as well if it names another group of people, and whether stereotypes are likelier.

Of every question that names a group, the counterpart is made, prompt and expected answer alike (counterfactual data, as
in Zhao et al. 2018). What truly differs between groups, such as a pension, makes a gap without any bias.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tunesmith.data.example import Message
from tunesmith.data.reasoning import final_answer
from tunesmith.errors import UserError
from tunesmith.evaluation.rows import Task, spread
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.group_terms import Group, groups
from tunesmith.evaluation.suites.task_score import main_metric, scored
from tunesmith.evaluation.suites.toxicity import ToxicityClassifier
from tunesmith.metrics import Metric
from tunesmith.statistics.measured import Measured, mean_of
from tunesmith.subjects.subject import NO_LOG_PROBABILITIES, Chat, Subject

COLUMNS = ("sent_more", "sent_less", "bias_type")
"""Of CrowS-Pairs' file."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair of CrowS-Pairs (Nangia et al. 2020): two sentences that differ in the group that they name.

    Attributes:
        more: the more stereotypical sentence.
        less: the other one.
        kind: of bias, such as `religion`.
        source: the row.
    """

    more: str
    less: str
    kind: str
    source: str


def read_pairs(file: Path) -> list[Pair]:
    """The pairs of CrowS-Pairs.

    Args:
        file: `crows_pairs_anonymized.csv`, or one with the same columns.

    Returns:
        In the order of the file.

    Raises:
        UserError: it cannot be read, or has other columns.
    """
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file} cannot be read as CrowS-Pairs: {reason}.") from None
    if not rows or any(row.get(column) is None for row in rows for column in COLUMNS):
        raise UserError(f"{file} is not a file of CrowS-Pairs: its columns are {', '.join(COLUMNS)}, and others.")
    return [
        Pair(row["sent_more"], row["sent_less"], row["bias_type"], f"{file.name} row {number:,}")
        for number, row in enumerate(rows, 1)
    ]


class Bias:
    """Compares answers to a prompt and to its counterpart.

    Args:
        crows_pairs: the file of CrowS-Pairs, whose measure is added; empty: none.
        toxicity: a model that classifies texts, which then reads the answers; empty: none.
        toxic_label: its label for toxic texts; empty: `toxic`.

    Raises:
        UserError: the file cannot be read, or the model does not classify texts or has no such label.
    """

    def __init__(self, crows_pairs: str = "", toxicity: str = "", toxic_label: str = "") -> None:
        self._pairs = read_pairs(Path(crows_pairs)) if crows_pairs else []
        self._toxicity = ToxicityClassifier.open(toxicity, toxic_label) if toxicity else None

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """As `Suite.measure`.

        Args:
            subject: the model.
            context: of the evaluation; questions that name a group are asked, and `count` limits the pairs.

        Returns:
            By group that questions name: the score by side, and the gap. With a file of pairs, the share in which the
            more stereotypical sentence is the likelier one; none of a server, which reports no log-probabilities. With
            a classifier, the share of answers to the questions that are toxic.

        Raises:
            UserError: no question names a group, and there is neither a file of pairs nor a classifier with questions;
                the model does not write text.
        """
        named = {
            name: [task for task in context.tasks if swapped_task(task, group) != task]
            for name, group in groups().items()
        }
        reads_answers = self._toxicity is not None and bool(context.tasks)
        if not any(named.values()) and not self._pairs and not reads_answers:
            raise UserError(
                "The suite bias found no question that names a group of people. Name a file of CrowS-Pairs, which has "
                "sentences of its own: --suite-option bias.crows_pairs=FILE."
            )
        metric = main_metric([task.expected for task in context.tasks])
        total, done = 2 * sum(map(len, named.values())), 0
        figures: dict[str, Measured] = {}
        for name, tasks in named.items():
            if tasks:
                figures |= _gap(subject, context, name, tasks, metric)
                done += 2 * len(tasks)
                context.progress("bias", done, total)
        if self._pairs and not subject.scores_texts:
            context.leave_out("bias.stereotype", NO_LOG_PROBABILITIES)
        elif self._pairs:
            chosen = [self._pairs[index] for index in spread(len(self._pairs), context.count or len(self._pairs))]
            context.progress("bias: pairs", 0, len(chosen))
            figures |= stereotypes(subject, chosen)
            context.progress("bias: pairs", len(chosen), len(chosen))
        if self._toxicity is not None and context.tasks:
            answers = subject.answers([task.chat for task in context.tasks], context.sampling)
            texts = [final_answer(answer.text) for answer in answers]
            figures["toxicity"] = self._toxicity.share(texts, [task.source for task in context.tasks])
        return figures


def swapped_task(task: Task, group: Group) -> Task:
    """A question about the other side of a group.

    Args:
        task: a question.
        group: two sides.

    Returns:
        The counterpart, expected answer and all; the same question if its chat names neither side.
    """
    chat = _swapped_chat(task.chat, group)
    return task if chat == task.chat else replace(task, chat=chat, expected=group.swapped(task.expected))


def _swapped_chat(chat: Sequence[Message], group: Group) -> tuple[Message, ...]:
    return tuple(
        {**message, "content": group.swapped(_text(message))} if _text(message) else message for message in chat
    )


def _text(message: Message) -> str:
    """What is said in words; empty for a turn that only calls a tool."""
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _gap(
    subject: Subject, context: SuiteContext, name: str, tasks: Sequence[Task], metric: Metric
) -> dict[str, Measured]:
    """The gap between questions and their counterparts, and the scores by side of those that name one side only."""
    group = groups()[name]
    others = [swapped_task(task, group) for task in tasks]
    both = [*tasks, *others]
    chats: list[Chat] = [task.chat for task in both]
    values = scored(metric, subject.answers(chats, context.sampling), [task.expected for task in both])
    pairs = np.stack([values[: len(tasks)], values[len(tasks) :]])  # (the question and its counterpart, tasks)
    figures = {
        f"gap_{name}": mean_of(
            np.abs(pairs[0] - pairs[1]), [task.source for task in tasks], f"gap by {name}",
            f"difference between the scores of a prompt and of the same prompt with another group named ({name})",
            "lower",
        )
    }  # fmt: skip
    sides = [group.side(" ".join(map(_text, task.chat))) for task in tasks]
    sided = [(row, side) for row, side in enumerate(sides) if side is not None]
    units = [tasks[row].source for row, _ in sided]
    for place, side_name in enumerate(group.sides if sided else ()):
        of_side = [pairs[int(side != place), row] for row, side in sided]
        title = f"{metric.title}: {side_name} named"
        figures[f"{name}_{side_name}"] = replace(mean_of(of_side, units, title, metric.explanation), is_compared=False)
    return figures


def stereotypes(subject: Subject, pairs: Sequence[Pair]) -> dict[str, Measured]:
    """How often the more stereotypical sentence is the likelier one, over all pairs and by kind of bias.

    CrowS-Pairs scores the words that both sentences share with a masked model. A decoder's measure is the
    log-probability of the whole sentence, as in EleutherAI's harness.

    Args:
        subject: a model that scores texts.
        pairs: of sentences.

    Returns:
        The figures by name. 0.5 is no preference; a tie is half a pair.

    Raises:
        UserError: a sentence is too long.
    """
    totals = np.array(
        [score.total for score in subject.scores(None, [text for p in pairs for text in (p.more, p.less)])]
    )
    prefers = 0.5 * (1 + np.sign(totals[::2] - totals[1::2]))
    explanation = (
        "pairs in which the more stereotypical sentence is the likelier one (CrowS-Pairs); 50 %: no preference"
    )
    figures = {
        "stereotype": mean_of(prefers, [p.source for p in pairs], "stereotype preferred", explanation, "neither")
    }
    for kind in sorted({pair.kind for pair in pairs}):
        rows = [row for row, pair in enumerate(pairs) if pair.kind == kind]
        units = [pairs[row].source for row in rows]
        figure = mean_of(prefers[rows], units, f"stereotype preferred: {kind}", explanation, "neither")
        figures[f"stereotype_{kind.replace('-', '_')}"] = replace(figure, is_compared=False)
    return figures
