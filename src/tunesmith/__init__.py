"""Tunesmith: adapt a language model to your own work, on the hardware you have, and show that it worked.

The main verbs of the command line are functions here. Large modules are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.config.recipe import Recipe
    from tunesmith.config.schema import recipe_schema
    from tunesmith.errors import UserError
    from tunesmith.evaluation.answering import answer
    from tunesmith.evaluation.compare import evaluate
    from tunesmith.export.merge import merge
    from tunesmith.models.bases import embedded_base
    from tunesmith.planner.request import plan
    from tunesmith.run import Run
    from tunesmith.training.stages import resume, train

__version__ = "0.1.0"

_MODULES = {
    "Recipe": "tunesmith.config.recipe",
    "Run": "tunesmith.run",
    "UserError": "tunesmith.errors",
    "answer": "tunesmith.evaluation.answering",
    "evaluate": "tunesmith.evaluation.compare",
    "merge": "tunesmith.export.merge",
    "embedded_base": "tunesmith.models.bases",
    "plan": "tunesmith.planner.request",
    "recipe_schema": "tunesmith.config.schema",
    "resume": "tunesmith.training.stages",
    "train": "tunesmith.training.stages",
}

__all__ = [
    "Recipe",
    "Run",
    "UserError",
    "answer",
    "embedded_base",
    "evaluate",
    "merge",
    "plan",
    "recipe_schema",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
