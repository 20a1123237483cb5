"""Generate answers with a model, with the rendering that it was trained on."""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.data.example import Message
from tunesmith.data.render import Renderer, source_text
from tunesmith.data.template import Tools, UnusableError
from tunesmith.errors import UserError
from tunesmith.inference.adapters import is_shareable
from tunesmith.inference.constraint import Constraints, Grammar
from tunesmith.inference.draft_model import DraftModel
from tunesmith.inference.drafts import LOOKUP, Drafter, PromptLookup
from tunesmith.inference.engine import Engine
from tunesmith.inference.memory import CONCURRENT, refuse_unknown_cache
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.padded_engine import PaddedEngine
from tunesmith.inference.paged_model import paged_model
from tunesmith.inference.request import Request
from tunesmith.inference.sampling import Sampling
from tunesmith.inference.speculative import DRAFTED_ROWS
from tunesmith.inference.text_stream import TextStream
from tunesmith.inference.writing import Generation, Writing
from tunesmith.models.precision import writing_dtype
from tunesmith.models.prompts import without_adapter
from tunesmith.modules.weight_bytes import weight_bytes

OWN = "own"
"""The name in the engine of the adapter that a model was loaded with."""

BASE = "base"
"""Asks for the model without any adapter."""


def end_tokens(model: PreTrainedModel, renderer: Renderer) -> list[int]:
    """The ids that end an answer of a model: its own, and those of its tokenizer and chat template."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    own_ends = [] if own is None else own if isinstance(own, list) else [own]
    others = [renderer.tokenizer.eos_token_id] if model.config.is_encoder_decoder else renderer.stop_tokens
    return sorted({*own_ends, *others} - {None})


class Generator:
    """A model and its tokenizer, ready to write text: with the engine of `inference.engine` if its family's attention
    can be paged, otherwise with transformers' own caches.

    Args:
        model: of transformers, with or without PEFT's wrapper. Its linear layers may be replaced in place.
        tokenizer: with the chat template of the training.
        concurrent: the most sequences at the same time.
        cache: how keys and values are stored: `auto` (as the model computes them), or `int8`.

    Raises:
        UserError: the cache cannot be stored so.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        concurrent: int = CONCURRENT,
        cache: str = "auto",
    ) -> None:
        refuse_unknown_cache(cache)
        self.model, self.tokenizer = model, tokenizer
        self.renderer = Renderer(tokenizer)
        paged = paged_model(model, in_int8=cache == "int8")
        if paged is None and cache != "auto":
            raise UserError(f"cache: {type(model).__name__} keeps a state that cannot be paged. Leave cache out.")
        self.engine: Engine | PaddedEngine = (
            PaddedEngine(model, tokenizer) if paged is None else Engine(paged, concurrent)
        )
        self._draft_models: dict[str, DraftModel] = {}

    @classmethod
    def of(
        cls,
        reference: ModelReference,
        dtype: torch.dtype,
        device: torch.device,
        concurrent: int = CONCURRENT,
        loaded: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        cache: str = "auto",
    ) -> "Generator":
        """Load a model to write with. An adapter that can be shared stays apart from its base, so that others can join
        it.

        Args:
            reference: to the model.
            dtype: of its weights.
            device: to compute on.
            concurrent: the most sequences at the same time.
            loaded: the same model, if it is in memory already; it is of no other use then.
            tokenizer: None: the model's own.
            cache: how keys and values are stored, `auto` or `int8`.

        Raises:
            UserError: as `ModelReference.model`, or the cache cannot be stored so.
        """
        tokenizer = reference.tokenizer() if tokenizer is None else tokenizer
        if reference.adapter is not None and is_shareable(reference.adapter):
            alone = reference.without_adapter()
            base = alone.served_model(dtype, device) if loaded is None else without_adapter(loaded)
            generator = cls(base, tokenizer, concurrent, cache)
            if generator.is_paged:
                generator.paged.adapters.add(OWN, reference.adapter, refuse_no_effect=False)
                return generator
            loaded = None
        return cls(reference.served_model(dtype, device) if loaded is None else loaded, tokenizer, concurrent, cache)

    @property
    def is_paged(self) -> bool:
        """Whether the engine computes the model, with paged caches."""
        return isinstance(self.engine, Engine)

    @property
    def paged(self) -> Engine:
        """The engine.

        Raises:
            UserError: the model's family cannot be paged.
        """
        if not isinstance(self.engine, Engine):
            raise UserError(
                f"{type(self.model).__name__} keeps a state that cannot be paged, so it takes no adapters beside each "
                "other. Load it with its adapter."
            )
        return self.engine

    @property
    def has_base(self) -> bool:
        """Whether the model without its adapter is in memory too: it has none, or one that is beside it."""
        return not hasattr(self.model, "get_base_model")

    @property
    def weight_bytes(self) -> int:
        """The bytes of the model's weights and of its own adapter, as they are in memory."""
        own = self.paged.adapters.get(OWN).bytes if self.is_paged and OWN in self.paged.adapters.names else 0
        return weight_bytes(self.model) + own

    def require_base(self) -> None:
        """Refuse a model whose adapter cannot be left out.

        Raises:
            UserError: it cannot.
        """
        if not self.has_base:
            raise UserError("The model's own adapter cannot be left out or exchanged. Load the model's base instead.")

    @cached_property
    def stops(self) -> frozenset[int]:
        """The ids that end an answer."""
        return frozenset(end_tokens(self.model, self.renderer))

    @cached_property
    def _constraints(self) -> Constraints:
        vocabulary = self.model.config.get_text_config().vocab_size
        return Constraints(self.tokenizer, vocabulary, self.stops)

    def answers(
        self,
        chats: Sequence[Sequence[Message]],
        sampling: Sampling,
        done: Callable[[int], None] = lambda count: None,
        adapter: str | None = None,
        draft: str | None = LOOKUP,
    ) -> list[str]:
        """The answer to each chat, whose last message is the user's, without white space around it.

        Args:
            chats: in any order.
            sampling: how tokens are chosen.
            done: called with the number of chats answered so far each time that it has grown.
            adapter: the name of an adapter; None: the model as it is.
            draft: what guesses the next tokens, which changes the time and not the answer: `lookup` (in the text so
                far, if the family can be paged), or the name of a smaller model with the same tokenizer; None: nothing.

        Raises:
            UserError: a chat is as long as the model's context, or there is no such draft model.
        """
        texts = [self.prompt_of(chat) for chat in chats]
        return [each.text.strip() for each in self.continuations(texts, sampling, done, adapter, draft=draft)]

    def continuations(
        self,
        texts: Sequence[str],
        sampling: Sampling,
        done: Callable[[int], None] = lambda count: None,
        adapter: str | None = None,
        n: int = 1,
        draft: str | None = LOOKUP,
    ) -> list[Generation]:
        """What follows each text, which may be a rendered chat; `n` answers to each, one after another. The other
        arguments are those of `answers`.

        Raises:
            UserError: a text is as long as the model's context, or there is no such draft model.
        """
        prompts = [self.ids(text) for text in texts]
        writings = [
            self.begin(ids, sampling, number * n + each, adapter, draft=draft)
            for number, ids in enumerate(prompts)
            for each in range(n)
        ]
        self.engine.run([writing.request for writing in writings], done)
        return [writing.finish() for writing in writings]

    def stream(
        self,
        text: str,
        sampling: Sampling,
        write: Callable[[str], None],
        adapter: str | None = None,
        draft: str | None = LOOKUP,
    ) -> Generation:
        """Continue a text, writing what is generated piece by piece. Returns the complete answer.

        Raises:
            UserError: the text is as long as the model's context, or there is no such draft model.
        """
        writing = self.begin(self.ids(text), sampling, 0, adapter, write, draft=draft)
        self.engine.run([writing.request])
        return writing.finish()

    def begin(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        number: int = 0,
        adapter: str | None = None,
        write: Callable[[str], None] = lambda piece: None,
        keep: Collection[str] = (),
        draft: str | None = LOOKUP,
        grammar: Grammar | None = None,
        stops: Collection[int] = (),
    ) -> Writing:
        """A request for one answer, to be submitted to the engine.

        Args:
            ids: of the text before the answer.
            sampling: how tokens are chosen.
            number: of the answer among those with the same seed; each has its own random numbers.
            adapter: the name of an adapter, or `base`; None: the model as it is.
            write: receives the answer piece by piece.
            keep: special tokens that the answer's text keeps.
            draft: as in `answers`.
            grammar: from `grammar`; None: it is compiled here.
            stops: ids that end the answer, beside the model's own.

        Raises:
            UserError: there is no such adapter or draft model, or the schema, expression or grammar is not valid.
        """
        drafter, grammar = self.drafter(draft), grammar or self.grammar(sampling)
        constraint = None if grammar is None else grammar.begin()
        own = self._adapter(adapter)
        ends = self.stops.union(stops)
        request = Request(ids, sampling, ends, number, own, constraint=constraint, drafter=drafter)
        return Writing(request, TextStream(self.tokenizer, sampling.stop, keep), write)

    def grammar(self, sampling: Sampling) -> Grammar | None:
        """What binds answers with these settings, compiled, on any thread; None: nothing does.

        Args:
            sampling: with a schema, an expression or a grammar.

        Raises:
            UserError: it is not valid.
        """
        return self._constraints.grammar(sampling) if sampling.is_bound else None

    def drafter(self, draft: str | None) -> Drafter | None:
        """The source of drafts that is asked for; a model is loaded the first time.

        Args:
            draft: as in `answers`.

        Raises:
            UserError: there is no such draft model.
        """
        if draft is None or draft == LOOKUP:
            return PromptLookup() if draft and self.is_paged else None
        if draft not in self._draft_models:
            self._draft_models[draft] = self._draft_model(draft)
        return self._draft_models[draft]

    def _draft_model(self, name: str) -> DraftModel:
        """The model of that name, loaded to draft for this one.

        Raises:
            UserError: there is no such model, or it cannot draft for this one.
        """
        reference, device = ModelReference.find(name), self.model.device
        if not reference.head.generates_text:
            raise UserError(f"draft: {name} does not write text. Use a causal language model, or lookup.")
        tokenizer = reference.tokenizer()
        if tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise UserError(
                f"draft: {name} has another tokenizer than the model. Use one of the same family, or lookup."
            )
        dtype = writing_dtype("auto", device)
        loaded = Generator.of(reference, dtype, device, DRAFTED_ROWS // 2, tokenizer=tokenizer)  # two rows a sequence
        if not (self.is_paged and loaded.is_paged):
            which = name if self.is_paged else type(self.model).__name__
            raise UserError(f"draft: {which} keeps a state that cannot be paged. Leave draft out.")
        cost = loaded.paged.model.products / self.paged.model.products
        return DraftModel(loaded.paged, loaded._adapter(None), cost)

    def _adapter(self, name: str | None) -> str | None:
        """The engine's name of an adapter that is asked for."""
        if name == BASE:
            self.require_base()
        if name == BASE or (name is None and not self.is_paged):
            return None
        adapters = self.paged.adapters
        return (OWN if OWN in adapters.names else None) if name is None else name

    def prompt_of(self, chat: Sequence[Message], tools: Tools = None) -> str:
        """The model's input text for a chat whose last message is the user's; encoder-decoders use no chat template.

        Raises:
            UnusableError: the template cannot render the chat, or an encoder–decoder is to call tools.
        """
        if not self.model.config.is_encoder_decoder:
            return self.renderer.prompt(chat, tools)
        if tools:
            raise UnusableError("an encoder–decoder calls no tools")
        return source_text(chat)

    def ids(self, text: str) -> list[int]:
        """The text's ids. Special tokens are added for an encoder; a rendered chat already contains them."""
        encoding = self.tokenizer(text, add_special_tokens=self.model.config.is_encoder_decoder)
        return list(encoding["input_ids"])

    def scoring(
        self, prompt: Sequence[int], completion: Sequence[int], adapter: str | None = None, top_logprobs: int = 0
    ) -> Request:
        """A request for log p of a completion's tokens, to be submitted to the engine.

        Args:
            prompt: the ids before it; one at least.
            completion: its ids.
            adapter: the name of an adapter, or `base`; None: the model as it is.
            top_logprobs: how many of the most likely tokens are reported in place of each.
        """
        sampling = Sampling(top_logprobs=top_logprobs)
        return Request(prompt, sampling, adapter=self._adapter(adapter), completion=completion)

    def begin_scoring(
        self, prompt: Sequence[int], completion: Sequence[int], adapter: str | None = None, top_logprobs: int = 0
    ) -> Writing:
        """As `scoring`, as an answer with these tokens and no text."""
        request = self.scoring(prompt, completion, adapter, top_logprobs)
        return Writing(request, TextStream(self.tokenizer), lambda piece: None)

    def scores(
        self, rows: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: str | None = None
    ) -> list[list[float]]:
        """log p of each completion's tokens, in nats.

        Args:
            rows: prompt and completion, as ids. A prompt has at least one.
            adapter: the name of an adapter; None: the model as it is.

        Raises:
            UserError: a row is longer than the model's context.
        """
        requests = [self.scoring(prompt, completion, adapter) for prompt, completion in rows]
        self.engine.run(requests)
        return [request.log_probabilities for request in requests]
