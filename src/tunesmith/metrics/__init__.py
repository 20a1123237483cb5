"""Metrics of generated answers, by name. Each kind is a module here; this is their registry."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tunesmith.config.extensions import is_path
from tunesmith.config.registry import METRICS as INSTALLED
from tunesmith.errors import UserError
from tunesmith.metrics.code import code_metric
from tunesmith.metrics.coherence import COHERENCE_METRICS
from tunesmith.metrics.concepts import CONCEPT_METRICS, coverage_metric
from tunesmith.metrics.contradiction import contradiction_metric
from tunesmith.metrics.json_text import JSON_METRICS, schema_metric
from tunesmith.metrics.metric import Case, Metric, fitting, measured, scores, without_repeats
from tunesmith.metrics.numbers import NUMBER_METRICS, number_metric
from tunesmith.metrics.patterns import regex_metric
from tunesmith.metrics.similarity import SIMILARITY_METRICS, similarity_metric
from tunesmith.metrics.style import style_metric
from tunesmith.metrics.text import SHOWN_WHERE_THEY_DIFFER, TEXT_METRICS

__all__ = [
    "INSTALLED",
    "METRICS",
    "NAMED",
    "RUNS_CODE",
    "SHOWN_WHERE_THEY_DIFFER",
    "Case",
    "Metric",
    "fitting",
    "measured",
    "metric_named",
    "scores",
    "without_repeats",
]

METRICS = {
    **{name: TEXT_METRICS[name] for name in ("rouge_l", "first_word", "exact_match")},
    **JSON_METRICS,
}
"""Metrics that are computed wherever they fit, in the order of the tables."""

NAMED = {
    **METRICS,
    **TEXT_METRICS,
    **NUMBER_METRICS,
    **COHERENCE_METRICS,
    **CONCEPT_METRICS,
    **SIMILARITY_METRICS,
}
"""All metrics that need no setting. Those that are not in `METRICS` are computed if they are asked for."""

RUNS_CODE = ("code_runs", "code_passes")
"""Metrics that run what a model wrote. They are made only when they are asked for."""

WITH_SETTING: dict[str, tuple[str, Callable[[str, Path], Metric]]] = {
    "regex": ("PATTERN", regex_metric),
    "schema": ("FILE", schema_metric),
    "style": ("FILE", style_metric),
    "number": ("TOLERANCE", number_metric),
    "coverage": ("PATTERN", coverage_metric),
    "similarity": ("MODEL", similarity_metric),
    "contradiction": ("MODEL", contradiction_metric),
    **{name: ("SECONDS", partial(code_metric, name)) for name in RUNS_CODE},
}
"""Metrics with a setting after a colon: what it is, and what makes the metric from it and a directory."""


def metric_named(name: str, directory: Path | None = None) -> Metric:
    """A metric by its name, by its name and setting (`regex:PATTERN`), or one of a user as `module:name`.

    Args:
        name: of a `Metric`, or of a function like `Metric.score`.
        directory: where a module of that name is looked up first, and where the path of a file starts.

    Raises:
        UserError: there is no such metric, its setting is wrong, or it is something else.
    """
    kind, colon, setting = name.partition(":")
    if name in NAMED:
        return NAMED[name]
    if kind in RUNS_CODE and not colon:
        return code_metric(kind)
    if kind in WITH_SETTING:
        needed, make = WITH_SETTING[kind]
        if not setting:
            raise UserError(f"The metric {kind} needs a setting: --metric '{kind}:{needed}'.")
        return make(setting, directory or Path.cwd())
    if name not in INSTALLED and not is_path(name):
        known = [*NAMED, *RUNS_CODE, *(f"{kind}:{needed}" for kind, (needed, _) in WITH_SETTING.items()), *INSTALLED]
        raise UserError(
            f"The metric {name} is not known. Known: {', '.join(known)}; or name your own as module:function."
        )
    found = INSTALLED.load(name, directory)
    if isinstance(found, Metric):
        return found
    if not callable(found):
        raise UserError(f"{name} is neither a function of an answer and the expected answer nor a Metric.")
    title = name.rpartition(":")[2].replace("_", " ")
    explanation = next(iter((getattr(found, "__doc__", None) or "").strip().splitlines()), f"your metric {name}")
    return Metric(title, explanation, found)
