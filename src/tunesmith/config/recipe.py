"""What a run is: every field, its unit, its default and the reason for the default.

A recipe is the product of four independent choices (base, data, method, objective) and of how long and how fast to
train. It is strict: a field that does not exist is refused with the nearest name. `method` and `objective` are looked
up by `kind` (see `tunesmith.config.registry`).
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
"""How an amount of memory is written: `12GB`, `900MiB`."""


def bytes_in(memory: str) -> int | None:
    """An amount of memory in bytes; None where it is not written as `MEMORY` has it."""
    found = re.fullmatch(MEMORY, memory)
    if found is None:
        return None
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** ("KMG".index(unit) + 1))


class Base(Strict):
    """Which model the run starts from, and how its weights are held. `base: embedded` is short for
    `base: {path: embedded}`."""

    path: str = "embedded"
    """`embedded` (the small one that ships with Tunesmith), a directory, a run's directory, or a hub name."""

    revision: str | None = None
    """The hub revision (branch, tag or commit). Default: the newest, which is then written into the run."""

    weights: Literal["auto", "fp32", "bf16", "int8", "nf4", "fp4"] = "auto"
    """How the weights are held in memory. `int8`, `nf4` and `fp4` quantize the blocks' linear layers, which are then
    frozen (Dettmers et al. 2022, 2023); the rest is as `train.precision` says. Default: as `train.precision` says."""

    double_quantization: bool = True
    """In nf4 and fp4, also quantize the blocks' scales: 4.13 bits a weight in place of 4.5, at no loss that Dettmers
    et al. (2023, table 3) could measure."""

    from_scratch: bool = False
    """Start from the architecture alone, with random weights, for pretraining; then no weight file is read."""

    adapter: Path | None = None
    """A PEFT adapter of this base whose weights the method goes on from; the method must be the one that made it.
    Default: the method starts anew."""

    chat_template: Path | None = None
    """A Jinja file that replaces the base's chat template. Default: the base's own, since it learnt with that."""

    trust_remote_code: bool = False
    """Run Python code that ships with the model. Off, since such code can do anything."""

    @property
    def quantized(self) -> bool:
        return self.weights in ("int8", "nf4", "fp4")


class Data(Strict):
    """Where the examples come from, and how they become tokens."""

    train: list[str] = Field(min_length=1)
    """A path, a glob, a directory, a hub data set (`hf://owner/name`), or a list of them."""

    held_out: float | list[str] = 0.05
    """A share of the training rows in [0, 1), chosen by content hash so that a grown file never moves a row across;
    or paths. 5 %: enough to see over-fitting in a few thousand rows, little taken from training."""

    folds: int | None = Field(default=None, ge=2, le=100)
    """Train so many times, each on all but a part of the rows, and once more on all, which is what is used; `evaluate`
    then judges every row by the model that has not seen it (Stone 1974). For rows too few to hold any out; in place of
    `held_out`. Default: once."""

    fold: int | None = Field(default=None, ge=1)
    """Which of the `folds` parts is held out, from 1. Default: each in turn."""

    format: str = "auto"
    """The rows' form: `messages`, `sharegpt`, `alpaca`, `prompt_completion`, `question_answer`, `text`; or one that
    tells something of a text, as the objective takes it. Default: detected from the columns, and stated."""

    columns: dict[str, str] = Field(default={})
    """Names of the columns that play a part, where they are not the usual ones: `{question: q, answer: reply}`."""

    max_length: int = Field(default=1024, ge=8)
    """The longest example, in tokens. 1,024 holds most question–answer rows, and memory grows with it; where it is not
    given and the base has fewer positions, it is what the base has."""

    overflow: Literal["auto", "refuse", "truncate", "split", "drop"] = "auto"
    """What to do with an example over `max_length`; always counted. Default: `refuse` for instructions (a cut answer
    teaches the model to stop anywhere), `split` for raw text."""

    max_malformed: float = Field(default=0.01, ge=0, le=1)
    """The share of malformed rows above which the data are refused. 1 %: a few bad lines in a big file are life, more
    is a wrong form. They are counted and listed in either case."""

    skip_unusable: bool = False
    """Leave out rows that the chat template cannot show or that would teach nothing. Off: they are refused by name,
    since they mostly tell of a wrong form or template. They are counted and listed in either case."""

    pack: bool = True
    """Lay many examples into one batch, with attention and positions kept apart exactly. Off: one at a time."""

    replay: list[str] = Field(default=[])
    """Paths of other rows, general text or chats of before, of which some are learnt among the training rows against
    forgetting (Robins 1995; Scialom et al. 2022). Raw text among them is learnt as text. Default: none."""

    replay_share: float = Field(default=0.1, gt=0, lt=1)
    """How much of all training tokens is replayed, where `replay` names some. 10 %: a little of it kept most of what
    was known (Ibrahim et al. 2024, section 6)."""

    cache: bool = True
    """Keep the tokenized rows for the next run, under a key of everything that made them."""

    @model_validator(mode="after")
    def _folds_or_paths(self) -> "Data":
        if self.folds is not None and self.held_out != type(self).model_fields["held_out"].default:
            raise ValueError("folds hold every training row out once; leave data.held_out away, or folds")
        if self.fold is not None and (self.folds is None or self.fold > self.folds):
            raise ValueError(f"fold: {self.fold} is none of folds: {self.folds}")
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
    """Stop when a held-out metric no longer gets better."""

    metric: Literal["loss"] = "loss"
    """The metric of the `evaluation` event that is watched: the held-out loss, in nats a learnt token."""

    patience: int = Field(default=3, ge=1)
    """Evaluations without improvement before stopping. 3: one or two are often noise."""

    min_delta: float = Field(default=0.0, ge=0)
    """How much lower (nats) counts as better. 0: any improvement."""


