"""Garbage collections limited to the objects of a block, without undoing what the caller has frozen."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunesmith
from tunesmith.garbage_collection import freeze, only_new_objects_collected


@pytest.fixture(autouse=True)
def nothing_frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tunesmith.garbage_collection._is_frozen", False)
    gc.unfreeze()
    yield
    gc.freeze()


def test_objects_are_left_out_until_the_block_ends_even_by_an_error() -> None:
    old: list[object] = []
    new: list[object] = []

    def fails() -> None:
        with only_new_objects_collected():
            new.append([])
            tracked = gc.get_objects()
            assert any(each is new[0] for each in tracked)
            assert not any(each is old for each in tracked)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert gc.get_freeze_count() == 0


def test_a_block_and_a_plan_keep_frozen_what_was_frozen_for_good(tiny_model: Path) -> None:
    freeze()
    frozen = gc.get_freeze_count()
    with only_new_objects_collected():
        pass
    tunesmith.plan(str(tiny_model), device="l4", overrides=["data.max_length=64"])
    assert gc.get_freeze_count() > 0.9 * frozen
