"""A model that writes and scores texts, on the generation engine."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith.data.example import Message
from tunesmith.data.template import UnusableError
from tunesmith.errors import UserError
from tunesmith.inference.drafts import LOOKUP
from tunesmith.inference.generate import BASE, OWN, Generator
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.opened_model import OpenedModel
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.score import Score, answer_rows, scores_of, text_rows
from tunesmith.inference.writing import Generation


class WritingModel(OpenedModel):
    """What a model does that writes text; one with another head refuses it."""

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
        with template_errors():
            return self.generator.prompt_of([*first, *messages])

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
        with template_errors():
            rows = text_rows(renderer, questions) if answers is None else answer_rows(renderer, questions, answers)
        return scores_of(self.generator, rows, adapter)


def _best(answers: Sequence[Generation], count: int) -> list[Generation]:
    """The answers with the highest mean log p, the best first; all of them, as they are, if there are no more."""
    if len(answers) == count:
        return list(answers)
    ranked = sorted(answers, key=lambda answer: -answer.mean_logprob)
    return ranked[:count]


@contextmanager
def template_errors() -> Iterator[None]:
    """Turn what the chat template cannot render into an error for the user."""
    try:
        yield
    except UnusableError as error:
        raise UserError(f"The chat template cannot render this question: {error}.") from None
