"""All methods, with the number of parameters that each would train on a base."""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from tunesmith.config.base import Base
from tunesmith.config.method import MethodConfig, with_defaults
from tunesmith.config.registry import METHODS, config_classes
from tunesmith.methods.peft import OWN, REFUSED
from tunesmith.models.load import skeleton


def counted_methods(base: str) -> dict[str, Any]:
    """The list of `tunesmith.config.method_list.list_methods`, counted on the base.

    Args:
        base: as there.

    Raises:
        UserError: the base does not exist.
    """
    model = skeleton(Base(path=base))
    parameters = sum(int(parameter.numel()) for parameter in model.parameters())
    methods = []
    for kind, chosen in config_classes(METHODS, MethodConfig).items():
        if kind == "peft":
            continue
        with METHODS.left_out_if_broken(kind):
            method = chosen(last=2) if kind == "layers" else with_defaults(chosen)
            methods.append(
                {
                    "kind": kind,
                    "formula": method.formula,
                    "settings": method.model_dump(mode="json", exclude={"kind"}),
                    "trained_parameters": method.trained_parameters(model),
                    "learning_rate": method.learning_rate(parameters),
                    "choose": method.choose,
                }
            )
    names = sorted(peft_type.value for peft_type in PEFT_TYPE_TO_CONFIG_MAPPING)
    return {
        "base": base,
        "parameters": parameters,
        "methods": methods,
        "peft_types": [name for name in names if name not in (*OWN, *REFUSED, "BOTTLENECK")],
        "refused_peft_types": REFUSED,
    }
