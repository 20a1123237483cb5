"""How long a planned run's base takes for an answer. Reading a prompt is bound by arithmetic, writing one token after
another by memory: each token reads all weights, and the keys and values before it (Pope et al. 2022)."""

from dataclasses import dataclass

import torch

from tunesmith.planner.generation import generation_of
from tunesmith.planner.op_timer import OpTimer
from tunesmith.planner.plan import Plan
from tunesmith.planner.roofline import REACHED_BY_MEMORY, REACHED_BY_PRODUCTS

FLOPS = 2
"""Of a weight and a token: a product and a sum. Attention is left out: it counts from thousands of tokens on."""


@dataclass(frozen=True, slots=True)
class AnswerRates:
    """What an answer takes, alone on the device.

    Attributes:
        parameters: of the base.
        weights: bytes of the base.
        token: bytes of the keys and values of a token.
        flops: per second, of matrix products.
        bytes_per_second: from the device's memory.
    """

    parameters: int
    weights: int
    token: float
    flops: float
    bytes_per_second: float

    def seconds(self, tokens_in: float, tokens_out: float) -> float:
        """Of an answer.

        Args:
            tokens_in: of its prompt.
            tokens_out: that are written.

        Returns:
            An estimate. What programs do around the arithmetic is left out, so small models take longer.
        """
        reading = FLOPS * self.parameters * tokens_in / self.flops
        return reading + tokens_out * (self.weights + self.token * (tokens_in + tokens_out / 2)) / self.bytes_per_second

    def memory(self, tokens: float) -> int:
        """Bytes of the weights, and of the keys and values of one request.

        Args:
            tokens: of its prompt and answer.
        """
        return round(self.weights + self.token * tokens)


def answer_rates(plan: Plan) -> AnswerRates | None:
    """The rates of a planned run's base on the run's device: measured on this machine, by data sheet for others.

    Args:
        plan: of the run.

    Returns:
        None if the base writes no text, or its attention cannot be paged.
    """
    memory = generation_of(plan)
    if memory is None:
        return None
    device, parameters = plan.device, plan.step.parameters
    if device.is_here:
        flops, moved = OpTimer((1,), torch.device(device.kind)).measured_rates(plan.dtype)
        return AnswerRates(parameters, memory.weights, memory.token, flops, moved)
    precision = "fp32" if plan.dtype == torch.float32 else "bf16"
    flops, moved = device.flops[precision] * REACHED_BY_PRODUCTS, device.bytes_per_second * REACHED_BY_MEMORY
    return AnswerRates(parameters, memory.weights, memory.token, flops, moved)
