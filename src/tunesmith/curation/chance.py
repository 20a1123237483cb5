"""Random choices that depend on a seed and on content alone, by hashes: the same on every machine."""

import hashlib

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


def hashed(*parts: object) -> int:
    """64 bits of a hash.

    Args:
        parts: bytes, or what is written as text.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return int.from_bytes(digest.digest(), "little")


def mixed(seed: int, values: Hashes) -> Hashes:
    """Each value's own random 64 bits (the finalizer of SplitMix64, Steele et al. 2014).

    Args:
        seed: another one gives other bits.
        values: (n,) hashes.

    Returns:
        (n,).
    """
    bits = values ^ np.uint64(hashed("seed", seed))
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)), np.uint64)


def shares(values: Hashes) -> NDArray[np.float64]:
    """Hashes as numbers in [0, 1).

    Args:
        values: (n,).
    """
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53
