"""A check of every row before the first step: does the loss mask cover what it should?"""

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.render import Renderer, Rendering, Tokenized


def find_problem(renderer: Renderer, rendering: Rendering, tokenized: Tokenized) -> str | None:
    """Why this rendering would teach nothing or the wrong thing; None if it is correct.

    Checks the ids themselves: at least one token has loss; every span with loss ends with a control token, so that the
    model learns to stop, also where the padding token is the same token; and there are exactly as many
    beginning-of-sequence tokens as the template writes.

    Args:
        renderer: the one that made the ids.
        rendering: the text.
        tokenized: ids and loss mask, (n,) each.

    Returns:
        The reason, as part of a sentence for an error message, or None.
    """
    ids, loss_mask = tokenized
    if rendering.parts:
        return None if all(part.strip() for part in rendering.parts) else "one of its texts is empty"
    if rendering.targets is not None:
        return _target_fault(rendering, loss_mask)
    if rendering.is_prompt:
        return _bos_fault(renderer, rendering, ids)
    if not loss_mask[1:].any():
        return "no token of it has loss: nothing is left of the answer after rendering"
    if not _every_span_ends(renderer, ids, loss_mask):
        return "the end of the answer's turn has no loss, so the model would not learn to stop"
    return _bos_fault(renderer, rendering, ids)


def _bos_fault(renderer: Renderer, rendering: Rendering, ids: NDArray[np.int32]) -> str | None:
    bos = renderer.tokenizer.bos_token_id
    if bos is not None and rendering.source is None:  # with a source, the tokenizer adds them itself
        actual, expected = int((ids == bos).sum()), _expected_bos(renderer, rendering)
        if actual != expected:
            return f"it has {actual} beginning-of-sequence tokens, but the template writes {expected}"
    return None


def _target_fault(rendering: Rendering, loss_mask: NDArray[np.bool_]) -> str | None:
    if not rendering.text.strip():
        return "its text is empty"
    if rendering.ends and int(loss_mask.sum()) != len(rendering.ends):
        return f"{len(rendering.ends)} steps end in only {int(loss_mask.sum())} different tokens"
    if rendering.loss_spans and int(loss_mask.sum()) != len(rendering.loss_spans):
        return f"{len(rendering.loss_spans)} words have tags, but the tokenizer separates only {int(loss_mask.sum())}"
    return None


def _every_span_ends(renderer: Renderer, ids: NDArray[np.int32], loss_mask: NDArray[np.bool_]) -> bool:
    """Whether the last token of each span with loss, ignoring white space, is a control token."""
    changes = (np.flatnonzero(loss_mask[1:] != loss_mask[:-1]) + 1).tolist()
    edges = [*([0] if loss_mask[0] else []), *changes, *([len(ids)] if loss_mask[-1] else [])]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        span = ids[start:end].tolist()
        while span and span[-1] in renderer.white_space_tokens:
            span.pop()
        if not span or span[-1] not in renderer.control_tokens:
            return False
    return True


def _expected_bos(renderer: Renderer, rendering: Rendering) -> int:
    bos = renderer.tokenizer.bos_token_id
    if rendering.document:
        return [*renderer.bos_of_document, renderer.end_of_document].count(bos)
    return rendering.text.count(str(renderer.tokenizer.bos_token))
