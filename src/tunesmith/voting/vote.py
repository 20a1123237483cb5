"""`tunesmith vote`: somebody compares models' answers without knowing whose they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from time import monotonic
from typing import Literal

from tunesmith.config.extensions import failures_named
from tunesmith.config.recipe import Recipe
from tunesmith.data.appended_rows import AppendedRows
from tunesmith.engine.allocator import keep_freed_memory
from tunesmith.errors import UserError
from tunesmith.evaluation.opening import Opening, Wanted, extensions_of, names_of, run_alone
from tunesmith.evaluation.questions import Question, question_of, questions
from tunesmith.evaluation.rows import EvaluationRows, spread
from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.result_cache import digest_of
from tunesmith.inference.sampling import Sampling
from tunesmith.run import Events, Run, Subscriber
from tunesmith.subjects.kept_results import content_digest
from tunesmith.subjects.subject import Subject
from tunesmith.voting.votes import Contender, Vote, VoteFile

Key = Literal["1", "2", "t", "s", "u", "q"]
"""The first or the second answer is better, a tie, skip, undo, quit."""

ROWS = 50
"""Questions, unless another number is asked for."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Two answers as they are shown.

    Attributes:
        number: of the pair, from 1.
        total: pairs to vote on, with those of earlier sessions.
        prompt: the turns before the answers.
        answers: the first and the second.
        source: the row that the question comes from.
        undoable: whether there is a vote of this session to undo.
    """

    number: int
    total: int
    prompt: Sequence[Mapping[str, object]]
    answers: tuple[str, str]
    source: str
    undoable: bool


Ask = Callable[[Shown], Key]
"""Shows two answers, and returns what somebody presses."""


@dataclass(frozen=True, slots=True)
class Voted:
    """The result of `vote`.

    Attributes:
        path: of the votes.
        voter: who voted.
        votes: of this session.
        skipped: pairs of this session; they are asked for again.
        done: pairs on which the voter has voted, in all sessions.
        pairs: how many there are to vote on.
        equal: pairs of equal answers, which nobody is asked for.
        empty: pairs with an answer that is empty, which nobody is asked for.
    """

    path: Path
    voter: str
    votes: int
    skipped: int
    done: int
    pairs: int
    equal: int
    empty: int

    @property
    def is_complete(self) -> bool:
        """Whether the voter has voted on all pairs."""
        return self.done == self.pairs


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two models on one question."""

    question: Question
    models: tuple[int, int]
    key: str


@keep_freed_memory()
def vote(
    models: str | Path | Sequence[str | Path],
    ask: Ask,
    output: str | Path = "votes.jsonl",
    *,
    voter: str,
    data: str | Path | Sequence[str | Path] | None = None,
    rows: int | None = ROWS,
    seed: int = 0,
    max_new_tokens: int = 256,
    repetition_penalty: float = 1.0,
    concurrent: int = CONCURRENT,
    device: str = "auto",
    cache: bool = True,
    subscribers: Sequence[Subscriber] = (),
) -> Voted:
    """Ask somebody which of two models' answers is better, pair by pair, and write the votes.

    The models answer first, those in this process one after the other, and their answers are kept in the user's cache.
    Pairs come in random order, the same one for all voters, and each voter has random sides of their own. A vote is on
    the disk before the next pair is shown. The same call continues after the last vote.

    Args:
        models: two names or more, as `evaluate` takes them; of more than two, each pair is compared. A run alone is
            compared with its base.
        ask: shows two answers and returns a key.
        output: the file of votes, to which they are appended.
        voter: who votes.
        data: files of rows with questions; None: the held-out rows of the first run among the models.
        rows: how many of them, evenly spaced; None: all.
        seed: of the order and the sides.
        max_new_tokens: the maximum length of an answer.
        repetition_penalty: of the answers; decoding is greedy.
        concurrent: the most answers that are computed at the same time.
        device: for the models of this process.
        cache: whether answers are kept in the user's cache, and read from it.
        subscribers: receive `progress` events (what, done, total).

    Returns:
        What was voted on.

    Raises:
        UserError: a model or the rows cannot be read, a model does not write text, or the file cannot be written.
    """
    names = names_of(models)
    paths = None if data is None else [str(path) for path in ([data] if isinstance(data, str | Path) else data)]
    opening = Opening(concurrent, device, cache, subscribers)
    sampling = Sampling(max_new_tokens, repetition_penalty=repetition_penalty)
    with failures_named(extensions_of(names)), VoteFile.open(Path(output)) as file:
        run = run_alone(models)
        if run is None and len(names) == 1:
            raise UserError(f"{names[0].text} alone has nothing to be compared with. Name a second model, or a run.")
        wanted = Wanted(names, paths, 0, True)  # the models alone: rows need no answers here
        trial = opening.models(wanted) if run is None else opening.run(run, wanted)[-1]
        for subject in trial.subjects:
            if subject.model is not None:
                subject.model.require("generate")
        asked = _questions(paths, trial.run, rows)
        shown = [subject.name for subject in trial.subjects] if run is None else _names_of(run)
        contenders = [_contender(*each) for each in zip(shown, trial.subjects, strict=True)]
        pairs = _pairs(asked, contenders, sampling, seed)
        voted = {vote.pair for vote in file.entries if vote.voter == voter}
        open_pairs = [pair for pair in pairs if pair.key not in voted]
        answers = _answers(trial.subjects, open_pairs, sampling, Events(*subscribers))
        found = [
            (pair, answers[pair.models[0], pair.question.source], answers[pair.models[1], pair.question.source])
            for pair in open_pairs
        ]
        empty = sum(not one or not two for _, one, two in found)
        equal = sum(one == two != "" for _, one, two in found)
        done = len(pairs) - len(open_pairs)
        session = _Session(file, voter, seed, contenders, done)
        session.run([(pair, one, two) for pair, one, two in found if one and two and one != two], ask)
    return Voted(
        file.path, voter, session.votes, session.skipped, done + session.votes,
        len(pairs) - equal - empty, equal, empty,
    )  # fmt: skip


