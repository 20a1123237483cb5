"""How long an answer takes: the prompt by arithmetic, each token by reading the weights and the cache once."""

import pytest
import torch

from tunesmith.planner.answering import AnswerRates, answer_rates
from tunesmith.planner.op_timer import OpTimer
from tunesmith.planner.request import plan
from tunesmith.planner.roofline import REACHED_BY_MEMORY, REACHED_BY_PRODUCTS


def test_a_prompt_costs_arithmetic_and_each_token_the_weights_and_the_cache_before_it() -> None:
    rates = AnswerRates(parameters=1000, weights=4000, token=10.0, flops=1e6, bytes_per_second=1e5)
    assert rates.seconds(50, 0) == pytest.approx(2 * 1000 * 50 / 1e6)
    assert rates.seconds(0, 20) == pytest.approx(20 * (4000 + 10 * 10) / 1e5)
    assert rates.seconds(50, 20) == pytest.approx(0.1 + 20 * (4000 + 10 * 60) / 1e5)
    assert rates.memory(30) == 4000 + 300


def test_a_known_device_has_the_rates_of_its_data_sheet() -> None:
    rates = answer_rates(plan("llama-3-8b", device="h100"))
    assert rates is not None
    assert rates.parameters == 8_030_261_248
    assert rates.weights == pytest.approx(2 * rates.parameters)  # bf16
    assert rates.token == 2 * 32 * 8 * 128 * 2  # keys and values of 32 layers with 8 heads of 128
    assert rates.flops == pytest.approx(989e12 * REACHED_BY_PRODUCTS)
    assert rates.bytes_per_second == pytest.approx(3350e9 * REACHED_BY_MEMORY)


def test_this_machine_has_measured_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpTimer, "measured_rates", lambda _self, dtype: (3.0, 2.0 + (dtype == torch.float16)))
    rates = answer_rates(plan("embedded"))
    assert rates is not None
    assert (rates.flops, rates.bytes_per_second) == (3.0, 2.0)
