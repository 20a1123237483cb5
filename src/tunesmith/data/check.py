"""Before the first step, always: what is about to be learnt is what was meant, row by row."""

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.render import Renderer, Rendering, Tokenized


def fault(renderer: Renderer, rendering: Rendering, tokenized: Tokenized) -> str | None:
    """Why this rendering would teach nothing or the wrong thing; None if all is well.

    Looked for in the ids themselves, however they came about: something is learnt; every learnt stretch ends with a
    control token, so that the model learns to stop, also where padding is the same token; and there are exactly the
    beginning-of-sequence tokens that the template writes.

    Args:
        renderer: that made the ids.
        rendering: the text.
        tokenized: ids and learnt marks, (n,) each.
    """
    ids, loss_mask = tokenized
    if rendering.parts:
        return None if all(part.strip() for part in rendering.parts) else "one of its texts is empty"
    if rendering.targets is not None:
        return _target_fault(rendering, loss_mask)
    if not loss_mask[1:].any():
        return "no token of it would be learnt: nothing is left of the answer after rendering"
    if not _every_stretch_ends(renderer, ids, loss_mask):
        return "the end of the answer's turn would not be learnt, so the model would not learn to stop"
    bos = renderer.tokenizer.bos_token_id
    if bos is not None and rendering.source is None:  # there the tokenizer writes them by itself
        there, wanted = int((ids == bos).sum()), _wanted_bos(renderer, rendering)
        if there != wanted:
            return f"it has {there} beginning-of-sequence tokens, where the template writes {wanted}"
    return None


def _target_fault(rendering: Rendering, loss_mask: NDArray[np.bool_]) -> str | None:
    if not rendering.text.strip():
        return "its text is empty"
    if rendering.loss_spans and int(loss_mask.sum()) != len(rendering.loss_spans):
        return f"{len(rendering.loss_spans)} words have tags, and the tokenizer tells {int(loss_mask.sum())} apart"
    return None


def _every_stretch_ends(renderer: Renderer, ids: NDArray[np.int32], loss_mask: NDArray[np.bool_]) -> bool:
    """Whether the last token of each learnt stretch, but for white space, is a control token."""
    changes = (np.flatnonzero(loss_mask[1:] != loss_mask[:-1]) + 1).tolist()
    edges = [*([0] if loss_mask[0] else []), *changes, *([len(ids)] if loss_mask[-1] else [])]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        said = ids[start:end].tolist()
        while said and said[-1] in renderer.white_space_tokens:
            said.pop()
        if not said or said[-1] not in renderer.control_tokens:
            return False
    return True


def _wanted_bos(renderer: Renderer, rendering: Rendering) -> int:
    bos = renderer.tokenizer.bos_token_id
    if rendering.document:
        return [*renderer.begin_of_document, renderer.end_of_document].count(bos)
    return rendering.text.count(str(renderer.tokenizer.bos_token))
