"""P-tuning (Liu et al. 2021): n embeddings before the text, made by a small network while training,  [g(P); E(x)].

Trains  n × d + (d + 1) × h + (h + 1) × h + (h + 1) × d  numbers with d = hidden, h = `inner_size`; what is kept is n × d.
Choose it where prompt tuning learns too slowly: the network makes its embeddings move together. It too is for larger models.
"""

from typing import ClassVar, Literal

from peft import PeftModel, PromptEncoderConfig
from pydantic import Field
from transformers import PreTrainedModel

from tunesmith.methods.adapted import adapt, by_size
from tunesmith.recipe import MethodConfig


class PTuning(MethodConfig):
    """Learnt embeddings before the text, made by an MLP while training (Liu et al. 2021)."""

    kind: Literal["ptuning"] = "ptuning"

    tokens: int = Field(default=20, ge=1)
    """Length of the prompt, in positions."""

    inner_size: int | None = Field(default=None, ge=1)
    """Width of the MLP. Default: the model's hidden size."""

    formula: ClassVar[str] = "[g(P); E(x)], g an MLP"
    choose: ClassVar[str] = "Where prompt tuning learns too slowly. Larger models; more to train than it keeps."

    def apply(self, model: PreTrainedModel, seed: int) -> PeftModel:
        config = PromptEncoderConfig(num_virtual_tokens=self.tokens, encoder_hidden_size=self.inner_size)
        return adapt(model, config, seed)

    def learning_rate(self, parameters: int) -> float:
        return by_size(parameters, small=1e-2, large=5e-4)

    def trained_parameters(self, model: PreTrainedModel) -> int:
        hidden = int(model.get_input_embeddings().weight.shape[1])
        inner = self.inner_size or hidden
        return self.tokens * hidden + (hidden + 1) * inner + (inner + 1) * inner + (inner + 1) * hidden
