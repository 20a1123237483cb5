"""A model of this process as one of EleutherAI's lm-eval, in the generation engine. Needs the extra `lm-eval`."""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from tunesmith.data.example import Message
from tunesmith.errors import UserError
from tunesmith.evaluation.raw_text import RawText
from tunesmith.inference.sampling import Sampling

ANSWER = 256
"""The most tokens of an answer, if a task says nothing else, as in lm-eval."""

TAKEN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Settings of a task's `generation_kwargs` that `Sampling` has under the same names."""


class EngineLM(LM):
    """Answers lm-eval's three kinds of requests.

    Args:
        raw: scores and continues texts.
        progress: called with how many requests of a kind are done, and how many there are.
    """

    def __init__(self, raw: RawText, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        super().__init__()
        self._raw, self._progress = raw, progress

    @property
    def tokenizer_name(self) -> str:
        """A part of lm-eval's key for requests in its own cache, which is off."""
        return str(self._raw.tokenizer.name_or_path)

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """How likely continuations are.

        Args:
            requests: with a beginning and its continuation each.

        Returns:
            log p in nats, and whether greedy decoding writes the continuation.
        """
        pairs = [self._raw.pair(*request.args) for request in requests]
        return [(each.total, each.is_greedy) for each in self._raw.scores(pairs, self._report(len(pairs)))]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """How likely whole texts are, however long: in windows of the model's context, each token once.

        Args:
            requests: with a text each.

        Returns:
            log p in nats.
        """
        windows = [
            [
                make_disjoint_window(window)
                for window in get_rolling_token_windows(
                    token_list=self._raw.ids(request.args[0]),
                    prefix_token=self._raw.first_token,
                    max_seq_len=self._raw.context,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        pairs = [window for text in windows for window in text]
        scores = iter(self._raw.scores(pairs, self._report(len(pairs))))
        return [sum(next(scores).total for _ in text) for text in windows]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """What the model writes, up to a text that ends it.

        Args:
            requests: with a beginning and a task's `generation_kwargs` each.

        Returns:
            The texts.

        Raises:
            UserError: a task has a setting that the engine has not.
        """
        samplings = [sampling_of(request.args[1]) for request in requests]
        return self._raw.written([request.args[0] for request in requests], samplings, self._report(len(requests)))

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """A chat as text.

        Args:
            chat_history: its turns.
            add_generation_prompt: whether an answer follows; else the last turn is to be continued.
        """
        if add_generation_prompt:
            return self._raw.generator.prompt_of(chat_history)
        return str(self._raw.tokenizer.apply_chat_template(chat_history, tokenize=False, continue_final_message=True))

    def _report(self, total: int) -> Callable[[int], None]:
        return lambda done: self._progress(done, total)


def sampling_of(settings: dict[str, Any]) -> Sampling:
    """How an answer is written.

    Args:
        settings: a task's `generation_kwargs`.

    Raises:
        UserError: one of them has no counterpart here.
    """
    given = normalize_gen_kwargs(settings, ANSWER)
    samples, stops = given.pop("do_sample"), given.pop("until")
    most = given.pop("max_gen_toks")
    taken = {name: given.pop(name) for name in TAKEN if name in given}
    if not samples:
        taken = {name: value for name, value in taken.items() if name == "repetition_penalty"}
    others = [name for name, value in given.items() if value not in (None, False, 1)]
    if others:
        raise UserError(f"generation_kwargs: {others[0]} is not supported. Supported: {', '.join(TAKEN)}, until.")
    return Sampling(max_new_tokens=most, stop=tuple(stop for stop in stops if stop), **taken)
