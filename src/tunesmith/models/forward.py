"""Forward passes that compute only what is needed: hidden states of packed documents, and the head at loss tokens."""

from collections.abc import Iterator, Sequence
from functools import partial
from inspect import signature
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tunesmith.data.batch import Batch, collate
from tunesmith.data.example import Source
from tunesmith.data.pack import pack_any_order
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.models.attention import packs
from tunesmith.models.prompts import Inputs, model_inputs, padded, padded_positions, plain_model
from tunesmith.ops.cross_entropy import (
    OutputLayer,
    linear_cross_entropy,
    linear_row_losses,
    logits_of,
    row_losses,
)
from tunesmith.ops.divergence import distillation_loss

Pooling = Literal["mean", "first", "last"]
"""How a text's hidden states become one vector: the mean over its tokens, its first token, or its last."""

CHUNK = 512
"""Positions whose logits are in memory at the same time when `ops.cross_entropy` does not compute them."""


def next_token_loss(model: PreTrainedModel, batch: Batch, smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
    """Sum of −log p(next token) over the batch's loss positions, in nats: a scalar, fp32 or wider.

    `smoothing` and `z_loss` as in `tunesmith.ops.cross_entropy`.
    """
    hidden, labels = loss_hidden_states(model, batch)
    head = output_layer_of(model)
    if head is not None:
        return linear_cross_entropy(hidden, head, labels, smoothing, z_loss)
    one_loss = partial(_head_loss, model, smoothing=smoothing, z_loss=z_loss)
    loss = hidden.new_zeros((), dtype=torch.float32)
    for rows, targets in zip(torch.split(hidden, CHUNK), torch.split(labels, CHUNK), strict=True):
        loss = loss + checkpoint(one_loss, rows, targets, use_reentrant=False)
    return loss


def token_log_probs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """log p(next token) at each loss position (loss positions,), in nats, fp32 or wider, with gradients."""
    hidden, labels = loss_hidden_states(model, batch)
    head = output_layer_of(model)
    if head is not None:
        return -linear_row_losses(hidden, head, labels)
    one_loss = partial(_head_loss, model, reduction="none")
    parts = [
        checkpoint(one_loss, rows, targets, use_reentrant=False)
        for rows, targets in zip(torch.split(hidden, CHUNK), torch.split(labels, CHUNK), strict=True)
    ]
    return -torch.cat(parts)


@torch.no_grad()
def next_token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """−log p(next token) at each loss position (loss tokens,), in nats, in the batch's order; no gradients."""
    hidden, labels = loss_hidden_states(model, batch)
    head = output_layer_of(model)
    if head is not None:
        return row_losses(hidden, head, labels)
    parts = [
        _head_loss(model, rows, targets, "none")
        for rows, targets in zip(torch.split(hidden, CHUNK), torch.split(labels, CHUNK), strict=True)
    ]
    return torch.cat(parts)


def distilled_loss(
    model: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, temperature: float, label_weight: float
) -> Tensor:
    """`tunesmith.ops.divergence.distillation_loss` over the batch's loss positions, one chunk at a time."""
    with torch.no_grad():
        teacher_hidden, _ = loss_hidden_states(teacher, batch)
    hidden, labels = loss_hidden_states(model, batch)

    def chunk_loss(student_rows: Tensor, teacher_rows: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = all_logits(teacher, teacher_rows)
        logits = all_logits(model, student_rows)
        both = min(logits.shape[-1], teacher_logits.shape[-1])  # one vocabulary may be padded to a round size
        return distillation_loss(logits[:, :both], teacher_logits[:, :both], targets, temperature, label_weight)

    loss = hidden.new_zeros((), dtype=torch.float32)
    for chunk in zip(*(torch.split(rows, CHUNK) for rows in (hidden, teacher_hidden, labels)), strict=True):
        loss = loss + checkpoint(chunk_loss, *chunk, use_reentrant=False)
    return loss


def loss_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits at the loss positions (loss tokens, vocabulary), fp32 or wider, and the labels there (loss tokens,).

    For losses that need more than −log p: all logits are in memory at once, which `next_token_loss` avoids.
    """
    hidden, labels = loss_hidden_states(model, batch)
    return all_logits(model, hidden), labels


def all_logits(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """(rows, vocabulary), fp32 or wider."""
    head = output_layer_of(model)
    return model_logits(model, rows) if head is None else logits_of(rows, head)


def model_logits(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """The logits (rows, vocabulary) of last hidden states (rows, hidden), fp32 or wider, by whatever layer the model
    ends in."""
    plain = plain_model(model)
    logits: Tensor = plain.get_output_embeddings()(rows)
    bias, scale, softcap = _after_output_layer(plain)
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    logits = (logits if bias is None else logits + bias) * scale
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def loss_hidden_states(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The last hidden states at the loss positions (loss tokens, hidden), and the labels there (loss tokens,)."""
    if plain_model(model).config.is_encoder_decoder:
        return _decoder_hidden_states(plain_model(model), batch), batch.labels
    hidden, inputs = _hidden_states(model, batch)
    return hidden[inputs.positions[batch.loss_positions]], batch.labels


def first_hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The last hidden state of each document's first token (documents, hidden), which encoders' heads read. It may be a
    virtual token."""
    hidden, inputs = _hidden_states(model, batch)
    return hidden[inputs.starts[: batch.documents]]


def pooled(model: PreTrainedModel, batch: Batch, how: Pooling) -> Tensor:
    """Each document's last hidden states pooled (documents, hidden), fp32 or wider: the mean, the first or the last."""
    hidden, inputs = _hidden_states(model, batch)
    lengths = batch.lengths[: batch.documents]
    return pool(hidden[inputs.positions[: sum(lengths)]], lengths, how)


def pool(hidden: Tensor, lengths: Sequence[int], how: Pooling) -> Tensor:
    """Pool concatenated hidden states (tokens, hidden) to one vector for each text (texts, hidden), fp32 or wider."""
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    counts = torch.tensor(lengths, device=hidden.device)
    ends = counts.cumsum(0)
    if how != "mean":
        return hidden[ends - counts if how == "first" else ends - 1]
    text = torch.repeat_interleave(torch.arange(len(counts), device=hidden.device), counts)
    return hidden.new_zeros(len(counts), hidden.shape[1]).index_add(0, text, hidden) / counts[:, None]


def _decoder_hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The decoder's last hidden state for each loss token; the encoder reads the tokens before them."""
    answers = torch.split(batch.labels, batch.loss_tokens_per_row)
    documents = torch.split(batch.input_ids[0], batch.lengths)
    pairs = list(zip(documents, answers, strict=False))  # the last document may be padding
    ids, mask = padded(model, [document[: len(document) - len(answer) + 1] for document, answer in pairs])
    first = batch.labels.new_tensor([model.config.decoder_start_token_id])
    decoder_ids, _ = padded(model, [torch.cat([first, answer[:-1]]) for answer in answers])
    encoded = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    hidden: Tensor = model.get_decoder()(
        input_ids=decoder_ids, encoder_hidden_states=encoded, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state
    positions = padded_positions([len(answer) for answer in answers], decoder_ids.shape[1], hidden.device)
    return hidden.flatten(0, 1)[positions]


def _hidden_states(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Inputs]:
    """The body's last hidden states, all rows concatenated (tokens, hidden), and the inputs that it was called with."""
    inputs = model_inputs(model, batch)
    body = plain_model(model).base_model
    if "use_cache" in signature(body.forward).parameters and "past_key_values" not in inputs.arguments:
        inputs.arguments["use_cache"] = False
    out = body(**inputs.arguments)
    return out.last_hidden_state.flatten(0, 1), inputs


def output_layer_of(model: PreTrainedModel) -> OutputLayer | None:
    """The weights of the head, or None if it is more than a plain linear layer, such as a head with an adapter."""
    plain = plain_model(model)
    layer = plain.get_output_embeddings()
    if type(layer) is not nn.Linear:
        return None
    bias, scale, softcap = _after_output_layer(plain)
    bias = layer.bias if bias is None else bias.to(layer.weight.dtype)
    return OutputLayer(layer.weight, bias, scale, softcap)


def _after_output_layer(plain: PreTrainedModel) -> tuple[Tensor | None, float, float | None]:
    """What families do to the output layer's result: a bias of its own (vocabulary,), a factor, a soft cap."""
    config = plain.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    if getattr(config, "scale_decoder_outputs", config.tie_word_embeddings and hasattr(plain, "model_dim")):  # T5
        scale *= plain.model_dim**-0.5
    bias = getattr(plain, "final_logits_bias", None)  # BART
    return None if bias is None else bias[0], scale, getattr(config, "final_logit_softcapping", None)


def evaluation_batches(
    model: PreTrainedModel, table: TokenTable, rows: Sequence[int], tokens_per_batch: int
) -> Iterator[tuple[list[int], Batch]]:
    """Batches of the rows, packed as in training but in any order, with the model in evaluation mode meanwhile.

    Args:
        model: on the device of the batches.
        table: all rows.
        rows: indices of those to evaluate.
        tokens_per_batch: the most tokens in a batch.

    Yields:
        The positions of the batch's rows in `rows`, and the batch.
    """
    training = model.training
    model.eval()
    lengths = [int(table.lengths[row]) for row in rows]
    try:
        for items in pack_any_order(lengths, tokens_per_batch, padded=not packs(plain_model(model))):
            yield items, collate(table, [rows[item] for item in items], model.device)
    finally:
        model.train(training)


@torch.no_grad()
def run_probe(model: PreTrainedModel) -> None:
    """Run one forward pass over a few tokens."""
    loss_hidden_states(model, _few_tokens(plain_model(model))[0])


def _few_tokens(model: PreTrainedModel) -> tuple[Batch, Tensor]:
    """A batch of one row of six tokens, of which the last three are loss tokens; and the tokens."""
    ids = np.arange(3, 9) % model.config.get_text_config().vocab_size
    row = (ids.astype(np.int32), np.arange(6) >= 3, Source("", 1))
    return collate(TokenTable.build([row]), [0], model.device), torch.from_numpy(ids)


@torch.no_grad()
def check_lm_head(model: PreTrainedModel) -> None:
    """Compare `output_layer_of` with the model's own logits on a few tokens, once, since families' heads differ.

    Raises:
        UserError: the family changes its logits after the last layer in an unknown way.
    """
    head = output_layer_of(model)
    if head is None:
        return
    plain = plain_model(model)
    batch, ids = _few_tokens(plain)
    was_training = plain.training
    plain.eval()
    hidden, _ = loss_hidden_states(plain, batch)
    if plain.config.is_encoder_decoder:
        source, target = torch.split(ids[None].to(plain.device), 3, 1)
        logits = plain(input_ids=source, labels=target).logits[0]
    else:
        logits = plain(**model_inputs(plain, batch).arguments).logits[0, 2:5]
    own = torch.log_softmax(logits.float(), -1)
    plain.train(was_training)
    labels = own.argmax(-1)
    ours = -row_losses(hidden, head, labels)
    theirs = own.gather(-1, labels[:, None])[:, 0]
    if not torch.allclose(ours, theirs.to(ours.dtype), atol=0.05, rtol=0.02):
        raise UserError(
            f"{type(plain).__name__} changes its logits after the last layer in an unknown way, so its loss would be "
            "wrong. This family is not supported yet."
        )


def _head_loss(
    model: PreTrainedModel,
    rows: Tensor,
    targets: Tensor,
    reduction: str = "sum",
    smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    logits = model_logits(model, rows)
    loss = nn.functional.cross_entropy(logits, targets, reduction=reduction, label_smoothing=smoothing)
    return loss + z_loss * torch.logsumexp(logits, -1).square().sum() if z_loss else loss
