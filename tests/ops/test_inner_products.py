"""Inner products of int8 vectors: the kernel against its definition, at the largest sums too."""

import numpy as np
import pytest

from tunesmith.ops.inner_products import inner_products, inner_products_reference, is_available, rounded

pytestmark = pytest.mark.skipif(not is_available(), reason="needs the compiled kernels")


@pytest.mark.parametrize("size", [1, 3, 31, 64, 384, 1000])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_the_kernel_computes_the_definition(size: int, count: int) -> None:
    draw = np.random.default_rng(size)
    codes = draw.integers(-127, 128, (count, size)).astype(np.int8)
    scales = draw.uniform(0.001, 0.1, count).astype(np.float32)
    question = draw.normal(size=size).astype(np.float32)
    units, scale = rounded(question)
    expected = inner_products_reference(codes, scales, units * np.float32(scale))
    np.testing.assert_allclose(inner_products(codes, scales, question), expected, rtol=1e-5, atol=1e-3)
    error = np.linalg.norm(question - units * scale)
    exact = inner_products_reference(codes, scales, question)
    bound = error * np.linalg.norm(codes * scales[:, None], axis=1) + 1e-3
    assert (np.abs(inner_products(codes, scales, question) - exact) <= bound).all()


@pytest.mark.parametrize("size", [384, 4096])
def test_the_largest_possible_sums_do_not_overflow(size: int) -> None:
    codes = np.full((3, size), 127, np.int8)
    codes[1] = -127
    question = np.full(size, size**-0.5, np.float32)
    expected = inner_products_reference(codes, np.ones(3, np.float32), question)
    np.testing.assert_allclose(inner_products(codes, np.ones(3, np.float32), question), expected, rtol=1e-2)
