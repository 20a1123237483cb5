"""Build a recipe's model, in which only the method's weights are trained, and derive settings from those weights."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from tunesmith.config.head import Head
from tunesmith.config.recipe import Recipe
from tunesmith.config.train import Train
from tunesmith.data.prepare import Prepared
from tunesmith.engine.master_weights import MasterWeights
from tunesmith.engine.memory import enable_activation_checkpointing
from tunesmith.engine.optimizers import RATES
from tunesmith.errors import UserError
from tunesmith.heads.new_head import head_names, last_linear
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.adapters import load_adapter_weights
from tunesmith.models.architecture import blocks, stacks
from tunesmith.models.attention import use_document_attention
from tunesmith.models.load import learned_positions, load_model
from tunesmith.models.peft_import import import_peft
from tunesmith.models.prompts import has_prefix, has_prompt, plain_model
from tunesmith.modules.fused import use_fused_ops
from tunesmith.modules.neftune import add_neftune
from tunesmith.modules.no_dropout import without_dropout
from tunesmith.modules.quantized_linear import QuantizedLinear
from tunesmith.objectives.objective import Objective

PeftModel = import_peft().PeftModel


def base_parameters(model: PreTrainedModel) -> int:
    """Parameters of the base, without those that an adapter adds: they are the trained ones."""
    peft_model = isinstance(model, PeftModel)
    quantized = sum(
        module.in_features * module.out_features for module in model.modules() if isinstance(module, QuantizedLinear)
    )
    return quantized + sum(
        int(parameter.numel()) for parameter in model.parameters() if not (peft_model and parameter.requires_grad)
    )


def trainable_model(recipe: Recipe, dtype: torch.dtype, device: torch.device) -> tuple[PreTrainedModel, Objective]:
    """The base with the method applied, and the objective that trains it.

    Args:
        recipe: what to build.
        dtype: of frozen weights and working copies.
        device: of the model.

    Raises:
        UserError: the model does not support a setting of the recipe.
    """
    model = load_model(recipe.base, dtype, recipe.train.seed, recipe.objective.head).to(device)
    use_document_attention(model)
    use_fused_ops(model)
    _check_head(recipe.objective.head, model)
    trained, objective = make_trainable(recipe, model, ModelReference.find)
    recipe.method.initialize(trained)
    if recipe.base.adapter is not None:
        load_adapter_weights(trained, recipe.base.adapter)
    return trained, objective


def make_trainable(
    recipe: Recipe, model: PreTrainedModel, find: Callable[[str], ModelReference]
) -> tuple[PreTrainedModel, Objective]:
    """Add to a base what the recipe trains. Nothing here reads the base's values, so that the planner can simulate it.

    Args:
        recipe: what to build.
        model: the base.
        find: finds the models that the objective has beside it.

    Raises:
        UserError: the model does not support a setting of the recipe.
    """
    recipe.objective.initialize_head(model)
    references = [find(path) for path in recipe.objective.reference_paths]
    for reference in references:
        recipe.objective.check_reference(reference, recipe.base)
    objective: Objective = recipe.objective.build(
        [reference.packing_model(model.dtype, model.device) for reference in references]
    )
    _refuse_noise(recipe)
    trained = recipe.method.apply(model, recipe.train.seed)
    if recipe.train.neftune_alpha is not None:
        if has_prompt(trained) and not has_prefix(trained):
            raise UserError(
                f"train.neftune_alpha: {recipe.method.kind} makes its own embeddings. Leave out train.neftune_alpha."
            )
        add_neftune(plain_model(trained), recipe.train.neftune_alpha)
    objective.add_layers(trained)
    if recipe.objective.rollouts is not None:
        without_dropout(trained)
    if recipe.train.gradient_checkpointing:  # after PEFT: its forward refuses a prefix with it
        enable_activation_checkpointing(trained, len(blocks(model)))
    return trained, objective


def _refuse_noise(recipe: Recipe) -> None:
    """Refuse settings by which a model in training computes something else than one that samples.

    Raises:
        UserError: the recipe has one, and learns from samples of the model.
    """
    if recipe.objective.rollouts is None:
        return
    noisy = {"train.neftune_alpha": recipe.train.neftune_alpha, "method.dropout": getattr(recipe.method, "dropout", 0)}
    for name, value in noisy.items():
        if value:
            raise UserError(
                f"{name}: {value:g} makes a model in training another one than that which samples, and "
                f"{recipe.objective.kind} learns from its samples. Leave out {name}."
            )


def _check_head(head: Head, model: PreTrainedModel) -> None:
    """Check our computation of the model's head against the model's own forward pass.

    Raises:
        UserError: they differ, or the model cannot run in its precision.
    """
    try:
        head.check(model)
    except RuntimeError as error:
        if model.dtype == torch.float32:
            raise
        raise UserError(
            f"{type(model).__name__}'s own forward pass fails in {str(model.dtype).removeprefix('torch.')} "
            f"({str(error).splitlines()[0]}). Set train.precision: fp32."
        ) from error


OF_OBJECTIVE = "objective."
"""Begins the names of the parameters of an objective's own layers."""


