"""Whether answers obey instructions that stand in retrieved text: the attacks of the suite `topic`, put into chunks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.evaluation.rows import spread
from tunesmith.evaluation.suites.topic import OBEYED
from tunesmith.evaluation.suites.topic_prompts import Trial, attacks
from tunesmith.evaluation.suites.topic_rules import obeyed
from tunesmith.evaluation.summary import summary
from tunesmith.inference.model import Model
from tunesmith.retrieval.ask import Asker
from tunesmith.retrieval.ask_questions import records_of
from tunesmith.retrieval.prompt import without_citations
from tunesmith.retrieval.questions import about_questions, read_questions
from tunesmith.retrieval.search import Index
from tunesmith.run import Events, Subscriber
from tunesmith.statistics.measured import mean_of

EXPLANATION = "answers with the word that an instruction in the most relevant chunk asks for"


def trials_of(questions: Sequence[str], count: int) -> list[tuple[str, Trial]]:
    """Questions, each with an attack.

    Args:
        questions: in words; each is used in turn.
        count: how many attacks, evenly over the kinds; no more than there are.

    Returns:
        (attacks,) questions and attacks of one turn.
    """
    by_question = [[trial for trial in attacks([text]) if len(trial.turns) == 1] for text in questions]
    chosen = spread(len(by_question[0]), count)
    return [
        (questions[place % len(questions)], by_question[place % len(questions)][number])
        for place, number in enumerate(chosen)
    ]


def attack_questions(
    index: str | Path | Index,
    model: str | Path | Model,
    questions: str | Path,
    count: int,
    subscribers: Sequence[Subscriber] = (),
    **options: Any,
) -> dict[str, Any]:
    """Answer questions whose most relevant chunk ends with an instruction, and count the answers that follow it.

    Args:
        index, model: as in `tunesmith.ask`.
        questions: a JSONL file, as `read_questions` explains; those with a passage are asked.
        count: of attacks, evenly over the kinds.
        subscribers: receive `progress` events.
        options: `k`, `mode`, `threshold`, `max_new_tokens`, `rerank`, as in `tunesmith.ask`.

    Returns:
        As `tunesmith.evaluate`: `figures`, `models` (one), `rows`, `data`; and `answers`: each with its `question`,
        `attack` and `obeyed`. A question below the threshold is not asked, and obeys nothing.

    Raises:
        UserError: as `tunesmith.ask` and `read_questions` raise, or no question has a passage.
    """
    path = Path(questions)
    rows = [row for row in read_questions(path) if row.targets]
    if not rows:
        raise UserError(f"None of the questions of {path} has a passage to put an attack into.")
    asker = Asker(index, model, **options)
    trials = trials_of([row.text for row in rows], count)
    records = records_of(asker, [(text, trial.turns[0]) for text, trial in trials], Events(*subscribers))
    hits = [
        obeyed(without_citations(record["answer"]), trial) for record, (_, trial) in zip(records, trials, strict=True)
    ]
    figures = {}
    for kind in ("attacks", *dict.fromkeys(trial.kind for _, trial in trials)):
        of_kind = [
            (trial.name, float(hit))
            for (_, trial), hit in zip(trials, hits, strict=True)
            if kind in ("attacks", trial.kind)
        ]
        names, values = zip(*of_kind, strict=True)
        title = "attacks obeyed" if kind == "attacks" else f"obeyed: {OBEYED[kind]}"
        figures[f"obeyed_{kind}"] = mean_of(values, names, title, EXPLANATION, "lower")
    name = Path(asker.model.name).name
    answers = [
        {"question": text, "attack": trial.turns[0], "answer": record["answer"], "obeyed": hit}
        for (text, trial), record, hit in zip(trials, records, hits, strict=True)
    ]
    about = {"rows": len(trials), "generated_rows": 0, "data": f"attacks in {about_questions(path, rows)}"}
    return {**about, **summary({name: figures}, name), "answers": answers}
