"""One comparison: its rows, its models, and what each way is measured on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from tunesmith.comparing.choosing import Chosen, choose_prompt, choose_shots
from tunesmith.comparing.costs import Cost
from tunesmith.comparing.excerpts import Excerpts, Retrieved
from tunesmith.comparing.measured_way import TIMED, MeasuredWay
from tunesmith.comparing.memory import memory_of
from tunesmith.comparing.noted import Noted
from tunesmith.comparing.rows import Parts, write_rows
from tunesmith.comparing.spec import Comparison, Server
from tunesmith.comparing.tuned import fine_tuned, recipe_for, seconds_of_run
from tunesmith.comparing.ways import Way
from tunesmith.evaluation.figures import answer_figures
from tunesmith.evaluation.rows import Task, spread
from tunesmith.evaluation.subjects import SubjectName, open_subject
from tunesmith.evaluation.suite import SuiteContext, measure_suite, open_suites
from tunesmith.inference.sampling import Sampling
from tunesmith.metrics import Metric
from tunesmith.prompting.prompted import Prompted
from tunesmith.retrieval.build import AUTO, NONE, index
from tunesmith.retrieval.search import Index
from tunesmith.run import Events, Run, Subscriber
from tunesmith.subjects.subject import Subject, Timing

TOPIC_PROMPTS = 60
"""The most prompts of the suite `topic` for each way."""

COSTS = "costs.json"
"""What was measured once and is not measured again, in the comparison's directory."""


