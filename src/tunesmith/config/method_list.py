"""All methods, with the number of parameters that each would train on a base.

The list for the embedded base is stored, since counting imports every library that a method needs. `make schema` writes
it. It is used with the version of PEFT that it was made with, because PEFT's methods are in it.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunesmith.config.registry import METHODS

STORED = Path(__file__).with_name("methods.json")


def list_methods(base: str) -> dict[str, Any]:
    """List the methods for a base, as plain values. Those of an installed package that fail are logged and left out.

    Args:
        base: a model directory, a hub name, or `embedded`. Only its config is read.

    Returns:
        base, parameters, methods (kind, formula, settings, trained_parameters, learning_rate, choose), peft_types and
        refused_peft_types.

    Raises:
        UserError: the base does not exist.
    """
    if base == "embedded" and not any(METHODS.is_users(kind) for kind in METHODS):
        stored: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
        if stored.pop("peft") == version("peft"):
            return stored
    from tunesmith.methods.catalog import counted_methods

    return counted_methods(base)


def methods_to_store() -> dict[str, Any]:
    """What `methods.json` holds: the list for the embedded base, and the version of PEFT."""
    from tunesmith.methods.catalog import counted_methods

    return {"peft": version("peft"), **counted_methods("embedded")}
