"""Models that a file must rebuild. The fresh process of the tests cannot import this file."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, width: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        stages = [nn.Sequential(Block(width, width), *(Block(width, width) for _ in range(depth - 1)))]
        for stage in range(2):
            wide = width << (stage + 1)
            stages.append(
                nn.Sequential(Block(wide // 2, wide, 2), *(Block(wide, wide) for _ in range(depth - 1)))
            )
        self.stages = nn.ModuleList(stages)
        self.fc = nn.Linear(4 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        return self.fc(x.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("scale", torch.tensor((width // heads) ** -0.5), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * self.scale
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None, :], float("-inf"))
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, 0.1)
        self.mlp = nn.Sequential(
            OrderedDict(up=nn.Linear(width, 4 * width), act=nn.GELU(), down=nn.Linear(4 * width, width))
        )
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.gamma * self.attention(self.norm(x), mask=mask)
        return x + self.mlp(x)


class Language(nn.Module):
    """Tied weights, keyword inputs, a dict as the result, a head that no forward calls."""

    def __init__(self, widths: tuple[int, ...] = (16, 16, 16), heads: tuple[int, ...] = (2, 2, 4)) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, widths[0])
        self.layers = nn.ModuleList(Layer(w, h) for w, h in zip(widths, heads, strict=True))
        self.norm = nn.LayerNorm(widths[0])
        self.head = nn.Linear(widths[0], 50, bias=False)
        self.head.weight = self.embed.weight
        self.unused = nn.ModuleDict({"probe": nn.Linear(widths[0], 3)})

    def forward(
        self, tokens: Tensor, *, mask: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, mask)
        logits = self.head(self.norm(x))
        result = {"logits": logits, "hidden": x}
        if labels is not None:
            result["loss"] = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return result


class StdConv(nn.Conv2d):
    """A subclass of a torch layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / (
            self.weight.std((1, 2, 3), keepdim=True) + 1e-5
        )
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Odds(nn.Module):
    """Computed weights, shared layers, frozen parts, parameters in lists, constants and plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.std = StdConv(3, 8, 3, padding=1)
        self.weighted = parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.spectral = parametrizations.spectral_norm(nn.Linear(8, 8))
        self.first = nn.Linear(8, 8)
        self.again = self.first
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.scales = nn.ParameterList([nn.Parameter(torch.full((8,), 0.1 * (i + 1))) for i in range(3)])
        self.table = torch.linspace(0.5, 1.5, 8)  # neither parameter nor buffer
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.fixed = nn.BatchNorm1d(8)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.weighted(F.relu(self.std(images)))).mean((2, 3))
        x = self.again(F.relu(self.first(self.spectral(x)))) + self.frozen(x)
        for scale in self.scales:
            x = x * (1 + scale)
        x = self.fixed(x) * self.table + torch.tensor([0.5, -0.5] * 4)
        return x, x.square().mean()


class Encoder(nn.Module):
    """torch's own encoder layers, opened where a site lies inside."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.recurrent = nn.GRU(16, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrent(self.encoder(x))
        return self.head(states[:, -1])


class EarlyExit(nn.Module):
    """Decides on the values it computes."""

    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        self.threshold, self.sizes = 0.95, (12, 4)
        self.stem = nn.Linear(20, 12)
        self.blocks = nn.ModuleList(Gate(12) for _ in range(steps))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
            if self.head(x).softmax(-1).amax(-1).mean() > self.threshold:
                break
        return self.head(x)


class Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.value(x) * self.gate(x).sigmoid()


class Temporal(nn.Sequential):
    """A sequence with a forward of its own, of layers and of modules that take more than tensors."""

    def __init__(self) -> None:
        layers = (
            parametrizations.weight_norm(nn.Conv1d(8, 8, 3, padding=2**i, dilation=2**i)) for i in range(3)
        )
        super().__init__(*layers, nn.Sequential(nn.Conv1d(8, 8, 1), nn.ReLU()), Window(3))
        self.gain = nn.Parameter(torch.ones(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self)[:-1]:
            x = x + torch.relu(layer(x)) * self.gain
        return self[-1](x, slice(1, None))


class Window(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool1d(size, 1)

    def forward(self, x: Tensor, where: slice) -> Tensor:
        return self.pool(x)[..., where]


def temporal() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    return Temporal(), (torch.randn(3, 8, 12),), {}


def weight_norm() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    layers = [
        parametrizations.weight_norm(nn.Conv1d(8, 8, 3)),
        nn.ReLU(),
        nn.utils.weight_norm(nn.Conv1d(8, 4, 3)),
    ]
    return nn.Sequential(*layers), (torch.randn(3, 8, 12),), {}


def resnet() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    return ResNet(), (torch.randn(4, 3, 8, 8),), {}


def channels_last() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    return ResNet().to(memory_format=torch.channels_last), (torch.randn(4, 3, 8, 8),), {}


def double() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    return ResNet().double(), (torch.randn(4, 3, 8, 8, dtype=torch.float64),), {}


def language() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    tokens = torch.randint(0, 50, (3, 7))
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[:, -1] = True
    return Language(), (tokens,), {"mask": mask, "labels": tokens.roll(1, 1)}


def odds() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    return Odds(), (torch.randn(4, 3, 6, 6),), {}


def encoder() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    return Encoder(), (torch.randn(3, 5, 16),), {}


def sequential() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    return (
        nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Dropout(0.2), nn.Linear(30, 4)),
        (torch.randn(6, 20),),
        {},
    )


ALL = (resnet, channels_last, double, language, odds, encoder, sequential, temporal, weight_norm)
