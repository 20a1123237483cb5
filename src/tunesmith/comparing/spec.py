"""`compare.yaml`: what is compared, on which rows, and what things cost."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from tunesmith.comparing.costs import Prices
from tunesmith.comparing.recommendation import MARGIN
from tunesmith.comparing.ways import WAYS
from tunesmith.config.data import Data
from tunesmith.config.registry import Strict
from tunesmith.config.strict_file import checked_values, mapping_in
from tunesmith.errors import UserError
from tunesmith.server_address import is_address


class Server(Strict):
    """A larger or hosted model behind OpenAI's protocol."""

    url: str
    """As `evaluate` takes it: `http://HOST/v1#MODEL`. Its key is read from OPENAI_API_KEY."""

    name: str | None = None
    """Of the way. Default: the model's name."""

    price_in: float | None = Field(default=None, ge=0)
    """Of a million tokens that it reads, in the currency of `prices`."""

    price_out: float | None = Field(default=None, ge=0)
    """Of a million tokens that it writes."""

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if not is_address(value):
            raise ValueError("must begin with http:// or https://")
        return value


class Limits(Strict):
    """What a way must keep to be recommended."""

    latency_p95: float | None = Field(default=None, gt=0)
    """Seconds from a request to its answer's end, of 95 % of the requests."""

    memory_gb: float | None = Field(default=None, gt=0)
    """Of weights, cache and index, in 10⁹ bytes."""

    cost_per_thousand: float | None = Field(default=None, gt=0)
    """Of a thousand requests, without one-off costs, in the currency of `prices`, or in seconds of this machine."""


class Comparison(Strict):
    """What is compared."""

    base: str
    """The model that is prompted and fine-tuned: a directory, a short name or a hub name. It writes text."""

    data: Data
    """Questions with their answers, as in a recipe: `train`, and `held_out` (a share, or files). The held-out rows
    decide; nothing is chosen or trained on them."""

    documents: str | None = None
    """A directory of documents to retrieve from. Default: there are none."""

    encoder: str = "auto"
    """What the documents are embedded with, as in `tunesmith index`."""

    excerpts: int = Field(default=3, ge=1, le=20)
    """Chunks of the documents in a prompt."""

    prompts: list[str] = Field(default=[])
    """Files of prompts, as `tunesmith prompt search` takes them. The best on development rows is a way."""

    shots: list[int] = Field(default=[2, 4, 8], max_length=5)
    """How many examples in a prompt are tried; the best number on development rows is a way."""

    tune: dict[str, Any] = Field(default={})
    """How to fine-tune: the sections `method`, `train` and `objective` of a recipe, and `base` for its other fields.
    Default: those of a recipe."""

    tuned: str | None = None
    """A finished run on these training rows, to take in place of a new one."""

    retrieval_tuned: str | None = None
    """A finished run on rows with excerpts, to take in place of a new one."""

    servers: list[Server] = Field(default=[])
    """Larger or hosted models."""

    ways: list[str] = Field(default=[])
    """Which ways to compare. Default: all that can run."""

    metric: str | None = None
    """What decides, as in `evaluate --metric`. Default: the F1 of fields if all answers are JSON, exact match if they
    are a few words, else ROUGE-L."""

    margin: float = Field(default=MARGIN, ge=0, lt=1)
    """A difference of the metric that is not worth a more costly way."""

    rows: int = Field(default=200, ge=10)
    """The most held-out rows, evenly spaced."""

    development: int = Field(default=60, ge=10)
    """The most training rows that are set aside, at most a fifth of them: prompts and examples are chosen on them."""

    max_new_tokens: int = Field(default=128, ge=1)
    """The most tokens of an answer."""

    topic: dict[str, str] | None = None
    """Options of the suite `topic`, to measure how each way declines other jobs and withstands attacks; `{}`: its
    defaults. Default: it is not measured."""

    limits: Limits = Limits()
    """What a way must keep to be recommended."""

    prices: Prices = Prices()
    """What the machine and labeled rows cost."""

    budget: str | None = None
    """A time such as `20min`: fewer rows, and if needed fewer ways, so that the comparison takes about as long."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the models' arithmetic."""

    @property
    def _paths(self) -> dict[str, str | None]:
        """What must exist, by field."""
        return {"documents": self.documents, "tuned": self.tuned, "retrieval_tuned": self.retrieval_tuned}

    @field_validator("documents", "tuned", "retrieval_tuned", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("ways")
    @classmethod
    def _known_ways(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in WAYS:
                raise ValueError(f"{name} is not a way. Known: {', '.join(WAYS)}; servers are under servers")
        return value

    @classmethod
    def load(cls, file: str | Path) -> "Comparison":
        """Read a comparison. Paths are relative to its file.

        Args:
            file: in YAML.

        Returns:
            The comparison, with absolute paths.

        Raises:
            UserError: it cannot be read, or is not valid; the message names the field.
        """
        path = Path(file).expanduser()
        loaded = checked_values(cls, mapping_in(path, "a comparison", "base and data"), path.name)
        return loaded.resolved(path.absolute().parent)

    def resolved(self, directory: Path) -> "Comparison":
        """With absolute paths.

        Args:
            directory: where relative paths begin.

        Returns:
            A copy.

        Raises:
            UserError: the documents, a prompt or the run is missing.
        """

        def absolute(path: str) -> str:
            found = directory / Path(path).expanduser()
            return str(found) if found.exists() or any(sign in path for sign in "*?[") else path

        def existing(field: str, path: str) -> str:
            found = directory / Path(path).expanduser()
            if not found.exists():
                raise UserError(f"{field}: {found} does not exist. Correct the path.")
            return str(found)

        held_out = self.data.held_out
        data = self.data.model_copy(
            update={
                "train": [absolute(path) for path in self.data.train],
                "held_out": held_out if isinstance(held_out, float) else [absolute(path) for path in held_out],
            }
        )
        return self.model_copy(
            update={
                "base": absolute(self.base),
                "data": data,
                **{field: None if path is None else existing(field, path) for field, path in self._paths.items()},
                "prompts": [existing("prompts", prompt) for prompt in self.prompts],
            }
        )
