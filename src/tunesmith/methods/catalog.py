"""Every method with what it would train on a base, from the base's shape alone."""

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from tunesmith.config.recipe import Base
from tunesmith.config.registry import METHODS, named_kind
from tunesmith.methods.peft import OWN, REFUSED
from tunesmith.models.load import skeleton


def catalog(base: str) -> dict[str, Any]:
    """Plain values: base, parameters, methods (kind, formula, trained_parameters, learning_rate, choose), peft_types.

    Args:
        base: a model's directory, a hub name, or `embedded`; its config is read, its weights are not.

    Raises:
        UserError: it is not there.
    """
    model = skeleton(Base(path=base))
    parameters = sum(int(parameter.numel()) for parameter in model.parameters())
    listed = []
    for kind in METHODS:
        if kind == "peft":
            continue
        method = named_kind(METHODS, kind).model_validate({"last": 2} if kind == "layers" else {})
        listed.append(
            {
                "kind": kind,
                "formula": method.formula,
                "settings": method.model_dump(mode="json", exclude={"kind"}),
                "trained_parameters": method.trained_parameters(model),
                "learning_rate": method.learning_rate(parameters),
                "choose": method.choose,
            }
        )
    names = sorted(each.value for each in PEFT_TYPE_TO_CONFIG_MAPPING)
    return {
        "base": base,
        "parameters": parameters,
        "methods": listed,
        "peft_types": [name for name in names if name not in (*OWN, *REFUSED, "BOTTLENECK")],
        "refused_peft_types": REFUSED,
    }
