"""How well the ways to search find the passages of questions: recall, reciprocal rank and nDCG, with intervals."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunesmith.errors import UserError
from tunesmith.evaluation.figures import Figures
from tunesmith.evaluation.summary import summary
from tunesmith.retrieval.questions import Question, relevant_chunks
from tunesmith.retrieval.ranking import DEPTH, Candidates
from tunesmith.retrieval.search import Index
from tunesmith.statistics.measured import mean_of


@dataclass(frozen=True, slots=True)
class Scored:
    """A question with its candidates.

    Attributes:
        question: as read.
        relevant: the chunks that hold its answer.
        candidates: with their scores.
    """

    question: Question
    relevant: frozenset[int]
    candidates: Candidates

    def order(self, way: str, weight: float, count: int = DEPTH) -> NDArray[np.int64]:
        """The best chunks of a way, in order, up to `DEPTH`."""
        return self.candidates.ranked(way, weight, count).chunks


def recall(order: Sequence[int], relevant: Collection[int], k: int) -> float:
    """The share of the relevant chunks that are among the first k.

    Args:
        order: chunks, the best first.
        relevant: chunks that hold the answer; at least one.
        k: how many count.

    Returns:
        From 0 to 1; of more relevant chunks than k, all k can be found, which is 1.
    """
    return len(set(order[:k]) & set(relevant)) / min(k, len(relevant))


def reciprocal_rank(order: Sequence[int], relevant: Collection[int]) -> float:
    """1 / the rank of the first relevant chunk; 0 if there is none.

    Args:
        order: chunks, the best first.
        relevant: chunks that hold the answer.

    Returns:
        From 0 to 1.
    """
    return next((1 / rank for rank, chunk in enumerate(order, start=1) if chunk in relevant), 0.0)


def ndcg(order: Sequence[int], relevant: Collection[int], k: int) -> float:
    """Σ 1 / log₂(rank + 1) over the relevant chunks among the first k, divided by its highest possible value (Järvelin
    & Kekäläinen 2002, with relevance 0 or 1).

    Args:
        order: chunks, the best first.
        relevant: chunks that hold the answer; at least one.
        k: how many count.

    Returns:
        From 0 to 1.
    """
    gains = [1 / np.log2(rank + 1) for rank, chunk in enumerate(order[:k], start=1) if chunk in relevant]
    most = sum(1 / np.log2(rank + 1) for rank in range(1, min(k, len(relevant)) + 1))
    return float(sum(gains) / most)


def scored(index: Index, questions: Sequence[Question]) -> list[Scored]:
    """The candidates of each question with their scores.

    Args:
        index: open.
        questions: as read.

    Returns:
        One for each question.

    Raises:
        UserError: a question's passage is in no chunk.
    """
    relevant = relevant_chunks(index.version, questions)
    return [
        Scored(question, chunks, index.candidates(question.text))
        for question, chunks in zip(questions, relevant, strict=True)
    ]


def measure(rows: Sequence[Scored], ways: Mapping[str, tuple[str, float]], k: int, data: str) -> dict[str, Any]:
    """Compare ways to search on the same questions.

    Args:
        rows: the questions; those without an answer are left out.
        ways: by the name in tables: a name in `ranking.WAYS`, and the weight of the cosine. The others are compared
            with the first one.
        k: of recall and nDCG.
        data: what the rows are, in words.

    Returns:
        As `tunesmith.evaluate`: `reference`, `figures`, `models` (here ways), `differences` and `comparisons`.

    Raises:
        UserError: no question has an answer.
    """
    answered = [row for row in rows if row.relevant]
    if not answered:
        raise UserError("None of the questions has a passage, so there is nothing to measure.")
    models = {name: _figures(answered, way, weight, k) for name, (way, weight) in ways.items()}
    return {"rows": len(answered), "generated_rows": 0, "data": data, "k": k, **summary(models, next(iter(ways)))}


def _figures(rows: Sequence[Scored], way: str, weight: float, k: int) -> Figures:
    orders = [row.order(way, weight).tolist() for row in rows]
    pairs = [(order, row.relevant) for order, row in zip(orders, rows, strict=True)]
    units = [row.question.source for row in rows]
    values = {
        "recall": (f"Recall@{k}", f"relevant chunks among the first {k}", [recall(*pair, k) for pair in pairs]),
        "mrr": ("MRR", "1 / rank of the first relevant chunk", [reciprocal_rank(*pair) for pair in pairs]),
        "ndcg": (f"nDCG@{k}", f"relevant chunks among the first {k}, by rank", [ndcg(*pair, k) for pair in pairs]),
    }
    return {name: mean_of(each, units, title, about) for name, (title, about, each) in values.items()}
