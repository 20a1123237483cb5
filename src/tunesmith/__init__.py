"""Tunesmith: adapt a language model to your own work, on the hardware you have, and show that it worked.

The verbs of the command line are functions here, `Model` and `Trainer` are the pieces under them, and the classes to
extend are beside them (docs/python.md, docs/extending.md). Large modules are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.checks.driver import check_data
    from tunesmith.comparing.advise import advise
    from tunesmith.comparing.compare import compare
    from tunesmith.config.head import Head
    from tunesmith.config.method import MethodConfig
    from tunesmith.config.method_list import list_methods
    from tunesmith.config.objective import ObjectiveConfig
    from tunesmith.config.recipe import Recipe
    from tunesmith.config.schema import recipe_schema
    from tunesmith.config.suggestion import init
    from tunesmith.curation.augment import data_augment
    from tunesmith.curation.balance import data_balance
    from tunesmith.curation.clean import data_clean
    from tunesmith.curation.diff import data_diff
    from tunesmith.curation.restore import data_restore
    from tunesmith.curation.review import data_review
    from tunesmith.curation.sample import data_sample
    from tunesmith.curation.select import data_select
    from tunesmith.curation.split import data_split
    from tunesmith.curation.worst import data_worst
    from tunesmith.data.example import Example
    from tunesmith.data.row_format import RowFormat
    from tunesmith.errors import UserError
    from tunesmith.evaluation.answering import answer
    from tunesmith.evaluation.compare import evaluate
    from tunesmith.exporting.combine import combine
    from tunesmith.heads.prediction import Prediction
    from tunesmith.inference.model import Model, load
    from tunesmith.inference.sampling import Sampling
    from tunesmith.inference.score import Score
    from tunesmith.inference.verbs import chat, classify, embed, generate, score
    from tunesmith.inference.writing import Generation
    from tunesmith.metrics import Metric
    from tunesmith.models.bases import embedded_base, get_base, list_bases
    from tunesmith.objectives.objective import Objective
    from tunesmith.planner.request import plan
    from tunesmith.prompting.prompt import Prompt
    from tunesmith.prompting.search import prompt_search
    from tunesmith.proving.export import export
    from tunesmith.proving.parity import parity
    from tunesmith.report.html import write_report
    from tunesmith.report.listing import list_runs
    from tunesmith.retrieval.ask import ask
    from tunesmith.retrieval.build import index
    from tunesmith.retrieval.search import search
    from tunesmith.run import Run
    from tunesmith.serving.server import serve
    from tunesmith.training.stages import resume, train
    from tunesmith.training.trainer import Trainer
    from tunesmith.voting.ranking import rank
    from tunesmith.voting.vote import vote

__version__ = "0.1.0"

_MODULES = {
    "Example": "tunesmith.data.example",
    "Generation": "tunesmith.inference.writing",
    "Head": "tunesmith.config.head",
    "MethodConfig": "tunesmith.config.method",
    "Metric": "tunesmith.metrics",
    "Model": "tunesmith.inference.model",
    "Objective": "tunesmith.objectives.objective",
    "ObjectiveConfig": "tunesmith.config.objective",
    "Prediction": "tunesmith.heads.prediction",
    "Prompt": "tunesmith.prompting.prompt",
    "Recipe": "tunesmith.config.recipe",
    "RowFormat": "tunesmith.data.row_format",
    "Run": "tunesmith.run",
    "Sampling": "tunesmith.inference.sampling",
    "Score": "tunesmith.inference.score",
    "Trainer": "tunesmith.training.trainer",
    "UserError": "tunesmith.errors",
    "advise": "tunesmith.comparing.advise",
    "answer": "tunesmith.evaluation.answering",
    "ask": "tunesmith.retrieval.ask",
    "chat": "tunesmith.inference.verbs",
    "check_data": "tunesmith.checks.driver",
    "classify": "tunesmith.inference.verbs",
    "combine": "tunesmith.exporting.combine",
    "compare": "tunesmith.comparing.compare",
    "data_augment": "tunesmith.curation.augment",
    "data_balance": "tunesmith.curation.balance",
    "data_clean": "tunesmith.curation.clean",
    "data_diff": "tunesmith.curation.diff",
    "data_restore": "tunesmith.curation.restore",
    "data_review": "tunesmith.curation.review",
    "data_sample": "tunesmith.curation.sample",
    "data_select": "tunesmith.curation.select",
    "data_split": "tunesmith.curation.split",
    "data_worst": "tunesmith.curation.worst",
    "embed": "tunesmith.inference.verbs",
    "embedded_base": "tunesmith.models.bases",
    "evaluate": "tunesmith.evaluation.compare",
    "export": "tunesmith.proving.export",
    "generate": "tunesmith.inference.verbs",
    "get_base": "tunesmith.models.bases",
    "index": "tunesmith.retrieval.build",
    "init": "tunesmith.config.suggestion",
    "list_bases": "tunesmith.models.bases",
    "list_methods": "tunesmith.config.method_list",
    "list_runs": "tunesmith.report.listing",
    "load": "tunesmith.inference.model",
    "parity": "tunesmith.proving.parity",
    "plan": "tunesmith.planner.request",
    "prompt_search": "tunesmith.prompting.search",
    "rank": "tunesmith.voting.ranking",
    "recipe_schema": "tunesmith.config.schema",
    "resume": "tunesmith.training.stages",
    "score": "tunesmith.inference.verbs",
    "search": "tunesmith.retrieval.search",
    "serve": "tunesmith.serving.server",
    "train": "tunesmith.training.stages",
    "vote": "tunesmith.voting.vote",
    "write_report": "tunesmith.report.html",
}

__all__ = [
    "Example",
    "Generation",
    "Head",
    "MethodConfig",
    "Metric",
    "Model",
    "Objective",
    "ObjectiveConfig",
    "Prediction",
    "Prompt",
    "Recipe",
    "RowFormat",
    "Run",
    "Sampling",
    "Score",
    "Trainer",
    "UserError",
    "advise",
    "answer",
    "ask",
    "chat",
    "check_data",
    "classify",
    "combine",
    "compare",
    "data_augment",
    "data_balance",
    "data_clean",
    "data_diff",
    "data_restore",
    "data_review",
    "data_sample",
    "data_select",
    "data_split",
    "data_worst",
    "embed",
    "embedded_base",
    "evaluate",
    "export",
    "generate",
    "get_base",
    "index",
    "init",
    "list_bases",
    "list_methods",
    "list_runs",
    "load",
    "parity",
    "plan",
    "prompt_search",
    "rank",
    "recipe_schema",
    "resume",
    "score",
    "search",
    "serve",
    "train",
    "vote",
    "write_report",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
