"""The types in the signatures of methods, objectives and heads, for type checkers.

At run time they are `Any`: a recipe is read without torch and transformers, and what defines these classes is in layers
above, which import this one.
"""

from typing import TYPE_CHECKING, Any

__all__ = [
    "AutoModelClass",
    "Base",
    "Batch",
    "Counts",
    "Example",
    "Floats",
    "Head",
    "Linear",
    "ModelReference",
    "Objective",
    "PreTrainedModel",
    "PreTrainedTokenizerBase",
    "Prediction",
    "PretrainedConfig",
    "Renderer",
    "Rendering",
    "Tensor",
    "TokenTable",
    "Tokens",
]

AutoModelClass = Any
"""An auto class of transformers, such as `AutoModelForCausalLM`."""

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Linear
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from tunesmith.config.base import Base
    from tunesmith.config.head import Head
    from tunesmith.data.batch import Batch
    from tunesmith.data.example import Example
    from tunesmith.data.render import Renderer, Rendering
    from tunesmith.data.tokens import Tokens, TokenTable
    from tunesmith.heads.prediction import Prediction
    from tunesmith.inference.model_reference import ModelReference
    from tunesmith.objectives.objective import Objective

    Floats = NDArray[np.float32]
    Counts = NDArray[np.int64]
else:
    Tensor = Linear = PretrainedConfig = PreTrainedModel = PreTrainedTokenizerBase = Floats = Counts = Any
    Base = Example = Rendering = Renderer = Tokens = TokenTable = Batch = Any
    Head = Prediction = Objective = ModelReference = Any
