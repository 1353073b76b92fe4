"""Convolutions: padding, groups, sizes; transposed ones; numbers against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from fxapprox.kinds._convolution import Convolution

from .normal_form import flops_of, operation_of, parts_of, refusal_of, sizes_of

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, "same", "valid", (2, 1)])
@pytest.mark.parametrize("kernel", [3, 2, (2, 3)])
def test_padding_is_torchs_to_the_bit(mode: str, padding: Any, kernel: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(
        4, 5, kernel, padding=padding, padding_mode=mode, dilation=2 if padding == "same" else 1
    )
    x = torch.randn(2, 4, 8, 9)
    assert torch.equal(parts_of(layer, x)[0], layer(x))


@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (4, 1), (2, 3), (3, 2)])
def test_functional_same_padding_is_torchs_to_the_bit(kernel: int, dilation: int) -> None:
    x, weight = torch.randn(2, 3, 10), torch.randn(4, 3, kernel)
    wanted = F.conv1d(x, weight, padding="same", dilation=dilation)
    assert torch.equal(parts_of(F.conv1d, x, weight, padding="same", dilation=dilation)[0], wanted)


def test_sizes_of_a_grouped_convolution() -> None:
    operation = operation_of(nn.Conv2d(12, 8, 3, groups=4), torch.randn(5, 12, 6, 6))
    assert sizes_of(operation) == {
        "forward": (4, 3, "in channels"),
        "grad_input": (4, 2, "out channels"),
        "grad_weight": (1, 5, "batch"),
    }


def test_sizes_of_a_transposed_convolution() -> None:
    operation = operation_of(nn.ConvTranspose2d(12, 8, 3, groups=4), torch.randn(5, 12, 6, 6))
    assert sizes_of(operation) == {
        "forward": (4, 3, "in channels"),
        "grad_input": (4, 2, "out channels"),
        "grad_weight": (1, 5, "batch"),
    }


@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_groups_choose_for_themselves(layer: Any) -> None:
    """Pair 0 of the first group and pair 1 of the second are the channels 0 and 3 of 4."""
    x = torch.randn(2, 4, 5, 5)
    operation = operation_of(layer(4, 6, 3, groups=2, bias=False), x)
    index = torch.tensor([[0], [1]])
    kept = operation.bilinear.take("forward", 0, operation.left, index)
    assert torch.equal(kept, x[:, [0, 3]])
    short = operation.bilinear.take("forward", 1, operation.right, index)
    silent = x.clone()
    silent[:, [1, 2]] = 0
    wanted = operation.bilinear.forward(silent, operation.right, None)
    torch.testing.assert_close(operation.bilinear.forward(kept, short, None), wanted)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_depthwise_is_refused_with_its_flops(dims: int, transposed: bool) -> None:
    layer = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")(6, 12, 3, groups=6)
    refusal = refusal_of(layer, torch.randn(2, 6, *[5] * dims))
    assert refusal.reason == "1 channel per group (6 groups): there are no pairs to choose among"
    positions = 5**dims if transposed else 3**dims
    assert refusal.flops == 2 * 2 * positions * layer.weight.numel()
    assert refusal.right == tuple(layer.weight.shape)


def test_one_input_channel_is_no_depthwise_convolution() -> None:
    assert sizes_of(operation_of(nn.Conv2d(1, 8, 3), torch.randn(4, 1, 8, 8)))["forward"][:2] == (1, 1)


def test_flops_by_hand() -> None:
    # 2 examples, 4×3 output positions, 8 out channels, each from 12/4 channels of 3×5
    layer = nn.Conv2d(12, 8, (3, 5), stride=(2, 3), padding=(1, 2), groups=4)
    operation = operation_of(layer, torch.randn(2, 12, 8, 9))
    assert flops_of(operation) == 2 * 2 * (4 * 3) * 8 * 3 * 15


def test_a_parametrized_weight_is_a_weight() -> None:
    layer = parametrizations.weight_norm(nn.Conv1d(4, 5, 3))
    operation = operation_of(layer, torch.randn(2, 4, 8))
    assert operation.weight
    operation_of(F.conv1d, torch.randn(2, 4, 8), layer.weight / 2)


def test_module_by_keyword_and_output_size() -> None:
    layer, x = nn.ConvTranspose2d(4, 5, 3, stride=2), torch.randn(2, 4, 5, 5)
    for size in ([11, 12], [2, 5, 12, 11]):
        assert torch.equal(parts_of(layer, input=x, output_size=size)[0], layer(x, output_size=size))


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_keep_channels_last(groups: int) -> None:
    convolution = Convolution((1, 1), (1, 1), (1, 1), groups)
    last: Any = torch.channels_last
    left, right = (torch.randn(2, 8, 6, 6).to(memory_format=last), torch.randn(8, 8 // groups, 3, 3))
    right = right.to(memory_format=last)
    grad = convolution.forward(left, right, None)
    results: list[Tensor] = [grad, convolution.grad_left(grad, right, tuple(left.shape))]
    results.append(convolution.grad_right(grad, left, tuple(right.shape)))
    assert all(result.is_contiguous(memory_format=last) for result in results)
