"""From a recipe to a model of which exactly the method's weights move, and what follows from which do."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from tunesmith.config.recipe import Recipe
from tunesmith.data.prepare import Prepared
from tunesmith.engine.memory import enable_activation_checkpointing
from tunesmith.engine.optimizers import RATES
from tunesmith.errors import UserError
from tunesmith.models.adapters import load_adapter_weights
from tunesmith.models.architecture import blocks, stacks
from tunesmith.models.attention import use_document_attention
from tunesmith.models.fake_tensors import is_fake
from tunesmith.models.forward import check_head
from tunesmith.models.fused import use_fused_ops
from tunesmith.models.heads import body_is_frozen, check_new_head, head_names, last_linear, with_features
from tunesmith.models.lean import import_peft
from tunesmith.models.load import learned_positions, load_model
from tunesmith.models.neftune import add_neftune
from tunesmith.models.prompts import has_prefix, has_prompt, plain_model
from tunesmith.models.quantize import QuantizedLinear

PeftModel = import_peft().PeftModel


def base_parameters(model: PreTrainedModel) -> int:
    """Of the base alone: what an adapter adds is trained, and what it leaves is not."""
    peft_model = isinstance(model, PeftModel)
    quantized = sum(
        each.in_features * each.out_features for each in model.modules() if isinstance(each, QuantizedLinear)
    )
    return quantized + sum(int(each.numel()) for each in model.parameters() if not (peft_model and each.requires_grad))


def trainable_model(recipe: Recipe, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The base with the method applied: frozen weights and working copies in `dtype`, on `device`."""
    return made_trainable(recipe, load_model(recipe.base, dtype, recipe.train.seed, recipe.objective.ending).to(device))


def made_trainable(recipe: Recipe, model: PreTrainedModel) -> PreTrainedModel:
    """A base as it was loaded, or imagined, with everything that a run puts on it."""
    use_document_attention(model)
    use_fused_ops(model)
    if not is_fake(model):
        _check_ending(recipe, model)
    recipe.objective.begin(model, recipe.base)
    peft_model = recipe.method.apply(model, recipe.train.seed)
    if recipe.base.adapter is not None and not is_fake(model):
        load_adapter_weights(peft_model, recipe.base.adapter)
    if recipe.train.neftune_alpha is not None:
        if has_prompt(peft_model) and not has_prefix(peft_model):
            raise UserError(f"train.neftune_alpha: {recipe.method.kind} makes its own embeddings. Leave it out.")
        add_neftune(peft_model, recipe.train.neftune_alpha)
    if recipe.train.gradient_checkpointing:  # after PEFT, whose own forward cannot have it beside a prefix
        enable_activation_checkpointing(peft_model, len(blocks(model)))
    return peft_model


def _check_ending(recipe: Recipe, model: PreTrainedModel) -> None:
    """Hold what is known of the model's end to its own forward pass.

    Raises:
        UserError: it ends otherwise, or cannot be run in its precision.
    """
    try:
        if recipe.objective.ending.kind == "vocabulary":
            check_head(model)
        elif recipe.objective.ending.has_head:
            check_new_head(model)
    except RuntimeError as error:
        if model.dtype == torch.float32:
            raise
        raise UserError(
            f"{type(model).__name__}'s own forward pass fails in {str(model.dtype).removeprefix('torch.')} "
            f"({str(error).splitlines()[0]}). Set train.precision: fp32."
        ) from error


def learning_rates(recipe: Recipe, model: PreTrainedModel) -> tuple[float, Callable[[str], float]]:
    """The peak learning rate, and what it is multiplied by for a parameter of that name."""
    share = recipe.method.share_for_classes if recipe.objective.ending.kind != "vocabulary" else 1.0
    share *= recipe.objective.rate_share * RATES.get(recipe.train.optimizer, 1.0)
    own = recipe.method.learning_rate(base_parameters(model)) * share
    peak = recipe.train.learning_rate or float(f"{own:.1e}")
    new = getattr(plain_model(model), "new_modules", ())  # within the body: at its rate
    heads = [name for name in head_names(plain_model(model)) if name not in new]
    last = {id(parameter) for parameter in last_linear(model).parameters()} if heads else set()
    says = {name for name, parameter in model.named_parameters() if id(parameter) in last}
    away = from_output(model) if recipe.train.layer_decay < 1 else defaultdict(int)

    def factor(parameter: str) -> float:
        if any(f".{head}." in f".{parameter}" for head in heads):
            rate = recipe.objective.head_learning_rate_at(model.config.get_text_config().hidden_size)
            return rate * (recipe.objective.output_scale if parameter in says else 1.0) / peak
        return recipe.method.learning_rate_factor(parameter) * recipe.train.layer_decay ** away[parameter]

    return peak, factor


def from_output(model: PreTrainedModel) -> dict[str, int]:
    """How far each parameter is from the output: 0 behind the blocks, 1 in the last of them, …, and one more than there
    are blocks before the first."""
    places = _places(model)
    count = len(blocks(plain_model(model)))
    found: dict[str, int] = {}
    seen = False
    for name, _ in model.named_parameters():
        place = places(name)
        seen = seen or place is not None
        found[name] = count - place if place is not None else 0 if seen else count + 1
    return found


def is_hidden(model: PreTrainedModel) -> Callable[[str], bool]:
    """Whether the parameter of that name lies within a block."""
    places = _places(model)
    return lambda name: places(name) is not None


def _places(model: PreTrainedModel) -> Callable[[str], int | None]:
    """The place of the block that a parameter of that name lies in, counted over all stacks; None in no block."""
    starts: dict[str, int] = {}
    count = 0
    for name, stack in stacks(plain_model(model)):
        starts[name] = count
        count += len(stack)
    pattern = re.compile(rf"(?:^|\.)({'|'.join(map(re.escape, starts))})\.(\d+)\.")

    def place(parameter: str) -> int | None:
        match = pattern.search(parameter)
        return None if match is None else starts[match[1]] + int(match[2])

    return place


def with_room(recipe: Recipe) -> Recipe:
    """The recipe with rows no longer than the base has positions, where those are learnt and there are none beyond.

    Raises:
        UserError: the recipe asks for longer ones.
    """
    positions = learned_positions(recipe.base)
    taken = recipe.method.virtual_tokens
    if positions is None or recipe.data.max_length + taken <= positions:
        return recipe
    room = positions - taken
    if "max_length" not in recipe.data.model_fields_set:
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_length": room})})
    beside = f" beside the method's {taken} virtual tokens" if taken else ""
    raise UserError(
        f"data.max_length: {recipe.data.max_length:,} tokens{beside} are more than the {positions:,} positions that "
        f"{recipe.base.path} has. Set data.max_length: {room}."
    )


def with_known_features(recipe: Recipe, model: PreTrainedModel, prepared: Prepared, device: torch.device) -> Prepared:
    """Where nothing but a head over classes moves, what the body makes of each row is computed once."""
    if not body_is_frozen(model):
        return prepared
    budget = recipe.train.tokens_at_once
    train, held_out = (with_features(model, table, budget, device) for table in (prepared.train, prepared.held_out))
    return replace(prepared, train=train, held_out=held_out)
