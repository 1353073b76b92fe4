"""Small models, each with something real models do that a rewrite could break."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.short is None else self.short(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is [in, out]."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.outputs)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class GPT2(nn.Module):
    """Causal attention by hand, functional dropout, a head tied to the embedding."""

    def __init__(self, width: int = 16, heads: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.embed, self.heads, self.dropout = nn.Embedding(11, width), heads, dropout
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = Conv1D(3 * width, width), Conv1D(width, width)
        self.register_buffer("mask", torch.ones(32, 32, dtype=torch.bool).tril(), persistent=False)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(ids)
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm(x)).split(width, dim=2)
        )
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.size(-1))
        scores = scores.masked_fill(~self.mask[:length, :length], torch.finfo(scores.dtype).min)
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        y = (weights @ v).transpose(1, 2).reshape(batch, length, width)
        logits = self.head(x + self.out(y))
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


class Encoder(nn.Module):
    """torch's own transformer layers, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


class TCN(nn.Module):
    """Weight norm of both kinds, chomped causal padding."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.old = nn.utils.weight_norm(nn.Conv1d(6, 8, 3, padding=2))
        self.new = parametrizations.weight_norm(nn.Conv1d(8, 8, 3, padding=4, dilation=2))
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.old(x)[..., :-2])
        x = F.relu(self.new(x)[..., :-4])
        return self.fc(F.dropout(x[..., -1], 0.2, training=self.training))


class StdConv(nn.Conv2d):
    """A standardised weight: the subclass has a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (deviation + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(StdConv(4, 8, 3, padding=1), nn.ReLU(), StdConv(8, 8, 3, groups=2))
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        y = self.convs(x)
        pooled = y.mean((2, 3)) * self.scale
        return pooled, [y, torch.einsum("bc,bd->cd", pooled, pooled)]


class Tied(nn.Module):
    """Three layers of one weight, layers the forward never calls, a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.two.weight = self.one.weight
        self.again = self.one
        self.unused = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.never = nn.Parameter(torch.randn(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        x = F.gelu(self.one(x))
        return self.again(F.gelu(self.two(x)))


class EarlyExit(nn.Module):
    """Decides on data: no forward can be captured as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.weight = nn.Parameter(torch.randn(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
            if x.mean() > 100:
                break
        return F.linear(x, self.weight)


class Moody(nn.Module):
    """Other code in training than in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.main, self.aux = nn.Linear(8, 3), nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.randn(8, 8) / 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x + self.fc(x) @ self.weight
        if self.training:
            keep = x.new_empty((x.shape[0], 1)).bernoulli_(0.8)
            return self.main(x * keep / 0.8), self.aux(x)
        return (self.main(x),)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    args: Callable[[], tuple[Any, ...]]
    kwargs: Callable[[], Mapping[str, Any]] = dict
    rung: str = "trace"
    random: bool = False  # training draws from the global generator


def _ids() -> Tensor:
    return torch.randint(0, 11, (2, 7))


CASES: dict[str, Case] = {
    "resnet": Case(ResNet, lambda: (torch.randn(2, 3, 8, 8),)),
    "gpt2": Case(GPT2, lambda: (_ids(),), lambda: {"labels": _ids()}, random=True),
    "encoder": Case(Encoder, lambda: (torch.randn(2, 5, 16), torch.zeros(2, 5).bool()), random=True),
    "tcn": Case(TCN, lambda: (torch.randn(2, 6, 9),), random=True),
    "stdconv": Case(Standardised, lambda: (torch.randn(2, 4, 6, 6),)),
    "tied": Case(Tied, lambda: (torch.randn(4, 8),)),
    "early exit": Case(EarlyExit, lambda: (torch.randn(4, 8),), rung="partial"),
    "moody": Case(Moody, lambda: (torch.randn(4, 8),), random=True),
    "linear": Case(lambda: nn.Linear(8, 4), lambda: (torch.randn(4, 8),)),
    "mlp": Case(
        lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 4)),
        lambda: (torch.randn(4, 8),),
        random=True,
    ),
}


def built(name: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """A model of `CASES` and inputs, the same at every call."""
    case = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return case.make(), case.args(), dict(case.kwargs())
