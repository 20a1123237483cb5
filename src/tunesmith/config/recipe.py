"""What a run is: every field, its unit, its default and the reason for the default.

A recipe combines four independent choices (base, data, method, objective) with how long and how fast to train. It is
strict: an unknown field is an error that suggests the nearest name. `method` and `objective` are looked up by `kind`
(see `tunesmith.config.registry`).
"""

import difflib
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from tunesmith.config.registry import METHODS, OBJECTIVES, MethodConfig, ObjectiveConfig, Strict, named_kind
from tunesmith.config.yaml_text import read_yaml, set_field, to_yaml
from tunesmith.errors import UserError

MEMORY = r"^(\d+(?:\.\d+)?)\s*([KMG])(i?)B$"
"""The format of an amount of memory: `12GB`, `900MiB`."""


def bytes_in(memory: str) -> int | None:
    """An amount of memory in bytes; None if it does not match `MEMORY`."""
    match = re.fullmatch(MEMORY, memory)
    if match is None:
        return None
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** ("KMG".index(unit) + 1))


class Base(Strict):
    """Which model the run starts from, and how its weights are stored. `base: embedded` is short for
    `base: {path: embedded}`."""

    path: str = "embedded"
    """`embedded` (the small model that ships with Tunesmith), a directory, a run directory, or a hub name."""

    revision: str | None = None
    """The hub revision (branch, tag or commit). Default: the newest; its commit is recorded in the run."""

    weights: Literal["auto", "fp32", "bf16", "int8", "nf4", "fp4"] = "auto"
    """How the weights are stored in memory. `int8`, `nf4` and `fp4` quantize the blocks' linear layers, which are then
    frozen (Dettmers et al. 2022, 2023); all other weights follow `train.precision`. Default: as `train.precision`."""

    double_quantization: bool = True
    """With nf4 and fp4, also quantize the blocks' scales: 4.13 bits per weight instead of 4.5, with no loss that
    Dettmers et al. (2023, table 3) could measure."""

    from_scratch: bool = False
    """Start from the architecture alone, with random weights, for pretraining. No weight file is read."""

    adapter: Path | None = None
    """A PEFT adapter of this base. The method starts from its weights, and must be the method that made it.
    Default: newly initialized weights."""

    chat_template: Path | None = None
    """A Jinja file that replaces the base's chat template. Default: the base's own, which it was trained with."""

    trust_remote_code: bool = False
    """Run Python code that ships with the model. Off, because such code can do anything."""

    @property
    def quantized(self) -> bool:
        return self.weights in ("int8", "nf4", "fp4")


