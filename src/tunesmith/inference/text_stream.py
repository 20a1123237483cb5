"""From tokens, one at a time, to text: complete characters only, and nothing of a stop text."""

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from tunesmith.data.template import special_tokens

INCOMPLETE = "\ufffd"
"""What a tokenizer writes for the first bytes of a character whose last bytes are in the next token."""


class TextStream:
    """The text of one answer as it grows.

    Args:
        tokenizer: of the model.
        stop: texts that end the answer.
        keep: special tokens that the text keeps; it leaves out all others.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), keep: Collection[str] = ()
    ) -> None:
        self._tokenizer = tokenizer
        left_out = special_tokens(tokenizer) - set(keep) if keep else ()
        self._left_out = set(tokenizer.convert_tokens_to_ids(sorted(left_out)))
        self._keep = bool(keep)
        self._stop = [text for text in stop if text]
        self._ids: list[int] = []
        self._from = 0  # decoding starts here: a token's text can depend on the one before it
        self._read = 0  # the text up to here has been read
        self._held = ""  # text that may be the beginning of a stop text
        self.stopped = False

    def add(self, token: int) -> str:
        """The new text that is certain, which may be empty."""
        self._ids.append(token)
        before, text = self._decoded(self._from, self._read), self._decoded(self._from, len(self._ids))
        if len(text) <= len(before) or text.endswith(INCOMPLETE):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return self._without_stop(text[len(before) :])

    def finish(self) -> str:
        """The rest, once there is no further token."""
        if self.stopped:
            return ""
        rest = self._decoded(self._from, len(self._ids))[len(self._decoded(self._from, self._read)) :]
        self._from = self._read = len(self._ids)
        text = self._without_stop(rest)
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _without_stop(self, new: str) -> str:
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        longest = max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - longest :]
        return text[: len(text) - longest]

    def _decoded(self, first: int, end: int) -> str:
        ids = self._ids[first:end]
        if not self._keep:
            return str(self._tokenizer.decode(ids, skip_special_tokens=True))
        return str(self._tokenizer.decode([each for each in ids if each not in self._left_out]))


def overlap(text: str, stop: str) -> int:
    """How many of the text's last characters are the first of `stop`, and not all of it."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