@dataclass
class Experiment:
    """What all ways share.

    Attributes:
        comparison: as the user wrote it.
        parts: of the rows.
        metrics: all that are shown; the first one decides.
        output: the comparison's directory.
        subscribers: receive events.
        concurrent: the most answers at the same time.
    """

    comparison: Comparison
    parts: Parts
    metrics: Mapping[str, Metric]
    output: Path
    subscribers: Sequence[Subscriber]
    concurrent: int

    @cached_property
    def events(self) -> Events:
        """Of the comparison."""
        return Events(*self.subscribers)

    @property
    def sampling(self) -> Sampling:
        """Greedy, the same for all ways."""
        return Sampling(self.comparison.max_new_tokens)

    @property
    def metric(self) -> Metric:
        """What decides."""
        return next(iter(self.metrics.values()))

    @cached_property
    def base(self) -> Subject:
        """The base."""
        precision = self.comparison.precision
        return self._opened(self.comparison.base + ("" if precision == "auto" else f"@{precision}"), "base")

    @cached_property
    def _noted(self) -> Noted:
        """What was measured once."""
        return Noted(self.output / COSTS)

    @cached_property
    def excerpts(self) -> Excerpts:
        """Of the documents, which are indexed on first use."""
        documents = self.comparison.documents
        assert documents is not None
        done = index(documents, self.output / "index", self.comparison.encoder, None, self.subscribers)
        if done.read:
            self._noted.note("index_seconds", done.seconds)
            self._noted.note("index_files", done.files)
            again = index(documents, self.output / "index", self.comparison.encoder)
            self._noted.note("unchanged_seconds", again.seconds)
        return Excerpts(Index(self.output / "index"), self.comparison.excerpts)

    @cached_property
    def prompt(self) -> Chosen:
        """The best of the user's prompts on the development rows."""
        files, tasks = self.comparison.prompts, self.parts.development_tasks
        chosen = choose_prompt(self.base, files, tasks, self.metric, self.sampling, self.events)
        self._noted.note_longest("prompt_seconds", chosen.seconds)
        return chosen

    @cached_property
    def shots(self) -> Chosen:
        """The best number of examples on the development rows."""
        train, counts, tasks = self.parts.train, self.comparison.shots, self.parts.development_tasks
        named = None if self.comparison.encoder in (AUTO, NONE) else self.comparison.encoder
        chosen = choose_shots(self.base, train, counts, tasks, self.metric, self.sampling, self.events, named)
        self._noted.note_longest("shots_seconds", chosen.seconds)
        return chosen

    @cached_property
    def _tuned(self) -> Run:
        """The base, fine-tuned on the training rows."""
        given = self.comparison.tuned
        return self._trained("tuned") if given is None else Run.open(Path(given))

    @cached_property
    def _retrieval_tuned(self) -> Run:
        """The base, fine-tuned on the training rows with excerpts."""
        given = self.comparison.retrieval_tuned
        return self._trained("retrieval_tuned", self.excerpts.of_row) if given is None else Run.open(Path(given))

    def subject(self, way: Way) -> Subject:
        """A way as a model that can be evaluated.

        Args:
            way: of a model in this process.

        Returns:
            The model with what is put before its questions.
        """
        subject = self.base if way.model == "base" else self._opened(str(self._run(way).directory), way.name)
        if way.prompt:
            subject = self.prompt.applied(subject, way.name)
        if way.shots:
            subject = self.shots.applied(subject, way.name)
        return self._with_excerpts(way, subject)

    def measured(self, way: Way, server: Server | None = None) -> MeasuredWay:
        """A way's figures.

        Args:
            way: which.
            server: of a way whose model is a server.

        Returns:
            The figures. Weights are freed unless they are the base's.

        Raises:
            UserError: it cannot be made or asked.
        """
        subject = self.subject(way) if server is None else self._served(way, server)
        tasks = self.parts.tasks
        answers = subject.answers(
            [task.chat for task in tasks],
            self.sampling,
            lambda done: self.events.emit("progress", what=f"answers: {way.name}", done=done, total=len(tasks)),
        )
        timed = [tasks[row].chat for row in spread(len(tasks), TIMED)]
        subject.timings(timed[:1], self.sampling, 1)  # the first answer compiles and fills caches
        timings = subject.timings(timed, self.sampling, 1)
        topic = self._topic(subject)
        cost = self._cost(way, subject, server, timings)
        about = self._about(way) | {"note": note_of(subject)}
        if way.model != "base":
            subject.close()
        figures = answer_figures(answers, tasks, self.metrics)
        return MeasuredWay(way, answers, figures, timings, cost, about, topic)

    def plain_answers(self, tasks: Sequence[Task]) -> list[str]:
        """What the base answers without help.

        Args:
            tasks: of any part.

        Returns:
            Its answers.
        """
        return [answer.text for answer in self.base.answers([task.chat for task in tasks], self.sampling)]

    def _opened(self, name: str, column: str) -> Subject:
        return open_subject(SubjectName.parse(name), column, concurrent=self.concurrent)

    def _served(self, way: Way, server: Server) -> Subject:
        return self._with_excerpts(way, self._opened(server.url, way.name))

    def _with_excerpts(self, way: Way, subject: Subject) -> Subject:
        if not way.documents:
            return subject
        return Retrieved(subject, self.excerpts, way.name)

    def _run(self, way: Way) -> Run:
        return self._tuned if way.model == "tuned" else self._retrieval_tuned

    def _trained(self, name: str, changed: Callable[..., Sequence[Any]] | None = None) -> Run:
        rows = self.output / "rows"
        rows.mkdir(exist_ok=True)
        train = write_rows(rows / f"{name}.jsonl", self.parts.train, changed)
        own = self.parts.development
        development = write_rows(rows / f"{name}-development.jsonl", own, changed) if own else None
        recipe = recipe_for(self.comparison, train, development)
        self.base.close()  # its memory is needed
        return fine_tuned(recipe, self.output / "runs", name, self.subscribers)

    def _about(self, way: Way) -> dict[str, Any]:
        """What was chosen or made for a way."""
        about: dict[str, Any] = {"title": way.title}
        if way.prompt:
            about["prompt"] = self.prompt.described()
        if way.shots:
            about["shots"] = self.shots.described()
        if way.model in ("tuned", "retrieval_tuned"):
            about["run"] = str(self._run(way).directory)
        if way.documents:
            about["index"] = str(self.output / "index")
        return about

    def _topic(self, subject: Subject) -> dict[str, Any]:
        """The figures of the suite `topic`."""
        if self.comparison.topic is None:
            return {}
        suite = open_suites(["topic"], {"topic": self.comparison.topic})["topic"]
        count = min(TOPIC_PROMPTS, self.comparison.rows)
        context = SuiteContext(None, self.parts.tasks, self.sampling, count, self._progress)
        return measure_suite("topic", suite, subject, context)

    def _progress(self, what: str, done: int, total: int) -> None:
        self.events.emit("progress", what=what, done=done, total=total)

    def _cost(self, way: Way, subject: Subject, server: Server | None, timings: Sequence[Timing]) -> Cost:
        """What a way costs before its first request, and for each."""
        known = [timing.prompt_tokens for timing in timings if timing.prompt_tokens is not None]
        tokens_in = fmean(known) if known else None
        each = Cost(
            seconds=fmean(timing.total for timing in timings),
            tokens_in=tokens_in,
            tokens_out=fmean(timing.tokens for timing in timings),
        )
        if server is not None:
            return replace(each, price_in=server.price_in, price_out=server.price_out, is_served=True)
        rows, seconds = 0, 0.0
        if way.prompt:
            rows, seconds = len(self.parts.development), self._noted["prompt_seconds"]
        if way.shots:
            rows = len(self.parts.development) + self.shots.rows
            seconds += self._noted["shots_seconds"]
        if way.documents:
            seconds += self._noted["index_seconds"]
        if way.model in ("tuned", "retrieval_tuned"):
            rows, seconds = max(rows, len(self.parts.train)), seconds + seconds_of_run(self._run(way))
        directory = self.output / "index" if way.documents else None
        tokens = round((tokens_in or 0) + self.comparison.max_new_tokens)
        return replace(
            each,
            labeled_rows=rows,
            seconds_once=seconds,
            memory_bytes=memory_of(subject, tokens, directory),
            change_seconds=self._change_seconds(way),
        )

    def _change_seconds(self, way: Way) -> float | None:
        """Until a changed fact is known: one document is indexed anew; or the run is repeated; or the prompt edited."""
        if way.documents:
            a_file = self._noted["index_seconds"] / max(1.0, self._noted["index_files"])
            return self._noted["unchanged_seconds"] + a_file
        if way.model == "tuned":
            return seconds_of_run(self._run(way))
        return 0.0 if way.prompt or way.shots else None


def note_of(subject: Subject) -> str | None:
    """What did not fit into a model's context, in a sentence; None if all did.

    Args:
        subject: after it has answered.
    """
    if isinstance(subject, Prompted):
        return subject.renderer.note
    return subject.note if isinstance(subject, Retrieved) else None
