"""Held-out losses as the textbook has them: each row alone, through the model's own forward, PEFT's wrapper and all."""

from typing import Any

import torch
from torch.nn import functional

from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import prepare
from tunesmith.data.tokens import TokenTable
from tunesmith.models.load import load_tokenizer


@torch.no_grad()
def textbook_loss(model: Any, recipe: Recipe) -> float:
    """Nats a learnt unit over the held-out rows."""
    table = prepare(recipe, load_tokenizer(recipe.base)).held_out
    kind = recipe.objective.ending.kind
    if kind == "vocabulary":
        return next_token(model, table)
    if kind == "vectors":
        compared = in_pairs if recipe.objective.kind == "embedding" else in_classes
        return compared(model, table, recipe.objective.temperature)
    losses = []
    for row in range(len(table)):
        ids, loss_mask = (torch.tensor(each) for each in table[row])
        told = torch.tensor(table.targets_of(row))
        logits = model(input_ids=ids[None].long(), attention_mask=torch.ones_like(ids[None])).logits.float()
        if kind == "tags":
            losses += functional.cross_entropy(
                logits[0, -len(ids) :][loss_mask], told.long(), reduction="none"
            ).tolist()
        elif recipe.objective.kind == "classification":
            losses.append(functional.cross_entropy(logits, told.long()).item())
        elif recipe.objective.kind == "multi_label":
            losses.append(functional.binary_cross_entropy_with_logits(logits[0], told).item())
        else:
            losses.append(((logits[0, 0] - told[0]) / recipe.objective.spread).square().item())
    return sum(losses) / len(losses)


def next_token(model: Any, table: TokenTable) -> float:
    total = count = 0.0
    for row in range(len(table)):
        ids, loss_mask = table[row]
        tokens = torch.tensor(ids.astype("int64"))
        mask = torch.tensor(loss_mask)
        if model.config.is_encoder_decoder:
            read, written = tokens[None, ~mask], tokens[None, mask]
            losses = functional.cross_entropy(model(input_ids=read, labels=written).logits[0], written[0])
            total += losses.item() * written.shape[1]
            count += written.shape[1]
            continue
        inputs = tokens[None, :-1]
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[0, -inputs.shape[1] :].float()
        losses = functional.cross_entropy(logits, tokens[1:], reduction="none")
        total += losses[mask[1:]].sum().item()
        count += mask[1:].sum().item()
    return total / count


def texts_of(model: Any, table: TokenTable, row: int) -> torch.Tensor:
    """(texts, hidden) the mean of each text's hidden states, of length one."""
    ids, loss_mask = (torch.tensor(each) for each in table[row])
    ends = (loss_mask.nonzero()[:, 0] + 1).tolist()
    found = []
    for text in torch.tensor_split(ids.long(), ends[:-1]):
        out = model(input_ids=text[None], attention_mask=torch.ones_like(text[None]))
        found.append(functional.normalize(out.last_hidden_state[0, -len(text) :].float().mean(0), dim=0))
    return torch.stack(found)


def in_pairs(model: Any, table: TokenTable, temperature: float) -> float:
    """Each anchor's own positive among all positives and negatives that are other texts."""
    rows = [texts_of(model, table, row) for row in range(len(table))]
    texts = [tuple(table[row][0][len(table[row][0]) - int(each) :]) for row, each in _last_lengths(table)]
    losses = []
    for place, own in enumerate(rows):
        scores = [own[0] @ own[1] / temperature]
        for other, theirs in enumerate(rows):
            if other != place and texts[other] != texts[place]:
                scores += [own[0] @ document / temperature for document in theirs[1:]]
        losses.append((torch.logsumexp(torch.stack(scores), 0) - scores[0]).item())
    return sum(losses) / len(losses)


def _last_lengths(table: TokenTable) -> list[tuple[int, int]]:
    marks = [table[row][1].nonzero()[0] for row in range(len(table))]
    return [(row, each[-1] - each[-2]) for row, each in enumerate(marks)]


def in_classes(model: Any, table: TokenTable, temperature: float) -> float:
    """Each row's likeness to the others of its class, among all others (Khosla et al. 2020, eq. 2)."""
    vectors = torch.cat([texts_of(model, table, row) for row in range(len(table))])
    classes = [int(table.targets_of(row)[0]) for row in range(len(table))]
    losses = []
    for place in range(len(table)):
        others = [other for other in range(len(table)) if other != place]
        scores = {other: vectors[place] @ vectors[other] / temperature for other in others}
        whole = torch.logsumexp(torch.stack(list(scores.values())), 0)
        bucket_by_length = [other for other in others if classes[other] == classes[place]]
        losses.append(sum((whole - scores[other]).item() for other in bucket_by_length) / max(1, len(bucket_by_length)))
    return sum(losses) / len(losses)
