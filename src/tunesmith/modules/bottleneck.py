"""Bottleneck adapters as one of PEFT's methods, through its registration hook: `peft_type: BOTTLENECK`.

After this module is imported, PEFT saves, loads, switches and disables them like any other adapter.
"""

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

NON_LINEARITIES = {"relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}


def _peft_type(name: str) -> Any:
    """Add the name to PEFT's enumeration, since its hook registers only names that are members."""
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_, member._value_ = name, name
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
    return PeftType(name)


BOTTLENECK = _peft_type("BOTTLENECK")


@dataclass
class BottleneckConfig(PeftConfig):
    """The contents of `adapter_config.json`.

    Attributes:
        target_modules: linear layers whose output gets an adapter.
        exclude_modules: targets to leave out.
        reduction: hidden size divided by bottleneck size.
        non_linearity: relu, gelu or silu.
        scale: factor of the adapter's output.
        inputs_from: target → the linear layer whose input the adapter reads (parallel). Empty: the adapter reads the
            target's output (sequential).
        modules_to_save: further modules that are trained and saved in full.
    """

    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    reduction: int = field(default=16)
    non_linearity: str = field(default="relu")
    scale: float = field(default=1.0)
    inputs_from: dict[str, str] = field(default_factory=dict)
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = BOTTLENECK
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear layer with a bottleneck on its output: y + s · W_up f(W_down h), where h is y or the input of `source`.

    W_up starts at zero, so that the model starts as the base. W_down starts like PyTorch's linear layers.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig, source: nn.Module | None):
        nn.Module.__init__(self)
        self.base_layer = base_layer
        self.in_features, self.out_features = _sizes(self.get_base_layer())
        self.bottleneck_down = nn.ModuleDict({})
        self.bottleneck_up = nn.ModuleDict({})
        self.configs: dict[str, BottleneckConfig] = {}
        self.source_input: Tensor | None = None
        self.source_size = self.out_features
        if source is not None:
            self.source_size = _sizes(source)[0]
            source.register_forward_pre_hook(self._remember)
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        inner = max(1, self.out_features // config.reduction)
        self.configs[adapter_name] = config
        self.bottleneck_down[adapter_name] = nn.Linear(self.source_size, inner)
        self.bottleneck_up[adapter_name] = nn.Linear(inner, self.out_features)
        nn.init.zeros_(self.bottleneck_up[adapter_name].weight)
        nn.init.zeros_(self.bottleneck_up[adapter_name].bias)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _remember(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Keep the feed-forward's input from its first layer until its last."""
        self.source_input = arguments[0]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base_layer(x, *args, **kwargs)
        source_input, self.source_input = self.source_input, None
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                config = self.configs[name]
                down, up = self.bottleneck_down[name], self.bottleneck_up[name]
                source = source_input if config.inputs_from and source_input is not None else y
                inner = NON_LINEARITIES[config.non_linearity](down(source.to(down.weight.dtype)))
                y = y + config.scale * up(inner).to(y.dtype)
        return y


class BottleneckModel(BaseTuner):
    """Replaces the configuration's targets with `BottleneckLayer`."""

    prefix: str = "bottleneck_"
    tuner_layer_cls = BottleneckLayer

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if not isinstance(target, nn.Linear | Conv1D):
            raise ValueError(f"{current_key} is not a linear layer, and a bottleneck adapter needs one")
        source_name = peft_config.inputs_from.get(current_key)
        source = None if source_name is None else self.model.get_submodule(source_name)
        layer = BottleneckLayer(target, adapter_name, peft_config, source)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def merge_and_unload(self, *_: Any, **__: Any) -> nn.Module:
        raise ValueError("a bottleneck adapter is not linear, so it cannot be merged into the base's weights")


def _sizes(layer: Any) -> tuple[int, int]:
    """Input and output size of a linear layer."""
    if isinstance(layer, Conv1D):
        return layer.weight.shape[0], layer.weight.shape[1]
    return layer.in_features, layer.out_features


register_peft_method(name="bottleneck", config_cls=BottleneckConfig, model_cls=BottleneckModel, prefix="bottleneck_")
