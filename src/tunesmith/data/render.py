"""From an example to text with its learnt spans, and from there to tokens: in training and in use alike."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tunesmith.data.encode import Encoded, TextEncoder
from tunesmith.data.example import Example, Message
from tunesmith.data.template import ChatTemplate, Span, Tools, UnusableError, special_tokens
from tunesmith.data.tokens import Targets
from tunesmith.errors import UserError

Learn = Literal["assistant", "last", "all"]
Tokenized = tuple[NDArray[np.int32], NDArray[np.bool_]]
"""Ids (n,), and which of them are learnt (n,)."""

ENDS_OF_DOCUMENT = ("<|endoftext|>", "<|end_of_text|>")
"""What models write after a document, where their end-of-sequence ends a chat's turn instead."""

WHITE_SPACE = (" ", "\n", "\n\n")
"""What templates write after a turn's end."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A text as the model reads it.

    Attributes:
        text: with the template's special tokens; of a raw document, the document alone.
        learnt: spans of the text that are learnt, in order, apart from each other.
        targets: what is learnt where it is not next tokens: a tag for each of the spans `loss_mask`; or, where there are
            none, what is told of the whole text. The tokenizer's own special tokens go around the text.
        parts: texts that are read apart from each other and learnt together, in place of `text`; each with the
            tokenizer's own special tokens around it.
        source: what is read before the text is written, apart from it: an encoder's text. The tokenizer's own special
            tokens go around both.
        document: raw text: nothing in it is read as a special token, and the tokenizer's own beginning and the end of
            the document go around it.
    """

    text: str
    loss_spans: tuple[Span, ...]
    document: bool = False
    targets: Targets | None = None
    parts: tuple[str, ...] = ()
    source: str | None = None


