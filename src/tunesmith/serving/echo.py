"""`echo` of `/v1/completions`: a continuation with its prompt before it, and with `logprobs` the prompt's own."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.serving.choices import TokenTexts

Logprobs = dict[str, list[Any]]
"""`tokens`, `token_logprobs`, `top_logprobs` and `text_offset`, as `/v1/completions` has them."""


def prompt_text(prompt: str | Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """A prompt as text.

    Args:
        prompt: as the client sent it, a text or ids.
        tokenizer: of the model.
    """
    return prompt if isinstance(prompt, str) else str(tokenizer.decode(list(prompt)))


def with_prompt(first: int, scored: Logprobs | None, written: Logprobs | None, texts: TokenTexts) -> Logprobs:
    """The log-probabilities of a prompt and of what follows it.

    Args:
        first: the prompt's first token, before which nothing is, so that it has no log-probability.
        scored: of the prompt's other tokens; None: there are none.
        written: of what follows; None: nothing does.
        texts: of tokens.

    Returns:
        Of all together; offsets are those in the tokens' joined texts.
    """
    begin: Logprobs = {"tokens": [texts.of(first)[0]], "token_logprobs": [None], "top_logprobs": [None]}
    parts = [begin, *(part for part in (scored, written) if part is not None)]
    joined = {name: [entry for part in parts for entry in part[name]] for name in begin}
    return {**joined, "text_offset": list(accumulate(map(len, joined["tokens"][:-1]), initial=0))}
