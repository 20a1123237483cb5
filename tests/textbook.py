"""Reference held-out losses: one row at a time, through the model's own forward pass, including PEFT's wrapper."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import prepare
from tunesmith.data.tokens import TokenTable
from tunesmith.models.load import load_model, load_tokenizer


@torch.no_grad()
def textbook_loss(model: Any, recipe: Recipe) -> float:
    """The mean loss over the held-out rows, in nats per token, word, text or pair."""
    table = prepare(recipe, load_tokenizer(recipe.base)).held_out
    kind = recipe.objective.head.kind
    if table.completions is not None:
        return of_completions(model, table, recipe)
    if recipe.objective.head.generates_text:
        return next_token(model, table)
    if recipe.objective.compares_rows:
        contrastive = in_pairs if recipe.objective.kind == "embedding" else in_classes
        return contrastive(model, table, recipe.objective.temperature)
    losses = []
    for row in range(len(table)):
        ids, loss_mask = (torch.tensor(array) for array in table[row])
        targets = torch.tensor(table.targets_of(row))
        logits = model(input_ids=ids[None].long(), attention_mask=torch.ones_like(ids[None])).logits.float()
        if kind == "token_classification":
            losses += functional.cross_entropy(
                logits[0, -len(ids) :][loss_mask], targets.long(), reduction="none"
            ).tolist()
        elif recipe.objective.kind == "graded_reward":
            end = int(loss_mask.nonzero()[0, 0]) + 1
            logits = model(input_ids=ids[None, :end].long()).logits.float()
            losses.append(functional.binary_cross_entropy_with_logits(logits[0], targets).item())
        elif recipe.objective.kind == "process_reward":
            losses += [
                step_loss(model, ids[: int(at) + 1], targets[n]) for n, at in enumerate(loss_mask.nonzero()[:, 0])
            ]
        elif recipe.objective.kind == "classification":
            losses.append(functional.cross_entropy(logits, targets.long()).item())
        elif recipe.objective.kind == "multi_label":
            losses.append(functional.binary_cross_entropy_with_logits(logits[0], targets).item())
        else:
            losses.append(((logits[0, 0] - targets[0]) / recipe.objective.std).square().item())
    return sum(losses) / len(losses)


def step_loss(model: Any, ids: torch.Tensor, target: torch.Tensor) -> float:
    """Binary cross-entropy of an answer that ends after a step."""
    value = torch.tensor(end_value(model, ids.tolist()))
    return float(functional.binary_cross_entropy_with_logits(value, target))


def of_completions(model: Any, table: TokenTable, recipe: Recipe) -> float:
    """The mean loss of rows of several completions, each a text of its own with its prompt."""
    assert table.completions is not None
    objective: Any = recipe.objective
    if objective.kind == "reward":
        rewards = [end_value(model, ids) for row in range(len(table)) for ids, _ in texts_of_row(table, row)]
    else:
        base = load_model(recipe.base, model.dtype)
        rewards = [
            objective.beta * (log_probability(model, ids, start) - log_probability(base, ids, start))
            for row in range(len(table))
            for ids, start in texts_of_row(table, row)
        ]
    scores = table.completions.scores.tolist()
    if objective.kind == "kto":
        known = [not math.isnan(score) for score in scores]
        others = [reward for reward, own in zip(rewards, known, strict=True) if not own]
        zero = max(0.0, sum(others) / len(others))
        signs = [1 if score > 0 else -1 for score, own in zip(scores, known, strict=True) if own]
        own_rewards = [reward for reward, own in zip(rewards, known, strict=True) if own]
        values = [1 - sigmoid(sign * (reward - zero)) for sign, reward in zip(signs, own_rewards, strict=True)]
        return sum(values) / len(values)
    losses = []
    for start, end in pairwise(table.completions.offsets.tolist()):
        order = sorted(range(start, end), key=lambda index: -scores[index])
        weights = [math.exp(rewards[index]) for index in order]
        losses.append(-sum(math.log(weight / sum(weights[at:])) for at, weight in enumerate(weights)))
    return sum(losses) / len(losses)


def texts_of_row(table: TokenTable, row: int) -> list[tuple[list[int], int]]:
    """The ids of each completion with its prompt up to its last loss token, and the completion's first position."""
    assert table.completions is not None
    ids, mask = table[row]
    (shared, *lengths), _ = table.completions.of(row)
    texts, start = [], shared
    for length in lengths:
        own = mask[start : start + length].nonzero()[0][-1] + 1
        texts.append(([*ids[:shared].tolist(), *ids[start : start + own].tolist()], shared))
        start += length
    return texts


