"""Generate answers with a model, with the rendering that it was trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from tunesmith.data.example import Message
from tunesmith.data.render import Renderer, source_text
from tunesmith.errors import UserError
from tunesmith.models.prompts import virtual_tokens


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: maximum length of an answer, in tokens.
        temperature: of the softmax; 0 always takes the most likely token.
        top_p: sample from the most likely tokens that together have this probability (Holtzman et al. 2020).
        repetition_penalty: divides the scores of tokens that already occurred (Keskar et al. 2019, section 4.1); 1 does
            nothing, 1.2 keeps small models out of loops.
        seed: of the sampling.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def options(self) -> dict[str, Any]:
        common = {"max_new_tokens": self.max_new_tokens, "repetition_penalty": self.repetition_penalty}
        if self.temperature == 0:
            return {"do_sample": False, **common}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0, **common}


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Sequence[Message]],
    sampling: Sampling,
    batch_size: int = 32,
    done: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """The answer to each chat, whose last message is the user's.

    Args:
        model: with attention that can use a cache (see `models.attention.use_cached_attention`).
        tokenizer: with a chat template.
        chats: in any order; batches are formed by length, since a batch is as long as its longest prompt.
        sampling: how tokens are chosen.
        batch_size: chats in one batch.
        done: called after each batch with the number of chats answered so far.

    Returns:
        The answers, in the order of the chats.

    Raises:
        UserError: a chat is as long as the model's context.
    """
    renderer = Renderer(tokenizer)
    prompts = [prompt_of(model, renderer, chat) for chat in chats]
    return continuations(model, tokenizer, prompts, sampling, batch_size, done)


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    sampling: Sampling,
    batch_size: int = 32,
    done: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """What follows each text, which may be a rendered chat. Arguments are those of `answers`.

    Raises:
        UserError: a text is as long as the model's context.
    """
    renderer = Renderer(tokenizer)
    prompts = [_ids(model, tokenizer, text) for text in texts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answered = [""] * len(prompts)
    torch.manual_seed(sampling.seed)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        generated = _continue(model, renderer, [prompts[index] for index in batch], sampling)
        for index, ids in zip(batch, generated, strict=True):
            answered[index] = tokenizer.decode(ids, skip_special_tokens=True).strip()
        done(start + len(batch))
    return answered


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    write: Callable[[str], None],
) -> str:
    """Continue the rendered prompt, writing the text as it is generated. Returns the complete text."""
    renderer = Renderer(tokenizer)
    ids = _ids(model, tokenizer, prompt)
    torch.manual_seed(sampling.seed)
    (continuation,) = _continue(model, renderer, [ids], sampling, _Writer(tokenizer, write))
    return str(tokenizer.decode(continuation, skip_special_tokens=True))


def prompt_of(model: PreTrainedModel, renderer: Renderer, chat: Sequence[Message]) -> str:
    """The model's input text for a chat whose last message is the user's; encoder-decoders use no chat template."""
    return source_text(chat) if model.config.is_encoder_decoder else renderer.prompt(chat)


def _ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> Tensor:
    """The prompt's ids (tokens,). Special tokens are added for an encoder; a rendered chat already contains them."""
    encoding = tokenizer(prompt, add_special_tokens=model.config.is_encoder_decoder, return_tensors="pt")
    ids: Tensor = encoding["input_ids"][0]
    return ids


class _Writer(TextStreamer):
    """Passes on pieces of text as soon as they are complete characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._write(text)


@torch.no_grad()  # not inference_mode: some of PEFT's methods keep tensors from the forward pass
def _continue(
    model: PreTrainedModel,
    renderer: Renderer,
    prompts: Sequence[Tensor],
    sampling: Sampling,
    streamer: TextStreamer | None = None,
) -> list[Tensor]:
    """The ids that follow each prompt, without the token that ends the turn."""
    longest = max(len(prompt) for prompt in prompts)
    is_encoder_decoder = model.config.is_encoder_decoder
    positions = getattr(model.config, "max_position_embeddings", None)
    options = sampling.options()
    if positions is not None:
        room = positions - virtual_tokens(model)
        if longest >= room:
            raise UserError(f"The chat has {longest:,} tokens, and the model's context holds {room:,}. Shorten it.")
        taken = 0 if is_encoder_decoder else longest  # a decoder of its own has its own positions
        options["max_new_tokens"] = min(options["max_new_tokens"], room - taken)
    stops = set(_as_list(model.generation_config.eos_token_id))
    stops |= {renderer.tokenizer.eos_token_id} if is_encoder_decoder else set(renderer.stop_tokens)
    pad = renderer.tokenizer.pad_token_id
    pad = min(stops) if pad is None else pad
    ids = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        columns = slice(0, len(prompt)) if is_encoder_decoder else slice(longest - len(prompt), longest)
        ids[row, columns] = prompt
        mask[row, columns] = 1
    out = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        eos_token_id=sorted(stops),
        pad_token_id=pad,
        streamer=streamer,
        **options,
    )[:, 1 if is_encoder_decoder else longest :].cpu()
    ended = torch.isin(out, torch.tensor(sorted(stops)))
    lengths = [int(row.nonzero()[0]) if row.any() else len(row) for row in ended]
    return [row[:length] for row, length in zip(out, lengths, strict=True)]


def _as_list(value: int | list[int] | None) -> list[int]:
    return [] if value is None else value if isinstance(value, list) else [value]