class Data(Strict):
    """Where the examples come from, and how they become tokens."""

    train: list[str] = Field(min_length=1)
    """A path, a glob, a directory, a hub data set (`hf://owner/name`), or a list of these."""

    held_out: float | list[str] = 0.05
    """A share of the training rows in [0, 1), or paths. The share is chosen by content hash, so that no row changes
    sides when the file grows. 5 %: enough to see overfitting in a few thousand rows, and little lost for training."""

    folds: int | None = Field(default=None, ge=2, le=100)
    """Cross-validation: train this many times, each time with another part of the rows held out, and once more on all
    rows; that last model is the one to use. `evaluate` scores every row with the model that has not seen it (Stone
    1974). For data with too few rows to hold any out. Replaces `held_out`. Default: one run, no cross-validation."""

    fold: int | None = Field(default=None, ge=1)
    """Which of the `folds` parts is held out, counted from 1. Default: each in turn."""

    format: str = "auto"
    """The rows' format: `messages`, `sharegpt`, `alpaca`, `prompt_completion`, `question_answer`, `text`; or a format
    with targets (classes, values, tags, pairs) that the objective accepts. Default: detected from the columns, and
    reported."""

    columns: dict[str, str] = Field(default={})
    """Names of the columns to read, where they are not the usual ones: `{question: q, answer: reply}`."""

    max_length: int = Field(default=1024, ge=8)
    """The longest example, in tokens. 1,024 is enough for most question–answer rows, and memory grows with it. If it is
    not set and the base has fewer positions, it is the base's number of positions."""

    overflow: Literal["auto", "refuse", "truncate", "split", "drop"] = "auto"
    """What to do with an example longer than `max_length`; such examples are always counted. Default: `refuse` for
    instructions (a truncated answer teaches the model to stop anywhere), `split` for raw text."""

    max_malformed: float = Field(default=0.01, ge=0, le=1)
    """The largest accepted share of malformed rows. 1 %: a few bad lines in a big file are normal; more of them mean a
    wrong format. They are counted and listed in either case."""

    skip_unusable: bool = False
    """Leave out rows that the chat template cannot render or that have no loss tokens. Off: such a row is an error that
    names it, because it usually means a wrong format or template. They are counted and listed in either case."""

    pack: bool = True
    """Pack many examples into one sequence, with exactly separate attention and positions. Off: one per batch."""

    replay: list[str] = Field(default=[])
    """Paths of other rows, such as general text or earlier chats. Some of them are mixed into training, against
    forgetting (Robins 1995; Scialom et al. 2022). Raw text among them is trained on as text. Default: none."""

    replay_share: float = Field(default=0.1, gt=0, lt=1)
    """The replayed share of all training tokens, if `replay` is set. 10 %: a small share kept most of the earlier
    knowledge (Ibrahim et al. 2024, section 6)."""

    cache: bool = True
    """Cache the tokenized rows for the next run. The cache key covers everything that determines them."""

    @model_validator(mode="after")
    def _folds_or_paths(self) -> "Data":
        if self.folds is not None and self.held_out != type(self).model_fields["held_out"].default:
            raise ValueError("folds hold every training row out once. Remove data.held_out, or folds")
        if self.fold is not None and (self.folds is None or self.fold > self.folds):
            raise ValueError(f"fold: {self.fold} is not one of folds: {self.folds}")
        return self

    @field_validator("train", "replay", mode="before")
    @classmethod
    def _one_path(cls, value: Any) -> Any:
        return [str(value)] if isinstance(value, str | Path) else value

    @field_validator("held_out", mode="before")
    @classmethod
    def _share_or_paths(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            return [str(value)]
        if isinstance(value, int | float) and not 0 <= value < 1:
            raise ValueError("must be a share in [0, 1) of the rows, or paths")
        return value


class EarlyStopping(Strict):
    """Stop when a held-out metric no longer improves."""

    metric: Literal["loss"] = "loss"
    """The watched metric of the `evaluation` event: the held-out loss, in nats per loss token."""

    patience: int = Field(default=3, ge=1)
    """Evaluations without improvement before the run stops. 3: one or two are often noise."""

    min_delta: float = Field(default=0.0, ge=0)
    """The smallest decrease (nats) that counts as an improvement. 0: any decrease."""


class Train(Strict):
    """How long, how fast, how precisely."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps. Set this or `epochs`, not both."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data. Default: 3 if `steps` is not set, the usual number for a few thousand instructions."""

    tokens_per_step: int = Field(default=2048, ge=1)
    """Approximate number of tokens (without padding) in an optimizer step. 2,048: about ten to twenty answers, enough
    for a stable gradient direction with LoRA on small data."""

    tokens_per_batch: int | None = Field(default=None, ge=8)
    """The most tokens in one batch (a longer example is a batch of its own). A step accumulates as many batches as it
    needs. Default: `tokens_per_step`, at most 2,048; larger batches are not faster on a CPU."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate. Default: the method's."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after warmup: `cosine` and `linear` fall to `min_lr_ratio`, `constant` does not fall."""

    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps over which the rate rises linearly from zero. 3 %: AdamW's variance estimate stabilizes."""

    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """The last step's rate as a share of the peak. 10 %: the last steps still learn, and a longer run can continue."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled decay per unit of learning rate; not applied to norms and biases. 0: data are small and runs
    short, and the decay of an adapter pulls toward the base, which is rarely a good default."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the gradient's first and second moments (Kingma & Ba 2015)."""

    eps: float = Field(default=1e-8, gt=0)
    """AdamW's guard against division by zero (Kingma & Ba 2015)."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """A larger gradient is scaled down to this Euclidean norm. 1: the usual value; it only affects spikes."""

    shuffle: bool = True
    """A new row order each epoch, from the seed. Off: the order of the file, for curricula and comparisons."""

    seed: int = 0
    """Seed of the row order, of new weights and of dropout."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of weights and activations in forward and backward. Trained weights always have fp32 master weights.
    Default: bf16 if this device multiplies matrices faster in it (measured once), else fp32."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1` …. Default: a GPU if one is available."""

    gradient_checkpointing: bool = False
    """Activation checkpointing: store only each block's input and recompute the rest in the backward pass. It needs a
    fraction of the activation memory and about a third more time (Chen et al. 2016). Off: short rows fit on a laptop
    without it."""

    memory_limit: str | None = Field(default=None, pattern=MEMORY)
    """The most memory for the run, `12GB` or `900MiB`: of the process on a CPU, of PyTorch on a GPU. Activation
    checkpointing is turned on for as many blocks as needed, starting with the first; if that is not enough, batches are
    split in two. The optimizer step stays the same. Default: no limit, and no activation checkpointing."""

    offload_activations: bool = False
    """On a GPU: keep the activations in host memory between the forward and the backward pass. For rows that are too
    long even with activation checkpointing of every block. It costs the time of the transfers. On a CPU it has no
    effect, and the run warns."""

    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "muon", "schedule_free"] = (
        "adamw"
    )
    """`adamw` (Loshchilov & Hutter 2019) with fp32 moments: the methods' default rates are chosen for it. `adamw_8bit`
    keeps the moments in 8 bits (Dettmers et al. 2022); `paged_adamw_8bit` also moves them to host memory when GPU
    memory is short. Both need CUDA; elsewhere plain AdamW is used, and the run warns. `adafactor` (Shazeer & Stern
    2018) keeps one row and one column of moments per matrix; `lion` (Chen et al. 2023) one moment, at a fifth of the
    rate; `muon` (Jordan et al. 2024) orthogonalizes the step of the blocks' matrices, at AdamW's step size;
    `schedule_free` (Defazio et al. 2024) averages weights instead of following `schedule`. Lion and schedule-free need
    `tunesmith[optimizers]`."""

    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Evaluate and save a moving average of the weights: average ← d · average + (1 − d) · weights after each step,
    with a smaller d in the first steps (Polyak & Juditsky 1992). Off: a falling rate already averages."""

    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the rate for each block further from the output (Clark et al. 2020, ELECTRA, appendix B: 0.8 for
    encoders). 1: adapters train equally well in all blocks, and the rate for fully trained encoders is small."""

    neftune_alpha: float | None = Field(default=None, gt=0)
    """NEFTune's α: noise on the embeddings during training, uniform in ±α / √(tokens · hidden) of each row (Jain et
    al. 2023: 5 to 15). Off: it makes answers longer, which should be a deliberate choice."""

    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints. Default: a tenth of the run, so that a killed run loses at most that."""

    keep_checkpoints: int = Field(default=1, ge=1)
    """How many of the newest checkpoints to keep, besides the best."""

    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations on held-out rows. Default: a tenth of the run."""

    evaluate_rows: int = Field(default=500, ge=1)
    """The most held-out rows in an evaluation during the run; the same rows each time. 500: an interval of a few
    percent, at little cost. `tunesmith evaluate` uses all of them."""

    early_stopping: EarlyStopping | None = None
    """Stop when the held-out loss no longer falls. Off by default: a short run should take all its steps."""

    tensorboard: bool = False
    """Also write TensorBoard events into the run directory (needs the extra `tunesmith[tensorboard]`)."""

    @property
    def memory_bytes(self) -> int | None:
        """`memory_limit` in bytes."""
        return None if self.memory_limit is None else bytes_in(self.memory_limit)

    @property
    def max_batch_tokens(self) -> int:
        """`tokens_per_batch`, or its default."""
        return self.tokens_per_batch or min(self.tokens_per_step, 2048)

    @model_validator(mode="before")
    @classmethod
    def _steps_or_epochs(cls, values: Any) -> Any:
        if isinstance(values, dict):
            steps, epochs = values.get("steps"), values.get("epochs")
            if steps is not None and epochs is not None:
                raise ValueError("set steps or epochs, not both")
            if steps is None and epochs is None:
                return {**values, "epochs": 3.0}
        return values


