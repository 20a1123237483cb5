"""From an example to text with its loss spans, and from there to tokens: the same in training and in inference."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from tunesmith.data.encode import Encoded, TextEncoder
from tunesmith.data.example import Example, Message
from tunesmith.data.reasoning import reasoning_of
from tunesmith.data.template import ChatTemplate, Span, Tools, UnusableError, special_tokens
from tunesmith.data.tokens import Targets
from tunesmith.errors import UserError

Learn = Literal["assistant", "last", "all"]
Tokenized = tuple[NDArray[np.int32], NDArray[np.bool_]]
"""Ids (n,) and loss mask (n,)."""

ENDS_OF_DOCUMENT = ("<|endoftext|>", "<|end_of_text|>")
"""The tokens that end a document in models whose end-of-sequence token ends a chat turn."""

WHITE_SPACE = (" ", "\n", "\n\n")
"""The white space that templates write after the end of a turn."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A text, as the model reads it.

    Attributes:
        text: with the template's special tokens; for a raw document, only the document.
        loss_spans: spans of the text that have loss, in order, without overlap.
        document: whether it is raw text: nothing in it is read as a special token, and the tokenizer adds its own
            beginning-of-sequence and end-of-document tokens.
        targets: for heads that do not predict the next token: a tag for each of `loss_spans`, or, if there are none,
            the label of the full text. The tokenizer adds its own special tokens.
        parts: texts that are encoded separately and compared, in place of `text`. The tokenizer adds its own special
            tokens to each.
        source: an encoder–decoder's input; `text` is then its output. The tokenizer adds its own special tokens to
            both.
        completions: texts that begin alike, in place of `text`: each holds a prompt and one of its completions. With
            `targets`, each has one, on its last token with loss.
        scores: of the completions, higher is better.
        ends: characters of the text (exclusive) whose last token has one of `targets`: the ends of an answer's steps.
        is_prompt: whether the answer is left out, because the model will write it.
    """

    text: str
    loss_spans: tuple[Span, ...]
    document: bool = False
    targets: Targets | None = None
    parts: tuple[str, ...] = ()
    source: str | None = None
    completions: tuple["Rendering", ...] = ()
    scores: tuple[float, ...] = ()
    ends: tuple[int, ...] = ()
    is_prompt: bool = False


class Renderer:
    """Renders and tokenizes for one tokenizer.

    Args:
        tokenizer: needs a chat template, unless only raw text is rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self.end_of_document = next(
            (vocabulary[token] for token in ENDS_OF_DOCUMENT if token in vocabulary), tokenizer.eos_token_id
        )
        own = tokenizer("")["input_ids"]
        bos = tokenizer.bos_token_id
        self.bos_of_document: list[int] = [bos] if bos is not None and own[:1] == [bos] else []
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
                f"{type(self.tokenizer).__name__} is written in Python and does not map tokens to characters. "
                "Set base to a model with a tokenizer.json."
            )
        return TextEncoder(backend, split_special)

    @cached_property
    def white_space_tokens(self) -> frozenset[int]:
        """Ids of tokens that are only white space."""
        return frozenset(
            i for token in WHITE_SPACE for i in self.tokenizer(token, add_special_tokens=False)["input_ids"]
        )

    def render(self, example: Example, learn: Learn = "assistant") -> list[Rendering]:
        """The example as one text; or as several, if the template rewrites earlier turns once a later turn follows.

        The templates of reasoning models remove the reasoning from all turns except the last. What the model has to
        write in an earlier turn is then only in the chat that ends with that turn, so the turn gets its own rendering.

        Raises:
            UnusableError: the template cannot render the example, or leaves part of it out.
        """
        if example.text is not None:
            return [Rendering(example.text, ((0, len(example.text)),), document=True)]
        messages, turns = _up_to_last_loss(example.messages or (), learn)
        _refuse_special_tokens(messages, self.template.special_tokens)
        if learn == "all":
            text = self.template.text(messages, example.tools)
            renderings = [Rendering(text, ((0, len(text.rstrip())),))]
        else:
            renderings = self._assistant_turns(messages, example.tools, turns)
        _refuse_left_out(messages, example.tools, renderings, learn)
        _refuse_left_out_reasoning(messages, renderings, range(len(messages)) if learn == "all" else turns)
        return renderings

    def completions(self, example: Example, with_targets: bool = False) -> Rendering:
        """The example's completions, each rendered with its prompt in one piece, with loss on the completion alone.

        Args:
            example: has completions.
            with_targets: whether the scores are the targets of a head that reads each completion's last token.

        Raises:
            UnusableError: the template cannot render one, or rewrites its turns once others follow.
        """
        before = [_without_loss(message) for message in example.messages or ()]
        renderings = []
        for number, completion in enumerate(example.completions, 1):
            chat = replace(example, messages=(*before, *completion.messages), completions=())
            *separate, rendering = self.render(chat)
            if separate:
                raise UnusableError(
                    f"completion {number} has several answers, and the chat template rewrites the first ones once "
                    "others follow. Make a row of each answer"
                )
            renderings.append(rendering)
        scores = tuple(completion.score for completion in example.completions)
        return Rendering("", (), completions=tuple(renderings), scores=scores, targets=scores if with_targets else None)

    def steps(self, example: Example, targets: Targets) -> Rendering:
        """An answer in steps, with a target at the end of each.

        Args:
            example: a chat whose last turn is the answer, and `others`, its steps: joined, they are that answer.
            targets: one for each step.

        Raises:
            UnusableError: the template cannot render the chat, or changes the answer.
        """
        *_, rendering = self.render(example, learn="last")
        start, end = rendering.loss_spans[-1]
        answer = "".join(example.others)
        at = rendering.text.find(answer, start, end)
        if at < 0:
            raise UnusableError("the chat template changes the answer, so the ends of its steps cannot be found")
        ends = tuple(at + len("".join(example.others[: number + 1]).rstrip()) for number in range(len(example.others)))
        return Rendering(rendering.text, (), targets=targets, ends=ends)

    def prompt(self, messages: Sequence[Message], tools: Tools = None) -> str:
        """The text that the model continues: the same text as before the answer in training."""
        return self.template.prompt(messages, tools)

    def render_prompt(self, example: Example) -> Rendering:
        """The chat of an example that ends before an answer, up to where the model begins to write.

        Raises:
            UnusableError: the template cannot render it, or it holds a control token.
        """
        messages = example.messages or ()
        _refuse_special_tokens(messages, self.template.special_tokens)
        return Rendering(self.prompt(messages, example.tools), (), is_prompt=True)

    @property
    def stop_tokens(self) -> list[int]:
        """Ids that end an answer; without a chat template, ids that end a text."""
        turn_ends = self.template.ends if self.tokenizer.chat_template else ()
        ends = {self.tokenizer.convert_tokens_to_ids(token) for token in turn_ends}
        return sorted({*ends, self.tokenizer.eos_token_id, self.end_of_document} - {None})

    def tokenize_many(self, renderings: Sequence[Rendering]) -> list[Tokenized]:
        """Ids and loss mask of each rendering; no token is shared by a prompt and its answer.

        The loss mask of a text with a class or value is set on its last token; of a text with tags, on each word's
        first token; of concatenated parts, on the last token of each.
        """
        groups: dict[_Tokenize, list[Rendering]] = {}
        for rendering in renderings:
            groups.setdefault(self._tokenize_function(rendering), []).append(rendering)
        results = {tokenize: tokenize(group) for tokenize, group in groups.items()}
        return [next(results[self._tokenize_function(rendering)]) for rendering in renderings]

    def _tokenize_function(self, rendering: Rendering) -> "_Tokenize":
        if rendering.parts:
            return self._tokenize_parts
        if rendering.ends:
            return self._tokenize_steps
        if rendering.targets is not None:
            return self._tokenize_tagged if rendering.loss_spans else self._tokenize_labeled
        if rendering.source is not None:
            return self._tokenize_pairs
        return self._tokenize_documents if rendering.document else self._tokenize_chats

    @cached_property
    def closing_tokens(self) -> int:
        """How many tokens the tokenizer adds after a text by itself: an encoder's `[SEP]`."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        start = next((index for index in range(len(full)) if full[index : index + len(plain)] == plain), 0)
        return len(full) - start - len(plain)

    def _assistant_turns(self, messages: Sequence[Message], tools: Tools, indices: Sequence[int]) -> list[Rendering]:
        only = sum(message["role"] == "assistant" for message in messages) == 1
        turns = [self.template.turn(messages[: index + 1], tools, only) for index in indices]
        text = turns[-1].text
        loss_spans: list[Span] = []
        separate: list[Rendering] = []
        for turn in turns:
            if text.startswith(turn.text[: turn.spans[-1][1]]):
                loss_spans.extend(turn.spans)
            else:
                separate.append(Rendering(turn.text, turn.spans))
        return [*separate, Rendering(text, tuple(loss_spans))]

    def _tokenize_chats(self, renderings: Sequence[Rendering]) -> Iterator[Tokenized]:
        """Each text in one piece, as a server tokenizes it. If a token would span the end of a prompt and the
        start of its answer, the text is split there, because the server's prompt ends there too."""
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
            offsets = np.asarray(piece["offset_mapping"], np.int64).reshape(-1, 2) + start
            loss_mask.append(_within(offsets, rendering.loss_spans))
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

    def _tokenize_steps(self, renderings: Sequence[Rendering]) -> Iterator[Tokenized]:
        """Each chat in one piece; marked are the tokens that hold the last character of each step."""
        for rendering, encoded in zip(renderings, self._chats.encode([each.text for each in renderings]), strict=True):
            loss_mask = np.zeros(len(encoded.ids), np.bool_)
            loss_mask[[encoded.at(end)[0] - 1 for end in rendering.ends]] = True
            yield np.asarray(encoded.ids, np.int32), loss_mask

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
        """The encoder's input, then the decoder's output: `models.forward` splits them again."""
        inputs = self.tokenizer([str(each.source) for each in renderings], split_special_tokens=True, verbose=False)
        texts = [each.text for each in renderings]
        outputs = self.tokenizer(text_target=texts, split_special_tokens=True, verbose=False)
        for source, answer in zip(inputs["input_ids"], outputs["input_ids"], strict=True):
            ids = np.asarray([*source, *answer], np.int32)
            yield ids, np.arange(len(ids)) >= len(source)

    def _tokenize_documents(self, renderings: Sequence[Rendering]) -> Iterator[Tokenized]:
        for inner in self._documents.encode([each.text for each in renderings]):
            ids = np.asarray([*self.bos_of_document, *inner.ids, self.end_of_document], np.int32)
            loss_mask = np.ones(len(ids), np.bool_)
            loss_mask[: len(self.bos_of_document)] = False
            yield ids, loss_mask


