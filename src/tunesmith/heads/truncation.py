"""How a text over the length limit is cut if the model reads the whole text."""

import numpy as np
from numpy.typing import NDArray


def without_end(positions: NDArray[np.int64], limit: int, closing: int) -> NDArray[np.int64]:
    """The positions of a text (tokens,) that are left if it loses tokens at its end, before the closing tokens.

    Args:
        positions: of the text in its row.
        limit: the most tokens that are left.
        closing: how many tokens the tokenizer adds after a text.
    """
    return np.delete(positions, slice(limit - closing, len(positions) - closing))
