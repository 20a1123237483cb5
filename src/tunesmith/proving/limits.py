"""How far the stored form of a model may differ from the model, by how exactly it stores the weights.

docs/exporting.md says how the limits were chosen, `benchmarks/parity_noise.py` measures what they were chosen from.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of forms.

    Attributes:
        name: in words.
        top1_agreement: the smallest share of positions with the same most likely token.
        kl: the largest mean KL(model ‖ form), nats per token.
    """

    name: str
    top1_agreement: float
    kl: float


EXACT = Kind("16 bits or more", 0.99, 0.001)
EIGHT_BITS = Kind("8 bits", 0.9, 0.05)
FOUR_BITS = Kind("4 to 6 bits", 0.8, 0.25)
FEWER_BITS = Kind("fewer than 4 bits", 0.7, 0.5)


def kind_of(bits_per_weight: float) -> Kind:
    """The class of a file.

    Args:
        bits_per_weight: the mean over its weights, scales included.
    """
    limits = ((14.0, EXACT), (7.0, EIGHT_BITS), (4.0, FOUR_BITS))
    return next((kind for least, kind in limits if bits_per_weight >= least), FEWER_BITS)
