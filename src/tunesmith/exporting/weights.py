"""A model's tensors by name, read from its files one at a time, with the adapter merged into each as it is read:
W + (alpha / rank) · B A in fp32 for LoRA, and what PEFT computes for its other methods.

The base stays in its files, which are mapped into memory, in the dtype that it is stored in. Only the layer that is
read, or the block that computes, is in fp32. So merging needs the memory of one of them, whatever the model's size.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from warnings import catch_warnings

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import UserError
from tunesmith.inference.model_reference import ModelReference
from tunesmith.models.architecture import blocks
from tunesmith.models.prompts import has_prompt, plain_model
from tunesmith.modules.quantized_linear import QuantizedLinear, dequantized_model
from tunesmith.modules.transposed_linear import TransposedLinear, as_linear

Into = Literal["original", "dequantized"]
"""The weights that an adapter trained on a quantized base is added to: the stored ones, or the dequantized ones that
it saw in training."""


@dataclass(frozen=True, slots=True)
class _Location:
    """Where a tensor is.

    Attributes:
        owner: the module that has it; of a wrapped layer, the one that training started from.
        attribute: its name there.
        wrapper: PEFT's module around the owner; None if no adapter changes it.
        within: the tensor's name within what is left when the wrapper is removed.
    """

    owner: nn.Module
    attribute: str
    wrapper: nn.Module | None = None
    within: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        if self.attribute == "weight" and isinstance(self.owner, QuantizedLinear):
            return self.owner.out_features, self.owner.in_features
        return tuple(getattr(self.owner, self.attribute).shape)


class Weights(Mapping[str, Tensor]):
    """The tensors of a model in one piece, under the names of its `state_dict`.

    Those of layers that an adapter changes are in fp32, all others as they are stored. The weights of linear layers are
    (out, in) in every family.

    Args:
        reference: of the model.
        into: which weights an adapter is merged into.

    Attributes:
        skeleton: the model in one piece on the meta device: its structure, without numbers.

    Raises:
        UserError: the model cannot be loaded, or its adapter cannot be merged.
    """

    def __init__(self, reference: ModelReference, into: Into = "original") -> None:
        self._adapter = reference.adapter
        if self._adapter is None or into == "original":
            reference = reference.with_weights("auto")
        model = reference.stored_model()
        if has_prompt(model):
            raise self._refusal("a prompt or prefix is not part of any weight. Serve the adapter.")
        self._model = plain_model(model)
        for module in self._model.modules():
            if isinstance(module, QuantizedLinear):
                module.dtype = torch.float32
        self._locations = dict(_locations(self._model))
        self._last: tuple[nn.Module, dict[str, Tensor]] | None = None
        if self._adapter is not None:
            self._check(model)
        self.skeleton = self._skeleton()
        if self._adapter is not None and self._is_untied():
            for config in (self._model.config, self._model.config.get_text_config()):
                config.tie_word_embeddings = False
            self.skeleton = self._skeleton()

    def __getitem__(self, name: str) -> Tensor:
        """Raises:
        UserError: a merged value would not be finite.
        """
        location = self._locations[name]
        if location.wrapper is None:
            values: Tensor = getattr(location.owner, location.attribute)
            return values.detach()
        values = self._merged(location.wrapper)[location.within]
        if not torch.isfinite(values).all():
            raise self._refusal(f"{name} would contain values that are not finite.")
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._locations)

    def __len__(self) -> int:
        return len(self._locations)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read for that."""
        return self._locations[name].shape

    def is_transposed(self, name: str) -> bool:
        """Whether the family stores a linear layer's weight as (in, out)."""
        owner = self._locations[name].owner
        return name.endswith("weight") and (
            isinstance(owner, TransposedLinear) or (isinstance(owner, QuantizedLinear) and owner.is_transposed)
        )

    def linears(self) -> Iterator[tuple[str, nn.Module]]:
        """The names of the linear layers' weights, and the modules of `computing` that get the layers' inputs."""
        for name, location in self._locations.items():
            if location.attribute == "weight" and isinstance(location.owner, nn.Linear):
                yield name, location.wrapper or location.owner

    @contextmanager
    def computing(self, merged: bool = True) -> Iterator[PreTrainedModel]:
        """The model, ready to compute in fp32. Each block is converted and merged when it computes, and then freed.

        Args:
            merged: whether the adapter is merged; otherwise it computes beside its layers.
        """
        model = self._model
        try:
            chosen = blocks(model)
        except UserError:
            chosen = []
        with ExitStack() as hooks:
            inside: set[nn.Module] = set()
            for module in (*chosen, *_wrappers(model)):
                if module not in inside:
                    inside |= set(module.modules())
                    hooks.enter_context(self._hooked(module, True, merged))
            for module in model.modules():
                if module not in inside and any(True for _ in module.parameters(recurse=False)):
                    hooks.enter_context(self._hooked(module, False, merged))
            yield model

    @contextmanager
    def _hooked(self, module: nn.Module, recurse: bool, merged: bool) -> Iterator[None]:
        """Within it, the module is in fp32 while it computes."""
        converted = ExitStack()

        def before(*_: Any) -> None:
            converted.enter_context(_in_fp32(module, recurse))
            for wrapper in _wrappers(module) if merged and recurse else ():
                self._merge(wrapper)

        def after(*_: Any) -> None:
            converted.close()

        handles = module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)
        try:
            yield
        finally:
            converted.close()
            for handle in handles:
                handle.remove()

    def _merged(self, wrapper: nn.Module) -> Mapping[str, Tensor]:
        """The tensors of a layer with its adapter, fp32. Those of the last layer are kept, as it may have several."""
        if self._last is None or self._last[0] is not wrapper:
            self._last = None
            with _in_fp32(wrapper):
                plain = self._merge(wrapper)
                within = [location.within for location in self._locations.values() if location.wrapper is wrapper]
                self._last = wrapper, {name: _read(plain, name) for name in within}
        return self._last[1]

    def _merge(self, wrapper: Any) -> nn.Module:
        """Merge the adapter into a layer in place, and return the layer without its wrapper."""
        try:
            if hasattr(wrapper, "unload_and_optionally_merge_module"):
                plain: nn.Module = wrapper.unload_and_optionally_merge_module(True, False, None)
                return plain
            wrapper.merge(safe_merge=False, adapter_names=None)
        except _ERRORS as error:
            raise self._refusal(_reason(error)) from error
        return _plain(wrapper)

    @torch.no_grad()
    def _check(self, model: Any) -> None:
        """Compare the logits of a few tokens with and without merging."""
        try:
            if not hasattr(model.base_model, "merge_and_unload"):
                raise NotImplementedError
            with catch_warnings(action="ignore"):  # of tied embeddings: they are stored apart if one of them changes
                getattr(model.base_model, "_check_merge_allowed", lambda: None)()
        except _ERRORS as error:
            raise self._refusal(_reason(error)) from error
        with self.computing(merged=False):
            expected = _logits(model)
        with self.computing():
            found = _logits(self._model)
        if (found - expected).abs().max() > 0.01 * (1 + expected.abs().max()):
            raise self._refusal("PEFT's merged model does not give the adapter's logits. Serve the adapter.")

    def _skeleton(self) -> PreTrainedModel:
        with torch.device("meta"):
            skeleton = as_linear(type(self._model)(self._model.config).eval())
        for name in ("generation_config", "_weight_conversions", "tunesmith_base"):
            if hasattr(self._model, name):
                setattr(skeleton, name, getattr(self._model, name))
        return skeleton

    def _is_untied(self) -> bool:
        """Whether merging makes tensors different that the base shares."""
        shared: dict[int, list[str]] = {}
        for name, parameter in self.skeleton.named_parameters(remove_duplicate=False):
            if name in self._locations:
                shared.setdefault(id(parameter), []).append(name)
        groups = [names for names in shared.values() if len(names) > 1]
        changed = [names for names in groups if any(self._locations[name].wrapper is not None for name in names)]
        return any(not torch.equal(self[names[0]].float(), self[name].float()) for names in changed for name in names)

    def _refusal(self, why: str) -> UserError:
        return UserError(f"{self._adapter} cannot be merged: {why}")


