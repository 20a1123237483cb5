"""Code shared by all methods that use PEFT: wrapping the model, and training a new head together with the adapter."""

import math
from inspect import signature

import torch
from peft import PeftConfig, PeftModel, PrefixTuningConfig, PromptLearningConfig, get_peft_model
from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.heads.new_head import head_names, peft_task_type
from tunesmith.models.quiet import quiet_peft


def wrap_with_peft(model: PreTrainedModel, config: PeftConfig, seed: int) -> PeftModel:
    """Wrap the model with PEFT. The added weights are trained, in the model's own dtype, and so is a new head.

    Raises:
        UserError: PEFT cannot apply this method to this model.
    """
    head = head_names(model)
    config.task_type = peft_task_type(model)
    if isinstance(config, PromptLearningConfig):
        _set_sizes(model, config)
    if head and hasattr(config, "modules_to_save"):
        config.modules_to_save = [*(config.modules_to_save or []), *head]
    torch.manual_seed(seed)
    try:
        with quiet_peft():
            peft_model = get_peft_model(model, config, autocast_adapter_dtype=False)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"method: {config.peft_type.value} cannot be applied to {type(model).__name__}: {first}"
        ) from error
    if not any(parameter.requires_grad for parameter in peft_model.parameters()):
        raise UserError(f"method: {config.peft_type.value} finds nothing to train on {type(model).__name__}.")
    for parameter in peft_model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(model.dtype)
    return peft_model


def refuse_two_stacks(model: PreTrainedModel, method: str) -> None:
    """Raises:
    UserError: the model is an encoder–decoder, where it is undefined which stack gets the method's tokens.
    """
    if model.config.is_encoder_decoder:
        raise UserError(f"method: {method} does not support encoder-decoders such as {type(model).__name__}. Use lora.")


def _set_sizes(model: PreTrainedModel, config: PromptLearningConfig) -> None:
    """Set the sizes that PEFT otherwise reads from config fields that not every family has.

    Raises:
        UserError: the model does not support the method.
    """
    kind = config.peft_type.value
    refuse_two_stacks(model, kind)
    sizes = model.config.get_text_config()
    config.num_layers = sizes.num_hidden_layers
    config.num_attention_heads = sizes.num_attention_heads
    if not isinstance(config, PrefixTuningConfig):
        config.token_dim = model.get_input_embeddings().embedding_dim
        return
    config.token_dim = sizes.hidden_size
    accepted = signature(model.base_model.forward).parameters
    if "past_key_values" not in accepted:
        raise UserError(f"method: {kind} needs a cache of keys and values, and {type(model).__name__} accepts none.")


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    """The model with all parameters frozen."""
    return model.requires_grad_(False)


def by_size(parameters: int, small: float, large: float) -> float:
    """A learning rate between that for ten million parameters (`small`) and that for a billion (`large`).

    Interpolated geometrically in the number of parameters, constant outside that range, and rounded to two digits.
    Larger models need smaller steps (Kaplan et al. 2020, appendix D.6).
    """
    fraction = min(1.0, max(0.0, (math.log10(max(1, parameters)) - 7) / 2))
    return float(f"{small ** (1 - fraction) * large**fraction:.1e}")
