"""`tunesmith.ask`: answer a question from an index, with citations that are checked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.template import special_tokens
from tunesmith.errors import UserError
from tunesmith.heads.prediction import room_for_text
from tunesmith.inference.model import Model, load
from tunesmith.inference.writing import Generation
from tunesmith.retrieval.citing import Claim, claims_of
from tunesmith.retrieval.prompt import NOT_FOUND, grammar_of, prompt_of
from tunesmith.retrieval.search import AUTO, Hit, Index
from tunesmith.retrieval.support import WORDS, support_of


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer from documents.

    Attributes:
        text: with the numbers of the cited chunks in brackets.
        claims: its sentences, with what each cites.
        hits: the chunks in the prompt, numbered from 1; those below the threshold too, if no chunk passed it.
        relevance: of the most relevant chunk, from 0 to 1.
        threshold: that it has to reach.
        is_complete: whether the answer ended before `max_new_tokens`.
    """

    text: str
    claims: tuple[Claim, ...]
    hits: tuple[Hit, ...]
    relevance: float
    threshold: float
    is_complete: bool = True

    @property
    def found(self) -> bool:
        """Whether the documents hold an answer, according to the threshold and the model."""
        return self.text != NOT_FOUND

    def described(self) -> dict[str, Any]:
        """As JSON: `answer`, `citations` (each with its claim), `found`, `claims`, `relevance`, `threshold`."""
        cited = [(claim, citation) for claim in self.claims for citation in claim.citations]
        return {
            "answer": self.text,
            "citations": [{**citation.described(), "claim": claim.text} for claim, citation in cited],
            "found": self.found,
            "claims": [claim.described() for claim in self.claims],
            "is_complete": self.is_complete,
            "relevance": round(self.relevance, 4),
            "threshold": self.threshold,
        }


@dataclass(frozen=True, slots=True)
class _Retrieved:
    """What was found for a question, and the prompt; None if the model is not asked."""

    hits: list[Hit]
    relevance: float
    prompt: str | None


@dataclass(frozen=True)
class AskSettings:
    """How questions are answered.

    Attributes:
        k: the most chunks in the prompt. There are fewer if the model's context is too short for all.
        mode: as in `tunesmith.search`.
        threshold: the least relevance of the best chunk; below it, the answer is that nothing was found, and the model
            is not asked. None: as tuned on your questions, else 0.3.
        max_new_tokens: the most tokens in an answer.
        rerank: as in `tunesmith.search`.
        support: how claims are compared with sentences: `words`, or a model of natural language inference (a directory
            or a hub name, with `#LABEL` if its label for entailment is not `entailment`).
    """

    k: int = 5
    mode: str = AUTO
    threshold: float | None = None
    max_new_tokens: int = 256
    rerank: str | None = None
    support: str = WORDS


DEFAULTS = AskSettings()


@dataclass(frozen=True, slots=True)
class Query:
    """A question to documents.

    Attributes:
        text: in words.
        source: the row that it is from, for errors; empty: none.
        injected: what its first chunk ends with in the prompt, as if a document held it, to test what that does.
    """

    text: str
    source: str = ""
    injected: str = ""


