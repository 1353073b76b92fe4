"""Small models that tracers get wrong: each must be captured exactly, or left opaque with a reason."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

GLOBAL = torch.arange(8.0)


class Base(nn.Module):
    """Two layers of 8 features, two buffers and a counter to play with."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.n = 0
        self.register_buffer("buf", torch.zeros(8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))


# ---- what must be captured


class RandomNumbers(Base):
    def forward(self, x):
        return self.b(self.a(x) + torch.rand(8) * torch.randn_like(x))


class NoGradRegion(Base):
    def forward(self, x):
        with torch.no_grad():
            gate = self.a(x).relu()
            with torch.enable_grad():
                extra = self.b(gate)
        return self.b(x) * gate + extra


class DecoratedNoGrad(Base):
    @torch.no_grad()
    def average(self, x):
        self.buf.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)

    def forward(self, x):
        y = self.a(x)
        self.average(y)
        return self.b(y)


class AutocastRegions(Base):
    def forward(self, x):
        x = self.a(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.b(x)
            with torch.autocast("cpu", enabled=False):
                y = self.b(y.float())
        return y


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, k):
        ctx.save_for_backward(x)
        return x * x * k

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0] * 5, None


square = Square.apply  # bound before any trace begins


class CustomFunction(Base):
    def forward(self, x):
        return self.b(Square.apply(self.a(x), 2)) + square(x, 3)


class BufferInPlace(Base):
    def forward(self, x):
        self.buf += x.detach().mean(0)
        self.steps += 1
        return self.b(self.a(x)) + self.buf * self.steps


class FunctionalDropout(Base):
    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.5, self.training))


class DropPath(Base):
    def forward(self, x):
        y = self.a(x)
        if not self.training:
            return self.b(y)
        return self.b(y * y.new_empty((y.shape[0], 1)).bernoulli_(0.7) / 0.7)


class Masked(Base):
    def forward(self, x):
        y = self.a(x).clone()
        y[x > 0.5] = 0.0
        return self.b(torch.where((x[:, 0] > 0)[:, None], y, -y))


class Numpy(Base):
    def forward(self, x):
        ramp = torch.from_numpy(np.arange(8, dtype=np.float32))
        return self.b(self.a(x) + ramp + torch.tensor(np.ones(8, np.float32)) + torch.FloatTensor([0.5]))


class FromOutside(Base):
    def forward(self, x):
        return self.b(self.a(x) + GLOBAL.to(x.device))


class SharedLayer(Base):
    def forward(self, x):
        for _ in range(3):
            x = self.a(x).relu()
        return self.b(x)


class Flagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, flag=False, scale=1.0):
        return self.layer(x) * scale if flag else self.layer(x) + F.linear(x, self.layer.weight) * scale


class DifferentCalls(Base):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Flagged()

    def forward(self, x):
        return self.inner(x, flag=True) + self.inner(x, flag=False)


class DifferentConstants(Base):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Flagged()

    def forward(self, x):
        return self.inner(x, scale=2.0) + self.inner(x, scale=3.0)


class Filler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, given):
        given["y"] = F.linear(given["x"], self.layer.weight)


class ChangesItsArgument(Base):
    def __init__(self) -> None:
        super().__init__()
        self.filler = Filler()

    def forward(self, x):
        given = {"x": x}
        self.filler(given)
        return self.b(given["y"])


class Cache:
    def __init__(self) -> None:
        self.items: list[Tensor] = []

    def update(self, item: Tensor) -> Tensor:
        self.items.append(item)
        return torch.stack(self.items).sum(0)


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, cache):
        return cache.update(F.linear(x, self.layer.weight))


class CarriesACache(Base):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Cached(), Cached()])

    def forward(self, x):
        cache = Cache()
        for block in self.blocks:
            x = block(x, cache)
        return self.b(x), cache


class ReadsItsChild(Base):
    """Uses a tensor that a child keeps, not returns."""

    def __init__(self) -> None:
        super().__init__()
        self.filler = Filler()

    def forward(self, x):
        box = {"x": x}
        self.filler(box)
        return self.b(box["x"] + box["y"])


class Hooked(Base):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Flagged()
        self.inner.register_forward_hook(lambda module, args, out: out * 2)
        self.inner.register_forward_pre_hook(lambda module, args: (args[0] + 1,))

    def forward(self, x):
        return self.b(self.inner(x))


class Normed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.d = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))

    def forward(self, x):
        return self.d(self.c(x)) + F.linear(x, self.c.weight)


class Aliases(Base):
    def forward(self, x):
        y = self.a(x)
        z = y.contiguous()
        w = F.dropout(y, 0.3, self.training)
        z = z * 1
        return self.b(y + w) + z


class InPlaceViews(Base):
    def forward(self, x):
        y = self.a(x).clone()
        y[:, :4].mul_(2)
        y[:, 0] += 1
        y.add_(x)
        return self.b(y)


@dataclass
class Result:
    value: Tensor
    number: int = 0


class Structured(Base):
    def forward(self, x):
        return {"r": Result(self.b(self.a(x)), 3), "list": [x, None, 3], "tuple": (self.a(x), {"k": x})}


class Complex(Base):
    def forward(self, x):
        spectrum = torch.fft.rfft(self.a(x))
        return self.b(torch.fft.irfft(spectrum * torch.polar(spectrum.abs(), spectrum.angle()), n=8))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.lstm, self.b = nn.Linear(8, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 8)

    def forward(self, x):
        y, (h, c) = self.lstm(self.a(x)[:, None].expand(-1, 5, -1))
        return self.b(y[:, -1] + h[0] + c[-1])


class InnerGradient(Base):
    def forward(self, x):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(self.a(x).pow(2).sum(), x, create_graph=True)
        return self.b(grad)


