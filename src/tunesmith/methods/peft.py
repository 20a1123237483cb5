"""Any other method that PEFT registers, by its PEFT name: `method: {kind: peft, peft_type: VERA, config: {r: 64}}`.

Formula, size and weakness are the method's own: see PEFT's documentation. What was tried here on every kind of base,
and what is refused and why, is in docs/matrix.md.
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

from tunesmith.config.registry import MethodConfig
from tunesmith.errors import UserError
from tunesmith.methods.wrapping import by_size, wrap_with_peft
from tunesmith.models.architecture import linears_in_blocks, norms, short_names

REFUSED = {
    "ADALORA": "it moves ranks between layers by calls from PEFT's own training loop; use lora",
    "MULTITASK_PROMPT_TUNING": "every row must say which of several tasks it is of, which no data form does",
    "POLY": "every row must say which of several tasks it is of, which no data form does",
    "LILY": "its router averages over all tokens of a batch, so rows packed together would change each other",
    "XLORA": "it mixes adapters that have been trained before, and is none by itself",
    "CPT": "it needs the token ids and types of its examples written out in the recipe",
    "SHADOW": "it trains a second network beside the base through a forward pass of its own",
    "ADAPTION_PROMPT": "it exchanges whole attention modules, which would mix packed documents; use prefix",
}
"""Methods of PEFT's that cannot be trained here, and why."""

PLACED = ("TRAINABLE_TOKENS",)
"""Methods of PEFT's that find their own place in a model."""

OWN = {"LORA": "lora", "IA3": "ia3", "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt", "P_TUNING": "ptuning"}
"""Methods that have a kind of their own, with defaults that were tried."""


class Peft(MethodConfig):
    """Any method that PEFT registers, by its PEFT name, with PEFT's own settings."""

    kind: Literal["peft"] = "peft"

    peft_type: str
    """PEFT's name of the method: `VERA`, `OFT`, `LOHA` …"""

    config: dict[str, Any] = Field(default={})
    """Fields of PEFT's configuration of that method. `target_modules` defaults to PEFT's choice for the family, else to
    all linear layers of the blocks."""

    formula: ClassVar[str] = "as the PEFT method defines it"
    choose: ClassVar[str] = "To try a published method that has no kind of its own here. Defaults are PEFT's."

    @field_validator("peft_type")
    @classmethod
    def _known(cls, name: str) -> str:
        name = name.upper()
        known = [each.value for each in PEFT_TYPE_TO_CONFIG_MAPPING]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ValueError(
                f"PEFT knows no method {name}. "
                + (f"Did you mean {near[0]}?" if near else "Known: " + ", ".join(known))
            )
        if name in REFUSED:
            raise ValueError(f"{name} cannot be trained here: {REFUSED[name]}")
        if name in OWN:
            raise ValueError(f"{name} has a kind of its own: method: {{kind: {OWN[name]}}}")
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
        found: type = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.peft_type)]
        return found

    def apply(self, model: PreTrainedModel, seed: int) -> PeftModel:
        options = dict(self.config)
        fields = {field.name for field in dataclasses.fields(self._class)}
        chosen = "target_modules" in options or self._chosen_by_peft(model) or self.peft_type in PLACED
        if "target_modules" in fields and not chosen:
            on_norms = self.peft_type == "LN_TUNING"
            options["target_modules"] = norms(model) if on_norms else short_names(model, linears_in_blocks(model))
        try:
            config = self._class(**options)
        except ImportError as error:
            raise UserError(f"method: PEFT's {self.peft_type} needs a package that is not here: {error}") from None
        except (ValueError, TypeError) as error:
            raise UserError(f"method.config: PEFT's {self._class.__name__} refuses it: {error}") from None
        return wrap_with_peft(model, config, seed)

    def learning_rate(self, parameters: int) -> float:
        return by_size(parameters, small=5e-3, large=5e-4)

    def trained_parameters(self, model: PreTrainedModel) -> int:
        """Counted on a copy, since each method has its own formula."""
        from tunesmith.models.heads import head_parameters

        peft_model = self.apply(deepcopy(model), seed=0)
        moving = sum(parameter.numel() for parameter in peft_model.parameters() if parameter.requires_grad)
        return int(moving - head_parameters(model))

    def _chosen_by_peft(self, model: PreTrainedModel) -> bool:
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(self.peft_type))
        return model.config.model_type in (getattr(tuner, "target_module_mapping", None) or {})