class Recipe(Strict):
    """A run: base × data × method × objective, and how to train."""

    base: Base = Base()
    """Which model the run starts from."""

    data: Data
    """The training data: files, their format and columns, lengths, the held-out share."""

    method: SerializeAsAny[MethodConfig] = Field(default_factory=lambda: named_kind(METHODS, "lora")())
    """Which weights are trained. LoRA on all linear layers: about the quality of full fine-tuning at a third of its
    memory (Hu et al. 2021, section 4.2)."""

    objective: SerializeAsAny[ObjectiveConfig] = Field(default_factory=lambda: named_kind(OBJECTIVES, "instruction")())
    """What the model is trained to do. `instruction`: write the assistant's answers."""

    train: Train = Train()
    """How long, how fast, how precisely."""

    @model_validator(mode="after")
    def _check_combination(self) -> "Recipe":
        has_targets, formats = self.objective.ending.kind != "vocabulary", self.objective.formats
        if formats and self.data.format not in ("auto", *formats):
            raise ValueError(
                f"objective: {self.objective.kind} needs rows in the format {' or '.join(formats)}, not data.format: "
                f"{self.data.format}"
            )
        if self.objective.ending.kind == "vectors" and not self.data.pack:
            raise ValueError(
                f"data.pack: false gives the model one row at a time, and objective: {self.objective.kind} compares "
                "rows with each other. Set data.pack: true"
            )
        if self.data.folds is not None and self.train.early_stopping is not None:
            raise ValueError(
                "data.folds: the last run trains on all rows and holds none out, so train.early_stopping would stop "
                "only the other runs. Set train.steps"
            )
        if has_targets and self.data.overflow == "split":
            raise ValueError(
                f"data.overflow: split would separate a text from its target. objective: {self.objective.kind} takes "
                "truncate, drop or refuse"
            )
        if self.data.replay and (has_targets or self.objective.bases != ("decoder",)):
            raise ValueError(f"data.replay needs a decoder that writes text, not objective: {self.objective.kind}")
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
        # bf16 has about three decimal digits: too few for regression targets in their own unit.
        needs_fp32 = self.train.precision == "auto" and self.objective.ending.problem == "regression"
        return "fp32" if needs_fp32 else self.train.precision

    @field_validator("base", mode="before")
    @classmethod
    def _base_by_name(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, str | Path) else value

    @field_validator("method", mode="before")
    @classmethod
    def _method_by_kind(cls, value: Any) -> Any:
        return _by_kind(value, METHODS, MethodConfig)

    @field_validator("objective", mode="before")
    @classmethod
    def _objective_by_kind(cls, value: Any) -> Any:
        return _by_kind(value, OBJECTIVES, ObjectiveConfig)

    @classmethod
    def load(cls, source: "Recipe | dict[str, Any] | str | Path", overrides: list[str] | None = None) -> "Recipe":
        """Read a recipe from a YAML file (or a dict), apply `key.path=value` overrides, and check it.

        Relative paths in a file are resolved beside the file, else in the working directory, and become absolute.

        Raises:
            UserError: the recipe is invalid; the message names the file, the field and what to do.
        """
        if isinstance(source, Recipe):
            return source if not overrides else cls.load(source.model_dump(mode="json"), overrides)
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

        Raises:
            UserError: a value is invalid; the message names the field and what to do.
        """
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            lines = [f"{where}: {_explain(details)}" for details in error.errors()]
            raise UserError("\n".join(dict.fromkeys(lines))) from None
        return recipe._with_absolute_paths(directory)

    def to_yaml(self) -> str:
        """The recipe with every field, as YAML that `load` reads back as an equal recipe."""
        return to_yaml(self.model_dump(mode="json"))

    def _with_absolute_paths(self, directory: Path) -> "Recipe":
        def absolute(path: str) -> str:
            for root in (directory, Path.cwd()):
                candidate = (root / Path(path).expanduser()).absolute()
                if candidate.exists() or (any(c in path for c in "*?[") and candidate.parent.exists()):
                    return str(candidate)
            return path

        held_out = self.data.held_out
        data = self.data.model_copy(
            update={
                "train": [absolute(path) for path in self.data.train],
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
        return self.model_copy(update={"data": data, "base": base})


def _by_kind(value: Any, registry: dict[str, str], base: type[Strict]) -> Any:
    """Turn `{kind: lora, ...}` or `lora` into an instance of the class that the registry names."""
    if isinstance(value, base):
        return value
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, dict) or "kind" not in value:
        raise ValueError(f"needs a kind: one of {', '.join(registry)}")
    if value["kind"] not in registry:
        raise ValueError(f"kind {value['kind']!r} is not known.{_did_you_mean(str(value['kind']), list(registry))}")
    return named_kind(registry, value["kind"]).model_validate(value)


def _did_you_mean(word: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {prefix}{near[0]}?" if near else f" Known: {', '.join(prefix + name for name in known)}."


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    """The names of the fields beside the one at `location`."""
    model: Any = Recipe
    for index, part in enumerate(location[:-1]):
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            return []
        if part in ("method", "objective") and index == 0:
            registry = METHODS if part == "method" else OBJECTIVES
            return sorted({name for kind in registry for name in named_kind(registry, kind).model_fields})
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
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
