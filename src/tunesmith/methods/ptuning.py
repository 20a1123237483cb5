"""P-tuning (Liu et al. 2021): n embeddings before the text, computed by a small MLP in training,  [g(P); E(x)].

Trains  n × d + (d + 1) × h + (h + 1) × h + (h + 1) × d  parameters with d = hidden, h = `inner_size`; n × d of them are
saved.
Choose it if prompt tuning learns too slowly: the MLP updates its embeddings together. It also is for larger models.
"""

from typing import Any, ClassVar, Literal

import torch
from peft import PeftModel, PromptEncoderConfig
from peft.utils import ModulesToSaveWrapper
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.method import MethodConfig
from tunesmith.methods.prompt import start_tokens
from tunesmith.methods.wrapping import by_size, wrap_with_peft


class PTuning(MethodConfig):
    """Trained embeddings before the text, computed by an MLP in training (Liu et al. 2021)."""

    kind: Literal["ptuning"] = "ptuning"

    tokens: int = Field(default=20, ge=1)
    """Length of the prompt, in positions."""

    inner_size: int | None = Field(default=None, ge=1)
    """Hidden size of the MLP. Default: the model's hidden size."""

    start: str | None = None
    """A text whose embeddings the MLP outputs at the start. Default: random tokens of the vocabulary. PEFT's own random
    initialization hardly learns on small models (docs/methods.md)."""

    formula: ClassVar[str] = "[g(P); E(x)], g an MLP"
    choose: ClassVar[str] = "If prompt tuning learns too slowly. Larger models; trains more parameters than it saves."
    copies_prompts: ClassVar[bool] = True

    @property
    def is_resumable(self) -> bool:
        return False  # the MLP that computes the prompt is not saved

    @property
    def virtual_tokens(self) -> int:
        return self.tokens

    def apply(self, model: PreTrainedModel, seed: int) -> PeftModel:
        torch.manual_seed(seed)
        start = model.get_input_embeddings()(start_tokens(model, self.tokens, self.start)).detach().float()
        config = PromptEncoderConfig(num_virtual_tokens=self.tokens, encoder_hidden_size=self.inner_size)
        peft_model = wrap_with_peft(model, config, seed)
        _fit_last_layer(peft_model.prompt_encoder[peft_model.active_adapter], start)
        return peft_model

    def learning_rate(self, parameters: int) -> float:
        return by_size(parameters, small=2e-3, large=5e-4)

    def trained_parameters(self, model: PreTrainedModel) -> int:
        hidden = int(model.get_input_embeddings().weight.shape[1])
        inner = self.inner_size or hidden
        return self.tokens * hidden + (hidden + 1) * inner + (inner + 1) * inner + (inner + 1) * hidden


@torch.no_grad()
def _fit_last_layer(encoder: Any, start: Tensor) -> None:
    """Solve for the MLP's last layer so that its output is as close to `start` (tokens, hidden) as its size allows."""
    network = encoder.mlp_head
    if isinstance(network, ModulesToSaveWrapper):  # if a classifier's module is named head, PEFT wraps this MLP too
        network = network.modules_to_save[network.active_adapter]
    inner, last = network[:-1], network[-1]
    hidden = inner.float()(encoder.embedding.weight.float()).cpu()  # (tokens, inner)
    centered = (start - start.mean(0)).cpu()
    last.bias.copy_(start.mean(0))
    last.weight.copy_(torch.linalg.lstsq(hidden, centered, driver="gelsd").solution.T)
    encoder.to(encoder.embedding.weight.dtype)