_Tokenize = Callable[[Sequence[Rendering]], Iterator[Tokenized]]


def joined(parts: Sequence[Tokenized], on_last_token: bool) -> tuple[NDArray[np.int32], NDArray[np.bool_], list[int]]:
    """Texts that begin alike, with their common beginning once.

    The beginning ends where the first token differs, or where the first one has a loss: it is what all have in common
    as tokens, so it is exact whatever the template wrote.

    Args:
        parts: ids and loss mask of each text.
        on_last_token: whether the loss is on each text's last token with loss alone, for a head that reads it.

    Returns:
        The ids and the loss mask (tokens,) of the beginning and what follows it in each text, and the tokens of each
        of these.
    """
    shared = min(int(np.flatnonzero(mask)[0]) for _, mask in parts)
    first = parts[0][0]
    for ids, _ in parts[1:]:
        width = min(shared, len(ids))
        differs = np.flatnonzero(first[:width] != ids[:width])
        shared = int(differs[0]) if len(differs) else width
    masks = []
    for _, mask in parts:
        marks = np.flatnonzero(mask)
        masks.append(np.arange(len(mask)) == marks[-1] if on_last_token else mask)
    ids = np.concatenate([first[:shared], *(ids[shared:] for ids, _ in parts)])
    mask = np.concatenate([np.zeros(shared, np.bool_), *(mask[shared:] for mask in masks)])
    return ids, mask, [shared, *(len(ids) - shared for ids, _ in parts)]


