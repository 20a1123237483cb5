"""Structured output: an answer that follows a JSON schema, a regular expression or a grammar, by llguidance.

Before each token, llguidance says which tokens may follow. That is computed on a thread of its own while the model
computes its scores.
"""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tunesmith.errors import UserError
from tunesmith.inference.sampling import Sampling

WHITE_SPACE = r"[ \n]{0,8}"
"""Between the parts of a JSON text. Without a limit, a small model can write white space for ever."""


class Constraints:
    """Constraints on the answers of one model.

    Args:
        tokenizer: of the model.
        vocabulary: how many tokens the model scores.
        stops: ids that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int, stops: frozenset[int]) -> None:
        self._hf_tokenizer, self._vocabulary, self._stops = tokenizer, vocabulary, stops
        self._threads = ThreadPoolExecutor(1)
        self._compiled = lru_cache(maxsize=64)(self._compile)

    @cached_property
    def _tokenizer(self) -> Any:
        """llguidance's tokenizer; making one takes a second."""
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._hf_tokenizer, n_vocab=self._vocabulary, eos_token=sorted(self._stops))

    def grammar(self, sampling: Sampling) -> "Grammar | None":
        """The constraint of these settings, compiled; None if they have none. That may take a second for a hard schema;
        the interpreter lock is not held meanwhile.

        Raises:
            UserError: the schema, expression or grammar is not valid.
        """
        text = _grammar(sampling)
        return None if text is None else self._compiled(text)

    def _compile(self, text: str) -> "Grammar":
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, text)
        if matcher.is_error():
            first = matcher.get_error().strip().splitlines()[0]
            raise UserError(f"The answer's schema, expression or grammar is not valid: {first}")
        return Grammar(matcher, self._vocabulary, self._threads)


class Grammar:
    """A compiled constraint, for any number of answers."""

    def __init__(self, matcher: Any, vocabulary: int, threads: ThreadPoolExecutor) -> None:
        self._matcher, self._vocabulary, self._threads = matcher, vocabulary, threads

    def begin(self) -> "Constraint":
        """The constraint on one answer."""
        return Constraint(self._matcher.deep_copy(), self._vocabulary, self._threads)


class Constraint:
    """What may follow in one answer."""

    def __init__(self, matcher: Any, vocabulary: int, threads: ThreadPoolExecutor) -> None:
        self._matcher, self._vocabulary, self._threads = matcher, vocabulary, threads
        self._next: Future[bytes] = threads.submit(matcher.compute_bitmask)

    def allowed(self) -> Tensor:
        """Which tokens may follow (vocabulary,) bool."""
        bits = np.unpackbits(np.frombuffer(self._next.result(), np.uint8), bitorder="little")
        mask = np.zeros(self._vocabulary, np.bool_)
        count = min(len(bits), self._vocabulary)
        mask[:count] = bits[:count]
        return torch.from_numpy(mask)

    def add(self, token: int) -> bool:
        """Add a token of the answer. Returns whether the answer is complete: nothing can follow."""
        self._matcher.consume_token(token)
        if self._matcher.is_stopped():
            return True
        self._next = self._threads.submit(self._matcher.compute_bitmask)
        return False


def _grammar(sampling: Sampling) -> str | None:
    """The settings' constraint as llguidance's grammar."""
    given = {"schema": sampling.schema, "regex": sampling.regex, "grammar": sampling.grammar}
    names = [name for name, value in given.items() if value is not None]
    if not names:
        return None
    if len(names) > 1:
        raise UserError(f"An answer has {' and '.join(names)}. Give one of them.")
    from llguidance import LLMatcher

    if sampling.regex is not None:
        return str(LLMatcher.grammar_from_regex(sampling.regex))
    if sampling.grammar is not None:
        return str(LLMatcher.grammar_from_lark(sampling.grammar))
    try:
        schema = json.loads(str(sampling.schema))
    except ValueError as error:
        raise UserError(f"schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UserError(f"schema is a {type(schema).__name__} and not a JSON object.")
    return str(LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": WHITE_SPACE}))
