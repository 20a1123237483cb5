"""Every field of a recipe and every option of a command has a test of its effect."""

from importlib import import_module
from pathlib import Path

import pytest
from settings_coverage import SHOWN, settings_of_commands, settings_of_recipes

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shown(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """The settings that the modules in this directory test; importing a module registers its tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        for file in sorted(HERE.glob("test_*_settings.py")):
            import_module(file.stem)
    return SHOWN


def test_every_field_of_a_recipe_has_a_test_of_its_effect(shown: dict[str, list[str]]) -> None:
    assert [name for name in settings_of_recipes() if name not in shown] == []


def test_every_option_of_a_command_has_a_test_of_its_effect(shown: dict[str, list[str]]) -> None:
    assert [name for name in settings_of_commands() if name not in shown] == []


def test_no_test_names_an_unknown_setting(shown: dict[str, list[str]]) -> None:
    assert set(shown) <= {*settings_of_recipes(), *settings_of_commands()}