def _without_loss(message: Message) -> Message:
    return {**message, "learn": False} if message["role"] == "assistant" else message


def source_text(messages: Sequence[Message]) -> str:
    """The input of an encoder: the content of the system and user messages, one paragraph each.

    Raises:
        UnusableError: there is an answer already: an encoder–decoder has no turns.
    """
    if any(message["role"] not in ("system", "developer", "user") for message in messages):
        raise UnusableError("it has several turns, but an encoder–decoder reads one text and writes one")
    return "\n\n".join(str(message["content"]) for message in messages)


def _loss_mask_of(encoded: Encoded, spans: Sequence[Span]) -> NDArray[np.bool_] | None:
    """Which tokens begin inside the spans; None if a span begins inside a token."""
    loss_mask = np.zeros(len(encoded.ids), np.bool_)
    for start, end in spans:
        first, clean = encoded.at(start)
        if not clean:
            return None
        loss_mask[first : encoded.at(end)[0]] = True
    return loss_mask


def _within(offsets: NDArray[np.int64], spans: Sequence[Span]) -> NDArray[np.bool_]:
    loss_mask = np.zeros(len(offsets), np.bool_)
    for start, end in spans:
        loss_mask |= (offsets[:, 0] >= start) & (offsets[:, 0] < end)
    return loss_mask


