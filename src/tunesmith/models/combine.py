"""Several adapters of one base into one, by PEFT's ways of adding them up."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from tunesmith.errors import UserError
from tunesmith.models.load import quiet_peft
from tunesmith.models.merge import refuse_existing
from tunesmith.models.model_reference import ModelReference

if TYPE_CHECKING:
    from peft import PeftModel

How = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "ties_svd", "magnitude_prune"]
"""`linear`: weighted sum of A's and of B's (equal ranks); `cat`: the exact weighted sum, ranks added up; `svd`: that
sum cut back to the first adapter's rank; `ties`: trimmed and with one sign elected (Yadav et al. 2023);
`dare_linear`, `dare_ties`: entries dropped at random and the rest scaled up first (Yu et al. 2024)."""

PRUNED = ("ties", "dare_linear", "dare_ties", "ties_svd", "magnitude_prune")
"""Ways that keep a share of the entries (`density`)."""


def combine(
    names: Sequence[str],
    output: str | Path,
    how: How = "cat",
    weights: Sequence[float] | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> Path:
    """Write one adapter that does what several do, weighted, in PEFT's format.

    Args:
        names: runs' or adapters' directories, of one base.
        output: the directory to write, which must not exist.
        how: see `How`.
        weights: of each adapter; default: alike, adding up to one.
        density: share of entries that the pruning ways keep, in (0, 1].
        seed: of DARE's drops.

    Raises:
        UserError: fewer than two, not adapters, of different bases, of a method that PEFT cannot add up, or `output` is
            there already.
    """
    target = Path(output)
    refuse_existing(target)
    found = [ModelReference.find(name) for name in names]
    _refuse_unfit(names, found, how, weights, density)
    shares = list(weights) if weights is not None else [1 / len(names)] * len(names)
    first = found[0]
    model: PeftModel = first.model(torch.float32, torch.device("cpu"))
    own = model.active_adapter
    labels = [own]
    torch.manual_seed(seed)
    try:
        with quiet_peft():
            for place, usable in enumerate(found[1:], 1):
                labels.append(f"adapter{place}")
                model.load_adapter(usable.adapter, labels[-1])
            pruning = {"density": density} if how in PRUNED else {}
            model.add_weighted_adapter(labels, shares, "combined", combination_type=how, **pruning)
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise UserError(f"PEFT cannot add these adapters up by {how}: {str(error).splitlines()[0]}") from None
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial, selected_adapters=["combined"])
        first.tokenizer().save_pretrained(partial / "combined")
        (partial / "combined").rename(target)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _refuse_unfit(
    names: Sequence[str], found: Sequence[ModelReference], how: str, weights: Sequence[float] | None, density: float
) -> None:
    if how not in get_args(How):
        raise UserError(f"--how {how} is not known. Give one of {', '.join(get_args(How))}.")
    if len(names) < 2:
        raise UserError("Combining takes two adapters or more. Name runs' or adapters' directories.")
    for name, usable in zip(names, found, strict=True):
        if usable.adapter is None:
            raise UserError(f"{name} has no adapter. Name runs' or adapters' directories.")
        if usable.base.path != found[0].base.path:
            raise UserError(
                f"{name} is an adapter of {usable.base.path}, and {names[0]} one of {found[0].base.path}. Adapters "
                "can be added up on one base alone."
            )
    if weights is not None and len(weights) != len(names):
        raise UserError(f"There are {len(weights)} weights for {len(names)} adapters. Give one each.")
    if not 0 < density <= 1:
        raise UserError(f"--density {density:g} is not a share in (0, 1].")
