"""What a run is: every field, its unit, its default and the reason for the default.

A recipe combines four independent choices (base, data, method, objective) with how long and how fast to train. It is
strict: an unknown field is an error that suggests the nearest name. `method` and `objective` are looked up by `kind`
(see `tunesmith.config.registry`).
"""

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    PrivateAttr,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from tunesmith.config.base import Base
from tunesmith.config.data import Data
from tunesmith.config.extensions import failures_named, is_path
from tunesmith.config.method import MethodConfig
from tunesmith.config.objective import ObjectiveConfig
from tunesmith.config.registry import (
    DEFAULT_METHOD,
    FORMATS,
    HEADS,
    METHODS,
    OBJECTIVES,
    REWARDS,
    Registry,
    Strict,
    config_class,
    config_classes,
)
from tunesmith.config.train import Train
from tunesmith.config.yaml_text import read_yaml, set_field, to_yaml
from tunesmith.errors import UserError


class Recipe(Strict):
    """A run: base × data × method × objective, and how to train."""

    base: Base = Base()
    """Which model the run starts from."""

    data: Data
    """The training data: files, their format and columns, lengths, the held-out share."""

    method: SerializeAsAny[MethodConfig] = Field(default_factory=lambda: METHODS.load(DEFAULT_METHOD)())
    """Which weights are trained. LoRA on all linear layers: about the quality of full fine-tuning at a third of its
    memory (Hu et al. 2021, section 4.2)."""

    objective: SerializeAsAny[ObjectiveConfig] = Field(default_factory=lambda: OBJECTIVES.load("instruction")())
    """What the model is trained to do. `instruction`: write the assistant's answers."""

    train: Train = Train()
    """How long, how fast, how precisely."""

    _directory: Path = PrivateAttr(default_factory=Path.cwd)

    @model_validator(mode="after")
    def _check_combination(self) -> "Recipe":
        formats = self.objective.formats
        own = {f"data.mix.{name}.format": source.format for name, source in self.data.mix.items() if source.format}
        for field, format in {"data.format": self.data.format, **own}.items():
            if formats and format not in ("auto", *formats) and not FORMATS.is_users(format):
                raise ValueError(
                    f"objective: {self.objective.kind} needs rows in the format {' or '.join(formats)}, not {field}: "
                    f"{format}"
                )
        if self.objective.compares_rows and not self.data.pack:
            raise ValueError(
                f"data.pack: false gives the model one row at a time, and objective: {self.objective.kind} compares "
                "rows with each other. Set data.pack: true"
            )
        if self.data.folds is not None and self.train.early_stopping is not None:
            raise ValueError(
                "data.folds: the last run trains on all rows and holds none out, so train.early_stopping would stop "
                "only the other runs. Set train.steps"
            )
        overflows = {"data": self.data.overflow} | {f"data.mix.{n}": s.overflow for n, s in self.data.mix.items()}
        splitting = next((name for name, overflow in overflows.items() if overflow == "split"), None)
        if formats and splitting is not None:
            raise ValueError(
                f"{splitting}.overflow: split would separate a text from its target. objective: {self.objective.kind} "
                "takes truncate, drop or refuse"
            )
        if self.data.replay and (formats or self.objective.bases != ("decoder",)):
            raise ValueError(f"data.replay needs a decoder that writes text, not objective: {self.objective.kind}")
        plan = self.objective.rollouts
        if plan is not None and plan.server is not None and self.method.trains_base:
            raise ValueError(
                f"objective.sampler: the server gets an adapter before each phase, and method {self.method.kind} moves "
                "the base's own matrices. Set method: lora, or leave out objective.sampler"
            )
        if self.base.quantized and self.method.trains_base:
            raise ValueError(
                f"method {self.method.kind} moves the base's own matrices, and base.weights: {self.base.weights} holds "
                "them frozen. Set base.weights: bf16, or a method that adds weights of its own, such as lora"
            )
        if self.base.quantized and self.base.from_scratch:
            raise ValueError(
                f"base.from_scratch makes random weights, and base.weights: {self.base.weights} would keep them "
                "frozen. Set base.weights: bf16"
            )
        if self.base.weights in ("fp32", "bf16") and self.train.precision not in ("auto", self.base.weights):
            raise ValueError(
                f"base.weights: {self.base.weights} with train.precision: {self.train.precision} would have every "
                "layer cast its weights. Set only one of them, or both to the same value"
            )
        return self

    @property
    def precision(self) -> Literal["auto", "bf16", "fp32"]:
        """Of activations and of weights that are not quantized, from `base.weights` or `train.precision`."""
        weights = self.base.weights
        if weights in ("fp32", "bf16"):
            return weights
        return "fp32" if self.train.precision == "auto" and self.objective.head.needs_fp32 else self.train.precision

    @field_validator("base", mode="before")
    @classmethod
    def _base_by_name(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, str | Path) else value

    @field_validator("method", mode="before")
    @classmethod
    def _method_by_kind(cls, value: Any, info: ValidationInfo) -> Any:
        return _by_kind(value, METHODS, MethodConfig, info.context)

    @field_validator("objective", mode="before")
    @classmethod
    def _objective_by_kind(cls, value: Any, info: ValidationInfo) -> Any:
        return _by_kind(value, OBJECTIVES, ObjectiveConfig, info.context)

    def __eq__(self, other: object) -> bool:
        """Equal fields, wherever the files of both are."""
        if not isinstance(other, Recipe):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in type(self).model_fields)

    __hash__ = None  # type: ignore[assignment]  # fields are lists, too

    @property
    def directory(self) -> Path:
        """Where the recipe's file is, or the working directory of one that has no file."""
        return self._directory

    def import_code(self) -> None:
        """Import the code of users that the recipe names. Cheap if that is done and nothing else was imported since.

        Raises:
            UserError: it cannot be imported, or a head of a user's is not found by its own name.
        """
        for field, registry, kind in self._users_kinds:
            try:
                registry.load(kind, self.directory)
            except UserError as error:
                raise UserError(f"{field}: {error}") from error.__cause__
        head = self.objective.head
        if HEADS.load(head.kind, self.directory).__qualname__ != type(head).__qualname__:
            raise UserError(
                f"objective: the head {type(head).__qualname__} has the kind of another one, {head.kind}. Set kind = "
                f"{f'{type(head).__module__}:{type(head).__qualname__}'!r} in its class."
            )

    @property
    def extensions(self) -> dict[str, str]:
        """The code of users that the run needs: the names in the recipe → `module:Class`."""
        return {kind: registry.path(kind) for _, registry, kind in self._users_kinds}

    @property
    def _users_kinds(self) -> list[tuple[str, Registry, str]]:
        """The field, the registry and the name of each kind that is code of users."""
        kinds = (
            ("method", METHODS, self.method.kind),
            ("objective", OBJECTIVES, self.objective.kind),
            ("objective", HEADS, self.objective.head.kind),
            ("data.format", FORMATS, self.data.format),
            *((f"data.mix.{n}.format", FORMATS, s.format) for n, s in self.data.mix.items() if s.format is not None),
            *(("objective.rewards", REWARDS, each.function) for each in self.objective.reward_functions),
        )
        return [each for each in kinds if each[1].is_users(each[2])]

    @classmethod
    def load(cls, source: "Recipe | dict[str, Any] | str | Path", overrides: list[str] | None = None) -> "Recipe":
        """Read a recipe from a YAML file (or a dict), apply `key.path=value` overrides, and check it.

        Relative paths in a file are resolved beside the file, else in the working directory, and become absolute.

        Args:
            source: a recipe, a dict of its sections, or a YAML file's path.
            overrides: `key.path=value` strings.

        Returns:
            The recipe.

        Raises:
            UserError: the recipe is invalid; the message names the file, the field and what to do.
        """
        if isinstance(source, Recipe):
            if not overrides:
                return source
            values = source.model_dump(mode="json")
            for override in overrides:
                set_field(values, override)
            return cls.from_values(values, "recipe", source.directory)
        if isinstance(source, dict):
            values, where, directory = dict(source), "recipe", Path.cwd()
        else:
            path = Path(source)
            values, where, directory = read_yaml(path), path.name, path.parent.resolve()
        if "stages" in values:
            raise UserError(f"{where} has stages, but only a single recipe works here. Use tunesmith train for stages.")
        for override in overrides or []:
            set_field(values, override)
        return cls.from_values(values, where, directory)

    @classmethod
    def from_values(cls, values: dict[str, Any], where: str, directory: Path) -> "Recipe":
        """Check a recipe's values and resolve their relative paths in `directory`.

        Args:
            values: the sections of the recipe.
            where: the name of the recipe in error messages.
            directory: where relative paths are looked up first.

        Returns:
            The recipe.

        Raises:
            UserError: a value is invalid; the message names the field and what to do.
        """
        try:
            recipe = cls.model_validate(values, context=directory)
            recipe._directory = directory
            recipe.import_code()
        except ValidationError as error:
            lines = [f"{where}: {_explain(details)}" for details in error.errors()]
            raise UserError("\n".join(dict.fromkeys(lines))) from None
        except UserError as error:
            raise UserError(f"{where}: {error}") from error.__cause__
        return recipe._with_absolute_paths(directory)

    def to_yaml(self) -> str:
        """The recipe with every field.

        Returns:
            YAML that `load` reads back as an equal recipe.
        """
        return to_yaml(self.model_dump(mode="json"))

    def _with_absolute_paths(self, directory: Path) -> "Recipe":
        def absolute(path: str) -> str:
            if path.startswith("sqlite:///"):
                return _absolute_database(path, directory)
            for root in (directory, Path.cwd()):
                candidate = (root / Path(path).expanduser()).absolute()
                if candidate.exists() or (any(c in path for c in "*?[{") and candidate.parent.exists()):
                    return str(candidate)
            return path

        held_out = self.data.held_out
        data = self.data.model_copy(
            update={
                "train": [absolute(path) for path in self.data.train],
                "mix": {
                    name: source.model_copy(update={"paths": [absolute(path) for path in source.paths]})
                    for name, source in self.data.mix.items()
                },
                "replay": [absolute(path) for path in self.data.replay],
                "held_out": held_out if isinstance(held_out, float) else [absolute(path) for path in held_out],
            }
        )
        template = self.base.chat_template
        base = self.base.model_copy(
            update={
                "path": self.base.path if self.base.path == "embedded" else absolute(self.base.path),
                "adapter": None if self.base.adapter is None else Path(absolute(str(self.base.adapter))),
                "chat_template": None if template is None else Path(absolute(str(template))),
            }
        )
        objective = self.objective.with_absolute_paths(absolute)
        return self.model_copy(update={"data": data, "base": base, "objective": objective})