def end_value(model: Any, ids: list[int]) -> float:
    tokens = torch.tensor(ids)[None]
    return float(model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, 0])


def log_probability(model: Any, ids: list[int], start: int) -> float:
    """log p of the tokens from `start` on, in nats."""
    tokens = torch.tensor(ids)[None]
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -len(ids) :].float()
    logs = torch.log_softmax(logits[start - 1 : -1], -1)
    return float(logs.gather(1, tokens[0, start:, None]).sum())


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def next_token(model: Any, table: TokenTable) -> float:
    total = count = 0.0
    for row in range(len(table)):
        ids, loss_mask = table[row]
        tokens = torch.tensor(ids.astype("int64"))
        mask = torch.tensor(loss_mask)
        if model.config.is_encoder_decoder:
            source, target = tokens[None, ~mask], tokens[None, mask]
            losses = functional.cross_entropy(model(input_ids=source, labels=target).logits[0], target[0])
            total += losses.item() * target.shape[1]
            count += target.shape[1]
            continue
        inputs = tokens[None, :-1]
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[0, -inputs.shape[1] :].float()
        losses = functional.cross_entropy(logits, tokens[1:], reduction="none")
        total += losses[mask[1:]].sum().item()
        count += mask[1:].sum().item()
    return total / count


def texts_of(model: Any, table: TokenTable, row: int) -> torch.Tensor:
    """(texts, hidden): the mean of each text's hidden states, normalized to length 1."""
    ids, loss_mask = (torch.tensor(array) for array in table[row])
    ends = (loss_mask.nonzero()[:, 0] + 1).tolist()
    vectors = []
    for text in torch.tensor_split(ids.long(), ends[:-1]):
        out = model(input_ids=text[None], attention_mask=torch.ones_like(text[None]))
        vectors.append(functional.normalize(out.last_hidden_state[0, -len(text) :].float().mean(0), dim=0))
    return torch.stack(vectors)


def in_pairs(model: Any, table: TokenTable, temperature: float) -> float:
    """Cross-entropy of each anchor's own positive among all positives and negatives with another text."""
    rows = [texts_of(model, table, row) for row in range(len(table))]
    texts = [tuple(table[row][0][len(table[row][0]) - int(length) :]) for row, length in _last_lengths(table)]
    losses = []
    for index, own in enumerate(rows):
        scores = [own[0] @ own[1] / temperature]
        for other, theirs in enumerate(rows):
            if other != index and texts[other] != texts[index]:
                scores += [own[0] @ document / temperature for document in theirs[1:]]
        losses.append((torch.logsumexp(torch.stack(scores), 0) - scores[0]).item())
    return sum(losses) / len(losses)


def _last_lengths(table: TokenTable) -> list[tuple[int, int]]:
    ends = [table[row][1].nonzero()[0] for row in range(len(table))]
    return [(row, positions[-1] - positions[-2]) for row, positions in enumerate(ends)]


def in_classes(model: Any, table: TokenTable, temperature: float) -> float:
    """Each row's similarity to the other rows of its class, among all other rows (Khosla et al. 2020, eq. 2)."""
    vectors = torch.cat([texts_of(model, table, row) for row in range(len(table))])
    classes = [int(table.targets_of(row)[0]) for row in range(len(table))]
    losses = []
    for index in range(len(table)):
        others = [other for other in range(len(table)) if other != index]
        scores = {other: vectors[index] @ vectors[other] / temperature for other in others}
        total = torch.logsumexp(torch.stack(list(scores.values())), 0)
        same_class = [other for other in others if classes[other] == classes[index]]
        losses.append(sum((total - scores[other]).item() for other in same_class) / max(1, len(same_class)))
    return sum(losses) / len(losses)