class Asker:
    """Answers questions from an index.

    Args:
        index: its directory, or the open index.
        model: as in `tunesmith.load`, or the loaded model; it writes text.
        settings: how.

    Raises:
        UserError: there is no such index or model, or the model writes no text.
    """

    def __init__(self, index: str | Path | Index, model: str | Path | Model, settings: AskSettings = DEFAULTS) -> None:
        self.index = index if isinstance(index, Index) else Index(index)
        self.model = model if isinstance(model, Model) else load(model)
        self.model.require("generate")
        self.support = support_of(settings.support, self.index.version.full_text.rarity)
        self.threshold = self.index.threshold if settings.threshold is None else settings.threshold
        self.settings = replace(settings, mode=self.index.way(settings.mode))

    def answers(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer questions together.

        Args:
            queries: the questions.

        Returns:
            (queries,) answers.

        Raises:
            UserError: a question is empty or too long; the row that it is from is named.
        """
        found = [self._retrieve(query) for query in queries]
        answers = {
            number: Answer(NOT_FOUND, (), tuple(each.hits), each.relevance, self.threshold)
            for number, each in enumerate(found)
            if each.prompt is None
        }
        for count in sorted({len(each.hits) for each in found}):  # a grammar knows how many chunks there are
            group = [n for n, each in enumerate(found) if each.prompt is not None and len(each.hits) == count]
            prompts = [prompt for n in group if (prompt := found[n].prompt) is not None]
            if group:
                tokens = self.settings.max_new_tokens
                written = self.model.generate(prompts, grammar=grammar_of(count), max_new_tokens=tokens)
                answers |= {n: self._answer(found[n], each) for n, each in zip(group, written, strict=True)}
        return [answers[number] for number in range(len(queries))]

    def _retrieve(self, query: Query) -> _Retrieved:
        settings, question = self.settings, query.text
        hits = self.index.search(question, settings.k, settings.mode, settings.rerank)
        relevance = self.index.relevance(question, hits)
        if relevance < self.threshold or not hits:
            return _Retrieved(hits, relevance, None)
        if query.injected:
            hits[0] = replace(hits[0], text=f"{hits[0].text}\n\n{query.injected}")
        used = _fitting(self.model, query, hits, settings.max_new_tokens)
        return _Retrieved(used, relevance, _prompt(self.model, question, used))

    def _answer(self, found: _Retrieved, written: Generation) -> Answer:
        text = written.text.strip()
        claims = () if text == NOT_FOUND else claims_of(text, found.hits, self.support)
        is_complete = written.finish_reason == "stop"
        return Answer(text, tuple(claims), tuple(found.hits), found.relevance, self.threshold, is_complete)


def ask(
    index: str | Path | Index,
    model: str | Path | Model,
    question: str,
    k: int = DEFAULTS.k,
    mode: str = DEFAULTS.mode,
    threshold: float | None = DEFAULTS.threshold,
    max_new_tokens: int = DEFAULTS.max_new_tokens,
    rerank: str | None = DEFAULTS.rerank,
    support: str = DEFAULTS.support,
) -> Answer:
    """Answer a question from the documents of an index.

    The model reads the chunks that fit the question, numbered. A grammar binds its answer, so that it can cite only
    these. Each citation is resolved to the sentence that supports the claim best.

    Args:
        index: its directory, or the open index.
        model: as in `tunesmith.load`, or the loaded model; it writes text.
        question: in words.
        k, mode, threshold, max_new_tokens, rerank, support: as in `AskSettings`.

    Returns:
        The answer.

    Raises:
        UserError: there is no such index or model, the model writes no text, or the question is empty or too long.
    """
    settings = AskSettings(k, mode, threshold, max_new_tokens, rerank, support)
    return Asker(index, model, settings).answers([Query(question)])[0]


def _prompt(model: Model, question: str, hits: Sequence[Hit]) -> str:
    return prompt_of(question, hits, special_tokens(model.tokenizer))


def _fitting(model: Model, query: Query, hits: list[Hit], max_new_tokens: int) -> list[Hit]:
    """The best of the chunks, as many as the model's context holds beside the answer.

    Raises:
        UserError: not even one fits.
    """
    room = room_for_text(model.generator.model)
    for count in range(len(hits), 0, -1):
        text = model.prompt([{"role": "user", "content": _prompt(model, query.text, hits[:count])}])
        tokens = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if room is None or len(tokens) + max_new_tokens <= room:
            return hits[:count]
    where = f"{query.source}: " if query.source else ""
    raise UserError(
        f"{where}{model.name} reads at most {room:,} tokens, too few for a chunk, the question and an answer of "
        f"{max_new_tokens:,}. Shorten the question, use fewer --max-new-tokens, or an index with smaller chunks "
        "(--size)."
    )
