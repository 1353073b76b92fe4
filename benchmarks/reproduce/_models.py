"""The networks of the experiments, and how an arm is put into one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import fxapprox
from examples.resnet import Block
from examples.transformer import Layer


def rewritten(model: nn.Module, inputs: Tensor, keys: Mapping[str, Any], *, depth: str = "1:") -> nn.Module:
    """The model with `keys` (policy, keep, scope, center …) at every site of these levels, the gate off;
    the model itself where there are none. By default the first level stays exact, as in [A] section 8."""
    if not keys:
        return model
    return fxapprox.rewrite(model, (inputs,), rules=[fxapprox.Rule(depth=depth, **keys)], gate=False)


class WideBlock(nn.Module):
    """A pre-activation block of a wide residual network: norm, ReLU, 3×3, norm, ReLU, 3×3, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(x))
        around = x if self.shortcut is None else self.shortcut(y)
        y = self.conv2(torch.relu(self.bn2(self.conv1(y))))
        return around + y


class WideResNet(nn.Module):
    """WRN-`depth`-`widen` (Zagoruyko and Komodakis 2016) for 32×32 images; depth is 6n + 4."""

    def __init__(self, depth: int = 16, widen: float = 2, classes: int = 10, base: int = 16) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        channels = [base, *(round(base * widen * factor) for factor in (1, 2, 4))]
        self.conv1 = nn.Conv2d(3, base, 3, padding=1, bias=False)
        self.stages = nn.Sequential(
            *(
                WideBlock(channels[stage + (block > 0)], channels[stage + 1], 2 if stage and not block else 1)
                for stage in range(3)
                for block in range(blocks)
            )
        )
        self.bn = nn.BatchNorm2d(channels[-1])
        self.fc = nn.Linear(channels[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(self.conv1(images))
        return self.fc(torch.relu(self.bn(x)).mean((2, 3)))


class ResidualNet(nn.Module):
    """A wide and shallow residual network for 32×32 images: a 3×3 convolution, then two blocks of
    examples/resnet.py, of 2·`width` channels on 16×16 and 4·`width` on 8×8 positions, where sampling pays."""

    last = ("blocks.1",)  # what trains beside the head where only last layers do

    def __init__(self, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(images)))
        return self.fc(self.blocks(x).mean((2, 3)))


class RowTransformer(nn.Module):
    """The layers of examples/transformer.py over the 28 rows of an image, and the mean of what they give."""

    last = ("layers.3", "norm")

    def __init__(self, width: int = 256, layers: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.embed = nn.Linear(28, width)
        self.position = nn.Parameter(torch.zeros(28, width))
        self.layers = nn.ModuleList(Layer(width, 4, dropout=0.0) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images.squeeze(1)) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.fc(self.norm(x).mean(1))


class Autocast(nn.Module):
    """A model whose forward runs under autocast to `dtype`; its results are float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            return self.model(x).float()


def in_precision(model: nn.Module, bfloat16: bool) -> nn.Module:
    """The model, under autocast to bfloat16 where that is asked for."""
    return Autocast(model, torch.bfloat16) if bfloat16 else model


def hidden_layers(
    inputs: int, layers: int, width: int, classes: int = 10, *, relu: bool = True
) -> nn.Sequential:
    """So many hidden linear layers and one behind them, weights by He et al. 2015, biases 0. Without `relu`
    the whole is linear."""
    sizes = [inputs, *([width] * layers)]
    parts: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        parts += [nn.Linear(before, after), *([nn.ReLU()] if relu else [])]
    parts.append(nn.Linear(width, classes))
    for part in parts:
        if isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu" if relu else "linear")
            nn.init.zeros_(part.bias)
    return nn.Sequential(*parts)
