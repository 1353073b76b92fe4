"""Convolutions of one, two and three dimensions: nn.ConvNd and F.convNd."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._arguments import arguments, leaf, unfit
from ._base import Call, OneProduct, Operation, Refusal, kind
from ._convolution import Convolution

NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class Conv(OneProduct):
    """Pairs are the input channels, chosen within each group. Padding that is not symmetric and zero is
    done outside, before the product."""

    dims: int

    @classmethod
    def claims(cls, module: nn.Module) -> bool:
        # forward only calls _conv_forward, so a subclass can change the operation there, too
        layer: Any = type(module)
        return super().claims(module) and layer._conv_forward is cls.modules[0]._conv_forward  # type: ignore[attr-defined]

    def operation(self, call: Call) -> Operation | Refusal:
        given = _given(call)
        x, weight, groups = given["input"], given["weight"], given.get("groups", 1)
        if reason := unfit(x, weight):
            return Refusal(reason, 2 * x.numel() * weight.shape[0], tuple(x.shape), tuple(weight.shape))
        stride, dilation = (spread(given.get(name, 1), self.dims) for name in ("stride", "dilation"))
        extent = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding, beside = _padding(given.get("padding", 0), extent)
        if call.module is not None and given["padding_mode"] != "zeros":
            layer: Any = call.module
            x = F.pad(x, layer._reversed_padding_repeated_twice, mode=given["padding_mode"])
            padding = (0,) * self.dims
        elif any(beside):
            x = F.pad(x, [side for more in reversed(beside) for side in (0, more)])
        batched = x.dim() == self.dims + 2
        left = x if batched else x.unsqueeze(0)
        convolution = Convolution(stride, padding, dilation, groups)
        if groups > 1 and weight.shape[1] == 1:
            return depthwise(convolution, left, weight)
        finish = None if batched else partial(torch.squeeze, dim=0)
        return Operation(convolution, left, weight, given.get("bias"), finish)

    @classmethod
    def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
        layer: Any = partial(cls.modules[0], dtype=dtype)
        options: dict[str, Any]
        plane = (7, 6, 5)[: cls.dims]
        x, grouped = leaf(3, 4, *plane, dtype=dtype), leaf(2, 6, *plane, dtype=dtype)
        for options in ({}, {"stride": 2, "padding": 1}, {"dilation": 2, "bias": False}, {"padding": "same"}):
            yield Call((x,), module=layer(4, 5, 3, **options))
        for mode in ("reflect", "replicate", "circular"):
            yield Call((x,), module=layer(4, 5, 3, padding=1, padding_mode=mode))
        yield Call((x,), module=layer(4, 5, 2, padding="same"))  # one more on the right: not symmetric
        yield Call((grouped,), module=layer(6, 4, 3, groups=2, padding="valid"))
        yield Call((leaf(4, *plane, dtype=dtype),), module=layer(4, 5, 3))
        for batch in (0, 1):
            yield Call((leaf(batch, 4, *plane, dtype=dtype),), module=layer(4, 5, 3))
        weight, bias = leaf(9, 2, *[3] * cls.dims, dtype=dtype), leaf(9, dtype=dtype)
        options = {"weight": weight, "groups": 3, "stride": (2,) * cls.dims, "padding": [1]}
        yield Call((grouped,), options, function=cls.functions[0])
        yield Call((grouped[:, :2], weight, bias, 1, "same"), function=cls.functions[0])
        yield Call((grouped,), module=layer(6, 6, 3, groups=6))  # depthwise: refused
        if cls.dims > 1:
            last = torch.channels_last if cls.dims == 2 else torch.channels_last_3d
            image = x.detach().to(memory_format=last).requires_grad_()
            yield Call((image,), module=layer(4, 5, 3, padding=1).to(memory_format=last))
            yield Call((image.mT,), module=layer(4, 4, 3, padding=1, groups=2))


@kind("conv1d", summary="nn.Conv1d and F.conv1d, over input channels, within each group")
class Conv1d(Conv):
    dims, modules, functions = 1, (nn.Conv1d,), (F.conv1d,)


@kind("conv2d", summary="nn.Conv2d and F.conv2d, over input channels, within each group")
class Conv2d(Conv):
    dims, modules, functions = 2, (nn.Conv2d,), (F.conv2d,)


@kind("conv3d", summary="nn.Conv3d and F.conv3d, over input channels, within each group")
class Conv3d(Conv):
    dims, modules, functions = 3, (nn.Conv3d,), (F.conv3d,)


def depthwise(convolution: Convolution, left: Tensor, weight: Tensor) -> Refusal:
    """The refusal of a convolution that contracts nothing over channels."""
    shapes = tuple(left.shape), tuple(weight.shape)
    reason = f"1 channel per group ({convolution.groups} groups): there are no pairs to choose among"
    return Refusal(reason, convolution.flops(*shapes), *shapes)


def spread(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """A number per dimension, given as one for all or one each."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _given(call: Call) -> dict[str, Any]:
    given = arguments(call, *NAMES)
    if call.module is not None:
        names = ("weight", "bias", "stride", "padding", "dilation", "groups", "padding_mode")
        given |= {name: getattr(call.module, name) for name in names}
    return given


def _padding(padding: Any, extent: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
    """The symmetric zero padding, and how much more there is on the right side of each dimension."""
    if padding == "same":
        return tuple(n // 2 for n in extent), [n % 2 for n in extent]
    return spread(0 if padding == "valid" else padding, len(extent)), [0] * len(extent)
