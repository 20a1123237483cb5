"""Contexts in which other libraries print and log less, since the run's events say what happens."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

from tunesmith.models.peft_import import without_bitsandbytes


@contextmanager
def no_warnings() -> Iterator[None]:
    """In this context, transformers logs only errors."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """In this context, transformers shows no progress bars, since the run's events are shown instead."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def quiet_peft() -> Iterator[None]:
    """In this context, PEFT does not use bitsandbytes and does not warn about a property that transformers has renamed,
    or about its own correction of `fan_in_fan_out` for GPT-2's layers."""
    with warnings.catch_warnings(), without_bitsandbytes():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        yield
