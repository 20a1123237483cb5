"""The ways to a behavior that are compared: a model, and what is put before its questions."""

from dataclasses import dataclass
from typing import Literal

ModelOf = Literal["base", "tuned", "retrieval_tuned", "server"]


@dataclass(frozen=True, slots=True)
class Way:
    """A model, and what its prompts have beside the question.

    Attributes:
        name: of the way.
        title: in words.
        model: the base; the base fine-tuned on the training rows, or on these with excerpts; or a server.
        prompt: whether its prompt is the best one of the user's.
        shots: whether examples are in its prompt.
        documents: whether excerpts of documents are in its prompt.
    """

    name: str
    title: str
    model: ModelOf = "base"
    prompt: bool = False
    shots: bool = False
    documents: bool = False


WAYS: dict[str, Way] = {
    way.name: way
    for way in (
        Way("plain", "the base with the question alone"),
        Way("prompt", "the best of your prompts", prompt=True),
        Way("few_shot", "examples in the prompt", shots=True),
        Way("retrieval", "excerpts of the documents in the prompt", documents=True),
        Way("tuned", "fine-tuned on the training rows", "tuned"),
        Way("tuned_prompt", "fine-tuned, with the best prompt", "tuned", prompt=True),
        Way("tuned_retrieval", "fine-tuned, with excerpts in the prompt", "tuned", documents=True),
        Way("retrieval_tuned", "fine-tuned on rows with excerpts", "retrieval_tuned", documents=True),
    )
}
"""By name, the least effort first: among ways of equal quality and cost, the earlier one is recommended.

`retrieval_tuned` is retrieval-aware fine-tuning (RAFT, Zhang et al. 2024): rows whose prompts hold excerpts, mostly
with the one that has the answer, and always with others that have not."""
