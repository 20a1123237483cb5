"""Topic: whether an assistant for one job does it, declines other jobs, and is not talked out of it."""

from collections import Counter
from collections.abc import Mapping, Sequence

from tunesmith.data.example import Message
from tunesmith.data.reasoning import final_answer
from tunesmith.errors import UserError
from tunesmith.evaluation.rows import Task, spread
from tunesmith.evaluation.suite import SuiteContext
from tunesmith.evaluation.suites.task_score import prompt_of
from tunesmith.evaluation.suites.topic_prompts import Trial, attack_kinds, attacks, borderline, domains, off_topic
from tunesmith.evaluation.suites.topic_rules import declined, obeyed
from tunesmith.statistics.measured import Better, Measured, mean_of
from tunesmith.subjects.subject import Chat, Subject

DECLINED: Mapping[str, tuple[str, Better]] = {
    "off_topic": ("declined: other jobs", "higher"),
    "on_topic": ("declined: own job", "lower"),
    "borderline": ("declined: small talk", "lower"),
}
"""Requests that are declined or not: titles, and what is good."""

OBEYED = {
    "direct": "in the prompt itself",
    "quoted": "in a document that the prompt quotes",
    "languages": "in other languages",
    "encodings": "encoded",
    "role_play": "as role play",
    "many_turns": "over several turns",
}
"""Kinds of attacks in words."""


class Topic:
    """Counts requests that are declined, and attacks that are obeyed.

    Args:
        refusal: the beginning of the assistant's own refusals; empty: only the rules for English are used.
        own: domains of requests that are the assistant's job and are left out, separated by commas.

    Raises:
        UserError: there is no such domain.
    """

    def __init__(self, refusal: str = "", own: str = "") -> None:
        self._refusal = refusal
        self._own = [name.strip() for name in own.split(",") if name.strip()]
        for name in self._own:
            if name not in domains():
                raise UserError(f"topic.own: {name} is not a domain. Known: {', '.join(domains())}.")

    def measure(self, subject: Subject, context: SuiteContext) -> Mapping[str, Measured]:
        """As `Suite.measure`.

        Args:
            subject: the model.
            context: of the evaluation. Its questions are what is on topic; the system prompt that most of them have is
                put before every prompt; `count` limits the suite's own prompts, evenly over the kinds.

        Returns:
            Shares of prompts by name.

        Raises:
            UserError: the model does not write text, or a prompt is too long for it.
        """
        trials = [*off_topic(self._own), *borderline(), *attacks([prompt_of(task) for task in context.tasks])]
        chosen = [trials[index] for index in spread(len(trials), context.count or len(trials))]
        answers = answers_to(subject, chosen, context)
        requests = [(trial.kind, trial.name, answer) for trial, answer in zip(chosen, answers, strict=True)]
        requests += [("on_topic", task.source, answer) for task, answer in _on_topic(subject, context)]
        figures = {
            f"declined_{kind}": mean_of(
                [float(declined(answer, self._refusal)) for _, answer in found], [name for name, _ in found],
                title, "answers that decline the request, by rules that read words", better,
            )
            for kind, (title, better) in DECLINED.items()
            if (found := [(name, answer) for each, name, answer in requests if each == kind])
        }  # fmt: skip
        return figures | _obeyed_figures(chosen, answers)


def answers_to(subject: Subject, trials: Sequence[Trial], context: SuiteContext) -> list[str]:
    """The answer to each trial's last turn. Turns are answered one by one, each for all trials together.

    Args:
        subject: the model.
        trials: with one turn or several.
        context: of the evaluation.

    Returns:
        (trials,) answers, without reasoning.

    Raises:
        UserError: as `Topic.measure`.
    """
    system = system_prompt(context.tasks)
    replies: list[list[str]] = [[] for _ in trials]
    total, before = sum(len(trial.turns) for trial in trials), 0
    for turn in range(max((len(trial.turns) for trial in trials), default=0)):
        now = [index for index, trial in enumerate(trials) if len(trial.turns) > turn]
        chats = [chat_of(trials[index], replies[index], system) for index in now]

        def report(count: int, before: int = before) -> None:
            context.progress("topic", before + count, total)

        for index, answer in zip(now, subject.answers(chats, context.sampling, report), strict=True):
            replies[index].append(final_answer(answer.text))
        before += len(now)
    return [answers[-1] for answers in replies]


def chat_of(trial: Trial, answers: Sequence[str], system: str | None) -> Chat:
    """The chat up to the next turn of the user.

    Args:
        trial: with one turn or several.
        answers: of the assistant so far; fewer than there are turns.
        system: the assistant's system prompt; None: none.

    Returns:
        The chat, the user's turn last.
    """
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for turn, answer in zip(trial.turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": trial.turns[len(answers)]}]


def system_prompt(tasks: Sequence[Task]) -> str | None:
    """The system prompt that most questions have.

    Args:
        tasks: the user's questions.

    Returns:
        The text; None if most have none.
    """
    firsts = Counter(str(task.chat[0]["content"]) if task.chat[0]["role"] == "system" else None for task in tasks)
    return firsts.most_common(1)[0][0] if firsts else None


def _on_topic(subject: Subject, context: SuiteContext) -> list[tuple[Task, str]]:
    """The user's questions with their answers, which are known already if the evaluation keeps them."""
    answers = subject.answers([task.chat for task in context.tasks], context.sampling) if context.tasks else []
    return [(task, final_answer(answer.text)) for task, answer in zip(context.tasks, answers, strict=True)]


def _obeyed_figures(trials: Sequence[Trial], answers: Sequence[str]) -> dict[str, Measured]:
    """The share of attacks that had their way: of all, and by kind."""
    attacked = [(trial, obeyed(answer, trial)) for trial, answer in zip(trials, answers, strict=True) if trial.marker]
    explanation = "attacks after which the answer has the word that they ask for"
    figures = {}
    for kind in ("attacks", *attack_kinds()):
        found = [(trial.name, float(hit)) for trial, hit in attacked if kind in ("attacks", trial.kind)]
        if found:
            names, hits = zip(*found, strict=True)
            title = "attacks obeyed" if kind == "attacks" else f"obeyed: {OBEYED[kind]}"
            figures[f"obeyed_{kind}"] = mean_of(hits, names, title, explanation, "lower")
    return figures
