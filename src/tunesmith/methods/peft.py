"""Any other method that PEFT registers, by its PEFT name: `method: {kind: peft, peft_type: VERA, config: {r: 64}}`.

For each method's formula, size and weaknesses, see PEFT's documentation. docs/matrix.md lists the methods that were
tested on each kind of base, and those that are refused, with the reasons.
"""

import dataclasses
import difflib
from copy import deepcopy
from typing import Any, ClassVar, Literal

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType
from pydantic import Field, field_validator, model_validator
from transformers import PreTrainedModel

from tunesmith.config.method import MethodConfig
from tunesmith.errors import UserError
from tunesmith.methods.wrapping import by_size, wrap_with_peft
from tunesmith.models.architecture import linears_in_blocks, norms, short_names

REFUSED = {
    "ADALORA": "it reallocates ranks between layers with calls in the training loop; use lora",
    "MULTITASK_PROMPT_TUNING": "every row must name one of several tasks, and no row format does",
    "POLY": "every row must name one of several tasks, and no row format does",
    "LILY": "its router averages over all tokens of a batch, so rows packed together would change each other",
    "XLORA": "it mixes adapters that are already trained and is not an adapter itself",
    "CPT": "it needs the token ids and types of its examples in the recipe",
    "SHADOW": "it trains a second network next to the base with its own forward pass",
    "ADAPTION_PROMPT": "it replaces attention modules, so packed documents would attend to each other; use prefix",
}
"""PEFT methods that cannot be trained here, with the reasons."""

SELF_TARGETING = ("TRAINABLE_TOKENS",)
"""PEFT methods that choose their own target modules."""

OWN = {"LORA": "lora", "IA3": "ia3", "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt", "P_TUNING": "ptuning"}
"""PEFT methods that have their own kind here, with tested defaults."""


class Peft(MethodConfig):
    """Any method that PEFT registers, by its PEFT name, with PEFT's own configuration."""

    kind: Literal["peft"] = "peft"

    peft_type: str
    """PEFT's name for the method: `VERA`, `OFT`, `LOHA` …"""

    config: dict[str, Any] = Field(default={})
    """Fields of PEFT's configuration for that method. `target_modules` defaults to PEFT's choice for the family, or to
    all linear layers of the blocks if PEFT has none."""

    formula: ClassVar[str] = "as the PEFT method defines it"
    choose: ClassVar[str] = "To try a published method that has no kind of its own here. The defaults are PEFT's."
    is_mergeable: ClassVar[bool] = True

    @field_validator("peft_type")
    @classmethod
    def _known(cls, name: str) -> str:
        name = name.upper()
        known = [peft_type.value for peft_type in PEFT_TYPE_TO_CONFIG_MAPPING]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ValueError(
                f"PEFT has no method {name}. " + (f"Did you mean {near[0]}?" if near else "It has: " + ", ".join(known))
            )
        if name in REFUSED:
            raise ValueError(f"{name} cannot be trained here: {REFUSED[name]}")
        if name in OWN:
            raise ValueError(f"{name} has its own kind here. Set method: {{kind: {OWN[name]}}}")
        return name

    @model_validator(mode="after")
    def _fields(self) -> "Peft":
        known = [field.name for field in dataclasses.fields(self._class)]
        for name in self.config:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise ValueError(f"config.{name} is not a field of PEFT's {self._class.__name__}.{hint}")
        return self

    @property
    def _class(self) -> type:
        config_class: type = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.peft_type)]
        return config_class

    def apply(self, model: PreTrainedModel, seed: int) -> PeftModel:
        options = dict(self.config)
        fields = {field.name for field in dataclasses.fields(self._class)}
        has_targets = "target_modules" in options or self._chosen_by_peft(model) or self.peft_type in SELF_TARGETING
        if "target_modules" in fields and not has_targets:
            on_norms = self.peft_type == "LN_TUNING"
            options["target_modules"] = norms(model) if on_norms else short_names(model, linears_in_blocks(model))
        try:
            config = self._class(**options)
        except ImportError as error:
            raise UserError(f"method: PEFT's {self.peft_type} needs a package that is not installed: {error}") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"method.config: PEFT's {self._class.__name__} rejects it: {error}") from None
        return wrap_with_peft(model, config, seed)

    def learning_rate(self, parameters: int) -> float:
        return by_size(parameters, small=5e-3, large=5e-4)

    def trained_parameters(self, model: PreTrainedModel) -> int:
        """Counted on a copy, since each method has its own formula."""
        from tunesmith.heads.new_head import head_parameters

        peft_model = self.apply(deepcopy(model), seed=0)
        trained = sum(parameter.numel() for parameter in peft_model.parameters() if parameter.requires_grad)
        return int(trained - head_parameters(model))

    def _chosen_by_peft(self, model: PreTrainedModel) -> bool:
        """Whether PEFT has default target modules for the model's family."""
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(self.peft_type))
        return model.config.model_type in (getattr(tuner, "target_module_mapping", None) or {})
