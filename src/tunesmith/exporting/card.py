"""The model card: a README.md with Hugging Face's metadata, and what is known of the data, the quality and the file.

https://huggingface.co/docs/hub/model-cards
"""

from collections.abc import Iterator
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from tunesmith.exporting.merging import Merging
from tunesmith.exporting.subject import Subject
from tunesmith.run import atomic_write, writing

PARITY = "<!-- parity -->"
"""Where the comparison of the exported model with the trained one goes."""

OURS = "<!-- Each `tunesmith evaluate` of the run writes this card again. Remove this line to keep it as it is. -->"
"""In the card of a run."""

PEFTS = "[More Information Needed]"
"""In the empty card that PEFT saves beside an adapter."""

TUNED = "tuned"
"""The run's column in its `evaluation.json`."""


def model_card(subject: Subject, form: str, library: str, use: str, relation: str = "finetune") -> str:
    """The card of an exported model.

    Args:
        subject: the model.
        form: what it was exported to, such as `GGUF, Q4_K_M`.
        library: its name on the hub, such as `transformers`.
        use: how to load it: a fenced block.
        relation: to the base, in the hub's words.
    """
    return _card(
        subject,
        library,
        relation,
        f"Exported by Tunesmith {version('tunesmith')} to {form}.",
        f"## Use\n\n{use}",
        _training(subject),
        "" if relation == "adapter" else _merging(subject.merging),
        _evaluation(subject.evaluation, "as trained, before this export"),
        f"## Parity\n\n{PARITY}\nNot measured yet.",
    )


def write_run_card(directory: Path) -> Path:
    """Write the card of a finished run beside its weights, unless the user wrote one.

    Args:
        directory: of the run.

    Returns:
        The card.

    Raises:
        UserError: it cannot be written.
    """
    subject = Subject.find(str(directory))
    assert subject.run is not None
    assert subject.run.output is not None
    output = subject.run.output
    is_adapter = output.name == "adapter"
    file = output / "README.md"
    if file.exists() and not any(mark in file.read_text(encoding="utf-8") for mark in (OURS, PEFTS)):
        return file
    text = _card(
        subject,
        "peft" if is_adapter else "transformers",
        "adapter" if is_adapter else "finetune",
        f"{OURS}\nTrained with Tunesmith {version('tunesmith')}.",
        f"## Use\n\n```python\ntunesmith.load({output.name!r})\n```",
        _training(subject),
        _evaluation(subject.evaluation, "as trained"),
    )
    with writing(file), atomic_write(file) as out:
        out.write(text)
    return file


def _card(subject: Subject, library: str, relation: str, *sections: str) -> str:
    """The hub's metadata, a title, and the sections that are not empty."""
    task = _task(subject)
    of_run: dict[str, Any] = {} if subject.run is None else {
        "base_model": subject.base_name, "base_model_relation": relation,
        "model_name": subject.title, "eval_results": list(eval_results(subject.evaluation, task)) or None,
    }  # fmt: skip
    head = ModelCardData(
        library_name=library, license=subject.license, pipeline_tag=task,
        tags=["tunesmith", *([] if subject.run is None else ["fine-tuned"])], **of_run,
    )  # fmt: skip
    parts = [f"---\n{head.to_yaml()}\n---\n\n# {subject.title}", *sections]
    return "\n\n".join(part for part in parts if part) + "\n"


def _task(subject: Subject) -> str:
    commands = subject.reference.head.commands
    tasks = {
        "generate": "text-generation",
        "classify": "text-classification",
        "embed": "feature-extraction",
        "reward": "text-classification",  # as TRL's reward models have it
    }
    return tasks[commands[0]] if commands else "text-generation"


def eval_results(evaluation: dict[str, Any], task: str) -> Iterator[EvalResult]:
    """A run's figures as results of the hub's `model-index`.

    https://github.com/huggingface/hub-docs/blob/main/modelcard.md

    Args:
        evaluation: the content of `evaluation.json`; empty: there is none.
        task: of the hub, such as `text-generation`.

    Yields:
        A result for each figure, with its interval and rows. The revision of the data is the SHA-256 of the rows; a
        suite's is Tunesmith's version, since it brings its prompts.
    """
    for name, found in evaluation.get("models", {}).get(TUNED, {}).items():
        about = evaluation["figures"][name]
        suite, is_of_suite, _ = name.partition(".")
        low, high = found["interval"]
        if not all(map(isfinite, (found["value"], low, high))):
            continue
        yield EvalResult(
            task_type=task,
            dataset_type="tunesmith" if is_of_suite else "private",
            dataset_name=f"Tunesmith's suite {suite}" if is_of_suite else evaluation.get("data") or "held-out rows",
            dataset_revision=version("tunesmith") if is_of_suite else evaluation.get("data_sha256"),
            metric_type=name,
            metric_name=about["title"],
            metric_value=found["value"],
            metric_args={
                "interval": [low, high], "level": 0.95, "rows": found.get("rows", evaluation["rows"]),
                "unit": about.get("unit") or None,
            },
        )  # fmt: skip


def _training(subject: Subject) -> str:
    """Base, method, objective and data."""
    if subject.recipe is None:
        return ""
    recipe = subject.recipe
    lines = [
        f"- Base: {subject.base_name}",
        f"- Method: {recipe.method.kind}; objective: {recipe.objective.kind}",
        *(f"- Data: {Path(name).name}, SHA-256 {digest}" for name, digest in subject.data.items()),
    ]
    return "## Training\n\n" + "\n".join(lines)


def _merging(merging: Merging) -> str:
    """What each way to merge costs, if the base was quantized in training."""
    if merging.trained_loss is None:
        return ""
    lines = ["| merged into | held-out loss | vs. trained | KL(trained ‖ merged) |", "|---|---|---|---|"]
    for way in merging.ways:
        mark = " (this model)" if way.into == merging.into else ""
        change = way.loss - merging.trained_loss
        lines.append(f"| {way.into} weights{mark} | {way.loss:.4f} | {change:+.4f} | {way.divergence:.2g} |")
    return "## Merging\n\nThe base was quantized in training.\n\n" + "\n".join(lines)


def _evaluation(result: dict[str, Any], state: str) -> str:
    """A table of all models with 95 % intervals, and whether a gate is passed."""
    models = result.get("models", {})
    if not models:
        return ""
    lines = [f"| | {' | '.join(models)} |", "|---" * (len(models) + 1) + "|"]
    for name, about in result["figures"].items():
        cells = (_with_interval(found.get(name, {})) for found in models.values())
        lines.append(f"| {about['title']} | {' | '.join(cells)} |")
    rows = f"On {result['rows']:,} {result.get('data') or 'held-out rows'}, " if result["rows"] else ""
    gate = result.get("gate")
    passed = "" if gate is None else f" The gate is {'passed' if gate['passed'] else 'not passed'}."
    prompt = result.get("prompt")
    before = "" if not prompt else f" With the prompt of version {prompt['version']} before each chat."
    about = f"{rows}{state}; in brackets: 95 % intervals.{before}{passed}"
    return f"## Evaluation\n\n{about[:1].upper()}{about[1:]}\n\n" + "\n".join(lines)


def _with_interval(figure: dict[str, Any]) -> str:
    if not isinstance(figure.get("value"), int | float):
        return "–"
    low, high = figure["interval"]
    return f"{figure['value']:.4g} ({low:.4g} to {high:.4g})"
