"""`tunesmith.load`: a model to use, whatever it is stored as."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.extensions import failures_named
from tunesmith.config.head import Command, Head
from tunesmith.config.registry import HEADS
from tunesmith.data.example import Message
from tunesmith.data.render import Renderer
from tunesmith.data.template import UnusableError
from tunesmith.errors import UserError
from tunesmith.heads.prediction import Prediction
from tunesmith.inference.drafts import LOOKUP
from tunesmith.inference.generate import BASE, OWN, Generator
from tunesmith.inference.memory import CONCURRENT, refuse_unknown_cache
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.predict import predict, vector_of
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score, answer_rows, scores_of, text_rows
from tunesmith.inference.writing import Generation
from tunesmith.models.precision import device_of, dtype_of, writing_dtype

Chat = str | Sequence[Message]
"""A question, or the turns of a chat."""

REFUSALS: dict[Command, str] = {
    "generate": "does not write text",
    "classify": "does not classify texts",
    "embed": "does not embed texts",
    "reward": "is no reward model",
}
"""What a model that has another head does not do."""


class Model:
    """A model to use. Its weights are loaded at the first call that needs them, and stay.

    Args:
        name: as in `load`.
        device: as in `load`.
        precision: as in `load`.
        weights: as in `load`.
        concurrent: as in `load`.
        cache: as in `load`.

    Raises:
        UserError: as `load` raises.
    """

    def __init__(
        self,
        name: str | Path,
        device: str = "auto",
        precision: str = "auto",
        weights: str | None = None,
        concurrent: int = CONCURRENT,
        cache: str = "auto",
    ) -> None:
        refuse_unknown_cache(cache)
        if precision not in ("auto", "bf16", "fp32"):
            raise UserError(f"precision: {precision} is not one of auto, bf16 and fp32.")
        self.name, self.concurrent, self.cache = str(name), concurrent, cache
        self.reference = ModelReference.find(self.name)
        if weights is not None:
            self.reference = self.reference.with_weights(weights)
        self.device = device_of(device)
        dtype = writing_dtype if self.head.generates_text else dtype_of
        needs_fp32 = precision == "auto" and self.head.needs_fp32
        self.dtype = dtype("fp32" if needs_fp32 else precision, self.device)

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
        """The model of transformers, or PEFT's around it, in evaluation mode.

        Raises:
            UserError: it cannot be loaded.
        """
        return self.reference.model(self.dtype, self.device)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the chat template of the training.

        Raises:
            UserError: it cannot be loaded.
        """
        return self.reference.tokenizer()

    @cached_property
    def generator(self) -> Generator:
        """What writes and scores texts: the model in the generation engine.

        Raises:
            UserError: the model does not write text.
        """
        self.require("generate")
        return Generator.of(self.reference, self.dtype, self.device, self.concurrent, cache=self.cache)

    def load_adapter(self, name: str, directory: str | Path) -> None:
        """Put an adapter (LoRA, IA3, a prompt or a prefix) beside the model, or replace the one of that name, for
        `adapter=name`.

        Args:
            name: to use it by.
            directory: a run, or a directory with PEFT's files, of this model's base.

        Raises:
            UserError: it does not fit on this model or has no effect, or the model's own adapter cannot be exchanged.
        """
        reference = ModelReference.find(str(directory))
        if name in (OWN, BASE) or reference.adapter is None:
            raise UserError(f"{directory} has no adapter." if name not in (OWN, BASE) else f"The name {name} is taken.")
        self.generator.require_base()
        self.generator.paged.adapters.add(name, reference.adapter)

    def unload_adapter(self, name: str) -> None:
        """Remove an adapter.

        Args:
            name: from `load_adapter`.

        Raises:
            UserError: there is none of that name.
        """
        self.generator.paged.adapters.remove(name)

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        system: str | None = None,
        raw: bool = False,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] = (),
        schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        n: int = 1,
        best_of: int | None = None,
        beams: int = 1,
        top_logprobs: int = 0,
        seed: int = 0,
        adapter: str | None = None,
        draft: str | None = LOOKUP,
    ) -> list[Generation]:
        """Answer questions, with the same rendering as in training.

        Args:
            prompts: a question, or several.
            system: the system prompt.
            raw: continue the texts as they are, without the chat template.
            max_new_tokens: the most tokens in an answer.
            temperature: of the softmax; 0 always takes the most likely token.
            top_p: sample from the most likely tokens that together have this probability (Holtzman et al. 2020).
            top_k: sample from this many of the most likely tokens; 0: from all.
            min_p: leave out tokens that are less likely than this share of the most likely one (Nguyen et al. 2024).
            repetition_penalty: divides the scores of tokens that already occurred; 1: none.
            presence_penalty: subtracted from the score of each token of the answer so far.
            frequency_penalty: subtracted as often as the token is in the answer so far.
            logit_bias: added to the scores, by token id.
            stop: a text that ends an answer, or several; it is not part of the answer.
            schema: a JSON schema that each answer follows, as a dictionary or as JSON.
            regex: a regular expression that each answer matches (Rust's syntax).
            grammar: a grammar that each answer follows (Lark's syntax, as llguidance reads it).
            n: answers to each question.
            best_of: sample this many, and return the n with the highest mean log p; None: n.
            beams: of beam search, for encoder–decoders; 1: none.
            top_logprobs: how many of the most likely tokens are reported with each token of an answer.
            seed: of the sampling. Each answer has its own random numbers, so that it does not depend on the others.
            adapter: one from `load_adapter`, or `base`: the model without its own adapter.
            draft: what guesses the next tokens, which changes the time and not the answers: `lookup` (in the text so
                far), or the name of a smaller model with the same tokenizer; None: nothing.

        Returns:
            The answers: `n` to the first question, `n` to the second, and so on.

        Raises:
            UserError: the model does not write text, the template cannot render a question, it is too long, or there is
                no such adapter or draft model.
        """
        self.require("generate")
        questions = [prompts] if isinstance(prompts, str) else prompts
        chats = [[{"role": "user", "content": question}] for question in questions]
        texts = list(questions) if raw else [self.prompt(chat, system) for chat in chats]
        sampling = Sampling(
            max_new_tokens, temperature, top_p, repetition_penalty, seed, top_k, min_p, presence_penalty,
            frequency_penalty, logit_bias or {}, (stop,) if isinstance(stop, str) else tuple(stop),
            json.dumps(schema) if isinstance(schema, Mapping) else schema, regex, grammar, top_logprobs, beams,
        )  # fmt: skip
        each = n if best_of is None else best_of
        if each < n:
            raise UserError(f"best_of is {best_of}, and n answers are asked for: {n}. Sample at least as many.")
        found = self.generator.continuations(texts, sampling, adapter=adapter, n=each, draft=draft)
        groups = [found[start : start + each] for start in range(0, len(found), each)]
        return [answer for group in groups for answer in _best(group, n)]

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
        adapter: str | None = None,
    ) -> str:
        """The answer in a conversation. What is the same as in the last call is not computed again.

        Args:
            messages: `role` and `content` of each turn, the user's last.
            write: receives the answer piece by piece, as it is generated.
            max_new_tokens: the most tokens in the answer.
            temperature: of the softmax; 0 always takes the most likely token.
            top_p: sample from the most likely tokens that together have this probability.
            repetition_penalty: divides the scores of tokens that already occurred; 1: none.
            seed: of the sampling.
            adapter: one from `load_adapter`, or `base`.

        Returns:
            The answer, without white space around it.

        Raises:
            UserError: the model does not write text, the template cannot render the chat, or it is too long.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, repetition_penalty, seed)
        return self.stream(self.prompt(messages), sampling, write or (lambda piece: None), adapter).text.strip()

    def stream(
        self,
        text: str,
        sampling: Sampling,
        write: Callable[[str], None],
        adapter: str | None = None,
        draft: str | None = LOOKUP,
    ) -> Generation:
        """Continue a text as it is, such as one from `prompt`, writing what is generated piece by piece.

        Args:
            text: what the model reads.
            sampling: how tokens are chosen.
            write: receives the pieces.
            adapter: one from `load_adapter`, or `base`.
            draft: as in `generate`.

        Returns:
            The complete answer.

        Raises:
            UserError: the model does not write text, the text is too long, or there is no such adapter or draft model.
        """
        return self.generator.stream(text, sampling, write, adapter, draft)

    def prompt(self, messages: Sequence[Message], system: str | None = None) -> str:
        """The text that the model reads for a chat: the same as before the answer in training.

        Args:
            messages: `role` and `content` of each turn, the user's last.
            system: the system prompt before them.

        Returns:
            The text.

        Raises:
            UserError: the model does not write text, or the chat template cannot render this chat.
        """
        self.require("generate")
        first = [] if system is None else [{"role": "system", "content": system}]
        with _template_errors():
            return self.generator.prompt_of([*first, *messages])

    def classify(self, texts: str | Sequence[str]) -> list[list[Prediction]]:
        """The class, the labels, the value or the entities of each text, with probabilities.

        Args:
            texts: a text, or several.

        Returns:
            The predictions for each text; none where the model finds no label or no entity.

        Raises:
            UserError: the model does not classify texts.
        """
        self.require("classify")
        lines = [texts] if isinstance(texts, str) else texts
        with self._failures_named():
            return predict(self.model, self.tokenizer, self.reference.fitted_head(), lines)

    def embed(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """The vector of each text.

        Args:
            texts: a text, or several.

        Returns:
            (texts, hidden) float32.

        Raises:
            UserError: the model does not embed texts.
        """
        self.require("embed")
        lines = [texts] if isinstance(texts, str) else list(texts)
        if not lines:
            raise UserError("There are no texts to embed.")
        with self._failures_named():
            vectors = [vector_of(self.model, self.tokenizer, self.head, text) for text in lines]
        return np.stack([vector.cpu().numpy() for vector in vectors])

    def score(
        self,
        prompts: str | Sequence[str],
        completions: str | Sequence[str] | None = None,
        *,
        adapter: str | None = None,
    ) -> list[Score]:
        """The log-probabilities of given texts: what training minimizes, with the sign turned.

        Args:
            prompts: a question, or several.
            completions: the answer to each, scored with the token that ends it. Without them, the prompts are scored as
                texts; a text's first token only if the tokenizer puts a beginning-of-sequence token before it.
            adapter: one from `load_adapter`, or `base`: the model without its own adapter.

        Returns:
            A `Score` for each prompt.

        Raises:
            UserError: the model does not write text or is an encoder–decoder, the template cannot render a chat, or a
                text is too long.
        """
        if self.generator.model.config.is_encoder_decoder:
            raise UserError(f"{self.name} is an encoder–decoder, and score supports decoders only.")
        questions = [prompts] if isinstance(prompts, str) else list(prompts)
        answers = [completions] if isinstance(completions, str) else completions
        if answers is not None and len(answers) != len(questions):
            raise UserError(
                f"score needs a completion for each prompt: {len(answers)} completions for {len(questions)} prompts."
            )
        renderer = self.generator.renderer
        with _template_errors():
            rows = text_rows(renderer, questions) if answers is None else answer_rows(renderer, questions, answers)
        return scores_of(self.generator, rows, adapter)

    def reward(self, prompts: Chat | Sequence[Chat], completions: Chat | Sequence[Chat]) -> list[float]:
        """What a reward model says of answers; a graded one, the sum of its outputs. Only differences between answers
        to one prompt have a meaning.

        Args:
            prompts: a question, the turns of a chat, or several of either.
            completions: the answer to each, as text or turns.

        Returns:
            The reward of each.

        Raises:
            UserError: the model is no reward model, the template cannot render a chat, or a completion is missing.
        """
        if "reward" not in self.head.commands and len(self.head.labels) != 1:
            self.require("reward")
        return [float(outputs.sum()) for outputs in self._ends(prompts, completions)]

    def grades(self, prompts: Chat | Sequence[Chat], completions: Chat | Sequence[Chat]) -> list[dict[str, float]]:
        """How a graded reward model grades answers.

        Args:
            prompts: as in `reward`.
            completions: as in `reward`.

        Returns:
            The expected grade of each attribute, for each answer.

        Raises:
            UserError: the model gives no grades, or as `reward` raises.
        """
        head: Any = self.head
        if head.kind != "graded_reward":
            raise UserError(
                f"{self.name} gives no grades. Train a model that does: objective: {{kind: graded_reward}}."
            )
        return [head.grades(outputs[0].tolist()) for outputs in self._ends(prompts, completions)]

    def _ends(self, prompts: Chat | Sequence[Chat], completions: Chat | Sequence[Chat]) -> list[NDArray[np.float32]]:
        """The head's outputs (1, outputs) at the end of each answer."""
        from tunesmith.inference.rewards import ends_of  # it needs objectives, which other verbs do not import

        asked, answers = _several(prompts), _several(completions)
        if len(asked) != len(answers):
            raise UserError(f"reward needs a completion for each prompt: {len(answers)} for {len(asked)} prompts.")
        with _template_errors():
            return ends_of(self.model, Renderer(self.tokenizer), self.head, asked, answers)

    def step_rewards(self, prompt: Chat, steps: Sequence[str]) -> list[float]:
        """What a process reward model says of an answer's steps.

        Args:
            prompt: a question, or the turns of a chat.
            steps: of the answer.

        Returns:
            The probability that each step is right.

        Raises:
            UserError: the model is no process reward model, the template cannot render the chat, or there are no steps.
        """
        if self.head.kind != "process_reward":
            raise UserError(f"{self.name} is no process reward model. Train one: objective: {{kind: process_reward}}.")
        if not steps:
            raise UserError("There are no steps to rate.")
        from tunesmith.inference.rewards import step_rewards_of

        with _template_errors():
            return step_rewards_of(self.model, Renderer(self.tokenizer), self.head, prompt, steps)

    def _failures_named(self) -> AbstractContextManager[None]:
        """Turn a failure of a user's head into an error that names it."""
        kind = self.head.kind
        return failures_named({kind: HEADS.path(kind)} if HEADS.is_users(kind) else {})