def learning_rates(recipe: Recipe, model: PreTrainedModel) -> tuple[float, Callable[[str], float]]:
    """The peak learning rate, and the factor on it by parameter name."""
    share = recipe.method.classification_rate_factor if not recipe.objective.head.generates_text else 1.0
    share *= recipe.objective.rate_factor * RATES.get(recipe.train.optimizer, 1.0)
    default = recipe.method.learning_rate(base_parameters(model)) * share
    peak = recipe.train.learning_rate or float(f"{default:.1e}")
    new = getattr(plain_model(model), "new_modules", ())  # inside the body, trained at the body's rate
    heads = [name for name in head_names(plain_model(model)) if name not in new]
    last = {id(parameter) for parameter in last_linear(model).parameters()} if heads else set()
    output_layer = {name for name, parameter in model.named_parameters() if id(parameter) in last}
    distances = from_output(model) if recipe.train.layer_decay < 1 else defaultdict(int)

    def factor(parameter: str) -> float:
        if parameter.startswith(OF_OBJECTIVE):
            return recipe.objective.head_learning_rate_at(model.config.get_text_config().hidden_size) / peak
        if any(f".{head}." in f".{parameter}" for head in heads):
            rate = recipe.objective.head_learning_rate_at(model.config.get_text_config().hidden_size)
            return rate * (recipe.objective.output_scale if parameter in output_layer else 1.0) / peak
        return recipe.method.learning_rate_factor(parameter) * recipe.train.layer_decay ** distances[parameter]

    return peak, factor


def from_output(model: PreTrainedModel) -> dict[str, int]:
    """Each parameter's distance from the output: 0 after the blocks, 1 in the last block, …, and the number of blocks
    + 1 before the first."""
    block_index = _block_index(model)
    count = len(blocks(plain_model(model)))
    distances: dict[str, int] = {}
    seen = False
    for name, _ in model.named_parameters():
        index = block_index(name)
        seen = seen or index is not None
        distances[name] = count - index if index is not None else 0 if seen else count + 1
    return distances


def master_weights(
    model: PreTrainedModel,
    train: Train,
    rate_factor: Callable[[str], float] = lambda _: 1.0,
    layers: nn.Module | None = None,
) -> MasterWeights:
    """The master weights of a model that is ready to train.

    Args:
        model: whose weights that require gradients are trained.
        train: the optimizer and its settings.
        rate_factor: the factor on the learning rate, by parameter name.
        layers: of the objective, which are trained too.
    """
    own = [] if layers is None else [(f"{OF_OBJECTIVE}{name}", each) for name, each in layers.named_parameters()]
    hidden = [is_hidden(model)] if train.optimizer == "muon" else []  # others treat all matrices alike
    return MasterWeights([*model.named_parameters(), *own], train, rate_factor, *hidden)


def is_hidden(model: PreTrainedModel) -> Callable[[str], bool]:
    """Whether a parameter, by its name, is inside a block."""
    block_index = _block_index(model)
    return lambda name: block_index(name) is not None


def _block_index(model: PreTrainedModel) -> Callable[[str], int | None]:
    """The index of a parameter's block, by the parameter's name, counted over all stacks; None outside the blocks."""
    starts: dict[str, int] = {}
    count = 0
    for name, stack in stacks(plain_model(model)):
        starts[name] = count
        count += len(stack)
    pattern = re.compile(rf"(?:^|\.)({'|'.join(map(re.escape, starts))})\.(\d+)\.")

    def index(parameter: str) -> int | None:
        match = pattern.search(parameter)
        return None if match is None else starts[match[1]] + int(match[2])

    return index


def cap_max_length(recipe: Recipe) -> Recipe:
    """The recipe with `max_length` capped at the base's positions, if the base has learned position embeddings.

    Raises:
        UserError: the recipe sets a larger `max_length`.
    """
    positions = learned_positions(recipe.base)
    virtual_tokens = recipe.method.virtual_tokens
    if positions is None or recipe.data.max_length + virtual_tokens <= positions:
        return recipe
    room = positions - virtual_tokens
    if "max_length" not in recipe.data.model_fields_set:
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"max_length": room})})
    extra = f" plus the method's {virtual_tokens} virtual tokens" if virtual_tokens else ""
    raise UserError(
        f"data.max_length: {recipe.data.max_length:,} tokens{extra} are more than the {positions:,} positions that "
        f"{recipe.base.path} has. Set data.max_length: {room}."
    )


def with_known_features(head: Head, model: PreTrainedModel, prepared: Prepared, tokens_per_batch: int) -> Prepared:
    """If only the head is trained, compute what it reads of each row once.

    Args:
        head: of the model.
        model: ready to train.
        prepared: the rows of both sides.
        tokens_per_batch: the most tokens in a batch of this computation.

    Returns:
        The rows with these features, or as they are.
    """
    if not head.reads_features(model):
        return prepared
    train, held_out = (
        head.with_features(model, table, tokens_per_batch) for table in (prepared.train, prepared.held_out)
    )
    return replace(prepared, train=train, held_out=held_out)
