"""Prompt tuning (Lester et al. 2021): n trained embeddings before the text's own, [P; E(x)].

Trains  n × hidden  parameters, the fewest of all methods.
Choose it for large models (it reaches full fine-tuning from about ten billion parameters on, figure 1 there) and many
tasks. On small models it learns little, and even less from a random initialization, so it starts as real tokens.
"""

from typing import ClassVar, Literal

import torch
from peft import PeftModel, PromptTuningConfig
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.config.base import Base
from tunesmith.config.method import MethodConfig
from tunesmith.errors import UserError
from tunesmith.methods.wrapping import by_size, wrap_with_peft
from tunesmith.models.load import load_tokenizer


class Prompt(MethodConfig):
    """Trained embeddings before the text (Lester et al. 2021): for large models and many tasks."""

    kind: Literal["prompt"] = "prompt"

    tokens: int = Field(default=20, ge=1)
    """Length of the prompt, in positions. 20: more gains little (Lester et al. 2021, figure 3a)."""

    start: str | None = None
    """A text that initializes the prompt, repeated or truncated to its length; best is a description of the task.
    Default: random tokens of the vocabulary."""

    formula: ClassVar[str] = "[P; E(x)]"
    choose: ClassVar[str] = "Large models, many tasks, fewest parameters to store. Learns little on small models."
    copies_prompts: ClassVar[bool] = True

    @property
    def virtual_tokens(self) -> int:
        return self.tokens

    def apply(self, model: PreTrainedModel, seed: int) -> PeftModel:
        torch.manual_seed(seed)
        start = model.get_input_embeddings()(start_tokens(model, self.tokens, self.start)).detach()
        peft_model = wrap_with_peft(model, PromptTuningConfig(num_virtual_tokens=self.tokens), seed)
        peft_model.prompt_encoder[peft_model.active_adapter].embedding.weight.data.copy_(start)
        return peft_model

    def learning_rate(self, parameters: int) -> float:
        return by_size(parameters, small=5e-2, large=3e-3)

    def trained_parameters(self, model: PreTrainedModel) -> int:
        return self.tokens * int(model.get_input_embeddings().weight.shape[1])


def start_tokens(model: PreTrainedModel, count: int, text: str | None) -> Tensor:
    """(count,) ids: the text's, repeated or truncated; without a text, random ones.

    Raises:
        UserError: the text has no tokens, or the tokenizer cannot be loaded.
    """
    embeddings = model.get_input_embeddings()
    if text is None:
        return torch.randint(embeddings.num_embeddings, (count,)).to(model.device)
    base = getattr(model, "tunesmith_base", Base(path=model.name_or_path))  # with its revision and trust_remote_code
    ids = load_tokenizer(base)(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError("method.start: the text is empty. Describe the task in a sentence, or remove method.start.")
    return torch.tensor((ids * (count // len(ids) + 1))[:count], device=model.device)