class Renderer:
    """Renders and tokenizes for one tokenizer.

    Args:
        tokenizer: with a chat template, unless only raw text is to be rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self.end_of_document = next(
            (vocabulary[token] for token in ENDS_OF_DOCUMENT if token in vocabulary), tokenizer.eos_token_id
        )
        own = tokenizer("")["input_ids"]
        bos = tokenizer.bos_token_id
        self.begin_of_document: list[int] = [bos] if bos is not None and own[:1] == [bos] else []
        self.control_tokens = frozenset(tokenizer.convert_tokens_to_ids(sorted(special_tokens(tokenizer))))

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer)

    @cached_property
    def _chats(self) -> TextEncoder:
        return self._encoder(split_special=False)

    @cached_property
    def _documents(self) -> TextEncoder:
        return self._encoder(split_special=True)

    def _encoder(self, split_special: bool) -> TextEncoder:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"{type(self.tokenizer).__name__} is written in Python and cannot say which characters a token is of. "
                "Set base to one with a tokenizer.json."
            )
        return TextEncoder(backend, split_special)

    @cached_property
    def white_space_tokens(self) -> frozenset[int]:
        """Ids of tokens that are nothing but white space."""
        return frozenset(
            i for token in WHITE_SPACE for i in self.tokenizer(token, add_special_tokens=False)["input_ids"]
        )

    def render(self, example: Example, learn: Learn = "assistant") -> list[Rendering]:
        """The example as one text; or as several, where the template writes an earlier turn otherwise than it was
        asked for.

        Reasoning models' templates take the reasoning out of all turns but the last, so that what the model has to
        write in an earlier turn stands only in the chat that ends with it: such a turn is a rendering of its own.

        Raises:
            UnusableError: the template cannot show the example, or leaves part of it out.
        """
        if example.text is not None:
            return [Rendering(example.text, ((0, len(example.text)),), document=True)]
        messages, wanted = _up_to_last_loss(example.messages or (), learn)
        _refuse_special_tokens(messages, self.template.special_tokens)
        if learn == "all":
            text = self.template.text(messages, example.tools)
            renderings = [Rendering(text, ((0, len(text.rstrip())),))]
        else:
            renderings = self._assistant_turns(messages, example.tools, wanted)
        _refuse_losses(messages, example.tools, renderings, learn)
        return renderings

    def prompt(self, messages: Sequence[Message], tools: Tools = None) -> str:
        """The text that the model is to go on from: what stands before the answer in training."""
        return self.template.prompt(messages, tools)

    @property
    def stop_tokens(self) -> list[int]:
        """Ids after which an answer is over, or a text, where there is no template."""
        turns_end = self.template.ends if self.tokenizer.chat_template else ()
        ends = {self.tokenizer.convert_tokens_to_ids(token) for token in turns_end}
        return sorted({*ends, self.tokenizer.eos_token_id, self.end_of_document} - {None})

    def tokenize_many(self, renderings: Sequence[Rendering]) -> list[Tokenized]:
        """Ids and learnt marks of each rendering; no token is shared by a prompt and its answer.

        Of a text with a class or value the last token is marked, of one with tags each word's first; of parts laid end
        to end each one's last.
        """
        ways: dict[_Way, list[Rendering]] = {}
        for each in renderings:
            ways.setdefault(self._way(each), []).append(each)
        found = {way: way(these) for way, these in ways.items()}
        return [next(found[self._way(each)]) for each in renderings]

    def _way(self, rendering: Rendering) -> "_Way":
        if rendering.parts:
            return self._tokenize_parts
        if rendering.targets is not None:
            return self._tokenize_tagged if rendering.loss_spans else self._tokenize_labeled
        if rendering.source is not None:
            return self._tokenize_pairs
        return self._tokenize_documents if rendering.document else self._tokenize_chats

    @cached_property
    def closing_tokens(self) -> int:
        """How many tokens the tokenizer puts behind a text of its own accord: an encoder's `[SEP]`."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        before = next((place for place in range(len(whole)) if whole[place : place + len(plain)] == plain), 0)
        return len(whole) - before - len(plain)

    def _assistant_turns(self, messages: Sequence[Message], tools: Tools, wanted: Sequence[int]) -> list[Rendering]:
        only = sum(message["role"] == "assistant" for message in messages) == 1
        turns = [self.template.turn(messages[: place + 1], tools, only) for place in wanted]
        text = turns[-1].text
        together: list[Span] = []
        apart: list[Rendering] = []
        for turn in turns:
            if text.startswith(turn.text[: turn.spans[-1][1]]):
                together.extend(turn.spans)
            else:
                apart.append(Rendering(turn.text, turn.spans))
        return [*apart, Rendering(text, tuple(together))]

    def _tokenize_chats(self, renderings: Sequence[Rendering]) -> Iterator[Tokenized]:
        """Each text in one piece, as a server tokenizes it, unless a token would hold a prompt's end and an answer's
        beginning: then in two, since the server's prompt ends there too."""
        for rendering, encoded in zip(renderings, self._chats.encode([each.text for each in renderings]), strict=True):
            loss_mask = _loss_mask_of(encoded, rendering.loss_spans)
            if loss_mask is None:
                yield self._tokenize_in_pieces(rendering)
            else:
                yield np.asarray(encoded.ids, np.int32), loss_mask

    def _tokenize_in_pieces(self, rendering: Rendering) -> Tokenized:
        edges = [0, *(start for start, _ in rendering.loss_spans if start), len(rendering.text)]
        ids: list[int] = []
        loss_mask: list[NDArray[np.bool_]] = []
        for start, end in pairwise(edges):
            piece = self.tokenizer(
                rendering.text[start:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            ids.extend(piece["input_ids"])
            places = np.asarray(piece["offset_mapping"], np.int64).reshape(-1, 2) + start
            loss_mask.append(_within(places, rendering.loss_spans))
        return np.asarray(ids, np.int32), np.concatenate(loss_mask)

    def _tokenize_labeled(self, renderings: Sequence[Rendering]) -> Iterator[Tokenized]:
        encoded = self.tokenizer([each.text for each in renderings], split_special_tokens=True, verbose=False)
        for inner in encoded["input_ids"]:
            ids = np.asarray(inner, np.int32)
            yield ids, np.arange(len(ids)) == len(ids) - 1

    def _tokenize_tagged(self, renderings: Sequence[Rendering]) -> Iterator[Tokenized]:
        texts = [each.text for each in renderings]
        encoded = self.tokenizer(texts, split_special_tokens=True, return_offsets_mapping=True, verbose=False)
        for rendering, inner, offsets in zip(renderings, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            ids = np.asarray(inner, np.int32)
            starts, ends = np.asarray(offsets, np.int64).reshape(-1, 2).T
            loss_mask = np.zeros(len(ids), np.bool_)
            for start, end in rendering.loss_spans:
                loss_mask[np.flatnonzero((starts < end) & (ends > start))[:1]] = True
            yield ids, loss_mask

    def _tokenize_parts(self, renderings: Sequence[Rendering]) -> Iterator[Tokenized]:
        texts = [part for each in renderings for part in each.parts]
        encoded = iter(self.tokenizer(texts, split_special_tokens=True, verbose=False)["input_ids"])
        for rendering in renderings:
            parts = [next(encoded) for _ in rendering.parts]
            ids = np.asarray([token for part in parts for token in part], np.int32)
            loss_mask = np.zeros(len(ids), np.bool_)
            loss_mask[np.cumsum([len(part) for part in parts]) - 1] = True
            yield ids, loss_mask

    def _tokenize_pairs(self, renderings: Sequence[Rendering]) -> Iterator[Tokenized]:
        """What is read, then what is written: `models.forward` parts them again."""
        read = self.tokenizer([str(each.source) for each in renderings], split_special_tokens=True, verbose=False)
        texts = [each.text for each in renderings]
        written = self.tokenizer(text_target=texts, split_special_tokens=True, verbose=False)
        for source, answer in zip(read["input_ids"], written["input_ids"], strict=True):
            ids = np.asarray([*source, *answer], np.int32)
            yield ids, np.arange(len(ids)) >= len(source)

    def _tokenize_documents(self, renderings: Sequence[Rendering]) -> Iterator[Tokenized]:
        for inner in self._documents.encode([each.text for each in renderings]):
            ids = np.asarray([*self.begin_of_document, *inner.ids, self.end_of_document], np.int32)
            loss_mask = np.ones(len(ids), np.bool_)
            loss_mask[: len(self.begin_of_document)] = False
            yield ids, loss_mask


_Way = Callable[[Sequence[Rendering]], Iterator[Tokenized]]


def source_text(messages: Sequence[Message]) -> str:
    """What an encoder reads of a question: the system's and the user's words, a paragraph each.

    Raises:
        UnusableError: somebody has answered already: an encoder–decoder has no turns.
    """
    if any(message["role"] not in ("system", "developer", "user") for message in messages):
        raise UnusableError("it has several turns, and an encoder–decoder reads one text and writes one")
    return "\n\n".join(str(message["content"]) for message in messages)


def _loss_mask_of(encoded: Encoded, spans: Sequence[Span]) -> NDArray[np.bool_] | None:
    """Which tokens begin within the spans; None where a span begins within a token."""
    loss_mask = np.zeros(len(encoded.ids), np.bool_)
    for start, end in spans:
        first, clean = encoded.at(start)
        if not clean:
            return None
        loss_mask[first : encoded.at(end)[0]] = True
    return loss_mask


def _within(places: NDArray[np.int64], spans: Sequence[Span]) -> NDArray[np.bool_]:
    loss_mask = np.zeros(len(places), np.bool_)
    for start, end in spans:
        loss_mask |= (places[:, 0] >= start) & (places[:, 0] < end)
    return loss_mask


def _refuse_special_tokens(messages: Sequence[Message], special: Sequence[str]) -> None:
    """A special token within what someone says would be read as the template's own: a second BOS, an early end."""
    for number, message in enumerate(messages, 1):
        for said in (message.get("content"), message.get("reasoning_content")):
            found = next((token for token in special if isinstance(said, str) and token in said), None)
            if found is not None:
                raise UnusableError(
                    f"turn {number} ({message['role']}) holds {found}, which the tokenizer reads as a control token, "
                    "not as text. Give the turns alone; the chat template adds such tokens"
                )


def _up_to_last_loss(messages: Sequence[Message], learn: Learn) -> tuple[Sequence[Message], list[int]]:
    """The chat up to the last turn that is learnt, and where such turns stand; what comes after teaches nothing.

    Raises:
        UnusableError: every answer is marked as not to be learnt.
    """
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    marked = [place for place, message in enumerate(messages) if not message.get("learn", True)]
    if not marked or learn == "all":
        return messages, answers if learn == "assistant" else answers[-1:]
    wanted = [place for place in (answers if learn == "assistant" else answers[-1:]) if place not in marked]
    if not wanted:
        raise UnusableError("none of its answers is to be learnt, by their weights")
    bare = [{key: value for key, value in message.items() if key != "learn"} for message in messages]
    return bare[: wanted[-1] + 1], wanted


def _refuse_losses(messages: Sequence[Message], tools: Tools, renderings: Sequence[Rendering], learn: Learn) -> None:
    """What is said must stand in the text, but for white space: templates leave out what they have no place for."""
    shown = ["".join(each.text.split()) for each in renderings]
    last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
    for place, message in enumerate(messages):
        if message["role"] == "tool" or (learn == "last" and message["role"] == "assistant" and place != last):
            continue
        calls = [call["function"]["name"] for call in message.get("tool_calls", ())]
        for said in (message.get("content"), message.get("reasoning_content"), *calls):
            if isinstance(said, str) and not any("".join(said.split()) in text for text in shown):
                raise UnusableError(
                    f"the chat template leaves out part of turn {place + 1} ({message['role']}): {said.strip()[:40]!r}."
                    " Remove it, or set base.chat_template to one that shows it"
                )
    for tool in tools or ():
        if not any(tool["function"]["name"] in text for text in shown):
            raise UnusableError(f"the chat template has no place for tools ({tool['function']['name']})")
