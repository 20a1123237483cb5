"""Other libraries print less in a context, and as much as before after it, also after an error."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import suppress

import pytest
from transformers.utils import logging as transformers_logging

from tunesmith.models.quiet import no_progress_bars, no_warnings, quiet_peft


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """transformers' own settings, whatever a test does."""
    level, shown = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    yield
    transformers_logging.set_verbosity(level)
    (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()


@pytest.mark.parametrize("level", [logging.INFO, logging.CRITICAL])
def test_transformers_logs_errors_alone_meanwhile(level: int) -> None:
    transformers_logging.set_verbosity(level)
    with suppress(KeyError), no_warnings():
        assert transformers_logging.get_verbosity() == logging.ERROR
        raise KeyError
    assert transformers_logging.get_verbosity() == level


@pytest.mark.parametrize("shown", [True, False])
def test_transformers_shows_no_progress_bars_meanwhile(shown: bool) -> None:
    (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()
    with suppress(KeyError), no_progress_bars():
        assert not transformers_logging.is_progress_bar_enabled()
        raise KeyError
    assert transformers_logging.is_progress_bar_enabled() == shown


def test_peft_does_not_warn_about_what_is_known() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_peft():
            warnings.warn("The property is_gradient_checkpointing has another name", FutureWarning, stacklevel=1)
            warnings.warn("fan_in_fan_out is set to False but the module is a Conv1D", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["something else"]
