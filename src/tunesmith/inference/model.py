"""`tunesmith.load`: a model to use, whatever it is stored as."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.head import Command, Head
from tunesmith.data.example import Example, Message, Source
from tunesmith.data.render import Renderer, Tokenized
from tunesmith.data.template import UnusableError
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.heads.prediction import Prediction
from tunesmith.inference.generate import Sampling, continuations, prompt_of, stream
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.predict import predict, vector_of
from tunesmith.models.attention import use_cached_attention, use_document_attention
from tunesmith.models.forward import evaluation_batches, next_token_losses
from tunesmith.models.precision import device_of, dtype_of
from tunesmith.models.prompts import plain_model, virtual_tokens

P = ParamSpec("P")
R = TypeVar("R")

REFUSALS: dict[Command, str] = {
    "generate": "does not write text",
    "classify": "does not classify texts",
    "embed": "does not embed texts",
}
"""What a model that has another head does not do."""

SOURCE = Source("texts", 1)
"""Where a text comes from that is in no file."""

TOKENS_PER_BATCH = 2048
"""Most tokens of texts that are scored together; a longer text is scored alone."""


@dataclass(frozen=True, slots=True)
class Score:
    """A text's log-probabilities.

    Attributes:
        tokens: the text's tokens that were scored.
        log_probabilities: (tokens,) float64: log p(token | everything before it), in nats.
    """

    tokens: tuple[str, ...]
    log_probabilities: NDArray[np.float64]

    @property
    def total(self) -> float:
        """log p(text), in nats."""
        return float(self.log_probabilities.sum())

    @property
    def mean(self) -> float:
        """Nats per token; exp(−mean) is the perplexity."""
        return float(self.log_probabilities.mean())


class Model:
    """A model to use. Its weights are loaded at the first call that needs them, and stay.

    Arguments and errors are those of `load`.
    """

    def __init__(self, name: str | Path, device: str = "auto", precision: str = "auto") -> None:
        if precision not in ("auto", "bf16", "fp32"):
            raise UserError(f"precision: {precision} is not one of auto, bf16 and fp32.")
        self.name = str(name)
        self.reference = ModelReference.find(self.name)
        self.device = device_of(device)
        needs_fp32 = precision == "auto" and self.head.needs_fp32
        self.dtype = dtype_of("fp32" if needs_fp32 else precision, self.device)

    def __repr__(self) -> str:
        return f"Model({self.name!r}, head={self.head.kind}, device={self.device}, dtype={self.dtype})"

    @property
    def head(self) -> Head:
        """What the model ends in."""
        return self.reference.head

    def require(self, command: Command) -> None:
        """Refuse a model whose head does something else; its weights are not loaded for that.

        Args:
            command: `generate`, `classify` or `embed`.

        Raises:
            UserError: the model does something else, which the message names.
        """
        if command not in self.head.commands:
            usual = next(iter(self.head.commands), None)
            hint = (
                f"Use it with: tunesmith {usual} {self.name}"
                if usual
                else "It has no head yet: train it with one first."
            )
            raise UserError(f"{self.name} {REFUSALS[command]}. {hint}")

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model of transformers, or PEFT's around it, in evaluation mode."""
        return self.reference.model(self.dtype, self.device)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the chat template of the training."""
        return self.reference.tokenizer()

    @cached_property
    def renderer(self) -> Renderer:
        """Turns chats into the text and the tokens of the training."""
        return Renderer(self.tokenizer)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        system: str | None = None,
        raw: bool = False,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        batch_size: int = 32,
    ) -> list[str]:
        """Answer questions, with the same rendering as in training.

        Args:
            prompts: a question, or several.
            system: the system prompt.
            raw: continue the texts as they are, without the chat template.
            max_new_tokens: the most tokens in an answer.
            temperature: of the softmax; 0 always takes the most likely token.
            top_p: sample from the most likely tokens that together have this probability (Holtzman et al. 2020).
            repetition_penalty: divides the scores of tokens that already occurred; 1: none.
            seed: of the sampling.
            batch_size: prompts in one batch.

        Returns:
            An answer for each prompt.

        Raises:
            UserError: the model does not write text, the template cannot render a question, or it is too long.
        """
        self.require("generate")
        questions = [prompts] if isinstance(prompts, str) else prompts
        texts = list(questions) if raw else [self.prompt([_user(question)], system) for question in questions]
        sampling = Sampling(max_new_tokens, temperature, top_p, repetition_penalty, seed)
        use_cached_attention(plain_model(self.model))
        return continuations(self.model, self.tokenizer, texts, sampling, batch_size)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        write: Callable[[str], None] | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.7,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> str:
        """The answer in a conversation.

        Args:
            messages: `role` and `content` of each turn, the user's last.
            write: receives the answer piece by piece, as it is generated.
            max_new_tokens: the most tokens in the answer.
            temperature: of the softmax; 0 always takes the most likely token.
            top_p: sample from the most likely tokens that together have this probability.
            repetition_penalty: divides the scores of tokens that already occurred; 1: none.
            seed: of the sampling.

        Raises:
            UserError: the model does not write text, the template cannot render the chat, or it is too long.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, repetition_penalty, seed)
        return self.stream(self.prompt(messages), sampling, write or (lambda piece: None)).strip()

    def stream(self, text: str, sampling: Sampling, write: Callable[[str], None]) -> str:
        """Continue a text as it is, such as one from `prompt`, writing what is generated piece by piece.

        Args:
            text: what the model reads.
            sampling: how tokens are chosen.
            write: receives the pieces.

        Returns:
            The complete continuation.

        Raises:
            UserError: the model does not write text, or the text is too long.
        """
        self.require("generate")
        use_cached_attention(plain_model(self.model))
        return stream(self.model, self.tokenizer, text, sampling, write)

    def prompt(self, messages: Sequence[Message], system: str | None = None) -> str:
        """The text that the model reads for a chat: the same as before the answer in training.

        Args:
            messages: `role` and `content` of each turn, the user's last.
            system: the system prompt before them.

        Raises:
            UserError: the model does not write text, or the chat template cannot render this chat.
        """
        self.require("generate")
        first = [] if system is None else [{"role": "system", "content": system}]
        with _template_errors():
            return prompt_of(self.model, self.renderer, [*first, *messages])

    def classify(self, texts: str | Sequence[str]) -> list[list[Prediction]]:
        """The class, the labels, the value or the entities of each text, with probabilities.

        Args:
            texts: a text, or several.

        Raises:
            UserError: the model does not classify texts.
        """
        self.require("classify")
        lines = [texts] if isinstance(texts, str) else texts
        return predict(self.model, self.tokenizer, self.head, lines, self.reference.classifier())

    def embed(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """The vector of each text (texts, hidden).

        Args:
            texts: a text, or several.

        Raises:
            UserError: the model does not embed texts.
        """
        self.require("embed")
        lines = [texts] if isinstance(texts, str) else list(texts)
        if not lines:
            raise UserError("There are no texts to embed.")
        vectors = [vector_of(self.model, self.tokenizer, self.head, text) for text in lines]
        return np.stack([vector.cpu().numpy() for vector in vectors])

    def score(self, texts: str | Sequence[str], prompts: str | Sequence[str] | None = None) -> list[Score]:
        """The log-probabilities of given texts: what training minimizes, with the sign turned.

        Args:
            texts: a text, or several.
            prompts: a question for each text; the text is then scored as its answer, with the token that ends it.
                Without prompts, the text is scored as it is; its first token only if the tokenizer puts a
                beginning-of-sequence token before it.

        Raises:
            UserError: the model does not write text or is an encoder–decoder, the template cannot render a chat, or a
                text is too long.
        """
        self.require("generate")
        if plain_model(self.model).config.is_encoder_decoder:
            raise UserError(f"{self.name} is an encoder–decoder, and score supports decoders only.")
        lines = [texts] if isinstance(texts, str) else list(texts)
        questions = [prompts] if isinstance(prompts, str) else prompts
        if questions is not None and len(questions) != len(lines):
            raise UserError(f"score needs a prompt for each text: {len(questions)} prompts for {len(lines)} texts.")
        rows = self._as_texts(lines) if questions is None else self._as_answers(questions, lines)
        table = TokenTable.build((*row, Source("texts", number)) for number, row in enumerate(rows, 1))
        self._refuse_too_long(table)
        scores: list[Score] = [Score((), np.zeros(0))] * len(table)
        use_document_attention(plain_model(self.model))
        for items, batch in evaluation_batches(self.model, table, range(len(table)), TOKENS_PER_BATCH):
            losses = torch.split(next_token_losses(self.model, batch).double().cpu(), batch.loss_tokens_per_row)
            for item, loss in zip(items, losses, strict=True):
                ids, mask = table[item]
                tokens = tuple(self.tokenizer.convert_ids_to_tokens(ids[1:][mask[1:]].tolist()))
                scores[item] = Score(tokens, -loss.numpy())
        return scores

    def _as_texts(self, texts: Sequence[str]) -> list[Tokenized]:
        """Raw documents without the token that ends them."""
        renderings = [each for text in texts for each in self.renderer.render(Example(SOURCE, text=text))]
        rows = []
        for ids, mask in self.renderer.tokenize_many(renderings):
            ends = len(ids) > 1 and ids[-1] == self.renderer.end_of_document
            rows.append((ids[:-1], mask[:-1]) if ends else (ids, mask))
        return rows

    def _as_answers(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Tokenized]:
        """Chats with loss on the answer."""
        renderings = []
        for prompt, answer in zip(prompts, answers, strict=True):
            turns = (_user(prompt), {"role": "assistant", "content": answer})
            with _template_errors():
                renderings += self.renderer.render(Example(SOURCE, messages=turns))
        return self.renderer.tokenize_many(renderings)

    def _refuse_too_long(self, table: TokenTable) -> None:
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        room = None if positions is None else positions - virtual_tokens(self.model)
        longest = int(table.lengths.max(initial=0))
        if room is not None and longest > room:
            raise UserError(f"A text has {longest:,} tokens, and the model's context holds {room:,}. Shorten it.")


def load(name: str | Path, device: str = "auto", precision: str = "auto") -> Model:
    """A model to use: to generate, chat, classify, embed, or score texts.

    Args:
        name: a run, an adapter, a model directory, a GGUF file, a short or a hub name, or `embedded`.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, …
        precision: `auto` (bf16 where it is faster), `bf16` or `fp32`.

    Raises:
        UserError: nothing of that name exists, the run has not finished, or the machine has no such device.
    """
    return Model(name, device, precision)


def _of_name(method: "Callable[Concatenate[Model, P], R]") -> "Callable[Concatenate[str, P], R]":
    """A method of `Model` as a function of the model's name, which loads it at each call."""

    @wraps(method)
    def call(model: str, /, *arguments: P.args, **options: P.kwargs) -> R:
        return method(load(model), *arguments, **options)

    return call


generate = _of_name(Model.generate)
"""`Model.generate` of the model of that name: `generate("runs/mine", ["What is LoRA?"])`."""

chat = _of_name(Model.chat)
"""`Model.chat` of the model of that name."""

classify = _of_name(Model.classify)
"""`Model.classify` of the model of that name."""

embed = _of_name(Model.embed)
"""`Model.embed` of the model of that name."""

score = _of_name(Model.score)
"""`Model.score` of the model of that name."""


def _user(question: str) -> Message:
    return {"role": "user", "content": question}


@contextmanager
def _template_errors() -> Iterator[None]:
    """Turn what the chat template cannot render into an error for the user."""
    try:
        yield
    except UnusableError as error:
        raise UserError(f"The chat template cannot render this question: {error}.") from None
