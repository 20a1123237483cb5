"""The parts of a family's transformer blocks, found by the layers' sizes and order instead of a list of names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import UserError

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_KEY_VALUE = re.compile(r"(^|_)(k|v|key|value)(_|$)|qkv|query_key_value|c_attn|kv", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: its name within the model, and its input and output sizes."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block's linear layers, grouped by role.

    Attributes:
        attention: all attention layers, in the order of the model's definition.
        key_value: attention layers that compute keys or values, including a fused one that also computes queries.
        attention_out: the attention's output projection.
        feed_forward: all other linear layers.
        feed_forward_in: feed-forward layers that read the residual stream.
        feed_forward_out: the feed-forward layer that writes to the residual stream.
    """

    attention: tuple[Linear, ...]
    key_value: tuple[Linear, ...]
    attention_out: Linear
    feed_forward: tuple[Linear, ...]
    feed_forward_in: tuple[Linear, ...]
    feed_forward_out: Linear


def stacks(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """The names and modules of the stacks of transformer blocks: one stack, or the encoder's and then the decoder's.

    A stack is the longest list of modules of one class. Of equally long lists, it is the outermost.

    Raises:
        UserError: the model has no such list.
    """
    bodies: list[nn.Module] = [model]
    if isinstance(model, PreTrainedModel) and model.config.is_encoder_decoder:
        bodies = [model.get_encoder(), model.get_decoder()]
    names = {id(module): name for name, module in model.named_modules()}
    return [(names[id(stack)], stack) for stack in map(_stack, bodies)]


def _stack(body: nn.Module) -> nn.ModuleList:
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList) and len(module)]
    uniform = [modules for modules in lists if len({type(block) for block in modules}) == 1]
    if not uniform:
        raise UserError(
            f"{type(body).__name__} has no stack of transformer blocks, so no method that works on blocks can be used."
        )
    return max(uniform, key=len)  # the first of equally long ones, which is the outermost


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks, in the order in which they run.

    Raises:
        UserError: the model has no stack of blocks.
    """
    return [block for _, stack in stacks(model) for block in stack]


def block_names(model: nn.Module) -> list[str]:
    """The names of the transformer blocks, as `model.layers.0`, in the order in which they run.

    Raises:
        UserError: the model has no stack of blocks.
    """
    return [f"{name}.{index}" for name, stack in stacks(model) for index in range(len(stack))]


def block_layers(model: PreTrainedModel) -> list[Block]:
    """Each block's linear layers, grouped by role.

    Raises:
        UserError: a block has no attention or feed-forward layers of the expected sizes.
    """
    return [_block(model, name, block) for name, block in zip(block_names(model), blocks(model), strict=True)]


def linears(module: nn.Module, prefix: str = "") -> Iterator[Linear]:
    """Every linear layer within the module."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            yield Linear(f"{prefix}{name}", layer.in_features, layer.out_features)
        elif isinstance(layer, Conv1D):
            yield Linear(f"{prefix}{name}", layer.weight.shape[0], layer.weight.shape[1])


def linears_in_blocks(model: PreTrainedModel) -> list[Linear]:
    """Every linear layer of the blocks, which excludes the head."""
    return [layer for name, stack in stacks(model) for layer in linears(stack, f"{name}.")]


def norms(model: PreTrainedModel) -> list[str]:
    """Names of all normalization layers."""
    return [name for name, module in model.named_modules() if type(module).__name__.endswith("Norm")]


def short_names(model: PreTrainedModel, chosen: list[Linear]) -> list[str]:
    """The shortest name suffixes, such as `q_proj`, that match the chosen layers and no other linear layer."""
    chosen_names = {layer.name for layer in chosen}
    others = [layer.name for layer in linears(model) if layer.name not in chosen_names]
    shortest: list[str] = []
    for name in (layer.name for layer in chosen):
        parts = name.split(".")
        suffixes = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        unique = (suffix for suffix in suffixes if not any(f".{other}".endswith(f".{suffix}") for other in others))
        shortest.append(next(unique, name))
    return sorted(set(shortest))


def _block(model: PreTrainedModel, path: str, block: nn.Module) -> Block:
    layers = list(linears(block, f"{path}."))
    attention = tuple(layer for layer in layers if _ATTENTION.search(layer.name.removeprefix(path)))
    feed_forward = tuple(layer for layer in layers if layer not in attention)
    hidden = model.config.get_text_config().hidden_size
    feed_forward_in = tuple(layer for layer in feed_forward if layer.inputs == hidden)
    feed_forward_out = [layer for layer in feed_forward if layer.outputs == hidden]
    attention_out = [layer for layer in attention if layer.outputs == hidden]
    if not (attention_out and feed_forward_in and feed_forward_out):
        raise UserError(
            f"{type(model).__name__}: the attention and feed-forward layers of a block ({type(block).__name__}) cannot "
            "be identified, so a method that needs them cannot be used. Use lora, full or layers."
        )
    key_value = tuple(layer for layer in attention if _KEY_VALUE.search(layer.name.rpartition(".")[2]))
    return Block(attention, key_value, attention_out[-1], feed_forward, feed_forward_in, feed_forward_out[-1])