def _refuse_special_tokens(messages: Sequence[Message], special: Sequence[str]) -> None:
    """A special token in the content would be read as one of the template: a second BOS, an early end of turn."""
    for number, message in enumerate(messages, 1):
        for text in reasoning_of(message):
            control = next((token for token in special if token in text), None)
            if control is not None:
                raise UnusableError(
                    f"turn {number} ({message['role']}) holds {control}, which the tokenizer reads as a control token, "
                    "not as text. Remove it; the chat template adds such tokens"
                )


def _up_to_last_loss(messages: Sequence[Message], learn: Learn) -> tuple[Sequence[Message], list[int]]:
    """The chat up to the last turn with loss, and the indices of such turns; later turns have no effect.

    Raises:
        UnusableError: every answer has weight 0.
    """
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    without_loss = [index for index, message in enumerate(messages) if not message.get("learn", True)]
    if not without_loss or learn == "all":
        return messages, answers if learn == "assistant" else answers[-1:]
    turns = [index for index in (answers if learn == "assistant" else answers[-1:]) if index not in without_loss]
    if not turns:
        raise UnusableError("all of its answers have weight 0, so there is nothing to learn")
    bare = [{key: value for key, value in message.items() if key != "learn"} for message in messages]
    return bare[: turns[-1] + 1], turns


def _refuse_left_out(messages: Sequence[Message], tools: Tools, renderings: Sequence[Rendering], learn: Learn) -> None:
    """All content must be in the text, up to white space: templates drop what they do not support."""
    rendered = [_without_space(rendering.text) for rendering in renderings]
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    for index, message in enumerate(messages):
        if message["role"] == "tool" or (learn == "last" and message["role"] == "assistant" and index != last):
            continue
        calls = [call["function"]["name"] for call in message.get("tool_calls", ())]
        for content in (reasoning_of(message)[1], *calls):
            if not any(_without_space(content) in text for text in rendered):
                raise _left_out(index, message, content)
    for tool in tools or ():
        if not any(tool["function"]["name"] in text for text in rendered):
            raise UnusableError(
                f"the chat template does not support tools ({tool['function']['name']}). Use a base whose template "
                "does, set base.chat_template to one that does, or remove the tools"
            )


def _refuse_left_out_reasoning(
    messages: Sequence[Message], renderings: Sequence[Rendering], with_loss: Sequence[int]
) -> None:
    """The reasoning of a turn with loss must be in what the model has to write, beside the content.

    That of other turns may be left out: the templates of reasoning models remove it from earlier turns, also in
    inference.
    """
    spans = [
        _without_space(rendering.text[start:end]) for rendering in renderings for start, end in rendering.loss_spans
    ]
    for index in with_loss:
        reasoning, content = map(_without_space, reasoning_of(messages[index]))
        if reasoning and not any(reasoning in span and content in span.replace(reasoning, "", 1) for span in spans):
            raise _left_out(index, messages[index], reasoning_of(messages[index])[0])


def _without_space(text: str) -> str:
    return "".join(text.split())


def _left_out(index: int, message: Message, text: str) -> UnusableError:
    return UnusableError(
        f"the chat template leaves out part of turn {index + 1} ({message['role']}): {text.strip()[:40]!r}. Remove it, "
        "or set base.chat_template to one that includes it"
    )
