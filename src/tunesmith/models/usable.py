"""What a person names when they want answers (a run, an adapter, a model, a hub name), loaded ready to answer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import tunesmith.models.bottleneck  # noqa: F401  registers that method, so that PEFT reads its adapters
from tunesmith.errors import UserError
from tunesmith.models.adapters import refuse_pickle
from tunesmith.models.load import labels_of, load_model, load_tokenizer, locate, quiet_peft, tokenizer_at
from tunesmith.recipe import Base, Recipe
from tunesmith.run import last_stage


@dataclass(frozen=True, slots=True)
class Usable:
    """A base, and the adapter on top of it if there is one."""

    base: Base
    adapter: Path | None = None
    labels: Sequence[str] | None = None
    """The classes' names, if it is a classifier; None if it writes."""

    @classmethod
    def find(cls, name: str) -> "Usable":
        """From a run's directory, an adapter's, a model's, a hub name, or `embedded`.

        Raises:
            UserError: there is no such thing, or the run has not finished.
        """
        path = last_stage(Path(name).expanduser())
        name = str(path) if (path / "recipe.yaml").exists() else name
        if (path / "recipe.yaml").exists():
            if (path / "adapter").exists():
                return cls(Recipe.load(path / "recipe.yaml").base, path / "adapter", _labels_beside(path / "adapter"))
            name = locate(Base(path=str(path)))
        elif (path / "adapter_config.json").exists():
            config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
            base = Base(path=config["base_model_name_or_path"], revision=config.get("revision"))
            return cls(base, path, _labels_beside(path))
        return cls(Base(path=name), labels=labels_of(Base(path=name)))

    def whole(self) -> "Usable":
        """The same with the base's weights as they are stored, where a run held them quantised."""
        return replace(self, base=self.base.model_copy(update={"weights": "auto"}))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The one that was trained with: it lies beside the adapter, with its chat template."""
        if self.adapter is not None and (self.adapter / "tokenizer_config.json").exists():
            return tokenizer_at(str(self.adapter), self.base)
        return load_tokenizer(self.base)

    def model(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """The model in evaluation mode; the adapter in fp32 beside a base in `dtype` is cast to `dtype`.

        Raises:
            UserError: it cannot be loaded, or the adapter is another base's.
        """
        model = load_model(self.base, dtype, labels=self.labels)
        if self.adapter is not None:
            refuse_pickle(self.adapter)
            try:
                with quiet_peft():
                    model = PeftModel.from_pretrained(model, self.adapter, autocast_adapter_dtype=False).to(dtype)
            except (RuntimeError, ValueError, OSError) as error:
                first = str(error).strip().splitlines()[0]
                raise UserError(f"{self.adapter} does not fit on {self.base.path}: {first}") from error
        return model.to(device).eval()


def _labels_beside(adapter: Path) -> list[str] | None:
    file = adapter / "labels.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