class Train(Strict):
    """How long, how fast, how precisely."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps. Give this or `epochs`."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data. Default: 3 where `steps` is not given, usual for a few thousand instructions."""

    tokens_per_step: int = Field(default=2048, ge=1)
    """Real tokens (no padding) in an optimizer step, about. 2,048: some ten to twenty answers, enough for a steady
    direction with LoRA on small data."""

    tokens_per_batch: int | None = Field(default=None, ge=8)
    """Most tokens in memory at once (a longer example goes alone); a step adds up as many batches as it needs.
    Default: the step's tokens, at most 2,048, past which a CPU gets no faster."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate. Default: the method's own."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after warm-up: `cosine` and `linear` to `min_lr_ratio`, or not at all."""

    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps over which the rate rises linearly from nothing. 3 %: AdamW's variance estimate settles."""

    min_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """The last step's rate as a share of the peak. 10 %: the end still learns, and a longer run can go on from it."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled decay per unit of learning rate, not applied to norms and biases. 0: small data, short runs,
    and an adapter's decay pulls toward the base, which is seldom wanted unasked."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the gradient's first and second moments (Kingma & Ba 2015)."""

    eps: float = Field(default=1e-8, gt=0)
    """AdamW's guard against division by zero (Kingma & Ba 2015)."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient is scaled down to this Euclidean norm. 1: the field's habit; it only bites at spikes."""

    shuffle: bool = True
    """A new order each epoch, from the seed. Off: the file's order, for curricula and comparisons."""

    seed: int = 0
    """Of the order, of new weights and of dropout."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of weights and activations in forward and backward; what is trained has fp32 master weights in any case.
    Default: bf16 where this processor multiplies matrices faster in it (measured once), else fp32."""

    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1` …. Default: a GPU if there is one."""

    gradient_checkpointing: bool = False
    """Keep each block's input alone and compute the rest again in the backward pass: a fraction of the activations'
    memory for about a third more time (Chen et al. 2016). Off: short rows on a laptop fit without."""

    memory_limit: str | None = Field(default=None, pattern=MEMORY)
    """Most memory for the run, `12GB` or `900MiB`: the process's on a CPU, PyTorch's on a GPU. As many blocks as it
    takes, the first ones, compute their activations twice, and where that is not enough batches are halved; the step
    stays as it is. Default: none is set, and nothing is computed twice unasked."""

    offload_activations: bool = False
    """On a GPU: what the forward pass keeps for the backward pass waits in the host's memory. For rows too long even
    with every block computed twice; slower by what the bus takes. On a CPU there is nowhere to go, which is said."""

    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion", "muon", "schedule_free"] = (
        "adamw"
    )
    """`adamw` (Loshchilov & Hutter 2019) with its moments in fp32: what methods' rates are chosen for. In 8 bits
    (Dettmers et al. 2022), and paged (moments move to the host's memory when the GPU's is short): those are CUDA's, and
    elsewhere plain AdamW does the work, which is said. `adafactor` (Shazeer & Stern 2018) keeps a row and a column of
    moments a matrix; `lion` (Chen et al. 2023) one moment, at a fifth of the rate; `muon` (Jordan et al. 2024)
    orthogonalizes the step of matrices within blocks, at AdamW's size; `schedule_free` (Defazio et al. 2024) averages
    in place of `schedule`. Lion and schedule-free come with `tunesmith[optimizers]`."""

    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Evaluate and keep a moving average of the weights, average ← d · average + (1 − d) · weights after each step, d
    smaller in the first ones (Polyak & Juditsky 1992). Off: a falling rate averages already."""

    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """What the rate is multiplied by for each block further from the output (Clark et al. 2020, ELECTRA, appendix B:
    0.8 for encoders). 1: adapters learn alike in all blocks, and for whole encoders the method's rate is small."""

    neftune_alpha: float | None = Field(default=None, gt=0)
    """α of noise on the embeddings while training, uniform in ±α / √(tokens · hidden) of each row (Jain et al. 2023:
    5 to 15). Off: it lengthens answers, which should be asked for."""

    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints. Default: a tenth of the run, so that a kill loses at most that."""

    keep_checkpoints: int = Field(default=1, ge=1)
    """How many of the newest to keep, besides the best."""

    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations on held-out rows. Default: a tenth of the run."""

    evaluate_rows: int = Field(default=500, ge=1)
    """Most held-out rows in an evaluation during the run, the same ones each time. 500: an interval of a few
    per cent, at little cost. `tunesmith evaluate` takes all."""

    early_stopping: EarlyStopping | None = None
    """Stop when the held-out loss no longer falls. Off by default: a short run should end where it was told to."""

    tensorboard: bool = False
    """Also write TensorBoard events into the run's directory (needs the extra `tunesmith[tensorboard]`)."""

    @property
    def memory_bytes(self) -> int | None:
        """`memory_limit` in bytes."""
        return None if self.memory_limit is None else bytes_in(self.memory_limit)

    @property
    def tokens_at_once(self) -> int:
        """`tokens_per_batch`, or its default."""
        return self.tokens_per_batch or min(self.tokens_per_step, 2048)

    @model_validator(mode="before")
    @classmethod
    def _steps_or_epochs(cls, values: Any) -> Any:
        if isinstance(values, dict):
            steps, epochs = values.get("steps"), values.get("epochs")
            if steps is not None and epochs is not None:
                raise ValueError("give steps or epochs, not both")
            if steps is None and epochs is None:
                return {**values, "epochs": 3.0}
        return values


class Recipe(Strict):
    """A run: base × data × method × objective, and how to train."""

    base: Base = Base()
    """Which model the run starts from."""

    data: Data
    """What it learns from: files, their form and columns, lengths, the held-out share."""

    method: SerializeAsAny[MethodConfig] = Field(default_factory=lambda: named_kind(METHODS, "lora")())
    """Which weights move. LoRA on all linear layers: about the quality of full fine-tuning at a third of its memory
    (Hu et al. 2021, section 4.2)."""

    objective: SerializeAsAny[ObjectiveConfig] = Field(default_factory=lambda: named_kind(OBJECTIVES, "instruction")())
    """What is learnt. `instruction`: the assistant's answers."""

    train: Train = Train()
    """How long, how fast, how precisely."""

    @model_validator(mode="after")
    def _goes_together(self) -> "Recipe":
        told, formats = self.objective.ending.kind != "vocabulary", self.objective.formats
        if formats and self.data.format not in ("auto", *formats):
            raise ValueError(
                f"objective: {self.objective.kind} is learnt of rows of the form {' or '.join(formats)}, not data.format: "
                f"{self.data.format}"
            )
        if self.objective.ending.kind == "vectors" and not self.data.pack:
            raise ValueError(
                f"data.pack: false takes one row at a time, and objective: {self.objective.kind} compares rows with "
                "each other"
            )
        if self.data.folds is not None and self.train.early_stopping is not None:
            raise ValueError(
                "data.folds: the last run learns from all rows and holds none out, so train.early_stopping would stop "
                "the others alone. Set train.steps"
            )
        if told and self.data.overflow == "split":
            raise ValueError(
                f"data.overflow: split cuts a text from what is told of it. objective: {self.objective.kind} takes "
                "truncate, drop or refuse"
            )
        if self.data.replay and (told or self.objective.bases != ("decoder",)):
            raise ValueError(f"data.replay is of written text, and objective: {self.objective.kind} learns none")
        if self.base.quantized and self.method.trains_base:
            raise ValueError(
                f"method {self.method.kind} moves the base's own matrices, and base.weights: {self.base.weights} holds "
                "them frozen. Set base.weights: bf16, or a method that adds weights of its own, such as lora"
            )
        if self.base.quantized and self.base.from_scratch:
            raise ValueError(
                f"base.from_scratch makes random weights, which would be frozen in {self.base.weights} for good. Set "
                "base.weights: bf16"
            )
        if self.base.weights in ("fp32", "bf16") and self.train.precision not in ("auto", self.base.weights):
            raise ValueError(
                f"base.weights: {self.base.weights} with train.precision: {self.train.precision} would have every "
                "layer cast its weights. Set one of them, or both alike"
            )
        return self

    @property
    def precision(self) -> Literal["auto", "bf16", "fp32"]:
        """Of activations and of weights that are not quantized: as either section names it."""
        weights = self.base.weights
        if weights in ("fp32", "bf16"):
            return weights
        # bf16 has three digits, too few for values of a size of their own
        exact = self.train.precision == "auto" and self.objective.ending.problem == "regression"
        return "fp32" if exact else self.train.precision

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
        """Read a recipe from a YAML file (or take a dict), apply `key.path=value` overrides, and check it.

        Relative paths in a file are looked up beside the file, else in the working directory, and become absolute.

        Raises:
            UserError: naming the file, the field and what to do.
        """
        if isinstance(source, Recipe):
            return source if not overrides else cls.load(source.model_dump(mode="json"), overrides)
        if isinstance(source, dict):
            values, where, directory = dict(source), "recipe", Path.cwd()
        else:
            path = Path(source)
            values, where, directory = read_yaml(path), path.name, path.parent.resolve()
        if "stages" in values:
            raise UserError(f"{where} has stages, and one recipe is wanted here. tunesmith train takes all of them.")
        for override in overrides or []:
            set_field(values, override)
        return cls.from_values(values, where, directory)

    @classmethod
    def from_values(cls, values: dict[str, Any], where: str, directory: Path) -> "Recipe":
        """Check a recipe's values, whose relative paths are looked up in `directory`; `where` names them in errors.

        Raises:
            UserError: naming the field and what to do.
        """
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            lines = [f"{where}: {_explain(details)}" for details in error.errors()]
            raise UserError("\n".join(dict.fromkeys(lines))) from None
        return recipe._with_absolute_paths(directory)

    def to_yaml(self) -> str:
        """The recipe with every field, as YAML that `load` reads back to an equal recipe."""
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
    """Turn `{kind: lora, ...}` or `lora` into the class that the registry names."""
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
    """One of pydantic's errors, as: which field, what is wrong, what was given."""
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
    given = details["input"]
    shown = (
        ""
        if isinstance(given, dict | list) or "not known" in message or "cannot be" in message
        else f" (it is {given!r})"
    )
    return f"{name}: {message}{shown}" if name else message
