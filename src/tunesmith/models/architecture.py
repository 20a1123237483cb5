"""What a family's blocks are made of, found by shape and place and not by a list of names."""

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
    """A linear layer by its name within the model, and its sizes."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block's linear layers by the part they play.

    Attributes:
        attention: all of attention's, in the order of the model's definition.
        key_value: those that make keys or values; one that makes queries with them counts too.
        attention_out: the one that attention ends with.
        feed_forward: all others.
        feed_forward_in: those of them that read the block's stream.
        feed_forward_out: the one that writes back to it.
    """

    attention: tuple[Linear, ...]
    key_value: tuple[Linear, ...]
    attention_out: Linear
    feed_forward: tuple[Linear, ...]
    feed_forward_in: tuple[Linear, ...]
    feed_forward_out: Linear


def stacks(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """The stacks of transformer blocks with their names: one, or the encoder's and then the decoder's.

    A stack is the longest list of modules of one class, the outermost of several.

    Raises:
        UserError: there is none.
    """
    bodies: list[nn.Module] = [model]
    if isinstance(model, PreTrainedModel) and model.config.is_encoder_decoder:
        bodies = [model.get_encoder(), model.get_decoder()]
    names = {id(module): name for name, module in model.named_modules()}
    return [(names[id(stack)], stack) for stack in map(_stack, bodies)]


def _stack(body: nn.Module) -> nn.ModuleList:
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList) and len(module)]
    bucket_by_length = [each for each in lists if len({type(block) for block in each}) == 1]
    if not bucket_by_length:
        raise UserError(f"{type(body).__name__} has no stack of blocks, so it cannot be adapted block by block.")
    return max(bucket_by_length, key=len)  # the first of equals, which is the outermost


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks, in the order in which they run.

    Raises:
        UserError: there are none.
    """
    return [block for _, stack in stacks(model) for block in stack]


def block_layers(model: PreTrainedModel) -> list[Block]:
    """Each block's linear layers by the part they play.

    Raises:
        UserError: a block has none of a kind that is looked for.
    """
    return [
        _block(model, f"{name}.{index}", block) for name, stack in stacks(model) for index, block in enumerate(stack)
    ]


def linears(module: nn.Module, prefix: str = "") -> Iterator[Linear]:
    """Every linear layer within the module."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            yield Linear(f"{prefix}{name}", layer.in_features, layer.out_features)
        elif isinstance(layer, Conv1D):
            yield Linear(f"{prefix}{name}", layer.weight.shape[0], layer.weight.shape[1])


def linears_in_blocks(model: PreTrainedModel) -> list[Linear]:
    """Every linear layer of the blocks, by its name within the model: not the head."""
    return [layer for name, stack in stacks(model) for layer in linears(stack, f"{name}.")]


def norms(model: PreTrainedModel) -> list[str]:
    """Names of every normalization."""
    return [name for name, module in model.named_modules() if type(module).__name__.endswith("Norm")]


def short_names(model: PreTrainedModel, chosen: list[Linear]) -> list[str]:
    """The shortest endings of names that fit the chosen layers and no other linear layer: `q_proj`."""
    wanted = {layer.name for layer in chosen}
    others = [layer.name for layer in linears(model) if layer.name not in wanted]
    found: list[str] = []
    for name in (layer.name for layer in chosen):
        parts = name.split(".")
        endings = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        fitting = (each for each in endings if not any(f".{other}".endswith(f".{each}") for other in others))
        found.append(next(fitting, name))
    return sorted(set(found))


def _block(model: PreTrainedModel, path: str, block: nn.Module) -> Block:
    found = list(linears(block, f"{path}."))
    attention = tuple(each for each in found if _ATTENTION.search(each.name.removeprefix(path)))
    feed_forward = tuple(each for each in found if each not in attention)
    hidden = model.config.get_text_config().hidden_size
    inward = tuple(each for each in feed_forward if each.inputs == hidden)
    outward = [each for each in feed_forward if each.outputs == hidden]
    ends = [each for each in attention if each.outputs == hidden]
    if not (ends and inward and outward):
        raise UserError(
            f"{type(model).__name__}: the parts of a block ({type(block).__name__}) cannot be told apart, so a method "
            "that puts something at a place within it cannot be used. Use lora, full or layers."
        )
    key_value = tuple(each for each in attention if _KEY_VALUE.search(each.name.rpartition(".")[2]))
    return Block(attention, key_value, ends[-1], feed_forward, inward, outward[-1])
