"""What all methods that PEFT carries out share: wrapping the model, and a new head that moves with them."""

import math

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.models.heads import head_names
from tunesmith.models.load import quiet_peft


def adapt(model: PreTrainedModel, config: PeftConfig, seed: int) -> PeftModel:
    """The model in PEFT's wrapper: what the configuration adds moves, in the model's own precision, and so does a head
    that is new.

    Raises:
        UserError: PEFT cannot put this method on this model.
    """
    head = head_names(model)
    config.task_type = "SEQ_CLS" if head else "CAUSAL_LM"
    if head and hasattr(config, "modules_to_save"):
        config.modules_to_save = [*(config.modules_to_save or []), *head]
    torch.manual_seed(seed)
    try:
        with quiet_peft():
            adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"method: {config.peft_type.value} cannot be put on {type(model).__name__}: {first}") from error
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise UserError(f"method: {config.peft_type.value} finds nothing to train on {type(model).__name__}.")
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(model.dtype)
    return adapted


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    """The model with nothing that moves."""
    return model.requires_grad_(False)


def by_size(parameters: int, small: float, large: float) -> float:
    """A learning rate between that of a model of ten million weights and that of one of a billion.

    Geometric in the number of weights, constant outside; larger models want smaller steps (Kaplan et al. 2020, appendix
    D.6). Two digits.
    """
    share = min(1.0, max(0.0, (math.log10(max(1, parameters)) - 7) / 2))
    return float(f"{small ** (1 - share) * large**share:.1e}")
