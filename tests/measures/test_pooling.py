"""Poolings without gradients: bit for bit torch's, of values with ties, zeros and infinities."""

import pytest
import torch
from torch import nn
from torch.nn.functional import max_pool2d

from tenas.measures.kernel.forward import max_pool
from tenas.measures.ntk_tape import aten
from tenas.measures.pooling import FasterPooling

WINDOWS = [(kernel, stride, padding) for kernel in (1, 2, 3, (3, 2)) for stride in (None, 1, 2) for padding in (0, 1)]
POOLINGS = [
    pooling
    for kernel, stride, padding in WINDOWS
    if padding == 0 or kernel != 1
    for pooling in (
        nn.MaxPool2d(kernel, stride, padding),
        nn.MaxPool2d(kernel, stride, padding, dilation=2),
        nn.MaxPool2d(kernel, stride, padding, ceil_mode=True),
        nn.AvgPool2d(kernel, stride, padding),
        nn.AvgPool2d(kernel, stride, padding, count_include_pad=False),
        nn.AvgPool2d(kernel, stride, padding, ceil_mode=True),
        nn.AvgPool2d(kernel, stride, padding, divisor_override=5),
    )
]
SHAPES = [(4, 3, 7, 9), (2, 16, 8, 8), (3, 5, 32, 32), (2, 4, 1, 2), (3, 8, 8)]


def images(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)
    return torch.where(torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4, x.round(), x)


def pooled(pooling, x: torch.Tensor):
    """None where the window is larger than the image, which is an error."""
    try:
        return pooling(x)
    except RuntimeError:
        return None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_poolings_are_bit_for_bit_those_of_torch(shape, dtype):
    x = images(shape, dtype)
    done = 0
    with torch.no_grad():
        for pooling in POOLINGS:
            for given in (x, x.transpose(-1, -2)):
                expected = pooled(pooling, given)
                with FasterPooling():
                    found = pooled(pooling, given)
                assert (found is None) == (expected is None), pooling
                if expected is not None:
                    assert found.shape == expected.shape, pooling
                    assert torch.equal(found, expected), pooling
                    done += 1
    assert done > 20


def test_infinities_stay_what_they_are():
    x = images((2, 3, 8, 8), torch.float32)
    x[0, 0], x[1, 1, 2, 2] = -torch.inf, torch.inf
    with torch.no_grad():
        for pooling in (nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)):
            expected = pooling(x)
            with FasterPooling():
                assert torch.equal(pooling(x), expected)


def test_gradients_and_places_are_left_to_torch():
    x = images((2, 3, 8, 8), torch.float32).requires_grad_()
    with FasterPooling():
        max_pool2d(x, 3, 1, 1).sum().backward()
        with torch.no_grad():
            found, places = max_pool2d(x, 3, 1, 1, return_indices=True)
    gradient, x.grad = x.grad, None
    max_pool2d(x, 3, 1, 1).sum().backward()
    assert torch.equal(gradient, x.grad)
    assert torch.equal(x.flatten(2).gather(2, places.flatten(2)), found.flatten(2))


def test_a_result_may_be_written_to():
    """A pooling of single pixels is a copy too."""
    x = images((2, 3, 4, 4), torch.float32)
    before = x.clone()
    with torch.no_grad(), FasterPooling():
        nn.MaxPool2d(1)(x).add_(1)
        nn.AvgPool2d(1)(x).add_(1)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "settings", [([3, 3], [1, 1], [1, 1]), ([3, 3], [2, 2], [1, 1]), ([2, 3],), ([2, 2], [1, 1], [0, 0], [2, 2], True)]
)
def test_maxima_of_the_kernel_have_torchs_places(dtype, settings):
    """Of several equal maxima the first in the window: the cotangent goes there."""
    for shape in SHAPES[:3]:
        x = images(shape, dtype)
        expected = aten.max_pool2d_with_indices.default(x, *settings)
        assert all(torch.equal(a, b) for a, b in zip(max_pool(x, *settings), expected, strict=True))