def _absolute_database(url: str, directory: Path) -> str:
    """`sqlite:///FILE#QUERY`, with the file's path from the root if it is beside the recipe."""
    prefix, _, rest = url.partition("///")
    name, mark, query = rest.partition("#")
    file = (directory / name).absolute()
    return f"{prefix}///{file}{mark}{query}" if file.is_file() else url


def _by_kind(value: Any, registry: Registry, base: type[Strict], directory: Path | None) -> Any:
    """Turn `{kind: lora, ...}` or `lora` into an instance of the class that the registry names, or of the class that
    the kind itself names: `module:Class`."""
    if isinstance(value, base):
        return value
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, dict) or "kind" not in value:
        raise ValueError(f"needs a kind: one of {', '.join(registry)}")
    kind = str(value["kind"])
    if kind not in registry and not is_path(kind):
        raise ValueError(f"kind {kind!r} is not known.{_did_you_mean(kind, list(registry))}")
    try:
        found = config_class(registry, kind, base, directory)
    except UserError as error:
        raise ValueError(str(error)) from error.__cause__
    with failures_named({kind: registry.path(kind)} if registry.is_users(kind) else {}):
        return found.model_validate(value)


def _did_you_mean(word: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {prefix}{near[0]}?" if near else f" Known: {', '.join(prefix + name for name in known)}."


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    """The names of the fields beside the one at `location`."""
    model: Any = Recipe
    is_name = False
    for index, part in enumerate(location[:-1]):
        if is_name:  # of an entry of a mapping
            is_name = False
            continue
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            return []
        if part in ("method", "objective") and index == 0:
            classes = config_classes(*((METHODS, MethodConfig) if part == "method" else (OBJECTIVES, ObjectiveConfig)))
            return sorted({name for found in classes.values() for name in found.model_fields})
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        is_name = getattr(field.annotation, "__origin__", None) is dict
        model = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Strict)), None)
    return list(model.model_fields) if model is not None else []


def _explain(details: ErrorDetails) -> str:
    """One of pydantic's errors as a line: which field, what is wrong, which value it has."""
    location = details["loc"]
    parts = [str(part) for part in location if not (isinstance(part, str) and "[" in part)]
    name = ".".join(parts)
    prefix = ".".join(parts[:-1]) + "." if len(parts) > 1 else ""
    if details["type"] == "extra_forbidden":
        return f"{name} is not a field.{_did_you_mean(parts[-1], _fields_at(location), prefix)}"
    if details["type"] == "missing":
        return f"{name} is missing. Add it."
    message = details["msg"].removeprefix("Value error, ")
    if message[1:2].islower():
        message = message[0].lower() + message[1:]
    value = details["input"]
    suffix = (
        ""
        if isinstance(value, dict | list) or "not known" in message or "cannot be" in message
        else f" (it is {value!r})"
    )
    return f"{name}: {message}{suffix}" if name else message