class _Session:
    """Asks for pairs, and keeps what is answered.

    Args:
        file: of the votes.
        voter: who votes.
        seed: of the sides.
        contenders: the models.
        done: pairs on which the voter has voted before.
    """

    def __init__(
        self, file: AppendedRows[Vote], voter: str, seed: int, contenders: Sequence[Contender], done: int
    ) -> None:
        self._file, self._voter, self._seed, self._contenders = file, voter, seed, contenders
        self._history: list[bool] = []
        self._done = done

    @property
    def votes(self) -> int:
        """How many were written."""
        return sum(self._history)

    @property
    def skipped(self) -> int:
        """How many pairs were skipped."""
        return len(self._history) - self.votes

    def run(self, pairs: Sequence[tuple[_Pair, str, str]], ask: Ask) -> None:
        """Ask for all pairs, or until somebody quits."""
        while len(self._history) < len(pairs):
            number = len(self._history)
            pair, *texts = pairs[number]
            order = (1, 0) if _bit(self._seed, self._voter, pair.key) else (0, 1)
            answers = (texts[order[0]], texts[order[1]])
            started = monotonic()
            at, total = self._done + number + 1, self._done + len(pairs)
            key = ask(Shown(at, total, pair.question.chat, answers, pair.question.source, bool(self._history)))
            if key == "q":
                return
            if key == "u":
                if self._history and self._history.pop():
                    self._file.pop()
                continue
            if key != "s":
                self._file.append(self._vote(pair, answers, order, key, round(monotonic() - started, 1)))
            self._history.append(key != "s")

    def _vote(self, pair: _Pair, answers: tuple[str, str], order: tuple[int, int], key: Key, seconds: float) -> Vote:
        # the two of a tie are in the models' order, so that the file does not depend on the sides
        better = order.index(0) if key == "t" else int(key) - 1
        by = [self._contenders[pair.models[side]] for side in order]
        return Vote(
            pair.question.chat, answers[better], answers[1 - better], by[better], by[1 - better], key == "t",
            "chosen" if better == 0 else "rejected", self._voter,
            datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"), seconds, pair.question.source,
            pair.key,
        )  # fmt: skip


def _questions(paths: Sequence[str] | None, run: Path | None, count: int | None) -> list[Question]:
    """Evenly spaced questions of files, or of the held-out rows of a run.

    Raises:
        UserError: there are none.
    """
    if paths is not None:
        found = list(questions(paths))
    elif run is None:
        raise UserError("There are no questions. Give --data FILE, or name a run, whose held-out rows are used.")
    else:
        rows = EvaluationRows.of_run(run)
        found = [question_of(example) for example in rows.examples if example.messages is not None]
        if not found:
            raise UserError(f"{run} has no held-out rows with questions. Give --data FILE.")
    return [found[index] for index in spread(len(found), len(found) if count is None else count)]


def _names_of(run: Run) -> list[str]:
    """Of a run's base and of the run."""
    return [Path(Recipe.load(run.directory / "recipe.yaml").base.path).name, run.directory.name]


def _contender(name: str, subject: Subject) -> Contender:
    return Contender(name, None if subject.model is None else content_digest(subject.model))


def _pairs(asked: Sequence[Question], contenders: Sequence[Contender], sampling: Sampling, seed: int) -> list[_Pair]:
    """Each two models on each question, in random order."""
    pairs = []
    for question in asked:
        for one, two in combinations(range(len(contenders)), 2):
            models = sorted(contenders[each].sha256 or contenders[each].name for each in (one, two))
            key = digest_of([list(question.chat), models, asdict(sampling)])[:32]
            pairs.append(_Pair(question, (one, two), key))
    unique = {pair.key: pair for pair in pairs}  # a question may be in the rows twice
    return sorted(unique.values(), key=lambda pair: digest_of([seed, pair.key]))


def _bit(*values: object) -> bool:
    """A random bit, by a hash."""
    return bool(int(digest_of(list(values))[-1], 16) & 1)


def _answers(
    subjects: Sequence[Subject], pairs: Sequence[_Pair], sampling: Sampling, events: Events
) -> dict[tuple[int, str], str]:
    """Each model's answers to what is still asked, by model and source."""
    found: dict[tuple[int, str], str] = {}
    for number, subject in enumerate(subjects):
        needed = {pair.question.source: pair.question.chat for pair in pairs if number in pair.models}
        if not needed:
            continue

        def progress(done: int, total: int = len(needed), name: str = subject.name) -> None:
            events.emit("progress", what=f"answers of {name}", done=done, total=total)

        try:
            texts = subject.answers(list(needed.values()), sampling, progress)
        finally:
            subject.close()
        found |= {(number, source): answer.text for source, answer in zip(needed, texts, strict=True)}
    return found
