"""P-tuning (Liu et al. 2021): n embeddings before the text, made by a small network while training,  [g(P); E(x)].

Trains  n × d + (d + 1) × h + (h + 1) × h + (h + 1) × d  numbers with d = hidden, h = `inner_size`; what is kept is n
× d.
Choose it where prompt tuning learns too slowly: the network makes its embeddings move together. It too is for larger
models.
"""

from typing import Any, ClassVar, Literal

import torch
from peft import PeftModel, PromptEncoderConfig
from peft.utils import ModulesToSaveWrapper
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.registry import MethodConfig
from tunesmith.methods.prompt import start_tokens
from tunesmith.methods.wrapping import by_size, wrap_with_peft


class PTuning(MethodConfig):
    """Learnt embeddings before the text, made by an MLP while training (Liu et al. 2021)."""

    kind: Literal["ptuning"] = "ptuning"

    tokens: int = Field(default=20, ge=1)
    """Length of the prompt, in positions."""

    inner_size: int | None = Field(default=None, ge=1)
    """Width of the MLP. Default: the model's hidden size."""

    start: str | None = None
    """A text whose embeddings the network gives at first. Default: tokens drawn from the vocabulary; PEFT's own random
    start hardly learns on small models (docs/methods.md)."""

    formula: ClassVar[str] = "[g(P); E(x)], g an MLP"
    choose: ClassVar[str] = "Where prompt tuning learns too slowly. Larger models; more to train than it keeps."

    @property
    def is_resumable(self) -> bool:
        return False  # the network that made the prompt is not kept

    @property
    def virtual_tokens(self) -> int:
        return self.tokens

    def apply(self, model: PreTrainedModel, seed: int) -> PeftModel:
        torch.manual_seed(seed)
        start = model.get_input_embeddings()(start_tokens(model, self.tokens, self.start)).detach().float()
        config = PromptEncoderConfig(num_virtual_tokens=self.tokens, encoder_hidden_size=self.inner_size)
        peft_model = wrap_with_peft(model, config, seed)
        _make_give(peft_model.prompt_encoder[peft_model.active_adapter], start)
        return peft_model

    def learning_rate(self, parameters: int) -> float:
        return by_size(parameters, small=2e-3, large=5e-4)

    def trained_parameters(self, model: PreTrainedModel) -> int:
        hidden = int(model.get_input_embeddings().weight.shape[1])
        inner = self.inner_size or hidden
        return self.tokens * hidden + (hidden + 1) * inner + (inner + 1) * inner + (inner + 1) * hidden


@torch.no_grad()
def _make_give(encoder: Any, start: Tensor) -> None:
    """Solve the network's last layer so that it gives `start` (tokens, hidden), as near as its width allows."""
    network = encoder.mlp_head
    if isinstance(network, ModulesToSaveWrapper):  # where a classifier's own module is called head, PEFT wraps this too
        network = network.modules_to_save[network.active_adapter]
    inner, last = network[:-1], network[-1]
    hidden = inner.float()(encoder.embedding.weight.float()).cpu()  # (tokens, inner)
    wanted = (start - start.mean(0)).cpu()
    last.bias.copy_(start.mean(0))
    last.weight.copy_(torch.linalg.lstsq(hidden, wanted, driver="gelsd").solution.T)
    encoder.to(encoder.embedding.weight.dtype)
