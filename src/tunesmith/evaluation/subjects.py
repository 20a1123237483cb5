"""What the names on a command line stand for, each as a subject under a name of its own.

NAME                       a run, an adapter, a model directory, a GGUF file, a short or a hub name
RUN/checkpoints/step-…     a checkpoint of a run, which need not be finished
NAME@int8                  any of these with the base's weights stored otherwise: int8, nf4, fp4, bf16 or fp32
NAME@gguf:q8_0             any of these exported to a GGUF file of that kind
http://HOST:PORT/v1#MODEL  a model of a server with OpenAI's protocol; without #MODEL the first that it lists
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.evaluation.gguf_form import gguf_form
from tunesmith.exporting.export import KINDS
from tunesmith.inference.memory import CONCURRENT
from tunesmith.inference.model import Model
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.openai_client import OpenAIClient
from tunesmith.run import PIPELINE_FILE, Subscriber, resolve_run
from tunesmith.server_address import address_and_model, is_address
from tunesmith.subjects.local_subject import LocalSubject
from tunesmith.subjects.served_subject import ServedSubject
from tunesmith.training.checkpoint_output import is_checkpoint, output_of_checkpoint

QUANTIZED = ("int8", "nf4", "fp4")
"""Ways to store the base's weights after `@`, beside those of `PRECISIONS`."""

PRECISIONS = ("bf16", "fp32")
"""Ways to compute after `@`, with the weights stored so too."""

GGUF = "gguf:"
"""What begins the kind of a GGUF file after `@`."""

CHECKPOINTS = "checkpoints"
"""The directory of a run's checkpoints; it is left out of a column's name."""


@dataclass(frozen=True, slots=True)
class SubjectName:
    """A name on the command line.

    Attributes:
        text: as it was given.
        target: a path, a name or a URL.
        storage: what follows `@`; None if nothing does.
        served_model: what follows `#` of a URL.
    """

    text: str
    target: str
    storage: str | None = None
    served_model: str | None = None

    @classmethod
    def parse(cls, text: str) -> "SubjectName":
        """Read a name.

        Args:
            text: as it was given.

        Returns:
            The name in its parts.

        Raises:
            UserError: what follows `@` is no way to store weights.
        """
        if is_address(text):
            url, model = address_and_model(text)
            return cls(text, url, served_model=model)
        target, at, storage = text.rpartition("@")
        if not at or Path(text).expanduser().exists():
            return cls(text, text)
        refuse_unknown_storage(text, storage)
        return cls(text, target, storage)

    @property
    def is_served(self) -> bool:
        """Whether it is the URL of a server."""
        return is_address(self.target)

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint's directory; None if it is none."""
        path = Path(self.target).expanduser()
        return path if not self.is_served and is_checkpoint(path) else None

    @property
    def run(self) -> Path | None:
        """The directory of the run that it is, or is a checkpoint of; None if it is neither.

        Raises:
            UserError: it is a pipeline of which not all runs have started.
        """
        if self.is_served:
            return None
        checkpoint = self.checkpoint
        path = Path(self.target).expanduser() if checkpoint is None else checkpoint.parent.parent
        directory = resolve_run(path.absolute()) if (path / PIPELINE_FILE).exists() else path.absolute()
        return directory if (directory / "recipe.yaml").exists() else None


def refuse_unknown_storage(where: str, storage: str) -> None:
    """Refuse what is no way to store weights.

    Args:
        where: the name or the option that has it, for the error.
        storage: what follows `@` in a name.

    Raises:
        UserError: it is none.
    """
    if storage.startswith(GGUF):
        if storage.removeprefix(GGUF) not in KINDS:
            raise UserError(f"{where}: @{storage} is not one of {', '.join(f'{GGUF}{kind}' for kind in KINDS)}.")
    elif storage not in (*QUANTIZED, *PRECISIONS):
        known = ", ".join((*QUANTIZED, *PRECISIONS, f"{GGUF}KIND"))
        raise UserError(f"{where}: @{storage} is not one of {known}. Write NAME@int8, for example.")


