"""What all methods that PEFT carries out share: wrapping the model, and a new head that moves with them."""

import math
from inspect import signature

import torch
from peft import PeftConfig, PeftModel, PrefixTuningConfig, PromptLearningConfig, get_peft_model
from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.models.heads import head_names, task_type
from tunesmith.models.load import quiet_peft


def wrap_with_peft(model: PreTrainedModel, config: PeftConfig, seed: int) -> PeftModel:
    """The model in PEFT's wrapper: what the configuration adds moves, in the model's own precision, and so does a head
    that is new.

    Raises:
        UserError: PEFT cannot put this method on this model.
    """
    head = head_names(model)
    config.task_type = task_type(model)
    if isinstance(config, PromptLearningConfig):
        _fit_to(model, config)
    if head and hasattr(config, "modules_to_save"):
        config.modules_to_save = [*(config.modules_to_save or []), *head]
    torch.manual_seed(seed)
    try:
        with quiet_peft():
            peft_model = get_peft_model(model, config, autocast_adapter_dtype=False)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"method: {config.peft_type.value} cannot be put on {type(model).__name__}: {first}") from error
    if not any(parameter.requires_grad for parameter in peft_model.parameters()):
        raise UserError(f"method: {config.peft_type.value} finds nothing to train on {type(model).__name__}.")
    for parameter in peft_model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(model.dtype)
    return peft_model


def refuse_two_stacks(model: PreTrainedModel, method: str) -> None:
    """Raises:
    UserError: the model is an encoder–decoder, and it would be open where the method's tokens stand.
    """
    if model.config.is_encoder_decoder:
        raise UserError(f"method: {method} is for models of one stack, and {type(model).__name__} has two. Use lora.")


def _fit_to(model: PreTrainedModel, config: PromptLearningConfig) -> None:
    """Give a prompt the sizes that PEFT looks for under names that not every family has.

    Raises:
        UserError: the model has no place for it.
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
    takes = signature(model.base_model.forward).parameters
    if "past_key_values" not in takes:
        raise UserError(f"method: {kind} needs keys and values of before, and {type(model).__name__} takes none.")


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