def load(
    name: str | Path,
    device: str = "auto",
    precision: str = "auto",
    weights: str | None = None,
    concurrent: int = CONCURRENT,
    cache: str = "auto",
) -> Model:
    """A model to use: to generate, chat, classify, embed, or score texts.

    Args:
        name: a run, an adapter, a model directory, a GGUF file, a short or a hub name, or `embedded`.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, …
        precision: `auto` (bf16 where it is faster), `bf16` or `fp32`.
        weights: how the base's weights are stored in memory: `auto` (as `precision`), `int8`, `nf4`, `fp4`, …; None: as
            in the run's recipe.
        concurrent: the most answers that are computed at the same time.
        cache: how keys and values are stored while texts are written: `auto` (as the model computes them), or `int8`,
            which takes about a quarter of the memory of fp32 and changes answers a little.

    Returns:
        The model. Its weights are loaded at the first call that needs them.

    Raises:
        UserError: nothing of that name exists, the run has not finished, or the machine has no such device.
    """
    return Model(name, device, precision, weights, concurrent, cache)


def _several(chats: Chat | Sequence[Chat]) -> list[Chat]:
    """Chats as a list; one is a text, or a list of turns."""
    if isinstance(chats, str):
        return [chats]
    return [chats] if chats and isinstance(chats[0], dict) else list(chats)  # type: ignore[arg-type,list-item]


def _best(answers: Sequence[Generation], count: int) -> list[Generation]:
    """The answers with the highest mean log p, the best first; all of them, as they are, if there are no more."""
    if len(answers) == count:
        return list(answers)
    ranked = sorted(answers, key=lambda answer: -answer.mean_logprob)
    return ranked[:count]


@contextmanager
def _template_errors() -> Iterator[None]:
    """Turn what the chat template cannot render into an error for the user."""
    try:
        yield
    except UnusableError as error:
        raise UserError(f"The chat template cannot render this question: {error}.") from None