def column_names(names: Sequence[SubjectName]) -> list[str]:
    """Short names, each of its own: as many of a path's last parts as it takes.

    Args:
        names: of the subjects, in order.

    Returns:
        As many column names.

    Raises:
        UserError: a name is given twice.
    """
    twice = [text for text, count in Counter(name.text for name in names).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice. Name each model once.")
    parts = [_parts(name) for name in names]
    columns = []
    for own, name in zip(parts, names, strict=True):
        others = [other for other in parts if other is not own]
        count = next((count for count in range(1, len(own) + 1) if _is_alone(own, others, count)), len(own))
        storage = f"@{name.storage}" if name.storage else ""
        columns.append("/".join(own[-count:]) + storage)
    return columns if len(set(columns)) == len(columns) else [name.text for name in names]


def _parts(name: SubjectName) -> tuple[str, ...]:
    if name.is_served:
        address = name.target.split("://", 1)[1].rstrip("/").removesuffix("/v1")
        return (address, name.served_model) if name.served_model else (address,)
    path = PurePath(name.target)
    if name.checkpoint is not None:  # always with its run's name
        return (*path.parts[:-3], "/".join((path.parts[-3], path.name)))
    return path.parts


def _is_alone(own: tuple[str, ...], others: Sequence[tuple[str, ...]], count: int) -> bool:
    """Whether the last parts tell a name from those of other targets."""
    return all(other[-count:] != own[-count:] or other == own for other in others)


def open_subject(
    name: SubjectName,
    column: str,
    *,
    concurrent: int = CONCURRENT,
    device: str = "auto",
    keeps: bool = True,
    subscribers: Sequence[Subscriber] = (),
) -> LocalSubject | ServedSubject:
    """What a name stands for. Weights are loaded when they are needed.

    Args:
        name: as parsed.
        column: its name in tables.
        concurrent: the most answers that are computed at the same time.
        device: of models in this process.
        keeps: whether results are kept in the user's cache.
        subscribers: receive `progress` while a GGUF file is written.

    Returns:
        The subject.

    Raises:
        UserError: nothing of that name exists, its run has not finished, or it cannot become a GGUF file.
    """
    if name.is_served:
        return ServedSubject(column, OpenAIClient(name.target, name.served_model), concurrent)
    checkpoint = name.checkpoint
    _refuse_missing_checkpoint(name)
    where = name.target if checkpoint is None else str(output_of_checkpoint(checkpoint))
    if name.storage is not None and name.storage.startswith(GGUF):
        where = str(gguf_form(where, name.storage.removeprefix(GGUF), subscribers))
    weights = name.storage if name.storage in QUANTIZED else "auto" if name.storage in PRECISIONS else None
    model = Model(where, device, _precision(name), weights, concurrent)
    return LocalSubject(column, model, keeps=keeps)


def _refuse_missing_checkpoint(name: SubjectName) -> None:
    """Refuse a checkpoint that a run does not have any more.

    Raises:
        UserError: there is none of that name, and which there are.
    """
    path = Path(name.target).expanduser()
    if path.parent.name == CHECKPOINTS and path.parent.exists() and not path.exists():
        kept = ", ".join(sorted(each.name for each in path.parent.glob("step-*"))) or "none"
        raise UserError(f"{name.target} does not exist. Kept: {kept}. train.keep_checkpoints says how many are.")


def open_base(recipe: Recipe, tuned: LocalSubject, column: str, keeps: bool = True) -> LocalSubject:
    """The base of a run as it was when training started, with the run's tokenizer and a new head.

    Args:
        recipe: of the run.
        tuned: the run.
        column: its name in tables.
        keeps: whether results are kept in the user's cache.

    Returns:
        The subject.

    Raises:
        UserError: the base does not exist.
    """
    model = Model(recipe.base.path, str(tuned.model.device), recipe.precision, concurrent=tuned.model.concurrent)
    model.reference = ModelReference(recipe.base, recipe.objective.head)
    model.dtype = tuned.model.dtype
    return LocalSubject(column, model, tuned.tokenizer, recipe.objective, keeps)


def _precision(name: SubjectName) -> str:
    """What a model is computed in: what the name says, else what its run's recipe says."""
    if name.storage in PRECISIONS:
        return str(name.storage)
    return "auto" if name.run is None else Recipe.load(name.run / "recipe.yaml").precision
