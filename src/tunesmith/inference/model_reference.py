"""Model references: a run, an adapter, a model or a hub name that a user gives, loaded for inference."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.config.base import Base
from tunesmith.config.head import Head
from tunesmith.config.recipe import Recipe
from tunesmith.errors import UserError
from tunesmith.heads.sentence_transformers_format import stored_classifier
from tunesmith.heads.stored import head_of_adapter, stored_head
from tunesmith.models.adapters import refuse_pickle
from tunesmith.models.attention import use_document_attention
from tunesmith.models.layer_by_layer import packing
from tunesmith.models.load import (
    config_of,
    fingerprint,
    load_model,
    load_tokenizer,
    locate,
    stored_dtype,
    tokenizer_at,
)
from tunesmith.models.peft_import import import_peft
from tunesmith.models.prompts import plain_model
from tunesmith.models.quiet import quiet_peft
from tunesmith.modules.fused import use_fused_ops
from tunesmith.modules.served_linear import can_pack
from tunesmith.run import resolve_run


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A base, and its adapter if there is one.

    Attributes:
        base: which model.
        head: what the model ends in.
        adapter: the directory of the adapter.
        directory: of the trained files, if there is one.
    """

    base: Base
    head: Head
    adapter: Path | None = None
    directory: Path | None = None

    @classmethod
    def find(cls, name: str) -> "ModelReference":
        """Resolve a run, adapter or model directory, a hub name, or `embedded`.

        Raises:
            UserError: nothing of that name exists, or the run has not finished.
        """
        path = resolve_run(Path(name).expanduser())
        if (path / "recipe.yaml").exists():
            if (path / "adapter").exists():
                adapter = path / "adapter"
                base = Recipe.load(path / "recipe.yaml").base
                return cls(base, head_of_adapter(adapter, base), adapter, adapter)
            name = locate(Base(path=str(path)))
        elif (path / "adapter_config.json").exists():
            config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
            if not config.get("base_model_name_or_path"):
                raise UserError(f"{path / 'adapter_config.json'} names no base. Set base_model_name_or_path to it.")
            base = Base(path=config["base_model_name_or_path"], revision=config.get("revision"))
            return cls(base, head_of_adapter(path, base), path, path)
        base = Base(path=name)
        return cls(base, stored_head(base), directory=Path(locate(base)))

    def with_weights(self, weights: str) -> "ModelReference":
        """The same reference with the base's weights stored otherwise in memory than in the run.

        Args:
            weights: a value of the recipe's `base.weights`; `auto`: as they are in the files.

        Raises:
            UserError: there is no such value.
        """
        known = get_args(Base.model_fields["weights"].annotation)
        if weights not in known:
            raise UserError(f"weights: {weights} is not one of {', '.join(known)}.")
        return replace(self, base=self.base.model_copy(update={"weights": weights}))

    def without_adapter(self) -> "ModelReference":
        """The base alone."""
        return replace(self, adapter=None)

    def classifier(self) -> nn.Linear | None:
        """The classifier of the model's vectors, if it has one."""
        return None if self.directory is None else stored_classifier(self.directory)

    def fitted_head(self) -> Head:
        """The head, with the classifier of the model's vectors if it has one."""
        classifier = self.classifier()
        return self.head if classifier is None else self.head.with_classifier(classifier)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the training, stored next to the adapter with its chat template; otherwise the base's."""
        if self.adapter is not None and (self.adapter / "tokenizer_config.json").exists():
            return tokenizer_at(str(self.adapter), self.base)
        return load_tokenizer(self.base)

    def model(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """The model in evaluation mode. An adapter stored in fp32 is cast to `dtype`.

        Raises:
            UserError: the model cannot be loaded, or the adapter belongs to another base.
        """
        model = self._adapted(load_model(self.base, dtype, head=self.head))
        return (model if self.adapter is None else model.to(dtype)).to(device).eval()

    def stored_model(self) -> PreTrainedModel:
        """The model on the CPU in evaluation mode, its base in the dtype that it is stored in, so that weights are
        read from the files when they are used; an adapter is in fp32.

        Raises:
            UserError: as `model`.
        """
        dtype = torch.float32 if self._adapter_changes_base() else stored_dtype(self.base)
        return self._adapted(load_model(self.base, dtype, head=self.head), autocast_adapter_dtype=True).eval()

    def _adapted(self, model: PreTrainedModel, autocast_adapter_dtype: bool = False) -> PreTrainedModel:
        """The base with its adapter, if there is one: in the base's dtype, or in fp32 with `autocast_adapter_dtype`."""
        if self.adapter is None:
            return model
        refuse_pickle(self.adapter)
        peft = import_peft()
        import tunesmith.modules.bottleneck  # noqa: F401  registers the method, so that PEFT can load its adapters

        try:
            with quiet_peft():
                wrapped: PreTrainedModel = peft.PeftModel.from_pretrained(
                    model, self.adapter, autocast_adapter_dtype=autocast_adapter_dtype
                )
        except (RuntimeError, ValueError, OSError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"{self.adapter} does not fit on {self.base.path}: {first}") from error
        return wrapped

    def _adapter_changes_base(self) -> bool:
        """Whether PEFT changes the base's weights when it loads the adapter, as with PiSSA, which then needs fp32."""
        if self.adapter is None:
            return False
        settings = json.loads((self.adapter / "adapter_config.json").read_text(encoding="utf-8"))
        chosen = settings.get("init_lora_weights")
        return isinstance(chosen, str) and chosen not in ("gaussian", "orthogonal")

    def served_model(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """The model for the generation engine. On a CPU the linear layers of its blocks are packed as they are read, so
        that they are never in memory in two forms.

        Raises:
            UserError: as `model`.
        """
        is_quantized = self.base.quantized or hasattr(config_of(self.base), "quantization_config")
        if is_quantized or self.adapter is not None or not can_pack(dtype, device):
            return self.model(dtype, device)
        return load_model(self.base, dtype, head=self.head, replacement=packing())

    def packing_model(self, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """The model without gradients, beside one in training: it computes packed rows, if its family can.

        Raises:
            UserError: as `model`.
        """
        model = self.model(dtype, device).requires_grad_(False)
        if use_document_attention(plain_model(model)):
            use_fused_ops(plain_model(model))
        return model


def fingerprint_of(name: str) -> dict[str, str]:
    """Values that identify this model among others of the same name."""
    reference = ModelReference.find(name)
    return fingerprint(reference.base.model_copy(update={"adapter": reference.adapter}))
