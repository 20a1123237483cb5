"""What is exported: a model in one piece, its tokenizer, and what its run knows about it."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.recipe import Recipe
from tunesmith.data.render import Renderer
from tunesmith.data.template import UnusableError
from tunesmith.errors import UserError
from tunesmith.exporting.merging import Merging, choose_merging
from tunesmith.exporting.weights import Weights
from tunesmith.inference.generate import end_tokens
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.bases import known_bases
from tunesmith.models.load import stored_dtype
from tunesmith.run import Run, resolve_run


@dataclass(frozen=True)
class Subject:
    """A model to export.

    Attributes:
        name: as the user gave it.
        reference: what the name stands for.
        run: the run that trained it, if it has one.
        directory: for models that are written only to be measured; must exist.
        dtype: that the weights are rounded to. Default: as the base is stored.
    """

    name: str
    reference: ModelReference
    run: Run | None = None
    directory: Path = Path()
    dtype: torch.dtype | None = None

    @classmethod
    def find(cls, name: str, directory: Path = Path(), dtype: torch.dtype | None = None) -> "Subject":
        """Args:
            name: a run, an adapter, a model directory or a name of a base.
            directory: see `Subject`.
            dtype: see `Subject`.

        Raises:
            UserError: nothing of that name exists, or the run has not finished.
        """
        path = resolve_run(Path(name).expanduser())
        run = Run.open(path) if (path / "recipe.yaml").exists() else None
        return cls(name, ModelReference.find(name), run, directory, dtype)

    @cached_property
    def merging(self) -> Merging:
        """How its adapter is merged.

        Raises:
            UserError: its adapter cannot be merged.
        """
        return choose_merging(resolve_run(Path(self.name)), self.reference, self.directory, self.written_dtype)

    @cached_property
    def weights(self) -> Weights:
        """Its tensors, with the adapter merged.

        Raises:
            UserError: it cannot be loaded, or its adapter cannot be merged.
        """
        return Weights(self.reference, self.merging.into)

    @property
    def model(self) -> PreTrainedModel:
        """It in one piece on the meta device: its structure and its configs."""
        return self.weights.skeleton

    @property
    def written_dtype(self) -> torch.dtype:
        """The dtype that its weights are rounded to if they are not quantized."""
        return stored_dtype(self.reference.base) if self.dtype is None else self.dtype

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.reference.tokenizer()

    @cached_property
    def ends(self) -> list[int]:
        """The ids that end an answer; none if the model does not generate text.

        Raises:
            UserError: the chat template ends no answer.
        """
        if not self.reference.head.generates_text:
            return []
        try:
            return end_tokens(self.model, Renderer(self.tokenizer))
        except UnusableError as error:
            raise UserError(f"{self.name} cannot be exported: {error}.") from None

    @property
    def generation(self) -> GenerationConfig | None:
        """The model's defaults for generation, with all ids that end an answer."""
        if not self.reference.head.generates_text:
            return None
        config = GenerationConfig.from_dict(self.model.generation_config.to_dict())
        config.eos_token_id = self.ends[0] if len(self.ends) == 1 else self.ends or None
        if not config.do_sample:  # they have no effect, and transformers does not save them
            config.update(**dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "typical_p")))
        config.bos_token_id = self.tokenizer.bos_token_id if config.bos_token_id is None else config.bos_token_id
        config.pad_token_id = self.tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id
        return config

    @property
    def title(self) -> str:
        """A name for people."""
        return Path(self.name).expanduser().resolve().name if self.run is not None else Path(self.name).name

    @property
    def base_name(self) -> str:
        """The base's name on the hub if it is known, else as it was given."""
        path = self.reference.base.path
        known = known_bases().get(path)
        return known.hub[0] if known is not None and known.hub else path

    @property
    def license(self) -> str | None:
        """The base's license, in the hub's spelling; None if it is not known."""
        path = self.reference.base.path
        known = known_bases().get(path) or next((base for base in known_bases().values() if path in base.hub), None)
        return None if known is None else known.license.lower()

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe of its run."""
        return None if self.run is None else Recipe.load(self.run.directory / "recipe.yaml")

    @property
    def data(self) -> dict[str, str]:
        """The SHA-256 of each data file of its run, by name."""
        return dict(self._stored("provenance.json").get("data", {}))

    @property
    def evaluation(self) -> dict[str, Any]:
        """What `tunesmith evaluate` wrote, or the loss in the last evaluation of the training in the same form."""
        written = self._stored("evaluation.json")
        if written or self.run is None:
            return written
        last = next((event for event in reversed(self.run.events()) if event["event"] == "evaluation"), None)
        if last is None:
            return {}
        loss = {"value": last["loss"], "interval": last["loss_interval"]}
        return {
            "rows": last["rows"],
            "figures": {"loss": {"title": "loss"}},
            "models": {"base": {}, "tuned": {"loss": loss}},
        }

    def _stored(self, name: str) -> dict[str, Any]:
        file = None if self.run is None else self.run.directory / name
        if file is None or not file.exists():
            return {}
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content
