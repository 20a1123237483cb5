"""How far sentences support a claim: by the words that they share, or by a model of natural language inference."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.retrieval.full_text import words_of

WORDS = "words"
"""The name of support by words; any other name is that of a model."""

ENTAILMENT = "entailment"
"""The label of a model for what follows from a text, unless another one is named."""

Support = Callable[[str, Sequence[str]], list[float]]
"""From a claim and sentences to how far each supports it, from 0 to 1."""

Rarity = Callable[[str], float]
"""How much a word counts."""


def support_of(name: str, rarity: Rarity) -> Support:
    """How support is measured.

    Args:
        name: `words`, or a model that classifies pairs of texts (a directory or a hub name), with `#LABEL` if its label
            for entailment is not `entailment`.
        rarity: of a word.

    Returns:
        The measure.

    Raises:
        UserError: the model cannot be loaded, does not classify pairs of texts, or has no such label.
    """
    return by_words(rarity) if name == WORDS else by_inference(name)


def by_words(rarity: Rarity) -> Support:
    """The share of the claim's words that a sentence holds, by rarity.

    Args:
        rarity: of a word.

    Returns:
        The measure.
    """

    def measure(claim: str, sentences: Sequence[str]) -> list[float]:
        weights = {word: rarity(word) for word in set(words_of(claim))}
        total = sum(weights.values())
        held = (set(words_of(sentence)) for sentence in sentences)
        return [sum(weights[word] for word in weights if word in words) / total if total else 0.0 for words in held]

    return measure


def by_inference(name: str) -> Support:
    """The probability that a claim follows from a sentence, by a model of natural language inference.

    Args:
        name: as in `support_of`.

    Returns:
        The measure.

    Raises:
        UserError: as in `support_of`.
    """
    from tunesmith.metrics.contradiction import Inference

    model, _, label = name.partition("#")
    inference = Inference.open(str(Path(model).expanduser()) if model.startswith("~") else model, label or ENTAILMENT)
    return lambda claim, sentences: inference.probabilities(list(sentences), [claim] * len(sentences))
