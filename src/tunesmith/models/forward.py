"""Forward passes that compute only what is needed: hidden states of packed documents, the head where it is learnt."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from tunesmith.data.pack import Batch
from tunesmith.errors import UserError
from tunesmith.models.prompts import laid_out, plain_model
from tunesmith.ops.cross_entropy import Head, linear_cross_entropy, row_losses


def next_token_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Sum over the batch's learnt positions of −log p(next token), in nats: a scalar, fp32 or wider."""
    hidden, labels = learnt_hidden_states(model, batch)
    head = head_of(model)
    if head is not None:
        return linear_cross_entropy(hidden, head, labels)
    loss = hidden.new_zeros((), dtype=torch.float32)
    for rows, targets in zip(torch.split(hidden, 512), torch.split(labels, 512), strict=True):
        loss = loss + checkpoint(partial(_head_loss, model), rows, targets, use_reentrant=False)
    return loss


@torch.no_grad()
def next_token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """−log p(next token) at each learnt position (learnt,), in nats, in the batch's order; no gradients."""
    hidden, labels = learnt_hidden_states(model, batch)
    head = head_of(model)
    if head is not None:
        return row_losses(hidden, head, labels)
    parts = [
        _head_loss(model, rows, targets, "none")
        for rows, targets in zip(torch.split(hidden, 512), torch.split(labels, 512), strict=True)
    ]
    return torch.cat(parts)


def learnt_hidden_states(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """The last hidden states where something is learnt (learnt, hidden), and what (learnt,)."""
    inputs = laid_out(model, batch)
    out = plain_model(model).base_model(**inputs.arguments, use_cache=False)
    return out.last_hidden_state[0, inputs.places[batch.learnt_positions]], batch.labels


def first_hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The last hidden state of each document's first token, which encoders' heads read (documents, hidden)."""
    inputs = laid_out(model, batch)
    out = plain_model(model).base_model(**inputs.arguments, use_cache=False)
    hidden: Tensor = out.last_hidden_state[0, inputs.starts[: len(batch.rows)]]
    return hidden


def head_of(model: PreTrainedModel) -> Head | None:
    """The last layer as numbers, or None where it is more than a plain linear layer (an adapted head, say)."""
    plain = plain_model(model)
    layer = plain.get_output_embeddings()
    if type(layer) is not nn.Linear:
        return None
    config = plain.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    return Head(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Hold `head_of` to the model's own logits on a few tokens, once, since families end in different ways.

    Raises:
        UserError: the family does something after its last layer that is not known here.
    """
    head = head_of(model)
    if head is None:
        return
    plain = plain_model(model)
    ids = torch.arange(4, device=plain.device)[None] % head.weight.shape[0]
    positions = torch.arange(4, device=plain.device)[None]
    inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False, "document_lengths": [4]}
    was_training = plain.training
    plain.eval()
    hidden = plain.base_model(**inputs).last_hidden_state[0]
    own = torch.log_softmax(plain(**inputs).logits[0].float(), -1)
    plain.train(was_training)
    labels = own.argmax(-1)
    ours = -row_losses(hidden, head, labels)
    theirs = own.gather(-1, labels[:, None])[:, 0]
    if not torch.allclose(ours, theirs.to(ours.dtype), atol=0.05, rtol=0.02):
        raise UserError(
            f"{type(plain).__name__} changes its logits after the last layer in a way that is not known here, so its "
            "loss would be wrong. This family cannot be trained yet."
        )


def _head_loss(model: PreTrainedModel, rows: Tensor, targets: Tensor, reduction: str = "sum") -> Tensor:
    logits = plain_model(model).get_output_embeddings()(rows).float()
    return nn.functional.cross_entropy(logits, targets, reduction=reduction)
