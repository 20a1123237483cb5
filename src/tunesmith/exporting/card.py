"""The model card: a README.md with Hugging Face's metadata, and what is known of the data, the quality and the file.

https://huggingface.co/docs/hub/model-cards
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from tunesmith.exporting.merging import Merging
from tunesmith.exporting.subject import Subject

PARITY = "<!-- parity -->"
"""Where the comparison of the exported model with the trained one goes."""


def model_card(subject: Subject, form: str, library: str, use: str, relation: str = "finetune") -> str:
    """The card of an exported model.

    Args:
        subject: the model.
        form: what it was exported to, such as `GGUF, Q4_K_M`.
        library: its name on the hub, such as `transformers`.
        use: how to load it: a fenced block.
        relation: to the base, in the hub's words.
    """
    head: dict[str, Any] = {"library_name": library} | ({"license": subject.license} if subject.license else {})
    if subject.run is not None:
        head |= {"base_model": subject.base_name, "base_model_relation": relation}
    head |= {"pipeline_tag": _task(subject), "tags": ["tunesmith", *([] if subject.run is None else ["fine-tuned"])]}
    parts = [
        f"---\n{yaml.safe_dump(head, allow_unicode=True, sort_keys=False).strip()}\n---\n\n# {subject.title}",
        f"Exported by Tunesmith {version('tunesmith')} to {form}.",
        f"## Use\n\n{use}",
        _training(subject),
        "" if relation == "adapter" else _merging(subject.merging),
        _evaluation(subject.evaluation),
        f"## Parity\n\n{PARITY}\nNot measured yet.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _task(subject: Subject) -> str:
    commands = subject.reference.head.commands
    tasks = {"generate": "text-generation", "classify": "text-classification", "embed": "feature-extraction"}
    return tasks[commands[0]] if commands else "text-generation"


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


def _evaluation(result: dict[str, Any]) -> str:
    """A table of all models on the rows, with 95 % intervals."""
    models = result.get("models", {})
    if not models:
        return ""
    heading = f"| held out, {result.get('rows', 0):,} rows | {' | '.join(models)} |"
    lines = [heading, "|---" * (len(models) + 1) + "|"]
    for name, about in result["figures"].items():
        cells = (_with_interval(found.get(name, {})) for found in models.values())
        lines.append(f"| {about['title']} | {' | '.join(cells)} |")
    return "## Evaluation\n\n" + "\n".join(lines)


def _with_interval(figure: dict[str, Any]) -> str:
    if not isinstance(figure.get("value"), int | float):
        return "–"
    low, high = figure["interval"]
    return f"{figure['value']:.3f} ({low:.3f} to {high:.3f})"