class Sizes(Base):
    """Sizes in every form that must follow the batch."""

    def forward(self, x):
        n, d = x.shape
        y = self.a(x).reshape(n * 2, d // 2).view(-1, n, d // 2).transpose(0, 1).reshape(len(x), -1)
        mask = torch.ones(x.size(0) + 1, n).tril()[:n]
        return self.b(mask @ y) / n + torch.arange(n, device=x.device).view(n, 1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (
            nn.MultiheadAttention(8, 2, 0.1, batch_first=True),
            nn.TransformerEncoderLayer(8, 2, 16),
        )

    def forward(self, x):
        x = x[:, None].expand(-1, 3, -1)
        return self.b(x + self.a(x, x, x)[0])


# ---- what cannot be captured


class PythonRandom(Base):
    def forward(self, x):
        x = self.a(x)
        return self.b(x + 1 if random.random() < 0.5 else x)


class NumpyRandom(Base):
    def forward(self, x):
        return self.b(self.a(x) * float(np.random.rand()))


def _local() -> Any:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 7

    return Doubled


class LocalFunction(Base):
    def __init__(self) -> None:
        super().__init__()
        self.__dict__["function"] = _local()

    def forward(self, x):
        return self.b(self.function.apply(self.a(x)))


class Counter(Base):
    def forward(self, x):
        self.n += 1
        return self.b(self.a(x)) * self.n


class BufferReplaced(Base):
    def forward(self, x):
        self.buf = self.buf + 1
        return self.b(self.a(x)) + self.buf


class ReadsNumpy(Base):
    def forward(self, x):
        return self.b(self.a(x)) * float(x.detach().numpy().mean())


class BranchOnData(Base):
    def forward(self, x):
        y = self.a(x)
        return self.b(y * 2 if y.sum() > 0 else y)


class SizeFromData(Base):
    def forward(self, x):
        return self.b(self.a(x)) * (x[:, 0] > 0).nonzero().shape[0]


class KeepsALog(Base):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[Any] = []

    def forward(self, x):
        self.log.append(x.shape)
        return self.b(self.a(x)) * len(self.log)


class Checkpointed(Base):
    def forward(self, x):
        return self.b(checkpoint(lambda t: F.linear(t, self.a.weight).relu(), x, use_reentrant=False))


class CheckpointedOldWay(Base):
    def forward(self, x):
        return self.b(checkpoint(self.a, x, use_reentrant=True))


class Unregistered(Base):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(8, 8)]

    def forward(self, x):
        return self.b(self.layers[0](x))


CAPTURED = [
    RandomNumbers, NoGradRegion, DecoratedNoGrad, AutocastRegions, CustomFunction, BufferInPlace,
    FunctionalDropout, DropPath, Masked, Numpy, FromOutside, SharedLayer, DifferentCalls, DifferentConstants,
    ChangesItsArgument, CarriesACache, ReadsItsChild, Hooked, Normed, Aliases, InPlaceViews, Structured,
    Complex, Recurrent, InnerGradient, Sizes, Attention,
]  # fmt: skip
OPAQUE = {
    PythonRandom: "Python's or numpy's random generator",
    NumpyRandom: "Python's or numpy's random generator",
    LocalFunction: "cannot be imported by name",
    Counter: "assigns n",
    BufferReplaced: "assigns buf",
    ReadsNumpy: ".numpy()",
    BranchOnData: "branches on a tensor's value",
    SizeFromData: "size that depends on a tensor's values",
    KeepsALog: "changes self.log",
    Checkpointed: "checkpointing",
    CheckpointedOldWay: "checkpoints",
    Unregistered: "from outside the model",
}


COUNT = 0


class GlobalCounter(Base):
    def forward(self, x):
        global COUNT
        COUNT += 1
        return self.b(self.a(x)) * COUNT


class ClassCounter(Base):
    total = 0

    def forward(self, x):
        ClassCounter.total += 1
        return self.b(self.a(x)) * ClassCounter.total


class OwnGenerator(Base):
    def __init__(self) -> None:
        super().__init__()
        self.source = np.random.default_rng(0)

    def forward(self, x):
        return self.b(self.a(x) * float(self.source.random()))


class Seeds(Base):
    def forward(self, x):
        torch.manual_seed(3)
        return self.b(self.a(x) + torch.rand(8))


class ClosureOverItself(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))
        self.scaled = lambda x: x * self.gain

    def forward(self, x):
        return self.b(self.scaled(self.a(x)))


class OtherParameters(Base):
    def forward(self, x):
        borrowed = {"weight": self.a.weight * 2, "bias": self.a.bias}
        return self.b(torch.func.functional_call(self.a, borrowed, (x,)))


class Mapped(Base):
    def forward(self, x):
        return self.b(torch.vmap(lambda row: row * row.sum())(self.a(x)))


class Transformed(Base):
    def forward(self, x):
        return self.b(torch.func.grad(lambda y: (y * y).sum())(self.a(x)))


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * 2 + 1


class Scripted(Base):
    def forward(self, x):
        return self.b(scripted(self.a(x)))


OPAQUE |= {
    GlobalCounter: "global COUNT",
    ClassCounter: "global total",
    OwnGenerator: "changes self.source",
    Seeds: "seeds torch's random generator",
    ClosureOverItself: "a closure holds the model itself",
    OtherParameters: "with other parameters than its own",
    Mapped: "torch.func",
    Transformed: "torch.func",
    Scripted: "a trace cannot look into",
}
# Their state is no copy's own: two runs of the model itself differ.
UNREPEATABLE = (PythonRandom, NumpyRandom, GlobalCounter, ClassCounter)
