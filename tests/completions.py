"""Rows of several completions for tests, and their log-probabilities by a family's own forward pass."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from small_models import own_forward
from torch import Tensor

from tunesmith.data.batch import Batch, collate
from tunesmith.data.example import Source
from tunesmith.data.tokens import TokenTable

PROMPTS = [[5, 9, 13, 21], [7, 8, 33], [41, 9, 9, 17, 60]]
COMPLETIONS = [[[30, 12, 6], [11, 40]], [[22, 6, 35, 50, 3], [28, 19, 44], [61]], [[14, 2], [14, 23, 37, 8]]]
"""Of each prompt; two begin with the same token."""

SCORES = [[1.0, 0.0], [0.5, 2.0, -1.0], [0.0, 3.0]]
REFERENCE = [-9.5, -7.25, -20.0, -13.0, -3.5, -8.0, -14.5]
"""Of each completion, in nats."""


def completions_table(
    scores: Sequence[Sequence[float]] = SCORES,
    with_targets: bool = False,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    completions: Sequence[Sequence[Sequence[int]]] = COMPLETIONS,
) -> TokenTable:
    """A row for each prompt. The loss is on all of a completion's tokens, or its last one is read for a target."""
    rows = []
    for number, (prompt, answers, values) in enumerate(zip(prompts, completions, scores, strict=True), 1):
        ids = np.array([*prompt, *(token for answer in answers for token in answer)], np.int32)
        ends = len(prompt) + np.cumsum([len(answer) for answer in answers])
        at = np.arange(len(ids))
        mask = np.isin(at, ends - 1) if with_targets else at >= len(prompt)
        lengths = (len(prompt), *map(len, answers))
        targets = tuple(values) if with_targets else None
        rows.append((ids, mask, Source("rows", number), targets, (lengths, tuple(values))))
    return TokenTable.build(rows)


def completions_batch(with_targets: bool = False, **options: Any) -> Batch:
    """The rows of `completions_table` in one batch, with `REFERENCE`."""
    table = completions_table(with_targets=with_targets, **options)
    batch = collate(table, range(len(table)))
    assert batch.completions is not None
    reference = torch.tensor(REFERENCE, dtype=torch.float64)[: len(batch.completions.scores)]
    return replace(batch, completions=replace(batch.completions, reference=reference))


def log_probs_alone(model: Any) -> Tensor:
    """log p of each completion (completions,), each with its prompt as a text of its own."""
    plain = own_forward(model)
    sums = []
    for prompt, answers in zip(PROMPTS, COMPLETIONS, strict=True):
        for answer in answers:
            ids = torch.tensor([*prompt, *answer])[None]
            logits = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            logs = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
            sums.append(logs.gather(1, ids[0, len(prompt) :, None]).sum())
    return torch.stack(sums)
