"""Combine several adapters of one base into one, with PEFT's methods."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from tunesmith.errors import UserError
from tunesmith.heads.head_file import described_head, write_users_head
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.quiet import quiet_peft
from tunesmith.run import atomic_directory, refuse_existing, writing

if TYPE_CHECKING:
    from peft import PeftModel

How = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "ties_svd", "magnitude_prune"]
"""`linear`: weighted sum of the A's and of the B's (equal ranks); `cat`: the exact weighted sum, whose rank is the sum
of the ranks; `svd`: that sum truncated to the first adapter's rank; `ties`: trimmed, with one sign elected (Yadav et
al. 2023); `dare_linear`, `dare_ties`: entries first dropped at random and the rest rescaled (Yu et al. 2024)."""

PRUNED = ("ties", "dare_linear", "dare_ties", "ties_svd", "magnitude_prune")
"""Methods that keep a fraction of the entries (`density`)."""


def combine(
    names: Sequence[str],
    output: str | Path,
    how: How = "cat",
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> Path:
    """Write the weighted combination of several adapters as one adapter in PEFT's format.

    Args:
        names: run or adapter directories, all with the same base.
        output: the directory to write, which must not exist.
        how: see `How`.
        weights: one for each adapter. Default: equal weights that sum to one.
        density: fraction of entries that the pruning methods keep, in (0, 1].
        seed: of the entries that DARE drops.

    Returns:
        The output directory.

    Raises:
        UserError: there are fewer than two names, one is not an adapter, the bases or heads differ, an adapter has a
            classifier that was fitted on its own vectors, PEFT cannot combine the adapters, or `output` already
            exists.
    """
    target = Path(output)
    refuse_existing(target)
    references = [ModelReference.find(name) for name in names]
    _refuse_invalid(names, references, how, weights, density)
    factors = list(weights) if weights is not None else [1 / len(names)] * len(names)
    first = references[0]
    model: PeftModel = first.model(torch.float32, torch.device("cpu"))
    own = model.active_adapter
    labels = [own]
    torch.manual_seed(seed)
    try:
        with quiet_peft():
            for index, reference in enumerate(references[1:], 1):
                labels.append(f"adapter{index}")
                model.load_adapter(reference.adapter, labels[-1])
            pruning = {"density": density} if how in PRUNED else {}
            model.add_weighted_adapter(labels, factors, "combined", combination_type=how, **pruning)
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise UserError(f"PEFT cannot combine these adapters with {how}: {str(error).splitlines()[0]}") from None
    with writing(target), atomic_directory(target) as partial:
        model.save_pretrained(partial, selected_adapters=["combined"])
        first.tokenizer().save_pretrained(partial)
        for file in (partial / "combined").iterdir():  # PEFT writes a named adapter into a directory of its name
            file.rename(partial / file.name)
        (partial / "combined").rmdir()
        if first.adapter is not None:
            first.head.copy(first.adapter, partial)
            write_users_head(first.head, partial)
    return target


def _refuse_invalid(
    names: Sequence[str],
    references: Sequence[ModelReference],
    how: str,
    weights: Sequence[float] | None,
    density: float,
) -> None:
    if how not in get_args(How):
        raise UserError(f"--how {how} does not exist. Use one of {', '.join(get_args(How))}.")
    if len(names) < 2:
        raise UserError("Combining needs two adapters or more. Give run or adapter directories.")
    for name, reference in zip(names, references, strict=True):
        if reference.adapter is None:
            raise UserError(f"{name} has no adapter. Give run or adapter directories.")
        if reference.base.path != references[0].base.path:
            raise UserError(
                f"{name} is an adapter of {reference.base.path}, and {names[0]} one of {references[0].base.path}. "
                "Only adapters of the same base can be combined."
            )
        if described_head(reference.head) != described_head(references[0].head):
            raise UserError(
                f"{name} has another head ({reference.head.kind}) than {names[0]} ({references[0].head.kind}), or the "
                "same with other settings. Only adapters of the same task can be combined."
            )
        if reference.classifier() is not None:
            raise UserError(
                f"{name} has a classifier that was fitted on its own vectors, which a combination changes. Combine "
                "embedding adapters instead, and fit a classifier afterwards."
            )
    if weights is not None and len(weights) != len(names):
        raise UserError(f"There are {len(weights)} weights for {len(names)} adapters. Give one for each adapter.")
    if not 0 < density <= 1:
        raise UserError(f"--density {density:g} is not in (0, 1].")