_ERRORS = (ValueError, NotImplementedError, AttributeError, TypeError)
"""What PEFT raises for what it cannot merge."""


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, AttributeError | NotImplementedError):
        return "PEFT cannot merge this method. Serve the adapter."
    return text


def _is_wrapper(module: nn.Module) -> bool:
    return hasattr(module, "unload_and_optionally_merge_module") or hasattr(module, "base_layer")


def _wrappers(module: nn.Module) -> Iterator[nn.Module]:
    """PEFT's modules around layers; of nested ones, the outermost."""
    if _is_wrapper(module):
        yield module
        return
    for child in module.children():
        yield from _wrappers(child)


def _plain(wrapper: Any) -> nn.Module:
    """The layer without its wrapper, as it is."""
    unload = getattr(wrapper, "unload_and_optionally_merge_module", None)
    plain: nn.Module = wrapper.get_base_layer() if unload is None else unload(False, False, None)
    return plain


def _locations(
    module: nn.Module, path: str = "", wrapper: tuple[nn.Module, str] | None = None
) -> Iterator[tuple[str, _Location]]:
    """Each tensor's name and location."""
    if wrapper is None and _is_wrapper(module):
        yield from _locations(_plain(module), path, (module, path))
        return
    own = [*module._parameters, *(name for name in module._buffers if name not in module._non_persistent_buffers_set)]
    if isinstance(module, QuantizedLinear):
        own.insert(0, "weight")
    for name in own:
        if getattr(module, name) is not None:
            full = f"{path}{name}"
            location = _Location(module, name)
            yield (
                full,
                location if wrapper is None else _Location(module, name, wrapper[0], full.removeprefix(wrapper[1])),
            )
    for name, child in module.named_children():
        yield from _locations(child, f"{path}{name}.", wrapper)


def _read(module: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    values: Tensor = getattr(module.get_submodule(path), attribute)
    return values.detach()


@contextmanager
def _in_fp32(module: nn.Module, recurse: bool = True) -> Iterator[None]:
    """Within it, the module's tensors are in fp32, and may be changed: afterwards it is as before."""
    modules = list(module.modules()) if recurse else [module]
    kept = [(each, dict(each._modules), list(getattr(each, "merged_adapters", ()))) for each in modules]
    values = [(each, each.data) for each in module.parameters(recurse) if each.is_floating_point()]
    try:
        for parameter, stored in values:
            parameter.data = stored.to(torch.float32, copy=True)
        if recurse:
            dequantized_model(module)
        yield
    finally:
        for parameter, stored in values:
            parameter.data = stored
        for each, children, merged in kept:
            each._modules.clear()
            each._modules.update(children)
            if hasattr(each, "merged_adapters"):
                each.__dict__["merged_adapters"] = merged


def _logits(model: PreTrainedModel) -> Tensor:
    """The logits (or hidden states) of a few tokens."""
    ids = torch.arange(5, 21)[None] % plain_model(model).config.get_text_config().vocab_size
    decoder_inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder_inputs)
    logits: Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return logits.float()
