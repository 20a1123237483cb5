"""How the next token is chosen from a model's scores."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunesmith.errors import UserError

BLOCK = 256
"""Tokens whose probabilities are added up first: a random number finds its block, and then its token in the block."""

_STREAM = 0x9E3779B97F4A7C15
"""The fractional part of the golden ratio: multiples of it are spread evenly over 64 bits (Steele et al. 2014)."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, and when an answer ends.

    Attributes:
        max_new_tokens: maximum length of an answer, in tokens.
        temperature: of the softmax; 0 always takes the most likely token.
        top_p: sample from the most likely tokens that together have this probability (Holtzman et al. 2020).
        repetition_penalty: divides the scores of tokens that already occurred (Keskar et al. 2019, section 4.1); 1 does
            nothing, 1.2 keeps small models out of loops.
        seed: of the sampling.
        top_k: sample from this many of the most likely tokens (Fan et al. 2018); 0: from all.
        min_p: leave out tokens that are less likely than this share of the most likely one (Nguyen et al. 2024).
        presence_penalty: subtracted from the score of each token of the answer so far (OpenAI's definition).
        frequency_penalty: subtracted as often as the token is in the answer so far.
        logit_bias: added to the scores, by token id.
        stop: texts that end an answer; they are not part of it.
        schema: a JSON schema, as JSON, that the answer follows.
        regex: a regular expression that the answer matches (Rust's syntax).
        grammar: a grammar that the answer follows (Lark's syntax, as llguidance reads it).
        top_logprobs: how many of the most likely tokens are reported with each token of the answer.
        beams: of beam search, for encoder–decoders; 1: none.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    schema: str | None = None
    regex: str | None = None
    grammar: str | None = None
    top_logprobs: int = 0
    beams: int = 1

    @property
    def takes_the_likeliest(self) -> bool:
        """Whether the choice is the largest of the model's own scores."""
        return self.temperature == 0 and not self.changes_scores

    @property
    def is_bound(self) -> bool:
        """Whether answers follow a schema, an expression or a grammar."""
        return any(each is not None for each in (self.schema, self.regex, self.grammar))

    @property
    def changes_scores(self) -> bool:
        """Whether the model's scores are changed before the softmax."""
        penalties = self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1
        return any(penalties) or bool(self.logit_bias)


class Scores(NamedTuple):
    """What the model computed for some rows.

    Attributes:
        logits: (rows, vocabulary).
        totals: (rows,), their log-sum-exp.
        best: (rows,), the most likely token, on the host.
        best_logs: (rows,), its log p in nats, on the host.
    """

    logits: Tensor
    totals: Tensor
    best: Tensor
    best_logs: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> "Scores":
        """The scores of all rows. Two transfers from a GPU serve every greedy answer."""
        totals = torch.logsumexp(logits, -1)
        highest, best = logits.max(-1)
        return cls(logits, totals, best.cpu(), (highest - totals).cpu())

    def rows(self, first: int, end: int) -> "Scores":
        """Those of the rows from `first` to before `end`."""
        return Scores(*(each[first:end] for each in self))

    def log_probability(self, token: int) -> float:
        """log p of a token in the first row."""
        if token == int(self.best[0]):
            return float(self.best_logs[0])
        return float(self.logits[0, token] - self.totals[0])

    def likeliest(self, count: int) -> list[tuple[tuple[int, float], ...]]:
        """The `count` most likely tokens of each row with their log p, the most likely first."""
        values, ids = self.logits.topk(count)
        logs = (values - self.totals[:, None]).tolist()
        return [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), logs, strict=True)]


def refuse_wrong(sampling: Sampling, vocabulary: int) -> None:
    """Refuse settings that no model of that vocabulary can follow.

    Raises:
        UserError: one of them cannot be followed.
    """
    if sampling.max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {sampling.max_new_tokens}. It must be at least 1.")
    for token in sampling.logit_bias:
        if not 0 <= token < vocabulary:
            raise UserError(f"logit_bias: the model has no token {token}. It has 0 to {vocabulary - 1:,}.")


def random_stream(seed: int, number: int) -> torch.Generator:
    """The random numbers of one answer.

    Args:
        seed: of the sampling.
        number: of the answer among all that have this seed. The first one's stream is PyTorch's own of that seed.
    """
    return torch.Generator().manual_seed(stream_seed(seed, number))


def stream_seed(seed: int, number: int) -> int:
    """A seed whose answers, from number 0 on, have the random numbers of those of `seed` from `number` on.

    Args:
        seed: of the sampling.
        number: of an answer.
    """
    return (seed + number * _STREAM) % 2**63


def chosen(
    logits: Tensor,
    sampling: Sampling,
    prompt: Sequence[int],
    answer: Sequence[int],
    generator: torch.Generator,
    allowed: Tensor | None = None,
) -> int:
    """The next token.

    Args:
        logits: (vocabulary,) in fp32, the model's.
        sampling: the settings.
        prompt: the tokens before the answer.
        answer: the answer's tokens so far.
        generator: of this answer's random numbers.
        allowed: (vocabulary,) bool, the tokens that may follow; None: all.
    """
    scores = adjusted(logits, sampling, prompt, answer)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    if sampling.temperature == 0:
        return int(scores.argmax())
    return drawn(cut(scores / sampling.temperature, sampling), generator)


def drawn(scores: Tensor, generator: torch.Generator) -> int:
    """A token with probability softmax(scores), from one random number: the first token at which the sum of the
    probabilities exceeds it (Devroye 1986, section III.2). `torch.multinomial` takes a random number for each token of
    the vocabulary, which takes longer than everything else here.

    Args:
        scores: (vocabulary,), some of them finite; −∞ is never drawn.
        generator: of this answer's random numbers.
    """
    probabilities = torch.softmax(scores, -1)
    whole = len(scores) // BLOCK * BLOCK
    sums = torch.cat([probabilities[:whole].view(-1, BLOCK).sum(1), probabilities[whole:].sum(0, keepdim=True)])
    ends = sums.double().cumsum(0)
    target = torch.rand((), dtype=torch.float64, generator=generator) * ends[-1]
    block = _first_beyond(ends, target)
    own = probabilities[block * BLOCK : (block + 1) * BLOCK].double().cumsum(0)
    return block * BLOCK + _first_beyond(own, target - (ends[block - 1] if block else 0))


def _first_beyond(sums: Tensor, target: Tensor) -> int:
    """The first of growing sums that is above the target; if rounding has put the target at the end or beyond it, the
    first of those at the end, before which something was added."""
    found = int(torch.searchsorted(sums, target, right=True))
    return found if found < len(sums) else int(torch.searchsorted(sums, sums[-1]))


def adjusted(logits: Tensor, sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """The scores (vocabulary,) with bias and penalties. Arguments are those of `chosen`."""
    if not sampling.changes_scores:
        return logits
    scores = logits.clone()
    for token, bias in sampling.logit_bias.items():
        scores[token] += bias
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({token for token in (*prompt, *answer) if token >= 0}))
        own = scores[seen]
        scores[seen] = torch.where(own < 0, own * sampling.repetition_penalty, own / sampling.repetition_penalty)
    if answer and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(answer)
        tokens, times = torch.tensor(list(counts)), torch.tensor(list(counts.values()))
        scores[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return scores


def cut(scores: Tensor, sampling: Sampling) -> Tensor:
    """The scores (vocabulary,) with −∞ for every token that top_k, top_p or min_p leave out."""
    if 0 < sampling.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], float("-inf"))
    if sampling.top_p < 1:
        scores = scores.masked_fill(scores < _least_score(scores, sampling.top_p), float("-inf"))
    if sampling.min_p > 0:
        probabilities = torch.softmax(scores, -1)
        scores = scores.masked_fill(probabilities < sampling.min_p * probabilities.max(), float("-inf"))
    return scores


def _least_score(scores: Tensor, top_p: float) -> Tensor:
    """The score of the last of the fewest likely tokens that together have probability `top_p`. Tokens less likely than
    (1 − top_p) / vocabulary have less than 1 − top_p together, so that it is none of them; the others are few, and
    sorting a whole vocabulary takes longer than everything else."""
    total = torch.logsumexp(scores, -1)
    least = total + math.log((1 - top_p) / len(scores)) - 1e-3  # for rounding
    top = scores[scores >= least].sort(descending=True).values
    before = torch.exp(top - total).cumsum(-1) - torch.exp(top - total)
    kept = int((before < top_p).sum())
    return top[max(kept, 1) - 1]


def transformers_options(sampling: Sampling) -> dict[str, Any]:
    """The same settings as arguments of transformers' `generate`, as far as it has them."""
    common = {"max_new_tokens": sampling.max_new_tokens, "repetition_penalty": sampling.repetition_penalty}
    if sampling.beams > 1:
        common["num_beams"] = sampling.beams
    if sampling.temperature == 0:
        return {"do_sample": False, **common}
    cuts = {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p or None}
    return {"do_sample": True, "temperature": sampling.temperature, **cuts, **common}
