"""Rows that mean the same: compared with kept rows of the same label, as vectors say."""

import numpy as np

from tunesmith.checks.semantic import same_meaning


def test_rows_are_compared_with_kept_rows_of_their_label() -> None:
    angles = np.array([0, 0.3, 0.6, 0, 2.0])  # each of the first three is like the next, the first not like the third
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = np.array([1, 1, 1, 2, 1], np.uint64)
    found = list(same_meaning(vectors, labels))
    assert [(row, other) for row, other, _ in found] == [(1, 0)]
    assert abs(found[0][2] - np.cos(0.3)) < 1e-6


def test_pairs_are_found_across_blocks_of_rows() -> None:
    vectors = np.eye(700, dtype=np.float32)
    vectors[650] = vectors[3]
    assert [(row, other) for row, other, _ in same_meaning(vectors, np.zeros(700, np.uint64))] == [(650, 3)]
