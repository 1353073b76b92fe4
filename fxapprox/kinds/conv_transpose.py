"""Transposed convolutions of one, two and three dimensions: nn.ConvTransposeNd and F.conv_transposeNd."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ._arguments import arguments, leaf, unfit
from ._base import Call, OneProduct, Operation, Refusal, kind
from ._convolution import Convolution
from .conv import depthwise, spread

NAMES = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


class ConvTranspose(OneProduct):
    """The weight is `[in, out/groups, …]`; pairs are the input channels, chosen within each group."""

    dims: int

    @classmethod
    def claims(cls, module: nn.Module) -> bool:
        # forward asks _output_padding for the geometry, so a subclass can change it there, too
        layer: Any = type(module)
        return super().claims(module) and layer._output_padding is nn.ConvTranspose2d._output_padding

    def operation(self, call: Call) -> Operation | Refusal:
        given = self._given(call)
        x, weight, groups = given["input"], given["weight"], given.get("groups", 1)
        if reason := unfit(x, weight):
            flops = 2 * x.numel() * weight.numel() // max(weight.shape[0], 1)
            return Refusal(reason, flops, tuple(x.shape), tuple(weight.shape))
        stride, dilation = (spread(given.get(name, 1), self.dims) for name in ("stride", "dilation"))
        padding, spare = (spread(given.get(name, 0), self.dims) for name in ("padding", "output_padding"))
        convolution = Convolution(stride, padding, dilation, groups, True, spare)
        batched = x.dim() == self.dims + 2
        left = x if batched else x.unsqueeze(0)
        if groups > 1 and weight.shape[0] == groups:
            return depthwise(convolution, left, weight)
        finish = None if batched else partial(torch.squeeze, dim=0)
        return Operation(convolution, left, weight, given.get("bias"), finish)

    def _given(self, call: Call) -> dict[str, Any]:
        layer: Any = call.module
        if layer is None:
            return arguments(call, *NAMES)
        given = arguments(call, "input", "output_size")
        names = ("weight", "bias", "stride", "padding", "dilation", "groups")
        spare = layer._output_padding(
            given["input"], given.get("output_size"), layer.stride, layer.padding, layer.kernel_size,
            self.dims, layer.dilation,
        )  # fmt: skip
        return given | {name: getattr(layer, name) for name in names} | {"output_padding": spare}

    @classmethod
    def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
        layer: Any = partial(cls.modules[0], dtype=dtype)
        plane = (5, 4, 3)[: cls.dims]
        x, grouped = leaf(3, 4, *plane, dtype=dtype), leaf(2, 6, *plane, dtype=dtype)
        options: dict[str, Any]
        for options in ({}, {"stride": 2, "padding": 1, "output_padding": 1}, {"dilation": 2, "bias": False}):
            yield Call((x,), module=layer(4, 5, 3, **options))
        size = [2 * n for n in plane]
        yield Call((x,), {"output_size": size}, module=layer(4, 5, 3, stride=2, padding=1))
        yield Call((grouped,), module=layer(6, 4, 3, groups=2))
        yield Call((grouped,), module=layer(6, 6, 3, groups=6))  # depthwise: refused
        yield Call((leaf(4, *plane, dtype=dtype),), module=layer(4, 5, 3))
        for batch in (0, 1):
            yield Call((leaf(batch, 4, *plane, dtype=dtype),), module=layer(4, 5, 3))
        weight, bias = leaf(6, 2, *[3] * cls.dims, dtype=dtype), leaf(6, dtype=dtype)
        yield Call((grouped, weight, bias, 2, 0, 1, 3), function=cls.functions[0])
        yield Call((grouped,), {"weight": weight, "padding": (1,) * cls.dims}, function=cls.functions[0])


@kind("conv_transpose1d", summary="nn.ConvTranspose1d and F.conv_transpose1d, over input channels")
class ConvTranspose1d(ConvTranspose):
    dims, modules, functions = 1, (nn.ConvTranspose1d,), (F.conv_transpose1d,)


@kind("conv_transpose2d", summary="nn.ConvTranspose2d and F.conv_transpose2d, over input channels")
class ConvTranspose2d(ConvTranspose):
    dims, modules, functions = 2, (nn.ConvTranspose2d,), (F.conv_transpose2d,)


@kind("conv_transpose3d", summary="nn.ConvTranspose3d and F.conv_transpose3d, over input channels")
class ConvTranspose3d(ConvTranspose):
    dims, modules, functions = 3, (nn.ConvTranspose3d,), (F.conv_transpose3d,)
